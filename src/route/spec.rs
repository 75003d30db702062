//! The fleet as the operator described it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::url::ServerUrl;

/// What a server speaks beyond the public protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// llama-server: `/health` and `/props` tell its state.
    #[default]
    Llama,
    /// Any compatible server: no health probe unless one is named, no slots known, none of llama.cpp's own endpoints.
    OpenAi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    RoundRobin,
    LeastBusy,
    #[default]
    Prefix,
}

/// How many requests a server works on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Slots {
    /// The server is asked (`/props`).
    #[default]
    Auto,
    Fixed(u32),
}

/// A secret that prints as `…`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Whom a server's certificate must come from, where it is not the system's own roots that say so.
#[derive(Debug, PartialEq, Eq)]
pub struct CaBundle {
    pub file: PathBuf,
    /// DER, at least one; each has been read once.
    pub certificates: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSpec {
    /// What logs and metrics call it; `host:port` if the file gives no name. Unique in its upstream.
    pub name: String,
    /// What makes it this server: written in two upstreams, it is one.
    pub url: ServerUrl,
    /// What the gateway presents to it.
    pub api_key: Option<Secret>,
    /// `None`: the system's roots.
    pub ca: Option<Arc<CaBundle>>,
    pub slots: Slots,
    /// At least 1: its share of the requests, beside the others of its upstream. Another upstream may give another.
    pub weight: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Where the server is asked, from its root; `None`: it is not, while it is up.
    pub path: Option<String>,
    pub every: Duration,
    pub timeout: Duration,
    /// Consecutive faults until a server counts as down.
    pub down_after: u32,
    /// Consecutive good probes until it counts as up again.
    pub up_after: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            path: Some("/health".to_owned()),
            every: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
            down_after: 3,
            up_after: 1,
        }
    }
}

/// `None`: no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Option<Duration>,
    pub first_byte: Option<Duration>,
    pub between_bytes: Option<Duration>,
    pub total: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Some(Duration::from_secs(2)),
            first_byte: None,
            between_bytes: Some(Duration::from_secs(300)),
            total: None,
        }
    }
}

/// How many callers are held while every slot is busy, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueBounds {
    pub waiting_max: u32,
    pub wait_max: Duration,
}

impl Default for QueueBounds {
    fn default() -> Self {
        Self { waiting_max: 256, wait_max: Duration::from_secs(60) }
    }
}

/// When a router gives up a model for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwapBounds {
    /// A model stays loaded at least so long.
    pub least_residency: Duration,
    /// Whoever has waited so long for a model goes before further requests for those that are loaded.
    pub longest_wait: Duration,
}

impl Default for SwapBounds {
    fn default() -> Self {
        Self { least_residency: Duration::from_secs(10), longest_wait: Duration::from_secs(30) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSpec {
    pub name: String,
    /// At least one.
    pub servers: Vec<ServerSpec>,
    pub kind: Kind,
    pub balance: Balance,
    pub health: HealthCheck,
    pub timeouts: Timeouts,
    /// Tries after the first.
    pub retries: u32,
    pub queue: QueueBounds,
    pub swap: SwapBounds,
    /// Whether generations are asked for as streams even where callers want plain answers.
    pub streamed: bool,
    /// Whether keys must not meet in one KV cache.
    pub isolated: bool,
}

/// One line of `models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRule {
    /// A name, or a pattern with `*`.
    pub pattern: String,
    /// The name of an upstream that exists.
    pub upstream: String,
    /// What the server calls it; `None`: as the caller does.
    pub rename: Option<String>,
    /// Names of other rules, which are no patterns and do not lead back here.
    pub fallback: Vec<String>,
}

impl ModelRule {
    /// What the server calls the model.
    pub fn on_server(&self) -> &str {
        self.rename.as_deref().unwrap_or(&self.pattern)
    }
}
