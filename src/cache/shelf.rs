//! What a store holds, in the order in which it expires: one lifetime for all makes that the order of arrival.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::entry::{Entry, Husk};

/// Husks that have lost their answer before its time may stand here as long as there are not more of them than this
/// and the living together.
const SLACK: u64 = 64;

/// The ledger of a store, and its index by expiry.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    husks: VecDeque<(Duration, Arc<Husk>)>,
    /// Of living answers, all overhead counted.
    pub(super) bytes: u64,
    pub(super) entries: u64,
    /// Husks that TinyUFO holds and that have no answer any more.
    pub(super) empty: u64,
    pub(super) stored: u64,
    pub(super) evicted: u64,
}

impl Shelf {
    /// Puts an answer into a husk that TinyUFO has taken in, perhaps in place of another.
    pub(super) fn fill(&mut self, husk: Arc<Husk>, replaced: Option<&Husk>, entry: Entry) {
        if let Some(replaced) = replaced
            && !self.take(replaced)
        {
            self.empty = self.empty.saturating_sub(1);
        }
        self.bytes += entry.bytes();
        self.entries += 1;
        self.stored += 1;
        let expires_at = entry.expires_at;
        husk.replace(Some(Arc::new(entry)));
        self.husks.push_back((expires_at, husk));
        if self.husks.len() as u64 > 2 * self.entries + SLACK {
            self.husks.retain(|(_, husk)| !husk.is_empty());
        }
    }

    /// Takes the answers out of husks that TinyUFO has let go.
    pub(super) fn evict<'a>(&mut self, husks: impl IntoIterator<Item = &'a Arc<Husk>>) {
        for husk in husks {
            if self.take(husk) {
                self.evicted += 1;
            } else {
                self.empty = self.empty.saturating_sub(1);
            }
        }
    }

    /// The next husk whose answer has expired, without it.
    pub(super) fn take_expired(&mut self, now: Duration) -> Option<Arc<Husk>> {
        while self.husks.front().is_some_and(|(expires_at, _)| *expires_at <= now) {
            let (_, husk) = self.husks.pop_front()?;
            if self.take(&husk) {
                self.empty += 1;
                return Some(husk);
            }
        }
        None
    }

    pub(super) fn living(&self) -> impl Iterator<Item = (&Arc<Husk>, Arc<Entry>)> {
        self.husks.iter().filter_map(|(_, husk)| Some((husk, husk.entry()?)))
    }

    /// Answers are kept for another time from when they were made on.
    pub(super) fn keep_for(&mut self, ttl: Duration) {
        for (expires_at, husk) in &mut self.husks {
            if let Some(entry) = husk.entry().map(|entry| entry.kept_for(ttl)) {
                *expires_at = entry.expires_at;
                husk.replace(Some(Arc::new(entry)));
            }
        }
        // Some may have lost their answers: they go with those of their time.
        self.husks.retain(|(_, husk)| !husk.is_empty());
    }

    /// Takes out the answers that are not to stay.
    pub(super) fn retain(&mut self, stays: impl Fn(&Entry) -> bool) {
        let goes = |husk: &Arc<Husk>| husk.entry().is_some_and(|entry| !stays(&entry));
        let husks: Vec<_> =
            self.husks.iter().map(|(_, husk)| husk).filter(|husk| goes(husk)).cloned().collect();
        for husk in husks {
            if self.take(&husk) {
                self.empty += 1;
            }
        }
    }

    pub(super) fn clear(&mut self) {
        for (_, husk) in self.husks.drain(..) {
            husk.replace(None);
        }
        (self.bytes, self.entries, self.empty) = (0, 0, 0);
    }

    /// Whether there was an answer to take.
    fn take(&mut self, husk: &Husk) -> bool {
        let Some(entry) = husk.replace(None) else { return false };
        self.bytes -= entry.bytes();
        self.entries -= 1;
        true
    }
}
