//! The last hour in steps of ten seconds, in constant memory.
//!
//! What is kept is the counters' own totals at the end of each step; what happened in a step is the difference to the
//! one before. What is counted once a second and not in sums (who waits, who is under way) keeps its peak.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::metrics::Totals;

/// The length of a step.
pub const STEP: Duration = Duration::from_secs(10);

const STEPS_MAX: usize = 360;

/// The number of the first step of this process; those of the one before have lower ones.
const OWN_FROM: u64 = STEPS_MAX as u64 + 1;

/// Steps that "the last minute" is made of.
const MINUTE_STEPS: usize = 6;

/// What is so at one moment, and not a sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// A step as one process tells it to the next, whose clock is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    ended_ms_ago: u64,
    took_ms: u64,
    counted: Totals,
    most: Gauges,
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
    /// Of the process before, the oldest first.
    before: VecDeque<Step>,
    /// The oldest first. The first is where counting began, or the end of a step that is forgotten.
    kept: VecDeque<Mark>,
    /// How many steps of this process are forgotten.
    forgotten: u64,
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
            marks.forgotten += 1;
        }
        if marks.before.len() + marks.kept.len() > STEPS_MAX + 1 {
            marks.before.pop_front();
        }
    }

    /// Every step, and what there is of the one that has not ended: for the process that comes after.
    pub fn past(&self, now: Duration, totals: &Totals) -> Vec<Past> {
        let mut steps = self.steps(0);
        let marks = self.lock();
        steps.extend(marks.kept.back().map(|last| Step {
            number: 0,
            end: now,
            took: now.saturating_sub(last.at),
            counted: totals.since(&last.totals),
            most: marks.most,
        }));
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let past = |step: &Step| Past {
            ended_ms_ago: milliseconds(now.saturating_sub(step.end)),
            took_ms: milliseconds(step.took),
            counted: step.counted,
            most: step.most,
        };
        steps.iter().map(past).collect()
    }

    /// Takes a step of the process before, the oldest first, and no more than an hour of them.
    pub fn assume(&self, past: &Past, now: Duration) {
        let mut marks = self.lock();
        let number = marks.before.back().map_or(0, |step| step.number + 1);
        if number < OWN_FROM {
            let end = now.saturating_sub(Duration::from_millis(past.ended_ms_ago));
            let took = Duration::from_millis(past.took_ms);
            marks.before.push_back(Step { number, end, took, counted: past.counted, most: past.most });
        }
    }

    /// The steps from this number on, the oldest first.
    pub fn steps(&self, from: u64) -> Vec<Step> {
        let marks = self.lock();
        let pairs = marks.kept.iter().zip(marks.kept.iter().skip(1)).zip(OWN_FROM + marks.forgotten..);
        let step = |((begin, end), number): ((&Mark, &Mark), u64)| Step {
            number,
            end: end.at,
            took: end.at.saturating_sub(begin.at),
            counted: end.totals.since(&begin.totals),
            most: end.most,
        };
        marks.before.iter().copied().chain(pairs.map(step)).filter(|step| step.number >= from).collect()
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
        assert_eq!(told, [(OWN_FROM, 10, 4, 7), (OWN_FROM + 1, 11, 3, 4)]);
        assert_eq!(hour.steps(OWN_FROM + 1).len(), 1, "only those that are new");
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
        assert_eq!((steps[0].number, steps[359].number), (OWN_FROM + 639, OWN_FROM + 998));
        let (counted, took) = hour.minute(STEP * 999, &totals(999));
        assert_eq!((counted.requests, took), (5, STEP * 5));
    }

    /// One process has counted for an hour of its clock, the next begins at 20 s of another.
    #[test]
    fn the_next_process_goes_on_with_the_hour() {
        let (old, new) = (Hour::default(), Hour::default());
        for step in 0..400 {
            old.tick(Duration::from_secs(20_000) + STEP * step, queue(3), || totals(u64::from(step)));
        }
        let now = Duration::from_secs(20_000 + 3990 + 4);
        let past = old.past(now, &totals(410));
        let begun = Duration::from_secs(7200);
        past.iter().for_each(|past| new.assume(past, begun));
        let told = |hour: &Hour| -> Vec<u64> { hour.steps(0).iter().map(|it| it.counted.requests).collect() };
        assert_eq!((told(&new).len(), told(&new)[0], told(&new)[360]), (361, 1, 11));
        let last = new.steps(0)[360];
        assert_eq!((last.end, last.took.as_secs()), (begun, 4), "what had not ended too");
        for step in 0..500 {
            new.tick(begun + STEP * step, queue(0), || totals(u64::from(2 * step)));
            assert!(new.steps(0).len() <= STEPS_MAX + 1);
        }
        assert_eq!(told(&new), [2; STEPS_MAX]);
        let numbers: Vec<u64> = new.steps(0).iter().map(|it| it.number).collect();
        assert!(numbers.is_sorted() && !told(&old).is_empty());
    }
}
