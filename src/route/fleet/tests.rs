//! Rules of routing: which upstream, which server, which models are seen.

use std::time::Duration;

use super::*;
use crate::route::Tenant;
use crate::route::{
    Balance, Entry, Errand, HealthCheck, Kind, Lease, Prompt, QueueBounds, Report, ServerSpec, Sign, Slots,
    SwapBounds, Timeouts, Turned, Wait,
};

fn upstream(name: &str, servers: &[&str]) -> UpstreamSpec {
    let server = |url: &&str| ServerSpec {
        name: (*url).to_owned(),
        url: url.parse().expect("a URL"),
        api_key: None,
        ca: None,
        slots: Slots::Auto,
        weight: 1,
    };
    UpstreamSpec {
        name: name.to_owned(),
        servers: servers.iter().map(server).collect(),
        kind: Kind::Llama,
        balance: Balance::LeastBusy,
        health: HealthCheck { down_after: 1, ..HealthCheck::default() },
        timeouts: Timeouts::default(),
        retries: 2,
        queue: QueueBounds::default(),
        swap: SwapBounds::default(),
        streamed: false,
        isolated: false,
    }
}

fn rule(pattern: &str, upstream: &str, rename: Option<&str>) -> ModelRule {
    ModelRule {
        pattern: pattern.to_owned(),
        upstream: upstream.to_owned(),
        rename: rename.map(str::to_owned),
        fallback: Vec::new(),
    }
}

fn report(server: &Server, models: &[&str]) {
    let data: Vec<_> = models.iter().map(|id| json!({"id": id, "object": "model"})).collect();
    server.set_report(Report::read(None, Some(&json!({"data": data}))), Duration::ZERO);
}

#[test]
fn a_model_goes_to_its_name_else_to_the_longest_pattern() {
    let upstreams = vec![upstream("a", &["http://a"]), upstream("b", &["http://b"])];
    let rules = vec![
        rule("qwen", "a", None),
        rule("gpt*", "b", Some("qwen")),
        rule("gpt-4*", "a", None),
        rule("gpt-4o", "b", None),
    ];
    let fleet = Fleet::new(upstreams.clone(), rules);
    let found = |model: Option<&str>| {
        fleet.resolve(model).map(|found| (found.upstream.spec.name.clone(), found.name, found.rename))
    };
    let some = |upstream: &str, name: &str, rename: Option<&str>| {
        Some((upstream.to_owned(), Some(name.to_owned()), rename.map(str::to_owned)))
    };
    assert_eq!(found(Some("qwen")), some("a", "qwen", None));
    assert_eq!(found(Some("gpt-3")), some("b", "gpt-3", Some("qwen")));
    assert_eq!(found(Some("gpt-4-turbo")), some("a", "gpt-4-turbo", None));
    assert_eq!(found(Some("gpt-4o")), some("b", "gpt-4o", None));
    assert_eq!(found(Some("llama")), None);
    assert_eq!(found(None), some("a", "qwen", None));

    let open = Fleet::new(upstreams, Vec::new());
    report(&open.upstreams[1].servers[0], &["qwen"]);
    let upstream = |model| open.resolve(model).map(|found| found.upstream.spec.name.clone());
    assert_eq!(upstream(Some("qwen")).as_deref(), Some("b"));
    assert_eq!(upstream(Some("anything")).as_deref(), Some("a"));
    assert_eq!(upstream(None).as_deref(), Some("a"));
}

