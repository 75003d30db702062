//! What one key may ask: its own quota, one for each of its users and for each model, and its budgets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::budget::{Budget, Goods};
use super::name::Limit;
use super::quota::Quota;
use super::rate::Allowance;
use super::standing::moved;
use super::subjects::{Allows, Refused, Spent};

/// Users of one key that are told apart; those beyond share one quota.
const USERS_MAX: usize = 10_000;

/// To go through so many takes a millisecond, under a lock that every user of the key needs.
const SWEPT_EVERY: Duration = Duration::from_secs(1);

/// When what is reserved of a budget may have been settled: a guess.
const SETTLES_IN: Duration = Duration::from_secs(1);

/// What a key is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// The key's name.
    pub key: String,
    pub own: Allowance,
    /// Each of its users.
    pub user: Allowance,
    /// With each model, by the rule's place; empty where none is limited so.
    pub models: Vec<Allowance>,
    /// The patterns of these.
    pub patterns: Vec<String>,
    pub budgets: Vec<Budget>,
}

/// A key's quotas and what is reserved of its budgets.
#[derive(Debug)]
pub struct Account {
    grant: Grant,
    own: Arc<Quota>,
    models: Vec<Arc<Quota>>,
    users: Mutex<Users>,
    /// All users beyond those.
    crowd: Arc<Quota>,
    reserved: Arc<Mutex<Sum>>,
}

#[derive(Debug, Default)]
struct Users {
    quotas: HashMap<String, Arc<Quota>>,
    /// When it was last gone through for those who may be forgotten.
    swept: Duration,
}

/// Requests that have begun and not ended, and the tokens that they may use.
#[derive(Debug, Default)]
pub(super) struct Sum {
    pub(super) requests: u64,
    pub(super) tokens: u64,
}

/// A request's share of them; returned on drop.
#[derive(Debug)]
pub(super) struct Reserved {
    tokens: u64,
    sum: Arc<Mutex<Sum>>,
}

impl Grant {
    /// A full quota of the key with a model.
    fn with_model(&self, place: usize, allowance: Allowance) -> Quota {
        let pattern = self.patterns.get(place).map_or("", String::as_str);
        Quota::new(format!("key_model:{}:{}:{pattern}", self.key.len(), self.key), allowance)
    }
}

impl Account {
    pub fn new(grant: Grant) -> Self {
        let model = |(place, allowance): (usize, &Allowance)| Arc::new(grant.with_model(place, *allowance));
        Self {
            own: Arc::new(Quota::new(format!("key:{}", grant.key), grant.own)),
            models: grant.models.iter().enumerate().map(model).collect(),
            users: Mutex::default(),
            crowd: Arc::new(Quota::new(format!("crowd:{}", grant.key), grant.user)),
            reserved: Arc::default(),
            grant,
        }
    }

    /// The same key under another grant: what it has used stays used. `places`: by a rule's place, the one that its
    /// model had here.
    pub fn regranted(&self, grant: Grant, places: &[Option<usize>], now: Duration) -> Self {
        let model = |(at, allowance): (usize, &Allowance)| {
            let old = places.get(at).copied().flatten().and_then(|place| self.models.get(place));
            old.map_or_else(
                || Arc::new(grant.with_model(at, *allowance)),
                |old| old.succeeded(*allowance, now),
            )
        };
        let users = self.users();
        let user = |(user, old): (&String, &Arc<Quota>)| (user.clone(), old.succeeded(grant.user, now));
        Self {
            own: self.own.succeeded(grant.own, now),
            models: grant.models.iter().enumerate().map(model).collect(),
            users: Mutex::new(Users { quotas: users.quotas.iter().map(user).collect(), swept: users.swept }),
            crowd: self.crowd.succeeded(grant.user, now),
            reserved: Arc::clone(&self.reserved),
            grant,
        }
    }

    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    pub fn own(&self) -> &Arc<Quota> {
        &self.own
    }

    pub(super) fn model(&self, rule: usize) -> Option<&Arc<Quota>> {
        self.models.get(rule)
    }

    /// The quota of one of its users; `None` where users are not limited.
    pub fn user(&self, user: &str, now: Duration) -> Option<Arc<Quota>> {
        if self.grant.user == Allowance::default() {
            return None;
        }
        let mut users = self.users();
        if let Some(quota) = users.quotas.get(user) {
            return Some(Arc::clone(quota));
        }
        if users.quotas.len() == USERS_MAX && now.saturating_sub(users.swept) >= SWEPT_EVERY {
            users.swept = now;
            // Who has not asked for so long that it makes no difference is forgotten.
            users.quotas.retain(|_, quota| Arc::strong_count(quota) > 1 || !quota.is_fresh(now));
        }
        if users.quotas.len() == USERS_MAX {
            return Some(Arc::clone(&self.crowd));
        }
        let quota = Arc::new(Quota::new(
            format!("user:{}:{}:{user}", self.grant.key.len(), self.grant.key),
            self.grant.user,
        ));
        users.quotas.insert(user.to_owned(), Arc::clone(&quota));
        Some(quota)
    }

    /// The quotas of its users that are told apart.
    pub fn known_users(&self) -> Vec<(String, Arc<Quota>)> {
        self.users().quotas.iter().map(|(user, quota)| (user.clone(), Arc::clone(quota))).collect()
    }

    /// The one quota of all users beyond those.
    pub fn crowd(&self) -> &Arc<Quota> {
        &self.crowd
    }

    /// Its quotas by the rule's place of each model; empty where none is limited so.
    pub fn models(&self) -> &[Arc<Quota>] {
        &self.models
    }

