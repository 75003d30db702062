//! Which server answers now: models to upstreams, upstreams to servers, servers that are up.

mod spec;
mod health;
mod server;
mod queue;
mod prefix;
mod upstream;
mod fleet;

pub use fleet::{Fleet, Resolved};
pub use health::{Sign, Turn};
pub use server::{Report, Server};
pub use spec::{
    Balance, HealthCheck, Kind, ModelRule, QueueBounds, Secret, ServerSpec, ServerUrl, Slots, Timeouts,
    UpstreamSpec,
};
pub use upstream::{Entry, Errand, Lease, Prompt, Turned, Upstream, Wait};
