//! The last hour in steps of ten seconds, in constant memory.
//!
//! What is kept is the counters' own totals at the end of each step; what happened in a step is the difference to the
//! one before. What is counted once a second and not in sums (who waits, who is under way) keeps its peak.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::metrics::Totals;

/// The length of a step.
pub const STEP: Duration = Duration::from_secs(10);

const STEPS_MAX: usize = 360;

/// Steps that "the last minute" is made of.
const MINUTE_STEPS: usize = 6;

/// What is so at one moment, and not a sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauges {
    pub queue: u64,
    pub in_flight: u64,
}

/// What happened in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Counted from the first.
    pub number: u64,
    /// When it ended.
    pub end: Duration,
    pub took: Duration,
    pub counted: Totals,
    pub most: Gauges,
}

/// The end of a step.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Duration,
    totals: Totals,
    most: Gauges,
}

/// The last hour.
#[derive(Debug, Default)]
pub struct Hour(Mutex<Marks>);

#[derive(Debug, Default)]
struct Marks {
    /// The oldest first. The first is where counting began, or the end of a step that is forgotten.
    kept: VecDeque<Mark>,
    /// The number of the step that ends with the second mark.
    first: u64,
    /// In the step that has not ended.
    most: Gauges,
}

impl Hour {
    /// Looks at the gauges, and ends a step where one is due. `totals` is asked for only then.
    pub fn tick(&self, now: Duration, gauges: Gauges, totals: impl FnOnce() -> Totals) {
        let mut marks = self.lock();
        marks.most.queue = marks.most.queue.max(gauges.queue);
        marks.most.in_flight = marks.most.in_flight.max(gauges.in_flight);
        if marks.kept.back().is_some_and(|last| now < last.at + STEP) {
            return;
        }
        let most = std::mem::take(&mut marks.most);
        marks.kept.push_back(Mark { at: now, totals: totals(), most });
        if marks.kept.len() > STEPS_MAX + 1 {
            marks.kept.pop_front();
            marks.first += 1;
        }
    }

    /// The steps from this number on, the oldest first.
    pub fn steps(&self, from: u64) -> Vec<Step> {
        let marks = self.lock();
        let pairs = marks.kept.iter().zip(marks.kept.iter().skip(1)).zip(marks.first..);
        let step = |((begin, end), number): ((&Mark, &Mark), u64)| Step {
            number,
            end: end.at,
            took: end.at.saturating_sub(begin.at),
            counted: end.totals.since(&begin.totals),
            most: end.most,
        };
        pairs.map(step).filter(|step| step.number >= from).collect()
    }

    /// What happened in the last minute, or since counting began, and how long that is. `totals`: as they are now.
    pub fn minute(&self, now: Duration, totals: &Totals) -> (Totals, Duration) {
        let marks = self.lock();
        let begin = marks.kept.len().saturating_sub(MINUTE_STEPS);
        marks.kept.get(begin).map_or((Totals::default(), Duration::ZERO), |begin| {
            (totals.since(&begin.totals), now.saturating_sub(begin.at))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(requests: u64) -> Totals {
        Totals { requests, ..Totals::default() }
    }

    fn queue(queue: u64) -> Gauges {
        Gauges { queue, in_flight: 0 }
    }

    #[test]
    fn a_step_is_what_was_counted_between_two_marks_and_the_peak_of_its_seconds() {
        let hour = Hour::default();
        let table = [(0, 0, 5), (3, 7, 6), (9, 2, 7), (10, 1, 9), (19, 4, 9), (21, 0, 12)];
        for (second, waiting, requests) in table {
            hour.tick(Duration::from_secs(second), queue(waiting), || totals(requests));
        }
        let steps = hour.steps(0);
        let told: Vec<_> = steps
            .iter()
            .map(|it| (it.number, it.took.as_secs(), it.counted.requests, it.most.queue))
            .collect();
        assert_eq!(told, [(0, 10, 4, 7), (1, 11, 3, 4)]);
        assert_eq!(hour.steps(1).len(), 1, "only those that are new");
        let (counted, took) = hour.minute(Duration::from_secs(25), &totals(14));
        assert_eq!((counted.requests, took.as_secs()), (9, 25));
    }

    #[test]
    fn it_keeps_an_hour_and_no_more() {
        let hour = Hour::default();
        for step in 0..1000 {
            hour.tick(STEP * step, queue(0), || totals(u64::from(step)));
        }
        let steps = hour.steps(0);
        assert_eq!(steps.len(), STEPS_MAX);
        assert_eq!((steps[0].number, steps[359].number), (639, 998));
        let (counted, took) = hour.minute(STEP * 999, &totals(999));
        assert_eq!((counted.requests, took), (5, STEP * 5));
    }
}
