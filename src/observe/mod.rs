//! What happened: metrics, and one line a request.

mod labels;
mod families;
mod metrics;
mod line;
mod writer;

pub use labels::{BreakerState, CacheOutcome, Ended, Labels, Phase, ServerState};
pub use line::{Line, milliseconds};
pub use metrics::{ANYBODY, Metrics, Unshaken};
pub use writer::{Sink, Writer};
