//! Which server answers now: models to upstreams, upstreams to servers.

mod spec;

pub use spec::{Balance, HealthCheck, Kind, ModelRule, Secret, ServerSpec, ServerUrl, Slots, Timeouts, UpstreamSpec};
