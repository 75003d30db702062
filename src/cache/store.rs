//! Where answers are kept: TinyUFO, weighed in KiB, so that bytes are bounded, and an index of what expires when.
//!
//! TinyUFO keeps 64 bits of a key, so what it holds has all 256 and a hit compares them. Removing a key leaves its
//! place in TinyUFO's queue behind (measured: 20 million rounds grew the process by 350 MB), and that place counts
//! twice once the key is back. So nothing is removed: the answer of what expired is taken out of its husk, and the
//! empty husk weighs 1 KiB until it is evicted, its key gets a new answer, or there are so many that all living
//! answers are planted anew.
//!
//! Look-ups take no lock of the store's; whatever changes it takes one, so that TinyUFO has one writer at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tinyufo::TinyUfo;

use super::entry::{Answer, Entry, Husk};
use super::key::Key;
use super::policy::CachePolicy;
use super::shelf::Shelf;

const KIB: u64 = 1024;

/// Expired answers that one call takes out: what comes late is taken by the next.
const SWEPT_MAX: usize = 32;

/// TinyUFO makes its tables for so many answers: 40 KiB of them, and they grow. Its sketch of what is asked for often
/// does not, but `force_put` never looks at that: for 65,536 answers it took 2.8 MiB, and a third of the time of
/// keeping one.
const ESTIMATE_BEGUN: usize = 1 << 10;

/// A store for more answers has its tables whole from the start: where a table of 98,000 doubles, whoever keeps the
/// next answer waits for 9 ms, of 786,000 for 130 (measured).
const GROWN_MAX: usize = 1 << 16;

/// Empty husks may weigh this part of the whole.
const EMPTY_PART: u64 = 16;

type Garden = TinyUfo<Key, Arc<Husk>>;

/// The answers of one gateway.
pub struct Store {
    plot: ArcSwap<Plot>,
    shelf: Mutex<Shelf>,
}

