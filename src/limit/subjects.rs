//! What one request is subject to: all of its limits must admit, and a refusal costs nothing.
//!
//! Each bucket has a lock of its own, held for some nanoseconds and never across an await. A request holds the locks
//! of all buckets that must admit it at once, always in the order of `SCOPES`, so that no refusal by one takes from
//! another even for a moment: never one more than a bucket allows, and never one fewer.

use std::ops::Deref;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use arrayvec::ArrayVec;

use super::account::{Account, Reserved};
use super::bucket::{Bucket, Level, Loan, Ruling};
use super::budget::Budget;
use super::name::{Kind, Limit, Scope};
use super::quota::{Place, Quota};
use super::rate::Rate;
use super::shared::{FarLoan, Lease, Owed, Share};

const SCOPES_MAX: usize = 5;

/// The order of locks, and of refusals that take as long.
const SCOPES: [Scope; SCOPES_MAX] = [Scope::Gateway, Scope::Key, Scope::User, Scope::Model, Scope::KeyModel];

/// The quotas of one request, by their places in `SCOPES`.
#[derive(Debug, Clone, Default)]
pub struct Subjects([Option<Arc<Quota>>; SCOPES_MAX]);

/// A refusal: which limit, and the true wait until it would admit (for concurrency, unknown). Of several limits that
/// refuse it is the one that does so for the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub limit: Limit,
    /// `None`: unknown, or never.
    pub wait: Option<Duration>,
    pub allows: Allows,
    /// What is left in the tightest bucket that applies.
    pub level: Option<Level>,
}

/// What the limit allows, as the operator wrote it, and what was asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allows {
    /// Requests in a time.
    Rate(Rate),
    /// So many requests at once.
    AtOnce(u32),
    /// Tokens in a time, of which the request asks for so many; `left`: as many as there are.
    Tokens { rate: Rate, asked: u64, left: u64 },
    /// An amount in a calendar period, so much of which is used or reserved.
    /// `spent_up`: what is spent alone leaves too little.
    Budget { budget: Budget, asked: u64, used: u64, spent_up: bool },
}

/// A request's places among those at once, returned when this is dropped.
#[derive(Debug, Default)]
pub struct Permit {
    pub(super) places: ArrayVec<(Scope, Place), SCOPES_MAX>,
    /// The tightest bucket of requests that applies.
    pub level: Option<Level>,
    /// The same places, where processes share them.
    pub(super) lease: Option<Lease>,
}

/// Tokens that a request may use: all given back when this is dropped, unless it is settled.
#[derive(Debug)]
pub struct Reservation {
    subjects: Subjects,
    /// By the buckets' order; empty once it is settled.
    loans: ArrayVec<Loan, SCOPES_MAX>,
    /// Of buckets that processes share, in place of these.
    far: Option<FarLoan>,
    /// Where it was reserved here since they could not be asked: they are told what was used.
    owes: Option<Owed>,
    tokens: u64,
    /// The tightest bucket of tokens that applies.
    pub level: Option<Level>,
    _reserved: Option<Reserved>,
    /// The same of budgets that processes share.
    share: Option<Share>,
}

/// What has been spent of a budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    pub requests: u64,
    pub tokens: u64,
    /// Until the period ends.
    pub ends_in: Duration,
}

pub(super) type Locked<'a> = ArrayVec<(Scope, &'a Quota, MutexGuard<'a, Bucket>), SCOPES_MAX>;

impl Subjects {
    /// Makes the request subject to one more; in any order.
    pub(super) fn add(&mut self, scope: Scope, quota: Arc<Quota>) {
        if let Some(at) = SCOPES.iter().position(|known| *known == scope) {
            self.0[at] = Some(quota);
        }
    }

    pub(super) fn quotas(&self) -> impl Iterator<Item = (Scope, &Arc<Quota>)> {
        SCOPES.iter().zip(&self.0).filter_map(|(scope, quota)| Some((*scope, quota.as_ref()?)))
    }

