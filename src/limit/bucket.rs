//! An exact token bucket: GCRA in integers.
//!
//! The bucket remembers one moment, the theoretical arrival time of the next request if all came evenly spaced.
//! Time is counted in nanoseconds times the rate's count, so that one request costs exactly `per` of them: `7/s` is
//! as exact as `5/s`, and nothing drifts. A refused request changes nothing.
//! (ITU-T I.371; <https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm>)

use std::collections::VecDeque;
use std::time::Duration;

use super::rate::Rate;
use super::standing::Debt;

/// Gaps that are told apart; the oldest of more than that are taken as one.
const GAPS_MAX: usize = 64;

/// What a bucket holds and how fast it fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    rate: Rate,
    /// Requests, or tokens, that a full bucket holds; at least 1.
    burst: u64,
}

/// One bucket. `now` is time since any fixed moment. Requests that race read the clock before they come here, and come
/// in another order than they read it: an earlier `now` than one that was seen counts as that, or the bucket would
/// look fuller to it than it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    shape: Shape,
    /// Nanoseconds times the rate's count, as is `seen`.
    arrival: u128,
    /// The latest `now` that a request was taken out at.
    seen: u128,
    /// All that was ever taken out.
    taken: u128,
    /// All that was ever put back of it.
    returned: u128,
    /// What had been taken when another process's debt was last taken over.
    assumed: u128,
    /// What was put back of it and not filled up before, by where it had been taken; the oldest first.
    gaps: VecDeque<Gap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    begins: u128,
    amount: u128,
}

/// What was taken for a while, by its place in the order of all that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loan {
    amount: u64,
    /// What had been taken with it.
    taken: u128,
}

/// What a bucket says of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ruling {
    Admit,
    /// The true wait until it would be admitted, if nobody else came.
    Wait(Duration),
    /// A full bucket does not hold so much.
    Never,
}

/// What is left, for the `x-ratelimit-` headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    pub limit: u64,
    pub remaining: u64,
    /// Until the bucket is full again.
    pub reset: Duration,
}

impl Shape {
    pub(super) fn new(rate: Rate, burst: Option<u64>) -> Self {
        Self { rate, burst: burst.unwrap_or(rate.count).max(1) }
    }

    fn cost(&self) -> u128 {
        self.rate.per.as_nanos()
    }

    fn scaled(&self, now: Duration) -> u128 {
        now.as_nanos() * u128::from(self.rate.count)
    }

