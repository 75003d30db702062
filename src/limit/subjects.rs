//! What one request is subject to: all of its limits must admit, and a refusal costs nothing.
//!
//! Each bucket has a lock of its own, held for some nanoseconds and never across an await. A request holds the locks
//! of all buckets that must admit it at once, always in the order of `SCOPES`, so that no refusal by one takes from
//! another even for a moment: never one more than a bucket allows, and never one fewer.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::account::{Account, Reserved};
use super::bucket::{Bucket, Level, Ruling};
use super::budget::Budget;
use super::name::{Kind, Limit, Scope};
use super::quota::{Place, Quota};
use super::rate::Rate;

/// The order of locks, and of refusals.
const SCOPES: [Scope; 5] = [Scope::Gateway, Scope::Key, Scope::User, Scope::Model, Scope::KeyModel];

/// The quotas of one request, by their places in `SCOPES`.
#[derive(Debug, Clone, Default)]
pub struct Subjects([Option<Arc<Quota>>; SCOPES.len()]);

/// A refusal: which limit, and the true wait until it would admit (for concurrency, unknown).
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

/// An admitted request: its places among those at once are returned when this is dropped.
#[derive(Debug)]
pub struct Permit {
    _places: Vec<Place>,
    /// The tightest bucket of requests that applies.
    pub level: Option<Level>,
}

/// Tokens that a request may use: all given back when this is dropped, unless it is settled.
#[derive(Debug)]
pub struct Reservation {
    subjects: Subjects,
    tokens: u64,
    /// The tightest bucket of tokens that applies.
    pub level: Option<Level>,
    _reserved: Option<Reserved>,
}

/// What has been spent of a budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    pub requests: u64,
    pub tokens: u64,
    /// Until the period ends.
    pub ends_in: Duration,
}

type Locked<'a> = Vec<(Scope, &'a Quota, MutexGuard<'a, Bucket>)>;

impl Subjects {
    /// Makes the request subject to one more; in any order.
    pub(super) fn add(&mut self, scope: Scope, quota: Arc<Quota>) {
        if let Some(at) = SCOPES.iter().position(|known| *known == scope) {
            self.0[at] = Some(quota);
        }
    }

    fn quotas(&self) -> impl Iterator<Item = (Scope, &Arc<Quota>)> {
        SCOPES.iter().zip(&self.0).filter_map(|(scope, quota)| Some((*scope, quota.as_ref()?)))
    }

    fn lock(&self, kind: Kind) -> Locked<'_> {
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

    /// Whether the request would be admitted now, as far as buckets tell. Takes nothing.
    pub fn check(&self, now: Duration) -> Result<Option<Level>, Refused> {
        let buckets = self.lock(Kind::Requests);
        refusal(&buckets, Kind::Requests, 1, now).map_or_else(|| Ok(tightest(&buckets, now)), Err)
    }

    /// Admits one request at `now` or says which limit did not.
    pub fn admit(&self, now: Duration) -> Result<Permit, Refused> {
        let mut buckets = self.lock(Kind::Requests);
        if let Some(refused) = refusal(&buckets, Kind::Requests, 1, now) {
            return Err(refused);
        }
        let mut places = Vec::new();
        for (scope, quota) in self.quotas() {
            let limit = Limit { scope, kind: Kind::Concurrent };
            let full = |most| {
                let (wait, allows) = (None, Allows::AtOnce(most));
                Refused { limit, wait, allows, level: tightest(&buckets, now) }
            };
            places.extend(quota.enter().map_err(full)?);
        }
        buckets.iter_mut().for_each(|(.., bucket)| bucket.take(1, now));
        Ok(Permit { _places: places, level: tightest(&buckets, now) })
    }

    /// Whether so many tokens could be reserved now. Takes nothing.
    pub fn would_reserve(
        &self,
        account: Option<&Arc<Account>>,
        tokens: u64,
        now: Duration,
        spent: impl Fn(&Budget) -> Spent,
    ) -> Result<(), Refused> {
        if let Some(refused) = refusal(&self.lock(Kind::Tokens), Kind::Tokens, tokens, now) {
            return Err(refused);
        }
        account.map_or(Ok(()), |account| account.would_reserve(tokens, spent))
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
            return Err(refused);
        }
        let reserved = account.map(|account| account.reserve(tokens, spent)).transpose()?.flatten();
        buckets.iter_mut().for_each(|(.., bucket)| bucket.take(tokens, now));
        let level = tightest(&buckets, now);
        drop(buckets);
        Ok(Reservation { subjects: self.clone(), tokens, level, _reserved: reserved })
    }
}

/// Why these buckets do not admit so much, if one of them does not.
fn refusal(buckets: &Locked<'_>, kind: Kind, amount: u64, now: Duration) -> Option<Refused> {
    buckets.iter().find_map(|(scope, quota, bucket)| {
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
    })
}

fn tightest(buckets: &Locked<'_>, now: Duration) -> Option<Level> {
    buckets.iter().map(|(.., bucket)| bucket.level(now)).min_by_key(|level| level.remaining)
}

impl Reservation {
    /// What was reserved.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Takes what was used in place of what was reserved, into debt if it is more. Note the use in the ledger first.
    pub fn settle(mut self, used: u64, now: Duration) {
        let reserved = std::mem::take(&mut self.tokens);
        for (.., mut bucket) in self.subjects.lock(Kind::Tokens) {
            bucket.give_back(reserved);
            bucket.take(used, now);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let reserved = std::mem::take(&mut self.tokens);
        if reserved > 0 {
            self.subjects.lock(Kind::Tokens).iter_mut().for_each(|(.., bucket)| bucket.give_back(reserved));
        }
    }
}

#[cfg(test)]
mod tests;
