//! The store's promises, for any mix of answers.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::cache::{Form, Worth};

fn store(size_kib: u64, entry_bytes_max: u64) -> Store {
    Store::new(CachePolicy { size_bytes_max: size_kib * KIB, entry_bytes_max, ..CachePolicy::default() })
}

fn keep(store: &Store, key: Key, bytes: usize, now: Duration) {
    let body = Bytes::from(vec![b'x'; bytes]);
    let content_type = Bytes::from_static(b"text/plain");
    store.keep(key, Answer { form: Form::Plain, content_type, body, worth: Worth::default() }, now);
}

fn numbered(n: u64) -> Key {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&n.to_be_bytes());
    key
}

fn found(store: &Store, keys: impl Iterator<Item = u64>, now: Duration) -> usize {
    keys.filter(|n| store.look_up(&numbered(*n), now, None).is_some()).count()
}

#[test]
fn an_answer_lives_for_its_ttl_exactly() {
    let store = store(64, 1 << 20);
    let made = Duration::from_secs(7);
    keep(&store, numbered(1), 10, made);
    let at = |seconds: f64, age_max: Option<u64>| {
        store
            .look_up(&numbered(1), Duration::from_secs_f64(seconds), age_max.map(Duration::from_secs))
            .is_some()
    };
    assert!(at(7.0, None) && at(306.9, None) && at(17.0, Some(10)));
    assert!(!at(17.1, Some(10)) && !at(307.0, None));
    assert!(store.look_up(&numbered(2), made, None).is_none());
    assert_eq!((store.holding().entries, store.holding().bytes), (0, 0), "what expired is held no longer");
}

#[test]
fn bytes_are_bounded_whatever_comes() {
    let store = store(256, 64 << 10);
    for n in 0..5000 {
        keep(&store, numbered(n), (n as usize * 37) % 20_000, Duration::ZERO);
        assert!(store.holding().bytes <= 256 * KIB, "{:?}", store.holding());
        assert!(store.look_up(&numbered(n), Duration::ZERO, None).is_some(), "the newest is there: {n}");
    }
    let holding = store.holding();
    assert_eq!(holding.stored, 5000);
    assert!(holding.evicted > 4000 && holding.entries > 10, "{holding:?}");
    store.clear();
    assert_eq!((store.holding().entries, store.holding().bytes), (0, 0));
    assert!(store.look_up(&numbered(4999), Duration::ZERO, None).is_none());
}

/// TinyUFO finds what has the same 64 bits: as if the second key had those of the first.
#[test]
fn another_key_with_the_same_64_bits_finds_nothing() {
    let store = store(64, 1 << 20);
    keep(&store, numbered(1), 10, Duration::ZERO);
    let plot = store.plot.load();
    let garden = plot.garden.as_ref().expect("it keeps something");
    let husk = garden.get(&numbered(1)).expect("it was just kept");
    garden.force_put(numbered(2), husk, 1);
    assert!(garden.get(&numbered(2)).is_some_and(|husk| !husk.is_empty()));
    assert_eq!(found(&store, 1..3, Duration::ZERO), 1);
    // What is kept for the one takes the place of the other's, and the books still add up.
    keep(&store, numbered(2), 20, Duration::ZERO);
    assert_eq!((found(&store, 1..2, Duration::ZERO), found(&store, 2..3, Duration::ZERO)), (0, 1));
    assert_eq!(store.holding().entries, 1);
}

#[test]
fn a_store_without_room_keeps_nothing() {
    assert!(!Store::new(CachePolicy { size_bytes_max: 0, ..CachePolicy::default() }).keeps());
}

/// However often they were asked for, and however small they are.
#[test]
fn the_expired_leave_their_room_to_the_living() {
    for bytes in [100, 600, 5_000, 50_000] {
        let store = store(4096, 1 << 20);
        let fits = 4096 * KIB / (bytes as u64 + 400).div_ceil(KIB) / KIB;
        for n in 0..fits {
            keep(&store, numbered(n), bytes, Duration::ZERO);
        }
        for _ in 0..3 {
            assert_eq!(found(&store, 0..fits, Duration::from_secs(1)), fits as usize, "{bytes}");
        }
        let later = Duration::from_secs(400);
        let others = 1 << 20..(1 << 20) + fits * 9 / 10;
        for n in others.clone() {
            keep(&store, numbered(n), bytes, later);
        }
        assert_eq!(found(&store, others.clone(), later), others.count(), "answers of {bytes} bytes");
    }
}