#[test]
fn callers_see_the_models_they_can_name() {
    let upstreams = vec![upstream("a", &["http://a"]), upstream("b", &["http://b"])];
    let rules = vec![rule("mine", "a", Some("qwen")), rule("llama*", "b", None)];
    let fleet = Fleet::new(upstreams, rules);
    report(&fleet.upstreams[0].servers[0], &["qwen", "llama-a"]);
    report(&fleet.upstreams[1].servers[0], &["llama-b", "other"]);
    let ids: Vec<_> =
        fleet.models().iter().map(|model| model["id"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(ids, ["mine", "llama-b"]);
}

#[test]
fn the_least_busy_server_that_is_up_is_picked_and_returned_on_drop() {
    let fleet = Fleet::new(vec![upstream("a", &["http://one", "http://two"])], Vec::new());
    let group = &fleet.upstreams[0];
    let first = group.again(None, &[], Tenant::Anybody, 0).expect("a server");
    let second = group.again(None, &[], Tenant::Anybody, 0).expect("a server");
    assert_ne!(first.server().spec.name, second.server().spec.name);
    drop(first);
    assert_eq!((group.servers[0].in_flight(), group.servers[1].in_flight()), (0, 1));

    let tried = [Arc::clone(&group.servers[0])];
    assert_eq!(
        group.again(None, &tried, Tenant::Anybody, 0).expect("the other").server().spec.name,
        "http://two"
    );
    group.servers[1].note(Sign::Fault, 0.0);
    assert_eq!(
        group.again(None, &tried, Tenant::Anybody, 0).expect("the tried one").server().spec.name,
        "http://one"
    );
    group.servers[0].note(Sign::Fault, 0.0);
    assert!(group.again(None, &[], Tenant::Anybody, 0).is_none());
}

#[test]
fn servers_in_turn_get_their_shares() {
    let mut spec = upstream("a", &["http://one", "http://two", "http://three"]);
    spec.balance = Balance::RoundRobin;
    spec.servers[1].weight = 2;
    let fleet = Fleet::new(vec![spec], Vec::new());
    let group = &fleet.upstreams[0];
    let turn = || {
        group
            .again(None, &[], Tenant::Anybody, 7)
            .map(|lease| lease.server().spec.name.trim_start_matches("http://").to_owned())
    };
    let turns: Vec<_> = (0..8).filter_map(|_| turn()).collect();
    assert_eq!(turns, ["two", "one", "three", "two", "two", "one", "three", "two"]);
    group.servers[1].note(Sign::Fault, 0.0);
    let turns: Vec<_> = (0..2).filter_map(|_| turn()).collect();
    assert_eq!(turns, ["one", "three"]);
}

#[test]
fn a_fault_forgets_what_the_server_reported() {
    let fleet = Fleet::new(vec![upstream("a", &["http://one", "http://two"])], Vec::new());
    let group = &fleet.upstreams[0];
    assert_eq!(group.fingerprint(None), None);
    report(&group.servers[0], &["qwen"]);
    assert_eq!(group.fingerprint(None), None, "one of the two has not been asked");
    report(&group.servers[1], &["qwen"]);
    let same = group.fingerprint(None);
    assert!(same.is_some());
    group.servers[1].note(Sign::Fault, 0.0);
    assert_eq!(group.fingerprint(None), same, "the server that is down does not count");
    group.servers[1].note(Sign::GoodProbe, 0.0);
    assert_eq!(group.fingerprint(None), None, "it may have come back as another");
}

#[test]
fn one_url_in_two_upstreams_is_one_server() {
    let mut shared = upstream("a", &["http://one"]);
    shared.servers[0].slots = Slots::Fixed(1);
    let fleet = Fleet::new(vec![shared.clone(), UpstreamSpec { name: "b".to_owned(), ..shared }], Vec::new());
    assert_eq!((fleet.servers.len(), fleet.places().count()), (1, 2));
    let [a, b] = [&fleet.upstreams[0], &fleet.upstreams[1]];
    let prompt = Prompt::default();
    let errand = Errand {
        model: None,
        slot: true,
        prompt: &prompt,
        key: "alice",
        tenant: Tenant::Anybody,
        priority: 0,
        cost: 1,
        tie: 0,
        now: Duration::ZERO,
    };
    let Ok(Entry::Lease(lease)) = a.enter(errand) else { panic!("its slot is free") };
    let Ok(Entry::Wait(mut waits)) = b.enter(errand) else { panic!("the one slot is taken") };
    let Ok(Entry::Wait(mut waits_too)) = a.enter(errand) else { panic!("the one slot is taken") };
    let mut given = |upstream: usize| {
        let wait = if upstream == 0 { &mut waits_too } else { &mut waits };
        let mut told = std::pin::pin!(wait.lease());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match told.as_mut().poll(&mut context) {
            std::task::Poll::Ready(lease) => Some(lease.expect("a server is up")),
            std::task::Poll::Pending => None,
        }
    };
    assert!(given(0).is_none() && given(1).is_none());
    drop(lease);
    // Both are told, and one gets it.
    let first = [given(0), given(1)];
    assert_eq!(first.iter().flatten().count(), 1);
    assert_eq!(fleet.servers[0].in_flight(), 1);
    let gone = usize::from(first[0].is_some());
    drop(first);
    let second = given(gone).expect("then the other gets it");
    assert_eq!(fleet.servers[0].in_flight(), 1);
    second.server().note(Sign::Fault, 0.0);
    assert!(matches!((a.enter(errand), b.enter(errand)), (Err(Turned::Away), Err(Turned::Away))));
}

#[test]
fn fallbacks_come_in_their_order_each_with_its_own_after_it_and_none_twice() {
    let mut rules =
        ["a", "b", "c", "d"].map(|name| rule(name, "one", Some(&format!("{name}-there")))).to_vec();
    rules[0].fallback = vec!["b".to_owned(), "c".to_owned()];
    rules[1].fallback = vec!["d".to_owned(), "c".to_owned()];
    let fleet = Fleet::new(vec![upstream("one", &["http://a"])], rules);
    let fallbacks = |model| {
        let resolved = fleet.resolve(Some(model)).expect("a model");
        let found = fleet.fallbacks(&resolved).into_iter();
        found
            .map(|found| (found.name.unwrap_or_default(), found.rename.unwrap_or_default()))
            .collect::<Vec<_>>()
    };
    let there = |name: &str| (name.to_owned(), format!("{name}-there"));
    assert_eq!(fallbacks("a"), [there("b"), there("d"), there("c")]);
    assert_eq!(fallbacks("b"), [there("d"), there("c")]);
    assert!(fallbacks("d").is_empty());
}

#[test]
fn the_last_server_stays_and_a_trial_is_one_request() {
    let fleet = Fleet::new(vec![upstream("a", &["http://one", "http://two"])], Vec::new());
    let group = &fleet.upstreams[0];
    let (one, two) = (&group.servers[0], &group.servers[1]);
    let Some(crate::route::Turn::Open(opening)) = one.note(Sign::Fault, 0.0) else { panic!("it opens") };
    assert!(group.has_another(one) && !group.has_another(two));
    one.pause_ends(opening);
    assert!(!group.has_another(two), "one that is on trial is no other");
    let tried = [Arc::clone(two)];
    let trial = group.again(None, &tried, Tenant::Anybody, 0).expect("the trial");
    assert_eq!(trial.server().spec.name, "http://one");
    assert_eq!(
        group.again(None, &tried, Tenant::Anybody, 0).expect("the other").server().spec.name,
        "http://two",
        "one at a time"
    );
    drop(trial);
    assert_eq!(
        group.again(None, &tried, Tenant::Anybody, 0).expect("a trial again").server().spec.name,
        "http://one"
    );
    assert!(group.keep_one().is_empty(), "the other is there");
    two.note(Sign::NotReady, 0.0);
    assert_eq!(group.keep_one().len(), 1);
    assert!(one.is_settled() && group.keep_one().is_empty());
}

/// A lease, if there is one by now.
fn given(wait: &mut Wait) -> Option<Lease> {
    let mut told = std::pin::pin!(wait.lease());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match told.as_mut().poll(&mut context) {
        std::task::Poll::Ready(lease) => Some(lease.expect("a server is up")),
        std::task::Poll::Pending => None,
    }
}

#[test]
fn a_fleet_that_succeeds_another_has_its_servers_and_who_waits_there() {
    let group = |urls: &[&str], waiting_max| {
        let mut group = UpstreamSpec { balance: Balance::Prefix, ..upstream("one", urls) };
        group.servers.iter_mut().for_each(|server| server.slots = Slots::Fixed(1));
        group.queue.waiting_max = waiting_max;
        vec![group]
    };
    let old = Fleet::new(group(&["http://a", "http://b"], 8), Vec::new());
    let prompt: Prompt = (0..100).collect();
    let errand = Errand {
        model: None,
        slot: true,
        prompt: &prompt,
        key: "alice",
        tenant: Tenant::Anybody,
        priority: 0,
        cost: 1,
        tie: 0,
        now: Duration::ZERO,
    };
    let first = &old.upstreams[0];
    first.note_read(&prompt, 1.0, Duration::from_secs(100));
    let Ok(Entry::Lease(lease)) = first.enter(errand) else { panic!("its slot is free") };
    let held_by = lease.server().spec.name.clone();
    let Ok(Entry::Wait(mut patient)) = first.enter(errand) else { panic!("it waits for its prompt") };
    assert!(patient.patience().is_some(), "though another slot is free");
    let Ok(Entry::Wait(leaver)) = first.enter(errand) else { panic!("it waits for its prompt") };

    // The same servers in another order, under another bound: they are the same, and known by what they hold.
    let same = Fleet::after(Some(&old), group(&["http://b", "http://a"], 9), Vec::new());
    old.hand_over(&same);
    let second = &same.upstreams[0];
    assert!(same.servers.iter().all(|server| old.servers.iter().any(|old| Arc::ptr_eq(old, server))));
    assert_eq!((first.waiting(), second.waiting()), (0, 2));
    drop(leaver);
    assert_eq!((second.waiting(), given(&mut patient).is_none()), (1, true), "it has patience still");

    // Neither of them is left: another takes who waits, and further tries of whoever began before.
    let other = Fleet::after(Some(&same), group(&["http://c"], 9), Vec::new());
    same.hand_over(&other);
    let taken = given(&mut patient).expect("who waits has no other to wait for");
    assert_eq!(taken.server().spec.name, "http://c");
    assert!(
        first.again(None, &[], Tenant::Anybody, 0).is_some_and(|again| again.server().is(taken.server()))
    );
    assert!(matches!(first.enter(errand), Ok(Entry::Wait(_))));
    drop(patient);
    assert_eq!(other.upstreams[0].waiting(), 0);

    // One that comes back while it still has something has that still.
    let back = Fleet::after(Some(&other), group(&[held_by.as_str()], 9), Vec::new());
    other.hand_over(&back);
    assert_eq!((back.servers[0].in_flight(), back.servers[0].is(lease.server())), (1, true));
    drop(lease);
    assert_eq!(back.servers[0].in_flight(), 0);
}
