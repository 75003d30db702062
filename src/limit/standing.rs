//! How a subject stands: what it has used of its quota, as one process tells it to the next.
//!
//! The two have clocks of their own, so a debt is told as what is missing now. What the first process settles or gives
//! back later is told as movements.

use serde::{Deserialize, Serialize};

/// What one subject has used when it is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// `None`: not limited.
    pub requests: Option<Debt>,
    pub tokens: Option<Debt>,
    /// Requests under way, where they are limited.
    pub at_once: u32,
}

/// What is missing in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debt {
    /// In nanoseconds times the rate's count.
    pub scaled: u128,
    /// The rate: so many …
    pub count: u64,
    /// … in so many nanoseconds.
    pub per: u128,
}

/// What a subject has used in all, less what came back; two of them tell what happened between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Movement {
    pub requests: i128,
    pub tokens: i128,
    pub at_once: i64,
}

impl Standing {
    /// Whether it is as if nobody had ever asked.
    pub fn is_fresh(&self) -> bool {
        let none = |debt: Option<Debt>| debt.is_none_or(|debt| debt.scaled == 0);
        none(self.requests) && none(self.tokens) && self.at_once == 0
    }
}

impl Movement {
    /// From an earlier one to this.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            tokens: self.tokens.saturating_sub(earlier.tokens),
            at_once: self.at_once.saturating_sub(earlier.at_once),
        }
    }

    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Moves a count that never falls below 0.
pub(super) fn moved(count: u64, by: i64) -> u64 {
    count.saturating_add_signed(by)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::limit::{Allowance, Kind, Quota, Scope, Subjects};

    fn quota(tokens: &str) -> Arc<Quota> {
        let allowance = Allowance {
            requests: "60/min".parse().ok(),
            tokens: tokens.parse().ok(),
            concurrent: Some(3),
            ..Allowance::default()
        };
        Arc::new(Quota::new("", allowance))
    }

    fn left(quota: &Quota, kind: Kind, now: Duration) -> u64 {
        quota.level(kind, now).expect("it is limited").remaining
    }

    /// One process stops at 100 s of its clock, the next begins at 7 s of another.
    #[test]
    fn a_subject_stands_in_the_next_process_as_it_stood() {
        let (then, now) = (Duration::from_secs(100), Duration::from_secs(7));
        let (old, new) = (quota("1000/min"), quota("1000/min"));
        let mut subjects = Subjects::default();
        subjects.add(Scope::Key, Arc::clone(&old));
        let permits: Vec<_> = (0..2).map(|_| subjects.admit(then).expect("there is room")).collect();
        let two = [300, 200].map(|tokens| {
            subjects.reserve(None, tokens, then, |_| unreachable!("no budgets")).expect("there are enough")
        });
        let (standing, told) = old.standing(then);
        new.assume(&standing, now);
        assert_eq!((left(&new, Kind::Requests, now), left(&new, Kind::Tokens, now)), (58, 500));
        assert_eq!(new.at_once(), 2);

        let [one, other] = two;
        one.settle(100, then);
        other.settle(450, then);
        drop(permits);
        let moved = old.movement().since(told);
        assert_eq!((moved.tokens, moved.at_once), (50, -2));
        new.shift(&moved, now);
        assert_eq!((left(&new, Kind::Tokens, now), new.at_once()), (450, 0));
        assert_eq!(left(&old, Kind::Tokens, then), 450, "as it is where it happened");
        assert!(old.movement().since(old.movement()).is_none());
    }

    #[test]
    fn what_is_put_back_late_never_makes_more_than_a_full_bucket() {
        let (then, now) = (Duration::from_secs(100), Duration::from_secs(7));
        let (old, new) = (quota("60/min"), quota("60/min"));
        let mut subjects = Subjects::default();
        subjects.add(Scope::Key, Arc::clone(&old));
        let all = subjects.reserve(None, 60, then, |_| unreachable!("no budgets")).expect("a full bucket");
        let (standing, told) = old.standing(then);
        new.assume(&standing, now);
        // It has filled up by half, and that half has been taken again, before the first is put back.
        let later = Duration::from_secs(30);
        let mut subjects = Subjects::default();
        subjects.add(Scope::Key, Arc::clone(&new));
        subjects
            .reserve(None, 30, now + later, |_| unreachable!("no budgets"))
            .expect("half")
            .settle(30, now + later);
        all.settle(0, then + later);
        new.shift(&old.movement().since(told), now + later);
        assert_eq!(left(&new, Kind::Tokens, now + later), 30);
    }

    #[test]
    fn a_debt_under_another_rate_is_the_same_amount() {
        let now = Duration::from_secs(5);
        let (old, new) = (quota("1000/min"), quota("7000/h"));
        let mut subjects = Subjects::default();
        subjects.add(Scope::Key, Arc::clone(&old));
        subjects.reserve(None, 600, now, |_| unreachable!("no budgets")).expect("enough").settle(600, now);
        new.assume(&old.standing(now).0, now);
        assert_eq!(left(&new, Kind::Tokens, now), 6400);
    }
}
