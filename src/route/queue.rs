//! Who waits for a slot: by priority, then fairly between keys by the work that they cause, bounded in number.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996): each key has a clock that its own requests advance by their
//! cost; whoever's request would begin earliest goes first. So a key with a thousand waiting requests delays another's
//! first by no more than what is at work already.
//!
//! Requests that can go to the same servers stand in one lane, so that the first of all that can go is found among the
//! first of each lane, however many wait behind one that cannot.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Keys that are told apart, each at its name's bytes and some 60 more.
const KEYS_MAX: usize = 10_000;

/// Where a waiting request stands: higher priority first, then the earlier start, then who came first.
type Place = (Reverse<i32>, u64, u64);

/// Where a request can go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lane {
    /// The model, where a router knows it: there are as many lanes as routers have models, twice, one for each server,
    /// and one more.
    pub(super) model: Option<Arc<str>>,
    /// Whether it takes a slot.
    pub(super) slot: bool,
    /// The number of the one server that it waits for, as long as it has patience.
    pub(super) server: Option<u64>,
}

/// Requests that wait, each with `T` to be told with.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// None of them is empty.
    lanes: BTreeMap<Lane, Waiting<T>>,
    /// When the last request of each key that has one here would be done, on the clock of costs.
    done: HashMap<String, u64>,
    /// The start of the latest request that went.
    now: u64,
    count: u64,
    len: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    places: BTreeMap<Place, T>,
    /// Since when, by number.
    since: BTreeMap<u64, Duration>,
}

/// A request's place in a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot(Lane, Place);

impl Spot {
    pub(super) fn lane(&self) -> &Lane {
        &self.0
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { lanes: BTreeMap::new(), done: HashMap::new(), now: 0, count: 0, len: 0 }
    }
}

impl<T> Queue<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Queues a request of a key that will cost so many tokens, at `now`.
    pub(super) fn join(
        &mut self,
        lane: &Lane,
        key: &str,
        priority: i32,
        cost: u64,
        now: Duration,
        told: T,
    ) -> Spot {
        let start = self.done.get(key).copied().unwrap_or_default().max(self.now);
        if self.done.len() >= KEYS_MAX && !self.done.contains_key(key) {
            self.forget_some();
        }
        self.done.insert(key.to_owned(), start.saturating_add(cost.max(1)));
        self.count += 1;
        let place = (Reverse(priority), start, self.count);
        self.put(lane, place, now, told);
        Spot(lane.clone(), place)
    }

    /// Whoever is first in each lane, in the order in which they should go.
    pub(super) fn heads(&self) -> Vec<(&Lane, &T)> {
        let first = |(lane, waiting)| Some((lane, <Waiting<T>>::first(waiting)?));
        let mut heads: Vec<_> = self.lanes.iter().filter_map(first).collect();
        heads.sort_unstable_by_key(|(_, (place, _))| **place);
        heads.into_iter().map(|(lane, (_, told))| (lane, told)).collect()
    }

    /// Each lane, how many wait in it, and since when the first of them has.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (&Lane, usize, Duration)> {
        self.lanes.iter().map(|(lane, waiting)| {
            let since = waiting.since.first_key_value().map(|(_, since)| *since);
            (lane, waiting.places.len(), since.unwrap_or_default())
        })
    }

    pub(super) fn has(&self, lane: &Lane) -> bool {
        self.lanes.contains_key(lane)
    }

    /// Takes out whoever is first in a lane.
    pub(super) fn next(&mut self, lane: &Lane) -> Option<T> {
        let place = *self.lanes.get(lane)?.first()?.0;
        self.now = self.now.max(place.1);
        self.take(lane, place)
    }

    /// Takes out a request that waits no longer.
    pub(super) fn leave(&mut self, spot: &Spot) {
        drop(self.take(&spot.0, spot.1));
    }

    /// Makes room, first by those whose past makes no difference any more, then by those who have had the least.
    fn forget_some(&mut self) {
        let now = self.now;
        self.done.retain(|_, done| *done > now);
        if self.done.len() >= KEYS_MAX {
            let mut all: Vec<u64> = self.done.values().copied().collect();
            let (_, middle, _) = all.select_nth_unstable(KEYS_MAX / 2);
            let middle = *middle;
            self.done.retain(|_, done| *done > middle);
        }
    }

    /// Lets a request that waits go wherever there is room, in the place that it has.
    pub(super) fn widen(&mut self, spot: &mut Spot) {
        let Some(waiting) = self.lanes.get_mut(&spot.0) else { return };
        let since = waiting.since.get(&spot.1.2).copied();
        let (now, done) = (self.now, std::mem::take(&mut self.done));
        let Some((told, since)) = self.take(&spot.0, spot.1).zip(since) else {
            self.done = done;
            return;
        };
        (self.now, self.done) = (now, done);
        spot.0.server = None;
        self.put(&spot.0, spot.1, since, told);
    }

    fn put(&mut self, lane: &Lane, place: Place, since: Duration, told: T) {
        let empty = || Waiting { places: BTreeMap::new(), since: BTreeMap::new() };
        let waiting = self.lanes.entry(lane.clone()).or_insert_with(empty);
        waiting.places.insert(place, told);
        waiting.since.insert(place.2, since);
        self.len += 1;
    }

    fn take(&mut self, lane: &Lane, place: Place) -> Option<T> {
        let waiting = self.lanes.get_mut(lane)?;
        let told = waiting.places.remove(&place)?;
        waiting.since.remove(&place.2);
        if waiting.places.is_empty() {
            self.lanes.remove(lane);
        }
        self.len -= 1;
        if self.len == 0 {
            // Nobody waits: what anybody did before no longer counts.
            self.done = HashMap::new();
            self.now = 0;
        }
        Some(told)
    }
}

