//! Every way we say no: one enum, and one table of what each means to a caller.

use std::time::Duration;

use http::StatusCode;

use crate::limit::{Allows, Limit, Refused};
use crate::route::Harm;
use crate::wire::{ErrorBody, Fault, Protocol};

use super::timing::Late;

/// Why a request is not answered as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    InvalidJson(String),
    InvalidRequest {
        message: String,
        param: Option<&'static str>,
    },
    RemoteMedia(&'static str),
    InvalidKey,
    ModelNotAllowed(String),
    NotFound,
    /// An endpoint of llama.cpp's own, of a model that is not on a llama-server.
    LlamasOwn(&'static str),
    ModelNotFound(String),
    MethodNotAllowed(&'static str),
    RequestTimeout,
    BodyTooLarge {
        bytes_max: u64,
    },
    BodiesFull,
    HeadersTooLarge {
        bytes_max: usize,
    },
    Limited(Refused),
    /// What replicas share is away, and the file says that nothing goes on without.
    SharedAway,
    UpstreamError(&'static str),
    /// It broke off on several servers.
    Harmful(Harm),
    NoUpstream {
        retry_after: Duration,
    },
    /// All slots are busy, and as many wait as may.
    QueueFull {
        retry_after: Duration,
    },
    /// No slot was free in time.
    QueueTimeout {
        waited: Duration,
        retry_after: Duration,
    },
    UpstreamTimeout(Late),
    NotCached,
}

/// What a caller is told: one row of the table.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    /// OpenAI's class of error.
    pub(super) kind: &'static str,
    pub(super) message: String,
    pub(super) param: Option<&'static str>,
    /// The true wait.
    pub(super) retry_after: Option<Duration>,
    /// What SDKs must not repeat.
    pub(super) final_word: bool,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Syntax(message) => Self::InvalidJson(message),
            Fault::Shape { message, param } => Self::InvalidRequest { message, param },
        }
    }
}

const REQUEST: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl Refusal {
    /// The table.
    pub(super) fn told(&self) -> Told {
        match self {
            Self::InvalidJson(what) => told(
                400,
                "invalid_json",
                REQUEST,
                format!(
                    "The body cannot be read as JSON: {what}. Send one JSON object, with no member twice."
                ),
            ),
            Self::InvalidRequest { message, param } => Told {
                param: *param,
                ..told(400, "invalid_request", REQUEST, format!("Cannot use this request: {message}."))
            },
            Self::RemoteMedia(param) => Told {
                param: Some(*param),
                ..told(
                    400,
                    "remote_media",
                    REQUEST,
                    "Media by URL is not fetched here; send it inline as a `data:` URL.",
                )
            },
            Self::InvalidKey => told(
                401,
                "invalid_api_key",
                "authentication_error",
                "No valid API key: send yours as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
            ),
            Self::ModelNotAllowed(model) => Told {
                param: Some("model"),
                ..told(
                    403,
                    "model_not_allowed",
                    "permission_error",
                    format!(
                        "This key may not use the model `{model}`; `GET /v1/models` lists those that it may."
                    ),
                )
            },
            Self::NotFound => told(
                404,
                "not_found",
                "not_found_error",
                "Nothing is served at this path; see the list of endpoints.",
            ),
            Self::LlamasOwn(path) => Told {
                param: Some("model"),
                ..told(
                    404,
                    "not_found",
                    "not_found_error",
                    format!(
                        "`{path}` is llama.cpp's own, and this model is on a server of another kind; use an endpoint \
                         of OpenAI's, such as `/v1/chat/completions`, or another model."
                    ),
                )
            },
            Self::ModelNotFound(model) => Told {
                param: Some("model"),
                ..told(
                    404,
                    "model_not_found",
                    "not_found_error",
                    format!("The model `{model}` does not exist here; `GET /v1/models` lists those that do."),
                )
            },
            Self::MethodNotAllowed(allow) => told(
                405,
                "method_not_allowed",
                REQUEST,
                format!("This path does not have that method; it has {allow}."),
            ),
            Self::RequestTimeout => told(
                408,
                "request_timeout",
                "timeout_error",
                "The request did not arrive in time; send it again without pauses.",
            ),
            Self::BodyTooLarge { bytes_max } => told(
                413,
                "body_too_large",
                "request_too_large",
                format!("The body is larger than {bytes_max} bytes; send less."),
            ),
            Self::BodiesFull => Told {
                retry_after: Some(Duration::from_secs(1)),
                ..told(
                    503,
                    "queue_full",
                    "overloaded_error",
                    "Too many bodies are held at once; try again in a moment.",
                )
            },
            Self::HeadersTooLarge { bytes_max } => told(
                431,
                "headers_too_large",
                REQUEST,
                format!("The headers are larger than {bytes_max} bytes; send less."),
            ),
            Self::Limited(refused) => limited(refused),
            Self::SharedAway => Told {
                retry_after: Some(Duration::from_secs(1)),
                ..told(
                    503,
                    "no_upstream",
                    "overloaded_error",
                    "Limits are shared in Valkey, which is away, and `shared.required` lets nothing pass without; \
                     try again shortly.",
                )
            },
            Self::UpstreamError(what) => told(
                502,
                "upstream_error",
                SERVER,
                format!("The model server {what}; try again, or tell its operator."),
            ),
            Self::Harmful(harm) => Told {
                retry_after: Some(harm.wait),
                final_word: true,
                ..told(
                    502,
                    "upstream_error",
                    SERVER,
                    format!(
                        "This very request broke {} model servers, one after the other; it may be tried again in {} s. \
                         Change it, or tell their operator.",
                        harm.servers,
                        harm.wait.as_secs_f64().ceil()
                    ),
                )
            },
            Self::NoUpstream { retry_after } => Told {
                retry_after: Some(*retry_after),
                ..told(
                    503,
                    "no_upstream",
                    "overloaded_error",
                    "No model server is up at the moment; try again shortly.",
                )
            },
            Self::QueueFull { retry_after } => Told {
                retry_after: Some(*retry_after),
                ..told(
                    503,
                    "queue_full",
                    "overloaded_error",
                    "Every slot is busy and as many requests wait as may; try again when some have ended.",
                )
            },
            Self::QueueTimeout { waited, retry_after } => Told {
                retry_after: Some(*retry_after),
                ..told(
                    503,
                    "queue_timeout",
                    "overloaded_error",
                    format!(
                        "No slot was free within {} s; try again when it is quieter.",
                        waited.as_secs_f64()
                    ),
                )
            },
            Self::UpstreamTimeout(late) => Told {
                final_word: true,
                ..told(
                    504,
                    "upstream_timeout",
                    "timeout_error",
                    format!(
                        "The model server {} (`timeouts.{}`); {}, or raise the timeout.",
                        late.what(),
                        late.name(),
                        if *late == Late::Connect { "tell its operator" } else { "ask for less" }
                    ),
                )
            },
            Self::NotCached => Told {
                final_word: true,
                ..told(
                    504,
                    "not_cached",
                    REQUEST,
                    "No answer to this is kept; ask without `cache-control: only-if-cached`.",
                )
            },
        }
    }

    /// Whether its message may repeat something of the body.
    pub(super) fn quotes_the_body(&self) -> bool {
        matches!(self, Self::InvalidJson(_) | Self::InvalidRequest { .. })
    }

    /// The limit that refused, as logs and metrics name it.
    pub(super) fn limit(&self) -> Option<Limit> {
        match self {
            Self::Limited(refused) => Some(refused.limit),
            _ => None,
        }
    }
}

