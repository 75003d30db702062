//! Waiting for what happens on its own time: probes, log lines, a peer that notices a close.

use std::time::Duration;

/// The longest that a play waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two looks.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);

/// Looks again and again until the condition holds; after ten seconds, or `within` what it says, the play has failed.
macro_rules! eventually {
    (within $patience:expr; $condition:expr) => {
        eventually!(@ $patience, $condition, "it never came about")
    };
    ($condition:expr) => {
        eventually!($condition, "it never came about")
    };
    (@ $patience:expr, $condition:expr, $($why:tt)+) => {{
        let given_up = tokio::time::Instant::now() + $patience;
        while !$condition {
            assert!(
                tokio::time::Instant::now() < given_up,
                "waited in vain for `{}`: {}",
                stringify!($condition),
                format_args!($($why)+)
            );
            tokio::time::sleep($crate::support::eventually::PAUSE).await;
        }
    }};
    ($condition:expr, $($why:tt)+) => {
        eventually!(@ $crate::support::eventually::PATIENCE, $condition, $($why)+)
    };
}