impl<T> Waiting<T> {
    fn first(&self) -> Option<(&Place, &T)> {
        self.places.first_key_value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Lane = Lane { model: None, slot: true, server: None };

    fn join(
        queue: &mut Queue<&'static str>,
        key: &'static str,
        priority: i32,
        cost: u64,
        told: &'static str,
    ) -> Spot {
        queue.join(&ANY, key, priority, cost, Duration::ZERO, told)
    }

    fn order(queue: &mut Queue<&'static str>, count: usize) -> Vec<&'static str> {
        (0..count).filter_map(|_| queue.next(&ANY)).collect()
    }

    #[test]
    fn lanes_keep_the_order_of_all_and_do_not_block_each_other() {
        let lane = |model: &str| Lane { model: Some(model.into()), ..ANY };
        let [a, b] = [lane("a"), lane("b")];
        let mut queue = Queue::default();
        let at = Duration::from_secs;
        queue.join(&a, "one", 0, 100, at(1), "a1");
        queue.join(&b, "two", 0, 100, at(2), "b1");
        queue.join(&a, "one", 0, 100, at(3), "a2");
        let gone = queue.join(&b, "two", 5, 100, at(4), "b2");
        let heads =
            |queue: &Queue<&'static str>| queue.heads().iter().map(|(_, told)| **told).collect::<Vec<_>>();
        assert_eq!(heads(&queue), ["b2", "a1"], "by priority before all else");
        let lanes = |queue: &Queue<&'static str>| {
            queue.lanes().map(|(_, len, since)| (len, since)).collect::<Vec<_>>()
        };
        assert_eq!(lanes(&queue), [(2, at(1)), (2, at(2))]);
        queue.leave(&gone);
        queue.leave(&gone);
        assert_eq!((heads(&queue), queue.len()), (vec!["a1", "b1"], 3));
        assert_eq!((queue.next(&b), queue.next(&b), queue.has(&b)), (Some("b1"), None, false));
        assert_eq!((queue.next(&a), lanes(&queue)), (Some("a1"), vec![(1, at(3))]));
        assert_eq!((queue.next(&a), queue.len()), (Some("a2"), 0));
    }

    #[test]
    fn who_has_no_patience_left_keeps_its_place() {
        let patient = Lane { server: Some(1), ..ANY };
        let mut queue = Queue::default();
        let at = Duration::from_secs;
        let mut spot = queue.join(&patient, "one", 0, 100, at(1), "patient");
        queue.widen(&mut spot);
        assert_eq!((queue.lanes().map(|lane| lane.2).collect::<Vec<_>>(), queue.len()), (vec![at(1)], 1));
        join(&mut queue, "one", 0, 100, "later");
        let mut gone = queue.join(&patient, "two", 0, 100, at(2), "gone");
        queue.leave(&gone);
        queue.widen(&mut gone);
        assert_eq!((order(&mut queue, 3), queue.len()), (vec!["patient", "later"], 0));
    }

    #[test]
    fn a_key_with_a_thousand_does_not_delay_anothers_first() {
        let mut queue = Queue::default();
        for _ in 0..1000 {
            join(&mut queue, "heavy", 0, 500, "heavy");
        }
        assert_eq!(order(&mut queue, 2), ["heavy", "heavy"]);
        join(&mut queue, "light", 0, 100, "light");
        join(&mut queue, "light", 0, 100, "light");
        assert_eq!(order(&mut queue, 4), ["light", "light", "heavy", "heavy"], "by work, not by number");
        assert_eq!(queue.len(), 996);
    }

    #[test]
    fn who_causes_more_work_goes_less_often() {
        let mut queue = Queue::default();
        for _ in 0..100 {
            join(&mut queue, "long", 0, 300, "long");
            join(&mut queue, "short", 0, 100, "short");
        }
        let went = order(&mut queue, 40);
        assert_eq!(went.iter().filter(|key| **key == "long").count(), 10);
    }

    #[test]
    fn a_queue_that_is_never_empty_does_not_remember_everybody() {
        let mut queue = Queue::default();
        join(&mut queue, "heavy", 0, 1_000_000, "heavy");
        for number in 0..5 * KEYS_MAX {
            queue.join(&ANY, &number.to_string(), 0, 1 + number as u64 % 7, Duration::ZERO, "one of many");
            assert!(queue.next(&ANY).is_some() && queue.len() == 1);
            assert!(queue.done.len() <= KEYS_MAX);
        }
        assert!(queue.done.contains_key("heavy"), "who has had the most is remembered");
    }

    #[test]
    fn priority_goes_first_and_equals_in_the_order_in_which_they_came() {
        let mut queue = Queue::default();
        join(&mut queue, "a", 0, 1, "a");
        let gone = join(&mut queue, "b", 0, 1, "gone");
        join(&mut queue, "b", 0, 1, "b");
        join(&mut queue, "c", 5, 1, "first");
        join(&mut queue, "d", -5, 1, "last");
        queue.leave(&gone);
        assert_eq!(order(&mut queue, 9), ["first", "a", "b", "last"]);
        assert!(queue.done.is_empty());
    }
}
