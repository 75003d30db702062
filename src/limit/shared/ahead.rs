//! How far Valkey's clock is ahead, so that a question says until when it is to be ruled on: one that waits in a Valkey
//! that was stopped does nothing when that goes on, long after whoever asked has.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A question that Valkey comes to later than that does nothing: whoever asked has long gone on, and not waited for
/// its answer either.
const VALID: Duration = Duration::from_millis(900);

const UNKNOWN: i64 = i64::MIN;

/// By how many microseconds Valkey's clock is ahead of this process's, or [`UNKNOWN`].
#[derive(Debug)]
pub(super) struct Ahead {
    beginning: Instant,
    micros: AtomicI64,
}

impl Ahead {
    /// Of a clock that has not been seen.
    pub(super) fn unknown() -> Self {
        Self { beginning: Instant::now(), micros: AtomicI64::new(UNKNOWN) }
    }

    /// It says this, in microseconds, to a question of now.
    pub(super) fn saw(&self, then: i64) {
        self.micros.store(then.saturating_sub(self.now()), Ordering::Relaxed);
    }

    /// Until when, by Valkey's clock, a question of now is to be ruled on; `None`: it has not been seen yet.
    pub(super) fn valid(&self) -> Option<Duration> {
        let ahead = Some(self.micros.load(Ordering::Relaxed)).filter(|ahead| *ahead != UNKNOWN)?;
        let until = self.now().saturating_add(ahead).saturating_add(micros(VALID));
        u64::try_from(until).ok().map(Duration::from_micros)
    }

    fn now(&self) -> i64 {
        micros(self.beginning.elapsed())
    }
}

pub(super) fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
