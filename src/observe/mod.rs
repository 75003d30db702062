//! What happened: metrics, and one line a request.

mod families;
mod metrics;
mod line;
mod writer;

pub use line::{Line, milliseconds};
pub use metrics::{ANYBODY, CacheOutcome, Ended, Labels, Metrics, Phase};
pub use writer::{Sink, Writer};
