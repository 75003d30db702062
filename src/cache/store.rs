//! Where answers are kept: TinyUFO, weighed in KiB, so that bytes are bounded.
//!
//! TinyUFO keeps 64 bits of a key, so what it holds has all 256 and a hit compares them. Removing a key leaves its
//! place in TinyUFO's queue behind (measured: 20 million rounds grew the process by 350 MB), so nothing is removed:
//! an expired entry is overwritten by the next answer or evicted by others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tinyufo::TinyUfo;

use super::entry::{Entry, Holdings, Husk};
use super::key::Key;
use super::policy::CachePolicy;

const KIB: u64 = 1024;

/// The answers of one gateway.
pub struct Store {
    policy: CachePolicy,
    /// `None` where the policy keeps nothing.
    entries: Option<TinyUfo<Key, Arc<Husk>>>,
    holdings: Arc<Holdings>,
    stored: AtomicU64,
    evicted: AtomicU64,
}

/// What the store has done and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    pub bytes: u64,
    pub bytes_max: u64,
    pub entries: u64,
    pub stored: u64,
    pub evicted: u64,
}

impl Store {
    pub fn new(policy: CachePolicy) -> Self {
        let kib = policy.size_bytes_max / KIB;
        // TinyUFO sizes its tables by this guess: an answer of 4 KiB is typical.
        let estimate = usize::try_from(kib / 4).unwrap_or(usize::MAX).clamp(64, 1 << 20);
        let entries = (kib > 0 && !policy.ttl.is_zero())
            .then(|| TinyUfo::new(usize::try_from(kib).unwrap_or(usize::MAX), estimate));
        Self {
            policy,
            entries,
            holdings: Arc::default(),
            stored: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }
    }

    /// Whether it keeps anything at all.
    pub fn keeps(&self) -> bool {
        self.entries.is_some()
    }

    /// The answer under this key, if there is one that is no older than `ttl` and `age_max`.
    pub fn look_up(&self, key: &Key, now: Duration, age_max: Option<Duration>) -> Option<Arc<Entry>> {
        let husk = self.entries.as_ref()?.get(key)?;
        let entry = husk.entry.load_full().filter(|_| husk.key == *key)?;
        let fresh = now < entry.expires_at && age_max.is_none_or(|most| entry.age(now) <= most);
        fresh.then_some(entry)
    }

    /// The largest answer that is kept, in bytes.
    pub fn entry_bytes_max(&self) -> usize {
        // TinyUFO weighs in 16 bits.
        let heaviest = (u64::from(u16::MAX) - 1) * KIB;
        let bytes_max = self.policy.entry_bytes_max.min(self.policy.size_bytes_max).min(heaviest);
        usize::try_from(bytes_max).unwrap_or(usize::MAX)
    }

    /// Keeps a whole answer. The next look-up finds it.
    pub fn keep(&self, key: Key, content_type: Bytes, body: Bytes, now: Duration) {
        let Some(entries) = &self.entries else { return };
        let entry = Entry::new(content_type, body, now, self.policy.ttl, &self.holdings);
        let Ok(kib) = u16::try_from(entry.weight().div_ceil(KIB)) else { return };
        if u64::from(kib) > self.policy.size_bytes_max / KIB {
            return;
        }
        let replaced = entries.get(&key);
        let husk = Husk { key, entry: ArcSwapOption::from_pointee(entry) };
        // `force_put`: TinyLFU would turn most newcomers away while the store is full of what is asked for often.
        let evicted = entries.force_put(key, Arc::new(husk), kib);
        for husk in evicted.iter().map(|evicted| &evicted.data).chain(&replaced) {
            husk.entry.store(None);
        }
        self.stored.fetch_add(1, Ordering::Relaxed);
        self.evicted.fetch_add(evicted.len() as u64, Ordering::Relaxed);
    }

    pub fn holding(&self) -> Holding {
        Holding {
            bytes: self.holdings.bytes.load(Ordering::Relaxed),
            bytes_max: self.policy.size_bytes_max,
            entries: self.holdings.entries.load(Ordering::Relaxed),
            stored: self.stored.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Recording;

    fn store(size_kib: u64, entry_bytes_max: u64) -> Store {
        Store::new(CachePolicy { size_bytes_max: size_kib * KIB, entry_bytes_max, ..CachePolicy::default() })
    }

    fn keep(store: &Store, key: Key, bytes: usize, now: Duration) {
        store.keep(key, Bytes::from_static(b"text/plain"), Bytes::from(vec![b'x'; bytes]), now);
    }

    fn numbered(n: u64) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        key
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
        assert!(!at(307.0, None) && !at(17.1, Some(10)));
        assert!(store.look_up(&numbered(2), made, None).is_none());
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
    }

    #[test]
    fn an_answer_over_the_bound_is_not_recorded_further() {
        let mut recording = Recording::new(100);
        assert!(recording.push(&Bytes::from(vec![0; 100])));
        assert!(!recording.push(&Bytes::from_static(b"x")));
        assert!(!Store::new(CachePolicy { size_bytes_max: 0, ..CachePolicy::default() }).keeps());
    }
}