    /// A time from its scaled form, rounded up.
    fn unscaled(&self, scaled: u128) -> Duration {
        let nanos = scaled.div_ceil(u128::from(self.rate.count));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Bucket {
    /// A full bucket.
    pub(super) fn full(shape: Shape) -> Self {
        Self { shape, arrival: 0, seen: 0, taken: 0, returned: 0, assumed: 0, gaps: VecDeque::new() }
    }

    fn time(&self, now: Duration) -> u128 {
        self.shape.scaled(now).max(self.seen)
    }

    /// What the bucket would say to so much at once, without taking anything.
    pub(super) fn ruling(&self, amount: u64, now: Duration) -> Ruling {
        if amount > self.shape.burst {
            return Ruling::Never;
        }
        let now = self.time(now);
        let after = self.arrival.max(now) + u128::from(amount) * self.shape.cost();
        let most = now + u128::from(self.shape.burst) * self.shape.cost();
        if after <= most { Ruling::Admit } else { Ruling::Wait(self.shape.unscaled(after - most)) }
    }

    /// Takes so much out: what [`Bucket::ruling`] admitted at the same `now`, or more, into debt.
    pub(super) fn take(&mut self, amount: u64, now: Duration) {
        self.seen = self.time(now);
        self.arrival = self.arrival.max(self.seen) + u128::from(amount) * self.shape.cost();
        self.taken += u128::from(amount);
    }

    /// Takes so much out, for [`Bucket::settle`].
    pub(super) fn lend(&mut self, amount: u64, now: Duration) -> Loan {
        self.take(amount, now);
        Loan { amount, taken: self.taken }
    }

    /// Puts back what was lent and not used, or takes what was used beyond it, into debt.
    ///
    /// A bucket fills up in the order in which it was emptied. What has been filled up since is not put back: the
    /// bucket has offered it to others meanwhile, and would give more at once than it holds.
    pub(super) fn settle(&mut self, loan: Loan, used: u64, now: Duration) {
        let Some(unused) = loan.amount.checked_sub(used) else {
            return self.take(used - loan.amount, now);
        };
        let unfilled = loan.taken.saturating_sub(self.filled_up(now)).min(u128::from(unused));
        if unfilled == 0 {
            return;
        }
        self.returned += unfilled;
        self.arrival = self.arrival.saturating_sub(unfilled * self.shape.cost());
        let gap = Gap { begins: loan.taken - unfilled, amount: unfilled };
        let at = self.gaps.partition_point(|other| other.begins < gap.begins);
        self.gaps.insert(at, gap);
        if self.gaps.len() > GAPS_MAX
            && let Some(oldest) = self.gaps.pop_front()
            && let Some(next) = self.gaps.front_mut()
        {
            *next = Gap { begins: oldest.begins, amount: oldest.amount + next.amount };
        }
    }

    /// How far, of all that was ever taken, the bucket has been filled up again.
    fn filled_up(&mut self, now: Duration) -> u128 {
        let gaps: u128 = self.gaps.iter().map(|gap| gap.amount).sum();
        let mut filled_up = self.taken.saturating_sub(self.owed(now) + gaps);
        while let Some(gap) = self.gaps.pop_front_if(|gap| gap.begins <= filled_up) {
            filled_up += gap.amount;
        }
        filled_up
    }

    /// What is missing, rounded up.
    fn owed(&self, now: Duration) -> u128 {
        self.arrival.saturating_sub(self.time(now)).div_ceil(self.shape.cost())
    }

    /// Takes another shape and keeps what is owed.
    pub(super) fn reshape(&mut self, shape: Shape, now: Duration) {
        let seen = shape.scaled(now);
        // What is owed, in units of the bucket, costs what it costs there.
        self.arrival = seen + self.owed(now) * shape.cost();
        (self.shape, self.seen) = (shape, seen);
    }

    /// What is missing, for another process to take over.
    pub(super) fn debt(&self, now: Duration) -> Debt {
        let scaled = self.arrival.saturating_sub(self.time(now));
        Debt { scaled, count: self.shape.rate.count, per: self.shape.cost() }
    }

    /// Takes over what is missing in another process's bucket of the same subject.
    pub(super) fn assume(&mut self, debt: Debt, now: Duration) {
        let cost = self.shape.cost();
        let scaled = if (debt.count, debt.per) == (self.shape.rate.count, cost) {
            debt.scaled
        } else {
            // What is owed, in units of the bucket, costs what it costs here.
            debt.scaled.div_ceil(debt.per.max(1)).saturating_mul(cost)
        };
        self.seen = self.time(now);
        self.arrival = self.arrival.max(self.seen).saturating_add(scaled);
        self.taken = self.taken.saturating_add(scaled.div_ceil(cost));
        self.assumed = self.taken;
    }

    /// All that was ever taken out and not put back.
    pub(super) fn balance(&self) -> i128 {
        i128::try_from(self.taken - self.returned).unwrap_or(i128::MAX)
    }

    /// Takes out, or puts back, what the other process has meanwhile.
    pub(super) fn shift(&mut self, by: i128, now: Duration) {
        let amount = u64::try_from(by.unsigned_abs()).unwrap_or(u64::MAX);
        if by > 0 {
            self.take(amount, now);
        } else {
            self.settle(Loan { amount, taken: self.assumed }, 0, now);
        }
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    pub(super) fn level(&self, now: Duration) -> Level {
        let owed = self.arrival.saturating_sub(self.time(now));
        let used = self.owed(now);
        Level {
            limit: self.shape.burst,
            remaining: self.shape.burst.saturating_sub(u64::try_from(used).unwrap_or(u64::MAX)),
            reset: self.shape.unscaled(owed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(rate: &str, burst: Option<u64>) -> Bucket {
        Bucket::full(Shape::new(rate.parse().expect("a rate"), burst))
    }

    fn ask(bucket: &mut Bucket, now: Duration) -> Ruling {
        let ruling = bucket.ruling(1, now);
        if ruling == Ruling::Admit {
            bucket.take(1, now);
        }
        ruling
    }

    #[test]
    fn a_burst_at_once_then_one_each_period_exactly() {
        let mut bucket = bucket("5/s", Some(10));
        let start = Duration::from_secs(1000);
        for _ in 0..10 {
            assert_eq!(ask(&mut bucket, start), Ruling::Admit);
        }
        assert_eq!(ask(&mut bucket, start), Ruling::Wait(Duration::from_millis(200)));
        let almost = start + Duration::from_nanos(199_999_999);
        assert_eq!(ask(&mut bucket, almost), Ruling::Wait(Duration::from_nanos(1)));
        assert_eq!(ask(&mut bucket, start + Duration::from_millis(200)), Ruling::Admit);
        assert_eq!(
            ask(&mut bucket, start + Duration::from_millis(200)),
            Ruling::Wait(Duration::from_millis(200))
        );
    }

    #[test]
    fn requests_that_come_in_another_order_than_their_times_get_all_that_there_is() {
        let mut bucket = bucket("1/h", Some(50));
        let times = (0..100).map(|n| Duration::from_secs(1000) + Duration::from_micros(99 - n * 37 % 100));
        assert_eq!(times.filter(|now| ask(&mut bucket, *now) == Ruling::Admit).count(), 50);
    }

    #[test]
    fn without_a_burst_it_holds_what_the_rate_names() {
        let mut bucket = bucket("60/min", None);
        let admitted = (0..100).filter(|_| ask(&mut bucket, Duration::ZERO) == Ruling::Admit).count();
        assert_eq!(admitted, 60);
    }

    #[test]
    fn a_rate_that_divides_badly_does_not_drift() {
        let mut bucket = bucket("7/s", Some(1));
        let hour = 3600;
        let step = Duration::from_millis(1);
        let mut now = Duration::ZERO;
        let mut admitted = 0;
        while now < Duration::from_secs(hour) {
            admitted += u64::from(ask(&mut bucket, now) == Ruling::Admit);
            now += match bucket.ruling(1, now) {
                Ruling::Admit => step,
                Ruling::Wait(wait) => wait,
                Ruling::Never => panic!("one fits"),
            };
        }
        assert_eq!(admitted, 7 * hour);
    }

    #[test]
    fn the_level_counts_what_is_left() {
        let mut bucket = bucket("5/s", Some(10));
        let now = Duration::from_secs(9);
        assert_eq!(bucket.level(now), Level { limit: 10, remaining: 10, reset: Duration::ZERO });
        bucket.take(1, now);
        assert_eq!(bucket.level(now), Level { limit: 10, remaining: 9, reset: Duration::from_millis(200) });
        assert_eq!(bucket.level(now + Duration::from_millis(100)).remaining, 9);
        assert_eq!(bucket.level(now + Duration::from_millis(200)).remaining, 10);
    }

    #[test]
    fn what_is_lent_is_settled_by_what_was_used() {
        let mut bucket = bucket("1000/min", None);
        let now = Duration::from_secs(60);
        assert_eq!(bucket.ruling(1001, now), Ruling::Never);
        assert_eq!(bucket.ruling(1000, now), Ruling::Admit);
        let loan = bucket.lend(600, now);
        assert_eq!(bucket.ruling(500, now), Ruling::Wait(Duration::from_secs(6)));
        bucket.settle(loan, 50, now);
        assert_eq!(bucket.level(now).remaining, 950);
        let loan = bucket.lend(10, now);
        bucket.settle(loan, 2000, now);
        assert_eq!((bucket.level(now).remaining, bucket.level(now).reset), (0, Duration::from_secs(123)));
        assert_eq!(bucket.ruling(1, now), Ruling::Wait(Duration::from_millis(63_060)));
    }

    #[test]
    fn loans_come_back_in_any_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut bucket = bucket("1000/min", None);
            let now = Duration::from_secs(60);
            let loans = [500, 300, 200].map(|amount| bucket.lend(amount, now));
            for (nth, at) in order.into_iter().enumerate() {
                bucket.settle(loans[at], 10, now);
                let out: u64 = order[nth + 1..].iter().map(|at| loans[*at].amount).sum();
                assert_eq!(bucket.level(now).remaining, 1000 - out - 10 * (nth as u64 + 1), "{order:?}");
            }
        }
    }

    #[test]
    fn what_has_been_filled_up_is_not_put_back() {
        let mut bucket = bucket("60/min", None);
        let at = Duration::from_secs;
        let (first, second) = (bucket.lend(30, at(0)), bucket.lend(30, at(0)));
        // After 40 s the first is filled up, and a third of the second.
        assert_eq!(bucket.level(at(40)).remaining, 40);
        let third = bucket.lend(40, at(40));
        bucket.settle(first, 0, at(40));
        assert_eq!(bucket.level(at(40)).remaining, 0, "others had it");
        bucket.settle(second, 5, at(40));
        assert_eq!(bucket.level(at(40)).remaining, 20);
        bucket.settle(third, 39, at(40));
        assert_eq!(bucket.level(at(40)).remaining, 21);
        // What was put back did not have to be filled up.
        assert_eq!(bucket.level(at(79)).remaining, 60);
    }

    /// Whatever is lent and put back whenever: what was used within any time is no more than the bucket holds and what
    /// fills it up in that time; and what is not used comes back while the bucket is never full.
    #[test]
    fn no_more_is_out_than_the_bucket_holds() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut bucket = bucket("100/s", None);
            let (mut now, mut out, mut charged) = (Duration::ZERO, Vec::new(), Vec::new());
            for _ in 0..400 {
                now += Duration::from_millis(random.u64(0..400));
                let amount = random.u64(1..=100);
                if bucket.ruling(amount, now) == Ruling::Admit {
                    out.push((bucket.lend(amount, now), now));
                }
                if !out.is_empty() && random.bool() {
                    let (loan, lent_at) = out.swap_remove(random.usize(0..out.len()));
                    let used = random.u64(0..=loan.amount);
                    bucket.settle(loan, used, now);
                    charged.push((lent_at, used));
                }
            }
            charged.sort_unstable();
            for (nth, (from, _)) in charged.iter().enumerate() {
                let mut sum = 0;
                for (at, used) in &charged[nth..] {
                    sum += u128::from(*used);
                    let most = 100 + (*at - *from).as_millis() / 10 + 1;
                    assert!(sum <= most, "{sum} used of {most}");
                }
            }
        }
    }

    #[test]
    fn a_new_shape_keeps_what_was_used() {
        let mut old = bucket("60/min", None);
        let now = Duration::from_secs(7);
        old.take(25, now);
        let mut new = old.clone();
        new.reshape(Shape::new("100/h".parse().expect("a rate"), None), now);
        assert_eq!((new.level(now).limit, new.level(now).remaining), (100, 75));
        old.reshape(Shape::new("10/min".parse().expect("a rate"), None), now);
        assert_eq!(old.ruling(1, now), Ruling::Wait(Duration::from_secs(96)), "into debt");
    }
}