/// What is kept, and by which policy. Who has the shelf may exchange it.
struct Plot {
    policy: CachePolicy,
    /// `None` where the policy keeps nothing.
    garden: Option<Garden>,
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
        Self { plot: ArcSwap::from_pointee(Plot::new(policy)), shelf: Mutex::default() }
    }

    /// Keeps answers by another policy from now on. Those that are there stay as far as it lets them.
    pub fn follow(&self, policy: CachePolicy, now: Duration) {
        let mut shelf = self.shelf();
        let plot = self.plot.load();
        if plot.policy != policy {
            shelf.keep_for(policy.ttl);
            // Those that have expired by it weigh on nothing any more.
            while shelf.take_expired(now).is_some() {}
            shelf.retain(|entry| {
                entry.body.len() as u64 <= Self::entry_max(&policy) && fits(entry, &policy).is_some()
            });
            self.plot.store(Arc::new(Plot::anew(policy, &mut shelf)));
        }
    }

    /// Whether it keeps anything at all.
    pub fn keeps(&self) -> bool {
        self.plot.load().garden.is_some()
    }

    /// The answer under this key, if there is one that is no older than `ttl` and `age_max`.
    pub fn look_up(&self, key: &Key, now: Duration, age_max: Option<Duration>) -> Option<Arc<Entry>> {
        if let Ok(mut shelf) = self.shelf.try_lock() {
            self.sweep(&mut shelf, now);
        }
        let husk = self.plot.load().garden.as_ref()?.get(key)?;
        let entry = husk.entry().filter(|_| husk.key == *key)?;
        let fresh = now < entry.expires_at && age_max.is_none_or(|most| entry.age(now) <= most);
        fresh.then(|| {
            husk.used();
            entry
        })
    }

    /// The largest answer that is kept, in bytes.
    pub fn entry_bytes_max(&self) -> usize {
        usize::try_from(Self::entry_max(&self.plot.load().policy)).unwrap_or(usize::MAX)
    }

    fn entry_max(policy: &CachePolicy) -> u64 {
        // TinyUFO weighs in 16 bits.
        let heaviest = (u64::from(u16::MAX) - 1) * KIB;
        policy.entry_bytes_max.min(policy.size_bytes_max).min(heaviest)
    }

    /// Keeps a whole answer. The next look-up finds it.
    pub fn keep(&self, key: Key, answer: Answer, now: Duration) {
        self.keep_made_at(key, answer, now, now);
    }

    /// Takes over an answer that another process made at `made_at` of this one's clock. The oldest come first.
    pub fn keep_made_at(&self, key: Key, answer: Answer, made_at: Duration, now: Duration) {
        let mut shelf = self.shelf();
        self.sweep(&mut shelf, now);
        let plot = self.plot.load();
        let Some(living) = &plot.garden else { return };
        let entry = Entry::new(answer, made_at, plot.policy.ttl);
        if entry.expires_at <= now {
            return;
        }
        let Some(kib) = fits(&entry, &plot.policy) else { return };
        // Whoever looks meanwhile finds the old answer. The new one goes in once there is room for it.
        let replaced = living.get(&key);
        let old = replaced.as_ref().filter(|husk| husk.key == key).and_then(|husk| husk.entry());
        let husk = Arc::new(Husk::new(key, old));
        // `force_put`: TinyLFU would turn most newcomers away while the store is full of what is asked for often.
        let mut evicted = living.force_put(key, Arc::clone(&husk), kib);
        if evicted.iter().any(|evicted| Arc::ptr_eq(&evicted.data, &husk)) {
            // What takes another's place may be evicted by it; what is new is not.
            evicted.retain(|evicted| !Arc::ptr_eq(&evicted.data, &husk));
            evicted.extend(living.force_put(key, Arc::clone(&husk), kib));
        }
        shelf.evict(evicted.iter().map(|evicted| &evicted.data));
        shelf.fill(husk, replaced.as_deref(), entry);
    }

    /// Keeps an answer that another replica made, and gives it, where it is fresh and no older than `age_max`.
    pub fn adopt(
        &self,
        key: Key,
        answer: Answer,
        age: Duration,
        now: Duration,
        age_max: Option<Duration>,
    ) -> Option<Arc<Entry>> {
        let ttl = self.plot.load().policy.ttl;
        if age >= ttl || age_max.is_some_and(|most| age > most) {
            return None;
        }
        let made_at = now.saturating_sub(age);
        self.keep_made_at(key, answer.clone(), made_at, now);
        Some(Arc::new(Entry::new(answer, made_at, ttl)))
    }

    /// The answers that were made after that and are fresh, the oldest first.
    pub fn made_after(&self, made_at: Duration, now: Duration) -> Vec<(Key, Arc<Entry>)> {
        let shelf = self.shelf();
        let mut answers: Vec<_> = shelf
            .living()
            .filter(|(_, entry)| entry.made_at > made_at && entry.expires_at > now)
            .map(|(husk, entry)| (husk.key, entry))
            .collect();
        answers.sort_by_key(|(_, entry)| entry.made_at);
        answers
    }

    /// Takes out every answer.
    pub fn clear(&self) {
        let mut shelf = self.shelf();
        shelf.clear();
        self.plot.store(Arc::new(Plot::new(self.plot.load().policy)));
    }

    pub fn holding(&self) -> Holding {
        let shelf = self.shelf();
        Holding {
            bytes: shelf.bytes,
            bytes_max: self.plot.load().policy.size_bytes_max,
            entries: shelf.entries,
            stored: shelf.stored,
            evicted: shelf.evicted,
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out what has expired.
    fn sweep(&self, shelf: &mut Shelf, now: Duration) {
        let plot = self.plot.load();
        let Some(living) = &plot.garden else { return };
        for _ in 0..SWEPT_MAX {
            let Some(husk) = shelf.take_expired(now) else { break };
            let evicted = living.force_put(husk.key, husk, 1);
            shelf.evict(evicted.iter().map(|evicted| &evicted.data));
        }
        if shelf.empty > (plot.policy.size_bytes_max / KIB / EMPTY_PART).max(EMPTY_PART) {
            self.plot.store(Arc::new(Plot::anew(plot.policy, shelf)));
        }
    }
}

impl Plot {
    fn new(policy: CachePolicy) -> Self {
        let keeps = policy.size_bytes_max >= KIB && !policy.ttl.is_zero();
        Self { policy, garden: keeps.then(|| garden(&policy)) }
    }

    /// With a garden of all living answers and without empty husks. What was asked for counts as asked for.
    fn anew(policy: CachePolicy, shelf: &mut Shelf) -> Self {
        let plot = Self::new(policy);
        let Some(anew) = &plot.garden else {
            shelf.clear();
            return plot;
        };
        let mut evicted = Vec::new();
        for (husk, entry) in shelf.living() {
            let Some(kib) = fits(&entry, &policy) else { continue };
            evicted.extend(anew.force_put(husk.key, Arc::clone(husk), kib));
            for _ in 0..husk.uses() {
                anew.get(&husk.key);
            }
        }
        shelf.empty = 0;
        shelf.evict(evicted.iter().map(|evicted| &evicted.data));
        plot
    }
}

fn garden(policy: &CachePolicy) -> Garden {
    let kib = usize::try_from(policy.size_bytes_max / KIB).unwrap_or(usize::MAX);
    // An answer of 4 KiB is typical.
    let answers = kib / 4;
    let estimate = if answers > GROWN_MAX { answers.min(1 << 20) } else { answers.clamp(64, ESTIMATE_BEGUN) };
    TinyUfo::new(kib, estimate)
}

/// KiB, rounded up; `None` where TinyUFO cannot weigh it, or it is more than is kept.
fn fits(entry: &Entry, policy: &CachePolicy) -> Option<u16> {
    let kib = u16::try_from(entry.bytes().div_ceil(KIB)).ok()?;
    Some(kib).filter(|kib| u64::from(*kib) <= policy.size_bytes_max / KIB)
}

#[cfg(test)]
mod tests;
