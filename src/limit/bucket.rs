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

/// More than that in a period counts as that where processes share the bucket: Valkey computes in doubles.
const COUNT_SHARED_MAX: u64 = 1 << 36;

/// A time that is longer counts as that: Valkey's clock counts microseconds, and there are a hundred years of them.
const MICROS_MAX: u128 = 4_000_000_000_000_000;

/// A shape in microseconds and parts of one, of which `count` make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SharedShape {
    shape: Shape,
    pub(super) count: u64,
    /// In microseconds.
    pub(super) per: u128,
}

impl SharedShape {
    /// The time that so much costs: microseconds, and parts.
    pub(super) fn cost(&self, amount: u64) -> (u64, u64) {
        let (scaled, count) = (u128::from(amount).saturating_mul(self.per), u128::from(self.count));
        match scaled / count {
            micros if micros > MICROS_MAX => (MICROS_MAX as u64, 0),
            micros => (micros as u64, (scaled % count) as u64),
        }
    }

    /// What a full bucket holds, in time.
    pub(super) fn holds(&self) -> (u64, u64) {
        self.cost(self.shape.burst)
    }
}

/// How a bucket stands in Valkey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    /// The arrival.
    pub(super) micros: u64,
    pub(super) parts: u64,
    /// The latest moment seen, in microseconds.
    pub(super) seen: u64,
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

    /// The same as processes share it.
    pub(super) fn shared(&self) -> SharedShape {
        let count = self.rate.count.min(COUNT_SHARED_MAX);
        SharedShape {
            shape: Self { rate: Rate { count, ..self.rate }, ..*self },
            count,
            per: self.rate.per.as_micros(),
        }
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

    /// The bucket that several processes share, as it was told.
    pub(super) fn told(shape: &SharedShape, told: Told) -> Self {
        let count = u128::from(shape.count);
        let nanos = |micros: u64, parts: u64| (u128::from(micros) * count + u128::from(parts)) * 1000;
        Self { arrival: nanos(told.micros, told.parts), seen: nanos(told.seen, 0), ..Self::full(shape.shape) }
    }

    /// Takes in how the shared bucket stands, by whose time it is `then`.
    pub(super) fn mirror(&mut self, other: &Self, then: Duration, now: Duration) {
        let scaled = other.arrival.saturating_sub(other.time(then));
        let factor = |shape: &Shape| u128::from(shape.rate.count);
        self.seen = self.time(now);
        self.arrival = self.seen + scaled * factor(&self.shape) / factor(&other.shape);
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
mod tests;
