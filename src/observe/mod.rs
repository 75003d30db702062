//! What happened: metrics, one line a request, and the last hour and requests for whoever looks.

mod labels;
mod families;
mod metrics;
mod line;
mod text;
mod output;
mod writer;
mod hour;
mod recent;
mod trace;

pub use hour::{Gauges, Hour, Past, STEP, Step};
pub use labels::{BreakerState, CacheOutcome, Ended, Labels, Phase, ServerState, Unshaken};
pub use line::{Line, milliseconds};
pub use metrics::{ANYBODY, Families, Metrics, Totals, reference};
pub use recent::{Passed, Recent};
pub use trace::{Attempt, Collector, Protocol, Times, Trace, Traces};
pub use writer::{Sink, Writer};