    pub(super) fn lock(&self, kind: Kind) -> Locked<'_> {
        self.quotas().filter_map(|(scope, quota)| Some((scope, quota.as_ref(), quota.lock(kind)?))).collect()
    }

    /// Whether tokens are limited at all.
    pub fn limit_tokens(&self) -> bool {
        self.quotas().any(|(_, quota)| quota.allowance().tokens.is_some())
    }

    /// What is left of the tightest bucket of tokens that applies.
    pub fn tokens(&self, now: Duration) -> Option<Level> {
        tightest(&self.lock(Kind::Tokens), now)
    }

    /// Takes the request's places, if its buckets would admit it now; takes nothing of those.
    pub fn enter_with(&self, held: Permit, now: Duration) -> Result<Permit, Refused> {
        self.enter_by(&self.lock(Kind::Requests), held, now)
    }

    /// Admits a request at `now` or says which limit did not.
    pub fn admit(&self, now: Duration) -> Result<Permit, Refused> {
        self.admit_with(Permit::default(), now)
    }

    /// Does the same for a request that has [entered](Self::enter_with).
    pub fn admit_with(&self, held: Permit, now: Duration) -> Result<Permit, Refused> {
        let mut buckets = self.lock(Kind::Requests);
        let mut permit = self.enter_by(&buckets, held, now)?;
        buckets.iter_mut().for_each(|(.., bucket)| bucket.take(1, now));
        permit.level = tightest(&buckets, now);
        Ok(permit)
    }

    /// Adds the places that are not held yet.
    fn enter_by(&self, buckets: &Locked<'_>, mut held: Permit, now: Duration) -> Result<Permit, Refused> {
        if let Some(refused) = refusal(buckets, Kind::Requests, 1, now) {
            return Err(refused);
        }
        let level = tightest(buckets, now);
        for (scope, quota) in self.quotas() {
            if held.places.iter().any(|(other, _)| *other == scope) {
                continue;
            }
            let limit = Limit { scope, kind: Kind::Concurrent };
            let full = |most| Refused { limit, wait: None, allows: Allows::AtOnce(most), level };
            held.places.extend(quota.enter().map_err(full)?.map(|place| (scope, place)));
        }
        held.level = level;
        Ok(held)
    }

    /// Whether so many tokens could be reserved now. Takes nothing.
    pub fn would_reserve(
        &self,
        account: Option<&Arc<Account>>,
        tokens: u64,
        now: Duration,
        spent: impl Fn(&Budget) -> Spent,
    ) -> Result<(), Refused> {
        let by_bucket = refusal(&self.lock(Kind::Tokens), Kind::Tokens, tokens, now);
        let by_budget = account.and_then(|account| account.would_reserve(tokens, spent).err());
        Refused::longest(by_bucket.into_iter().chain(by_budget)).map_or(Ok(()), Err)
    }

    /// Reserves tokens, and within the budgets of `account` also the request itself; `spent` tells what has been
    /// spent of each.
    pub fn reserve(
        &self,
        account: Option<&Arc<Account>>,
        tokens: u64,
        now: Duration,
        spent: impl Fn(&Budget) -> Spent,
    ) -> Result<Reservation, Refused> {
        let mut buckets = self.lock(Kind::Tokens);
        if let Some(refused) = refusal(&buckets, Kind::Tokens, tokens, now) {
            let by_budget = account.and_then(|account| account.would_reserve(tokens, spent).err());
            return Err(by_budget.filter(|other| other.outlasts(&refused)).unwrap_or(refused));
        }
        let reserved = account.map(|account| account.reserve(tokens, spent)).transpose()?.flatten();
        let loans = buckets.iter_mut().map(|(.., bucket)| bucket.lend(tokens, now)).collect();
        let level = tightest(&buckets, now);
        drop(buckets);
        let subjects = self.clone();
        let (far, owes, share) = (None, None, None);
        Ok(Reservation { subjects, loans, far, owes, tokens, level, _reserved: reserved, share })
    }
}

