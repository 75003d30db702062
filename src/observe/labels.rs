//! What metrics are told: outcomes, phases and states by their names, and the labels that are known from the start.

use std::time::Duration;

/// How a request met the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheOutcome {
    Hit,
    Miss,
    Shared,
    Bypass,
}

impl CacheOutcome {
    pub const ALL: [Self; 4] = [Self::Hit, Self::Miss, Self::Shared, Self::Bypass];

    pub fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Shared => "shared",
            Self::Bypass => "bypass",
        }
    }
}

/// Where in its life a request was when its caller left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the server's first byte.
    Waiting,
    /// While the answer was on its way.
    Answering,
    /// While the caller's own body was on its way.
    Sending,
}

impl Phase {
    #[cfg(test)]
    pub(super) const ALL: [Self; 3] = [Self::Waiting, Self::Answering, Self::Sending];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Answering => "answering",
            Self::Sending => "sending",
        }
    }
}

/// Why a connection did not get past its handshake.
#[derive(Debug, Clone, Copy)]
pub enum Unshaken {
    /// One side refused the other: no TLS, no certificate, none that is trusted.
    Failed,
    /// It took too long.
    Late,
}

impl Unshaken {
    #[cfg(test)]
    pub(super) const ALL: [Self; 2] = [Self::Failed, Self::Late];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Late => "late",
        }
    }
}

/// What the metrics of one gateway can be labelled with.
#[derive(Debug, Clone, Default)]
pub struct Labels {
    pub models: Vec<(String, String)>,
    pub keys: Vec<String>,
    pub limits: Vec<&'static str>,
    /// Upstream and server.
    pub servers: Vec<(String, String)>,
    /// A model, as the file calls it, and one that it falls back to.
    pub fallbacks: Vec<(String, String)>,
}

/// One server, as it is now.
#[derive(Debug, Clone, Copy)]
pub struct ServerState<'a> {
    pub upstream: &'a str,
    pub server: &'a str,
    pub up: bool,
    pub breaker: BreakerState,
    pub in_flight: u32,
    pub slots: Option<u32>,
}

/// Whether requests go to a server, by what requests have met: `closed`, as long as all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    HalfOpen,
    Open,
}

impl BreakerState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// One ended request.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    pub key: Option<&'a str>,
    pub model: Option<&'a str>,
    pub upstream: Option<&'a str>,
    pub status: u16,
    pub cache: CacheOutcome,
    pub duration: Duration,
    pub first_token: Option<Duration>,
    /// Whether the answer came as it was made.
    pub stream: bool,
    /// What its server says that it took after the first token.
    pub generation: Option<Duration>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub cached_prompt_tokens: Option<u64>,
}
