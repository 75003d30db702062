//! What limits promise together: exactly what the buckets hold, whoever races, and nothing for a refusal.

use super::*;
use crate::limit::{Allowance, Gate, Goods, Grant, ModelShare, Span, Terms};

fn allowance(requests: Option<&str>, burst: Option<u64>, concurrent: Option<u32>) -> Allowance {
    let requests = requests.map(|rate| rate.parse().expect("a rate"));
    Allowance { requests, burst, tokens: None, concurrent }
}

fn tokens(rate: &str) -> Allowance {
    Allowance { tokens: rate.parse().ok(), ..Allowance::default() }
}

fn account(own: Allowance) -> Arc<Account> {
    Arc::new(Account::new(Grant { own, ..Grant::default() }))
}

fn refused<T>(result: Result<T, Refused>) -> Option<&'static str> {
    result.err().map(|refused| refused.limit.name())
}

fn nothing(_: &Budget) -> Spent {
    Spent::default()
}

#[test]
fn a_refusal_by_one_bucket_costs_the_other_nothing() {
    let gate = Gate::new(Terms { gateway: allowance(Some("1/h"), Some(3), None), ..Terms::default() });
    let (one, other) = (account(allowance(Some("1/h"), Some(1), None)), account(Allowance::default()));
    let now = Duration::from_secs(5);
    let admit = |account: &Account| refused(gate.subjects(Some(account), None, now).admit(now));
    assert_eq!(admit(&one), None);
    for _ in 0..5 {
        assert_eq!(admit(&one), Some("key.requests"));
    }
    assert_eq!((admit(&other), admit(&other), admit(&other)), (None, None, Some("gateway.requests")));
}

#[test]
fn each_scope_refuses_by_its_own_name_and_an_alias_shares_its_models_limit() {
    let narrow = allowance(Some("1/h"), None, None);
    let models = [ModelShare::Of(1), ModelShare::Own(narrow), ModelShare::Own(Allowance::default())];
    let gate = Gate::new(Terms { models: models.to_vec(), key_places: vec![1, 1, 2], ..Terms::default() });
    let grant =
        Grant { user: narrow, models: vec![narrow, Allowance::default(), narrow], ..Grant::default() };
    let account = Account::new(grant);
    let now = Duration::from_secs(5);
    let admit = |user: Option<&str>, rule: usize| {
        let mut subjects = gate.subjects(Some(&account), user, now);
        gate.add_model(&mut subjects, Some(&account), Some(rule));
        refused(subjects.admit(now))
    };
    assert!(gate.limits_models());
    assert_eq!(admit(Some("ann"), 2), None);
    assert_eq!(admit(Some("ann"), 0), Some("user.requests"));
    assert_eq!(admit(Some("ben"), 2), Some("key_model.requests"));
    assert_eq!(admit(Some("ben"), 1), None);
    assert_eq!(admit(None, 0), Some("model.requests"));
}

/// Whoever waits as long as it is told is admitted, and not before.
#[test]
fn of_several_that_refuse_the_last_to_end_is_named() {
    let gate = Gate::new(Terms { gateway: allowance(Some("60/min"), Some(1), None), ..Terms::default() });
    let account = account(allowance(Some("1/h"), Some(1), None));
    let now = Duration::from_secs(5);
    let subjects = gate.subjects(Some(&account), None, now);
    assert_eq!(refused(subjects.admit(now)), None);
    let both = subjects.admit(now).expect_err("neither admits");
    assert_eq!((both.limit.name(), both.wait), ("key.requests", Some(Duration::from_secs(3600))));
    let then = now + Duration::from_secs(3600);
    assert_eq!(refused(subjects.admit(then - Duration::from_nanos(1))), Some("key.requests"));
    assert_eq!(refused(subjects.admit(then)), None);

    let gate = Gate::new(Terms { gateway: tokens("600/min"), ..Terms::default() });
    let budget = |per| Budget { goods: Goods::Tokens, amount: 100, per };
    let budgets = vec![budget(Span::Day), budget(Span::Month)];
    let account = Arc::new(Account::new(Grant { own: tokens("60/min"), budgets, ..Grant::default() }));
    let subjects = gate.subjects(Some(&account), None, now);
    let spent = |day, month| {
        move |budget: &Budget| match budget.per {
            Span::Day => Spent { tokens: day, ends_in: Duration::from_secs(40), ..Spent::default() },
            Span::Month => Spent { tokens: month, ends_in: Duration::from_secs(9000), ..Spent::default() },
        }
    };
    subjects.reserve(Some(&account), 60, now, nothing).expect("it fits").settle(60, now);
    for (day, month, asked, limit, wait) in [
        (60, 60, 30, "key.tokens", Some(30)),
        (100, 60, 30, "key.budget", Some(40)),
        (100, 100, 30, "key.budget", Some(9000)),
        (100, 100, 61, "key.tokens", None),
    ] {
        let (wait, case) = (wait.map(Duration::from_secs), format!("{day} {month} {asked}"));
        let would = subjects.would_reserve(Some(&account), asked, now, spent(day, month)).expect_err(&case);
        assert_eq!((would.limit.name(), would.wait), (limit, wait), "{case}");
        assert_eq!(subjects.reserve(Some(&account), asked, now, spent(day, month)).expect_err(&case), would);
    }
}

