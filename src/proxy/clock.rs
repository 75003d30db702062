//! The one clock: time for rules as an argument, read here.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Monotonic time since the process began, and the time on the wall.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the one clock")]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Since the process began; never runs backwards.
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The time on the wall, for logs and expiries.
    pub fn wall(&self) -> Timestamp {
        Timestamp::now()
    }
}
