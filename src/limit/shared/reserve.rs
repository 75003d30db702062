//! Tokens, and budgets: reserved together, in one question.

use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;

use super::super::account::{Account, Sum};
use super::super::budget::{Budget, Span};
use super::super::name::Kind;
use super::super::subjects::{Refused, Reservation, Spent, Subjects, refusal, tightest};
use super::late::{self, Missed};
use super::wire::{Call, Gone, Purse};
use super::{FarLoan, ITS_OWN, Share, Shared, Unruled, Waited};

/// The budgets that a request is subject to, and where it has its share of them.
pub(super) struct Budgeted<'a, S: Fn(&Budget) -> Spent> {
    pub(super) account: &'a Account,
    pub(super) share: Share,
    pub(super) today: Date,
    /// As far as this process knows.
    pub(super) spent: S,
}

impl Shared {
    /// Notes how the buckets of tokens stand in those of this process; says whether it could.
    pub async fn look_at_tokens(
        &self,
        subjects: &Subjects,
        waited: &mut Waited,
        clock: impl Fn() -> Duration,
    ) -> bool {
        if waited.in_vain {
            return false;
        }
        let asked_at = clock();
        waited.in_vain = self.ask(subjects, Kind::Tokens, 1, Call::look(), asked_at).await.is_err();
        waited.time += clock().saturating_sub(asked_at);
        !waited.in_vain
    }

    /// Reserves tokens; within the budgets of `account` also the request itself, as [`Subjects::reserve`] does.
    pub async fn reserve(
        self: &Arc<Self>,
        subjects: &Subjects,
        account: Option<&Arc<Account>>,
        tokens: u64,
        waited: &mut Waited,
        (clock, spent, today): (impl Fn() -> Duration, impl Fn(&Budget) -> Spent, Date),
    ) -> Result<Reservation, Unruled> {
        let asked_at = clock();
        let share = account.and_then(|account| self.share(account, tokens));
        let (missed, share) = if waited.in_vain {
            (Missed::not_asked(), share)
        } else {
            let budgeted = account.zip(share);
            let budgeted = budgeted.map(|(account, share)| Budgeted { account, share, today, spent: &spent });
            let ruled = self.reserve_at(subjects, budgeted, tokens, asked_at, ITS_OWN).await;
            waited.time += clock().saturating_sub(asked_at);
            match ruled {
                Ok(ruled) => return ruled.map_err(Unruled::Refused),
                Err(unruled) => unruled,
            }
        };
        waited.in_vain = true;
        let share = share.map(|share| share.kept_here(missed.was_asked()));
        if self.required {
            late::tokens(self, subjects, missed, tokens);
            return Err(Unruled::Away);
        }
        let reserved = subjects.reserve(account, tokens, clock(), spent);
        // Where it is refused, nobody holds what is owed: it is as if nothing had been used.
        let owed = late::tokens(self, subjects, missed, tokens);
        reserved.map(|reserved| reserved.owing(owed, share)).map_err(Unruled::Refused)
    }

    /// `at`: the time that Valkey is to take it for. An error is what may be known later, and the share.
    pub(super) async fn reserve_at<S: Fn(&Budget) -> Spent>(
        self: &Arc<Self>,
        subjects: &Subjects,
        budgeted: Option<Budgeted<'_, S>>,
        tokens: u64,
        now: Duration,
        at: Option<Duration>,
    ) -> Result<Result<Reservation, Refused>, (Missed, Option<Share>)> {
        let call = Call {
            at,
            valid: self.ahead.valid(),
            takes: true,
            lent: self.lent,
            place: budgeted.as_ref().map_or("", |budgeted| budgeted.share.place()),
            purse: budgeted.as_ref().map(|budgeted| self.purse(budgeted)),
            ..Call::look()
        };
        let said = match self.ask(subjects, Kind::Tokens, tokens, call, now).await {
            Ok(Some(said)) => said,
            Ok(None) => return Ok(Ok(Reservation::far(subjects, FarLoan::nothing(self), tokens, None))),
            Err(missed) => return Err((missed, budgeted.map(|budgeted| budgeted.share))),
        };
        if said.verdict != 0 {
            let by_bucket = refusal(&said.buckets, Kind::Tokens, tokens, said.now);
            let by_budget =
                budgeted.zip(said.gone).and_then(|(budgeted, gone)| budgeted.refusal(&gone, tokens));
            let refused = Refused::longest(by_bucket.into_iter().chain(by_budget));
            return refused.map(Err).ok_or_else(|| (Missed::not_asked(), None));
        }
        let level = tightest(&said.buckets, said.now);
        let loan = FarLoan::new(self, said.parts, tokens);
        let reservation = Reservation::far(subjects, loan, tokens, level);
        Ok(Ok(match budgeted {
            None => reservation,
            Some(Budgeted { account, share, .. }) => {
                reservation.with(account.reserve_anyway(tokens), share.told())
            }
        }))
    }

    fn purse<'a, S: Fn(&Budget) -> Spent>(&self, of: &Budgeted<'a, S>) -> Purse<'a> {
        let (grant, day) = (of.account.grant(), of.today);
        let (key, prefix) = (&grant.key, &self.prefix);
        Purse {
            open: self.open_key(key),
            month: format!("{prefix}:usage:key:{key}:{:04}-{:02}", day.year(), day.month()),
            day,
            budgets: &grant.budgets,
        }
    }

    pub(super) fn open_key(&self, key: &str) -> String {
        format!("{}:open:{key}", self.prefix)
    }
}

impl<S: Fn(&Budget) -> Spent> Budgeted<'_, S> {
    /// By the rule that stands here too.
    fn refusal(&self, gone: &Gone, tokens: u64) -> Option<Refused> {
        let reserved = Sum { requests: gone.reserved.0, tokens: gone.reserved.1 };
        let spent = |budget: &Budget| {
            let (requests, tokens) = match budget.per {
                Span::Day => gone.day,
                Span::Month => gone.month,
            };
            Spent { requests, tokens, ..(self.spent)(budget) }
        };
        self.account.check(&reserved, tokens, &spent).err()
    }
}
