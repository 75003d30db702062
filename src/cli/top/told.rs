//! What the gateway tells, once a second: an event of `GET /dashboard/live` (`src/admin/live.rs`).
//!
//! What another version does not tell is as if there were none of it.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::text::Text;

/// An event. The first of a connection has all that is kept, each further one what is new.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct News {
    pub(super) ready: bool,
    pub(super) well: bool,
    pub(super) totals: Totals,
    pub(super) minute: Step,
    pub(super) servers: Vec<Server>,
    pub(super) steps: Vec<Step>,
    pub(super) requests: Vec<Request>,
    /// Not with each event.
    pub(super) access: Option<Access>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Totals {
    pub(super) version: Text,
    pub(super) uptime_seconds: u64,
    pub(super) requests: u64,
    pub(super) in_flight: i64,
    pub(super) queue: i64,
    pub(super) saved_tokens: u64,
    pub(super) saved_seconds: f64,
    pub(super) cache_size: u64,
    pub(super) cache_capacity: u64,
    pub(super) cache_entries: u64,
}

/// What happened in some seconds.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Step {
    /// When they ended, in milliseconds since 1970.
    pub(super) at: i64,
    pub(super) seconds: f64,
    pub(super) requests: u64,
    pub(super) refused: u64,
    pub(super) failed: u64,
    pub(super) left: u64,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) shared: u64,
    pub(super) tokens_in: u64,
    pub(super) tokens_out: u64,
    pub(super) ttft_p50_ms: Option<f64>,
    pub(super) ttft_p95_ms: Option<f64>,
    pub(super) queue: u64,
    pub(super) in_flight: u64,
}

/// A server in one of its upstreams.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Server {
    pub(super) upstream: Text,
    pub(super) server: Name,
    pub(super) url: Text,
    pub(super) up: bool,
    pub(super) breaker: Text,
    pub(super) draining: bool,
    pub(super) in_flight: u64,
    pub(super) slots: Option<u64>,
    pub(super) waiting: u64,
    pub(super) models: Option<Vec<Text>>,
    pub(super) router: Option<Vec<Resident>>,
}

/// A server's name as the gateway knows it: to ask for, and never shown as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct Name(String);

impl Name {
    pub(super) fn shown(&self) -> Text {
        Text::of(&self.0)
    }

    /// As a part of a path.
    pub(super) fn encoded(&self) -> String {
        utf8_percent_encode(&self.0, NON_ALPHANUMERIC).to_string()
    }
}

/// A model of a router.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Resident {
    pub(super) model: Text,
    pub(super) state: Text,
}

/// One of the last requests.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Request {
    pub(super) number: u64,
    pub(super) ts: Option<jiff::Timestamp>,
    pub(super) request_id: Text,
    pub(super) key: Option<Text>,
    pub(super) user: Option<Text>,
    pub(super) path: Text,
    pub(super) model: Option<Text>,
    pub(super) server: Option<Text>,
    pub(super) attempts: u64,
    pub(super) status: u16,
    pub(super) upstream_status: Option<u16>,
    pub(super) error_code: Option<Text>,
    pub(super) limit: Option<Text>,
    pub(super) message: Option<Text>,
    pub(super) cache: Text,
    pub(super) stream: bool,
    pub(super) complete: bool,
    pub(super) finish_reason: Option<Text>,
    pub(super) queue_ms: f64,
    pub(super) ttft_ms: Option<f64>,
    pub(super) prefill_ms: Option<f64>,
    pub(super) generation_ms: Option<f64>,
    pub(super) duration_ms: f64,
    pub(super) prompt_tokens: Option<u64>,
    pub(super) completion_tokens: Option<u64>,
    pub(super) cached_prompt_tokens: Option<u64>,
}

/// Who may ask, and how much.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Access {
    pub(super) asks_for_key: bool,
    pub(super) keys: Vec<Key>,
    pub(super) keys_count: u64,
    pub(super) limits: Limits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Key {
    pub(super) name: Text,
    pub(super) in_flight: i64,
    pub(super) used: Used,
    pub(super) limits: Limits,
    pub(super) budgets: Vec<Budget>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Used {
    pub(super) day: Spent,
    pub(super) month: Spent,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Spent {
    pub(super) requests: u64,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Limits {
    pub(super) requests: Option<Level>,
    pub(super) tokens: Option<Level>,
    pub(super) concurrent: Option<AtOnce>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Level {
    pub(super) limit: u64,
    pub(super) remaining: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct AtOnce {
    pub(super) limit: u64,
    pub(super) now: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Budget {
    pub(super) of: Text,
    pub(super) per: Text,
    pub(super) amount: u64,
    pub(super) remaining: u64,
}

impl Spent {
    pub(super) fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}
