//! Which server answers now: models to upstreams, upstreams to servers, servers that are up.

mod spec;
mod health;
mod server;
mod fleet;

pub use fleet::{Fleet, Resolved, Upstream};
pub use health::{Sign, Turn};
pub use server::{Lease, Report, Server};
pub use spec::{
    Balance, HealthCheck, Kind, ModelRule, Secret, ServerSpec, ServerUrl, Slots, Timeouts, UpstreamSpec,
};
