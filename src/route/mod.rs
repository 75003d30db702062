//! Which server answers now: models to upstreams, upstreams to servers, servers that are up.

mod spec;
mod url;
mod health;
mod addresses;
mod report;
mod swap;
mod residents;
mod server;
mod router;
mod queue;
mod retry;
mod felled;
mod prefix;
mod balance;
mod tenancy;
mod patience;
mod entry;
mod upstream;
mod prompts;
mod fleet;
mod exchange;

pub use addresses::ADDRESSES_MAX;
pub use entry::{Entry, Errand, Lease, Prompt, Turned, Wait};
pub use exchange::{Exchange, Read};
pub use felled::{Felled, Fingerprint, Harm};
pub use fleet::{Fleet, Resolved};
pub use health::{Breaker, Opening, Sign, Turn};
pub use report::Report;
pub use residents::Row;
pub use retry::Grant;
pub use server::{MODELS, Server};
pub use spec::{
    Balance, CaBundle, HealthCheck, Kind, ModelRule, QueueBounds, Secret, ServerSpec, Slots, SwapBounds,
    Timeouts, UpstreamSpec,
};
pub use swap::Act;
pub use tenancy::Tenant;
pub use upstream::Upstream;
pub use url::ServerUrl;