#[test]
fn what_was_asked_for_survives_the_planting_anew() {
    let store = store(1024, 1 << 20);
    let at = Duration::from_secs;
    for n in 0..500 {
        keep(&store, numbered(n), 100, at(0));
    }
    for n in 1000..1100 {
        keep(&store, numbered(n), 100, at(200));
    }
    for _ in 0..3 {
        found(&store, 1000..1100, at(200));
    }
    // The first 500 expire, which plants anew; then a flood comes.
    for n in 10_000..14_000 {
        keep(&store, numbered(n), 100, at(350));
    }
    assert!(found(&store, 1000..1100, at(350)) == 100, "{:?}", store.holding());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_mix_of_answers_holds_more_than_its_size(
        steps in prop::collection::vec((0_u64..40, 0_usize..40_000, 0_u64..30), 1..400)
    ) {
        let store = store(128, 64 << 10);
        let mut made = std::collections::HashMap::new();
        let mut now = Duration::ZERO;
        for (n, bytes, seconds) in steps {
            now += Duration::from_secs(seconds);
            keep(&store, numbered(n), bytes, now);
            made.insert(n, (now, bytes));
            let holding = store.holding();
            prop_assert!(holding.bytes <= holding.bytes_max, "{holding:?}");
            let newest = store.look_up(&numbered(n), now, None);
            prop_assert_eq!(newest.map(|it| it.body.len()), Some(bytes));
            for (n, (made_at, bytes)) in &made {
                if let Some(entry) = store.look_up(&numbered(*n), now, None) {
                    prop_assert!(now < *made_at + Duration::from_secs(300));
                    prop_assert_eq!(entry.body.len(), *bytes);
                }
            }
        }
        let rest = now + Duration::from_secs(300);
        for _ in 0..40 {
            store.look_up(&numbered(0), rest, None);
        }
        prop_assert_eq!((store.holding().bytes, store.holding().entries), (0, 0));
    }
}

#[test]
fn another_policy_keeps_what_it_lets() {
    let policy = CachePolicy { ttl: Duration::from_secs(100), ..CachePolicy::default() };
    let store = Store::new(policy);
    let at = Duration::from_secs;
    (0..10).for_each(|n| keep(&store, numbered(n), 2000, at(n)));
    keep(&store, numbered(10), 100_000, at(10));
    let follow = |policy, now| {
        store.follow(policy, now);
        (found(&store, 0..11, now), store.holding().entries, store.holding().bytes_max)
    };
    assert_eq!(follow(CachePolicy { size_bytes_max: 1 << 20, ..policy }, at(10)), (11, 11, 1 << 20));
    assert_eq!(follow(CachePolicy { entry_bytes_max: 50_000, ..policy }, at(10)), (10, 10, 64 << 20));
    let shorter = CachePolicy { ttl: at(8), ..policy };
    assert_eq!(follow(shorter, at(12)), (5, 5, 64 << 20), "counted from when they were made");
    assert_eq!(follow(CachePolicy { ttl: at(1000), ..policy }, at(500)), (5, 5, 64 << 20));
    let small = follow(CachePolicy { size_bytes_max: 8 * KIB, ttl: at(1000), ..policy }, at(500));
    assert!((1..=2).contains(&small.0) && store.holding().bytes <= 8 * KIB, "{small:?}");
    assert_eq!(follow(CachePolicy { size_bytes_max: 0, ..policy }, at(500)), (0, 0, 0));
    assert!(!store.keeps() && store.holding().bytes == 0);
    assert_eq!(follow(policy, at(501)), (0, 0, 64 << 20));
    keep(&store, numbered(0), 2000, at(501));
    assert_eq!(found(&store, 0..11, at(502)), 1);
}