    /// Requests under way and the tokens that they may use, as far as its budgets need to know.
    pub fn reserved(&self) -> (u64, u64) {
        let sum = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        (sum.requests, sum.tokens)
    }

    /// Takes in how many more, or fewer, are under way in another process.
    pub fn shift_reserved(&self, requests: i64, tokens: i64) {
        let mut sum = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        (sum.requests, sum.tokens) = (moved(sum.requests, requests), moved(sum.tokens, tokens));
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a request and its tokens within the budgets; `None` where there are none.
    pub(super) fn reserve(
        &self,
        tokens: u64,
        spent: impl Fn(&Budget) -> Spent,
    ) -> Result<Option<Reserved>, Refused> {
        if self.grant.budgets.is_empty() {
            return Ok(None);
        }
        let mut sum = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        self.check(&sum, tokens, &spent)?;
        Ok(Some(self.hold_in(&mut sum, tokens)))
    }

    /// Reserves it where another process has said that it is within the budgets.
    pub(super) fn reserve_anyway(&self, tokens: u64) -> Reserved {
        self.hold_in(&mut self.reserved.lock().unwrap_or_else(PoisonError::into_inner), tokens)
    }

    fn hold_in(&self, sum: &mut Sum, tokens: u64) -> Reserved {
        sum.requests += 1;
        sum.tokens = sum.tokens.saturating_add(tokens);
        Reserved { tokens, sum: Arc::clone(&self.reserved) }
    }

    /// Whether a request with so many tokens is within the budgets. Reserves nothing.
    pub(super) fn would_reserve(&self, tokens: u64, spent: impl Fn(&Budget) -> Spent) -> Result<(), Refused> {
        let sum = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        self.check(&sum, tokens, &spent)
    }

    /// `sum`: what is reserved.
    pub(super) fn check(
        &self,
        sum: &Sum,
        tokens: u64,
        spent: &impl Fn(&Budget) -> Spent,
    ) -> Result<(), Refused> {
        let refusals = self.grant.budgets.iter().filter_map(|budget| {
            let spent = spent(budget);
            let (used, reserved, asked) = match budget.goods {
                Goods::Requests => (spent.requests, sum.requests, 1),
                Goods::Tokens => (spent.tokens, sum.tokens, tokens),
            };
            let used = used.saturating_add(reserved);
            if used.saturating_add(asked) <= budget.amount {
                return None;
            }
            // What is reserved may come back.
            let spent_up = (used - reserved).saturating_add(asked) > budget.amount;
            let wait = if spent_up { spent.ends_in } else { SETTLES_IN };
            let allows = Allows::Budget { budget: *budget, asked, used, spent_up };
            Some(Refused { limit: Limit::BUDGET, wait: Some(wait), allows, level: None })
        });
        Refused::longest(refusals).map_or(Ok(()), Err)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut sum = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
        sum.requests = sum.requests.saturating_sub(1);
        sum.tokens = sum.tokens.saturating_sub(self.tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Span;

    #[test]
    fn a_budget_holds_what_is_spent_and_what_is_reserved() {
        let tokens = Budget { goods: Goods::Tokens, amount: 1000, per: Span::Month };
        let requests = Budget { goods: Goods::Requests, amount: 3, per: Span::Day };
        let account = Account::new(Grant { budgets: vec![tokens, requests], ..Grant::default() });
        let spent =
            |requests, tokens| move |_: &Budget| Spent { requests, tokens, ends_in: Duration::from_secs(9) };
        let one = account.reserve(600, spent(0, 0)).expect("it fits");
        let refused = account.reserve(401, spent(0, 0)).expect_err("600 are reserved");
        assert_eq!(refused.wait, Some(SETTLES_IN), "they may come back");
        assert_eq!(refused.allows, Allows::Budget { budget: tokens, asked: 401, used: 600, spent_up: false });
        let refused = account.would_reserve(1001, spent(0, 0)).expect_err("more than there is");
        assert_eq!(refused.wait, Some(Duration::from_secs(9)));
        let two = account.reserve(400, spent(0, 0)).expect("it fits exactly");
        drop(one);
        let three = account.reserve(300, spent(1, 300)).expect("what was used is less than was reserved");
        let refused = account.reserve(0, spent(1, 300)).expect_err("three requests");
        assert_eq!(refused.allows, Allows::Budget { budget: requests, asked: 1, used: 3, spent_up: false });
        drop((two, three));
    }

    #[test]
    fn users_are_told_apart_within_a_bound() {
        let user = Allowance { requests: "1/h".parse().ok(), ..Allowance::default() };
        let account = Account::new(Grant { user, ..Grant::default() });
        let now = Duration::from_secs(1);
        let quota = |user: &str, now| account.user(user, now).expect("users are limited");
        let alice = quota("alice", now);
        assert!(Arc::ptr_eq(&alice, &quota("alice", now)) && !Arc::ptr_eq(&alice, &quota("bob", now)));
        let busy = quota("busy", now);
        busy.lock(crate::limit::name::Kind::Requests).expect("a bucket").take(1, now);
        drop((alice, busy));
        for number in 0..3 * USERS_MAX {
            quota(&number.to_string(), now);
        }
        assert!(account.users().quotas.len() <= USERS_MAX);
        let (crowded, later) = (quota("late", now), now + SWEPT_EVERY);
        assert!(Arc::ptr_eq(&crowded, &account.crowd), "gone through once a second at most");
        assert!(!Arc::ptr_eq(&quota("late", later), &account.crowd), "and then there is room");
        let busy = quota("busy", now);
        assert!(!busy.is_fresh(now), "what it has used is not forgotten");
    }
}
