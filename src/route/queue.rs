//! Who waits for a slot: by priority, then fairly between keys by the work that they cause, bounded in number.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996): each key has a clock that its own requests advance by their
//! cost; whoever's request would begin earliest goes first. So a key with a thousand waiting requests delays another's
//! first by no more than what is at work already.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// Where a waiting request stands: higher priority first, then the earlier start, then who came first.
type Place = (Reverse<i32>, u64, u64);

/// Requests that wait, each with `T` to be told with.
#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: BTreeMap<Place, T>,
    /// When the last request of each key that has one here would be done, on the clock of costs.
    done: HashMap<String, u64>,
    /// The start of the request that went last.
    now: u64,
    count: u64,
}

/// A request's place in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot(Place);

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), done: HashMap::new(), now: 0, count: 0 }
    }
}

impl<T> Queue<T> {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Queues a request of a key that will cost so many tokens.
    pub(super) fn join(&mut self, key: &str, priority: i32, cost: u64, told: T) -> Spot {
        let start = self.done.get(key).copied().unwrap_or_default().max(self.now);
        self.done.insert(key.to_owned(), start.saturating_add(cost.max(1)));
        self.count += 1;
        let place = (Reverse(priority), start, self.count);
        self.waiting.insert(place, told);
        Spot(place)
    }

    /// Whoever is first.
    pub(super) fn first(&self) -> Option<&T> {
        self.waiting.first_key_value().map(|(_, told)| told)
    }

    /// Takes out whoever is first.
    pub(super) fn next(&mut self) -> Option<T> {
        let ((_, start, _), told) = self.waiting.pop_first()?;
        self.now = self.now.max(start);
        self.tidy();
        Some(told)
    }

    /// Takes out a request that waits no longer.
    pub(super) fn leave(&mut self, spot: Spot) {
        self.waiting.remove(&spot.0);
        self.tidy();
    }

    /// Nobody waits: what anybody did before no longer counts.
    fn tidy(&mut self) {
        if self.waiting.is_empty() {
            self.done = HashMap::new();
            self.now = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(queue: &mut Queue<&'static str>, count: usize) -> Vec<&'static str> {
        (0..count).filter_map(|_| queue.next()).collect()
    }

    #[test]
    fn a_key_with_a_thousand_does_not_delay_anothers_first() {
        let mut queue = Queue::default();
        for _ in 0..1000 {
            queue.join("heavy", 0, 500, "heavy");
        }
        assert_eq!(order(&mut queue, 2), ["heavy", "heavy"]);
        queue.join("light", 0, 100, "light");
        queue.join("light", 0, 100, "light");
        assert_eq!(order(&mut queue, 4), ["light", "light", "heavy", "heavy"], "by work, not by number");
        assert_eq!(queue.len(), 996);
    }

    #[test]
    fn who_causes_more_work_goes_less_often() {
        let mut queue = Queue::default();
        for _ in 0..100 {
            queue.join("long", 0, 300, "long");
            queue.join("short", 0, 100, "short");
        }
        let went = order(&mut queue, 40);
        assert_eq!(went.iter().filter(|key| **key == "long").count(), 10);
    }

    #[test]
    fn priority_goes_first_and_equals_in_the_order_in_which_they_came() {
        let mut queue = Queue::default();
        queue.join("a", 0, 1, "a");
        let gone = queue.join("b", 0, 1, "gone");
        queue.join("b", 0, 1, "b");
        queue.join("c", 5, 1, "first");
        queue.join("d", -5, 1, "last");
        queue.leave(gone);
        assert_eq!(order(&mut queue, 9), ["first", "a", "b", "last"]);
        assert!(queue.done.is_empty());
    }
}