impl Told {
    pub(super) fn body(&self, protocol: Protocol) -> String {
        ErrorBody { message: &self.message, kind: self.kind, code: self.code, param: self.param }
            .to_json(protocol)
    }
}

fn told(status: u16, code: &'static str, kind: &'static str, message: impl Into<String>) -> Told {
    let status = StatusCode::from_u16(status).expect("the table holds valid statuses");
    Told { status, code, kind, message: message.into(), param: None, retry_after: None, final_word: false }
}

fn limited(refused: &Refused) -> Told {
    let limit = refused.limit.name();
    let frees =
        |wait: Option<Duration>| format!("it frees in {:.1} s", wait.unwrap_or_default().as_secs_f64());
    let exceeded = "rate_limit_exceeded";
    let (code, message) = match refused.allows {
        Allows::Rate(rate) => (
            exceeded,
            format!("The limit `{limit}` of {rate} is reached: all of it is used; {}.", frees(refused.wait)),
        ),
        Allows::AtOnce(most) => (
            "concurrency_limit",
            format!(
                "The limit `{limit}` of {most} requests at once is reached; wait until one of them ends."
            ),
        ),
        Allows::Tokens { rate, asked, .. } if refused.wait.is_none() => (
            exceeded,
            format!(
                "This request may take {asked} tokens (its prompt and `max_tokens`), more than the limit `{limit}` of \
                 {rate} ever holds; ask for less."
            ),
        ),
        Allows::Tokens { rate, asked, left } => (
            exceeded,
            format!(
                "The limit `{limit}` of {rate} tokens has {left} left, and this request may take {asked} (its prompt \
                 and `max_tokens`); {}.",
                frees(refused.wait)
            ),
        ),
        Allows::Budget { budget, asked, used, .. } => (
            "budget_exceeded",
            format!(
                "The budget `{limit}` of {budget} has {used} used or reserved, and this request may take {asked}; it \
                 frees in {} s.",
                refused.wait.unwrap_or_default().as_secs()
            ),
        ),
    };
    let is_budget = matches!(refused.allows, Allows::Budget { .. });
    let spent_up = matches!(refused.allows, Allows::Budget { spent_up: true, .. });
    let never = matches!(refused.allows, Allows::Tokens { .. }) && refused.wait.is_none();
    // How long a generation will take is not known; a second is a polite guess.
    let wait = refused.wait.or((!never).then_some(Duration::from_secs(1)));
    let kind = if is_budget { "insufficient_quota" } else { "rate_limit_error" };
    Told { retry_after: wait, final_word: spent_up || never, ..told(429, code, kind, message) }
}