impl Refused {
    /// Whether this limit refuses for longer. What never fits does so for ever.
    pub(super) fn outlasts(&self, other: &Self) -> bool {
        match (self.wait, other.wait) {
            (Some(wait), Some(others)) => wait > others,
            (wait, others) => wait.is_none() && others.is_some(),
        }
    }

    /// Of several refusals of one request the last to end, since the others' wait would be in vain; of equal ones the
    /// first.
    pub(super) fn longest(refusals: impl Iterator<Item = Self>) -> Option<Self> {
        refusals.reduce(|first, next| if next.outlasts(&first) { next } else { first })
    }
}

/// Why these buckets do not admit so much, if one of them does not.
pub(super) fn refusal<B: Deref<Target = Bucket>>(
    buckets: &[(Scope, &Quota, B)],
    kind: Kind,
    amount: u64,
    now: Duration,
) -> Option<Refused> {
    let refusals = buckets.iter().filter_map(|(scope, quota, bucket)| {
        let wait = match bucket.ruling(amount, now) {
            Ruling::Admit => return None,
            Ruling::Wait(wait) => Some(wait),
            Ruling::Never => None,
        };
        let rate = quota.rate(kind)?;
        let allows = match kind {
            Kind::Tokens => Allows::Tokens { rate, asked: amount, left: bucket.level(now).remaining },
            _ => Allows::Rate(rate),
        };
        let limit = Limit { scope: *scope, kind };
        Some(Refused { limit, wait, allows, level: tightest(buckets, now) })
    });
    Refused::longest(refusals)
}

pub(super) fn tightest<B: Deref<Target = Bucket>>(
    buckets: &[(Scope, &Quota, B)],
    now: Duration,
) -> Option<Level> {
    buckets.iter().map(|(.., bucket)| bucket.level(now)).min_by_key(|level| level.remaining)
}

impl Reservation {
    /// Of buckets that processes share.
    pub(super) fn far(subjects: &Subjects, far: FarLoan, tokens: u64, level: Option<Level>) -> Self {
        let (subjects, loans, far) = (subjects.clone(), ArrayVec::new(), Some(far));
        Self { subjects, loans, far, owes: None, tokens, level, _reserved: None, share: None }
    }

    /// The same with what is reserved of budgets, here and where processes share them.
    pub(super) fn with(self, reserved: Reserved, share: Share) -> Self {
        let mut whole = self;
        (whole._reserved, whole.share) = (Some(reserved), Some(share));
        whole
    }

    /// Those who share the buckets, and budgets, did not answer in time: they are told later.
    pub(super) fn owing(mut self, owed: Owed, share: Option<Share>) -> Self {
        (self.owes, self.share) = (Some(owed), share);
        self
    }

    /// What it has of budgets that processes share: settled by itself, with the use in the ledger.
    pub fn take_share(&mut self) -> Option<Share> {
        self.share.take()
    }

    /// What was reserved.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Charges what was used in place of what was reserved, into debt if it is more. Note the use in the ledger first.
    pub fn settle(mut self, used: u64, now: Duration) {
        self.pay(used, now);
    }

    fn pay(&mut self, used: u64, now: Duration) {
        if let Some(far) = self.far.take() {
            far.settle(used);
        }
        if let Some(owed) = self.owes.take() {
            owed.settle(used);
        }
        let loans = std::mem::take(&mut self.loans);
        for ((.., bucket), loan) in self.subjects.lock(Kind::Tokens).iter_mut().zip(loans) {
            bucket.settle(loan, used, now);
        }
    }
}

/// As if it were settled when the bucket was last used, with nothing.
impl Drop for Reservation {
    fn drop(&mut self) {
        self.pay(0, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests;
