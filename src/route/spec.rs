//! The fleet as the operator described it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What a server speaks beyond the public protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// llama-server: `/health`, `/props` and `/slots` tell its state.
    #[default]
    Llama,
    /// Any compatible server: no health probe, no slots known.
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

/// Where a server listens: `http://host[:port]`, without a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerUrl {
    /// A name, an IPv4 address, or an IPv6 address without its brackets.
    pub host: String,
    pub port: u16,
}

impl FromStr for ServerUrl {
    type Err = String;

    /// Reads a base URL. One that ends in an endpoint (`…/v1/completions`) means that server too.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |what: &str| format!("expected a URL such as `http://127.0.0.1:8080`, found `{text}`: {what}");
        let url: http::Uri = text.parse().map_err(|_| wrong("it is not a URL"))?;
        match url.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(wrong("https to a server is not built yet; use http")),
            _ => return Err(wrong("it does not begin with `http://`")),
        }
        let authority = url.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("a user or password in it is not used; name the server's key as `api_key`"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong("it names no host"));
        }
        if url.query().is_some() {
            return Err(wrong("it has a query"));
        }
        if !matches!(url.path(), "" | "/" | "/v1" | "/v1/") && !crate::wire::is_endpoint_path(url.path()) {
            return Err(wrong("its path is neither empty nor an endpoint of llama-server"));
        }
        Ok(Self { host, port: authority.port_u16().unwrap_or(80) })
    }
}

impl ServerUrl {
    /// `host:port`, as the `host` header has it.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

#[derive(Debug, Clone)]
pub struct ServerSpec {
    /// What logs and metrics call it; `host:port` if the file gives no name. Unique in its upstream.
    pub name: String,
    pub url: ServerUrl,
    /// What the gateway presents to it.
    pub api_key: Option<Secret>,
    pub slots: Slots,
    /// At least 1: its share of the requests, beside the others of its upstream.
    pub weight: u32,
}

#[derive(Debug, Clone)]
pub struct HealthCheck {
    pub path: String,
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
            path: "/health".to_owned(),
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

#[derive(Debug, Clone)]
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
    /// Whether generations are asked for as streams even where callers want plain answers.
    pub streamed: bool,
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
}

impl ModelRule {
    /// What the server calls the model.
    pub fn on_server(&self) -> &str {
        self.rename.as_deref().unwrap_or(&self.pattern)
    }
}