#[test]
fn a_place_returns_when_its_permit_is_dropped() {
    let gate = Gate::new(Terms { gateway: allowance(None, None, Some(3)), ..Terms::default() });
    let account = account(allowance(None, None, Some(2)));
    let now = Duration::ZERO;
    let admit = |account: Option<&Account>| gate.subjects(account, None, now).admit(now);
    let (one, two) = (admit(Some(&account)), admit(Some(&account)));
    assert!(one.is_ok() && two.is_ok());
    assert_eq!(refused(admit(Some(&account))), Some("key.concurrent"));
    let three = admit(None);
    assert_eq!(refused(admit(None)), Some("gateway.concurrent"));
    drop(one);
    assert_eq!(refused(admit(Some(&account))), None);
    drop((two, three));
}

#[test]
fn threads_that_race_get_exactly_what_the_buckets_hold() {
    let gate =
        Arc::new(Gate::new(Terms { gateway: allowance(Some("1/h"), Some(1000), None), ..Terms::default() }));
    let accounts: Vec<_> = (0..4).map(|_| account(allowance(Some("1/h"), Some(300), None))).collect();
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let (gate, account) = (Arc::clone(&gate), Arc::clone(&accounts[thread % 4]));
            std::thread::spawn(move || {
                let subjects = gate.subjects(Some(&account), None, Duration::ZERO);
                (0..2000).filter(|_| subjects.admit(Duration::ZERO).is_ok()).count()
            })
        })
        .collect();
    let admitted: usize = threads.into_iter().map(|thread| thread.join().expect("a count")).sum();
    assert_eq!(admitted, 1000);
}

#[test]
fn tokens_are_reserved_settled_and_given_back() {
    let gate = Gate::new(Terms::default());
    let account = account(tokens("1000/min"));
    let now = Duration::from_secs(9);
    let subjects = gate.subjects(Some(&account), None, now);
    let left = || account.own().level(Kind::Tokens, now).expect("tokens are limited").remaining;
    let never = subjects.reserve(Some(&account), 1001, now, nothing).expect_err("it never fits");
    assert_eq!((never.wait, left()), (None, 1000));
    let one = subjects.reserve(Some(&account), 700, now, nothing).expect("it fits");
    let wait = subjects.reserve(Some(&account), 400, now, nothing).expect_err("it does not fit now");
    assert_eq!((wait.wait, left()), (Some(Duration::from_secs(6)), 300));
    one.settle(250, now);
    assert_eq!(left(), 750);
    drop(subjects.reserve(Some(&account), 700, now, nothing).expect("it fits"));
    assert_eq!(left(), 750);
    subjects.reserve(Some(&account), 10, now, nothing).expect("it fits").settle(800, now);
    assert_eq!(left(), 0);
    let debt = subjects.reserve(Some(&account), 1, now, nothing).expect_err("in debt");
    assert_eq!(debt.wait, Some(Duration::from_millis(3060)));
}

#[test]
fn threads_that_race_for_tokens_never_get_more_than_there_are() {
    let gate = Arc::new(Gate::new(Terms { gateway: tokens("100000/day"), ..Terms::default() }));
    let budget = Budget { goods: Goods::Tokens, amount: 50_000, per: Span::Day };
    let account = Arc::new(Account::new(Grant { budgets: vec![budget], ..Grant::default() }));
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let (gate, account) = (Arc::clone(&gate), Arc::clone(&account));
            std::thread::spawn(move || {
                let account = (thread % 2 == 0).then_some(&account);
                let subjects = gate.subjects(account.map(Arc::as_ref), None, Duration::ZERO);
                let kept = (0..5000).map(|_| subjects.reserve(account, 7, Duration::ZERO, nothing));
                kept.filter_map(Result::ok).collect::<Vec<_>>()
            })
        })
        .collect();
    let kept: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().expect("reservations")).collect();
    assert_eq!(kept.len(), 100_000 / 7);
    let budgeted = kept.iter().filter(|one| one._reserved.is_some()).count();
    assert!(budgeted <= 50_000 / 7);
    drop(kept);
    let subjects = gate.subjects(Some(&account), None, Duration::ZERO);
    assert!(subjects.reserve(Some(&account), 50_000, Duration::ZERO, nothing).is_ok(), "all is back");
}

#[test]
fn a_new_grant_keeps_what_was_used() {
    let gate = Gate::new(Terms::default());
    let old = account(allowance(Some("60/h"), Some(10), Some(2)));
    let now = Duration::from_secs(5);
    let _place = gate.subjects(Some(&old), None, now).admit(now).expect("it is admitted");
    let grant = Grant { own: allowance(Some("60/h"), Some(2), Some(2)), ..Grant::default() };
    let new = old.regranted(grant, &[], now);
    let subjects = gate.subjects(Some(&new), None, now);
    let _second = subjects.admit(now).expect("one of two is left");
    assert_eq!(refused(subjects.admit(now)), Some("key.requests"));
    assert_eq!(new.own().at_once(), 2);
}

#[test]
fn what_is_reserved_under_one_grant_is_settled_under_the_next() {
    let gate = Gate::new(Terms::default());
    let old = account(tokens("1000/day"));
    let now = Duration::from_secs(5);
    let reserve = |tokens| {
        let subjects = gate.subjects(Some(&old), None, now);
        subjects.reserve(Some(&old), tokens, now, nothing).expect("it fits")
    };
    let (settled, dropped) = (reserve(300), reserve(200));
    let new = old.regranted(Grant { own: tokens("2000/day"), ..Grant::default() }, &[], now);
    let left = || new.own().level(Kind::Tokens, now).expect("tokens are limited").remaining;
    assert_eq!(left(), 1500);
    settled.settle(10, now);
    drop(dropped);
    assert_eq!(left(), 1990);
}
