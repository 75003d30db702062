//! Which server answers now: models to upstreams, upstreams to servers, servers that are up.

mod spec;
mod url;
mod health;
mod addresses;
mod server;
mod queue;
mod retry;
mod felled;
mod prefix;
mod balance;
mod tenancy;
mod upstream;
mod fleet;

pub use addresses::ADDRESSES_MAX;
pub use felled::{Felled, Fingerprint, Harm};
pub use fleet::{Fleet, Resolved};
pub use health::{Breaker, Opening, Sign, Turn};
pub use retry::Grant;
pub use server::{MODELS, Report, Server};
pub use spec::{
    Balance, CaBundle, HealthCheck, Kind, ModelRule, QueueBounds, Secret, ServerSpec, Slots, Timeouts,
    UpstreamSpec,
};
pub use tenancy::Tenant;
pub use upstream::{Entry, Errand, Lease, Prompt, Turned, Upstream, Wait};
pub use url::ServerUrl;
