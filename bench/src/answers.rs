//! The look-up of a kept answer, found and not found.

use std::hint::black_box;
use std::time::Duration;

use ai_gateway::cache::{Answer, CachePolicy, Form, Key, Store, Worth};
use bytes::Bytes;

use crate::{Part, Work, mixed, stride};

const NOW: Duration = Duration::from_secs(1);

pub(crate) fn parts() -> Vec<Part> {
    let of = |(name, entries): (&str, usize)| {
        [
            Part::new(format!("cache/hit/{name}"), 2000, move || look_up(entries, true)),
            Part::new(format!("cache/miss/{name}"), 2000, move || look_up(entries, false)),
        ]
    };
    [("1,000 entries", 1000), ("1,000,000 entries", 1_000_000)].into_iter().flat_map(of).collect()
}

fn look_up(entries: usize, hits: bool) -> Work {
    // Twice the least that so many weigh: none is evicted.
    let size_bytes_max = 2 * 1024 * entries as u64;
    let store =
        Store::new(CachePolicy { ttl: Duration::from_secs(3600), size_bytes_max, ..CachePolicy::default() });
    let answer = || Answer {
        form: Form::Plain,
        content_type: Bytes::from_static(b"application/json"),
        body: Bytes::from_static(br#"{"choices":[]}"#),
        worth: Worth::default(),
    };
    (0..entries).for_each(|number| store.keep(key(number), answer(), NOW));
    assert_eq!(store.holding().entries, entries as u64);
    let mut at = 0;
    Box::new(move || {
        at = stride(at, entries);
        let number = if hits { at } else { entries + at };
        let found = store.look_up(black_box(&key(number)), NOW, None);
        assert_eq!(black_box(found).is_some(), hits);
    })
}

/// As even as a hash, and cheaper.
fn key(number: usize) -> Key {
    let mut key = Key::default();
    for (place, part) in key.chunks_exact_mut(8).enumerate() {
        part.copy_from_slice(&mixed((4 * number + place) as u64).to_be_bytes());
    }
    key
}
