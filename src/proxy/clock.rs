//! The one clock: time for rules as an argument, read here.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// What the clock says when the process begins: what it takes over from another was made before that.
pub(super) const BEGINNING: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Monotonic time, and the time on the wall.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the one clock")]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Never runs backwards.
    pub fn now(&self) -> Duration {
        BEGINNING + self.origin.elapsed()
    }

    /// For how long the process has run.
    pub fn uptime(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The time on the wall, for logs and expiries.
    pub fn wall(&self) -> Timestamp {
        Timestamp::now()
    }
}
