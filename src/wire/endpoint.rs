//! What callers may reach: one row for each endpoint, and nothing that is not in a row.
//!
//! A row fixes the path on the server, so no spelling of a caller's path reaches anything else. No query parameter
//! passes: on these endpoints llama-server reads none but the router's `autoload`, which is the operator's business.

use std::collections::HashMap;
use std::sync::LazyLock;

use foldhash::fast::RandomState;
use http::Method;

/// Whose error envelope and stream events an endpoint uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    OpenAi,
    /// OpenAI's responses: named events.
    Responses,
    Anthropic,
    /// llama.cpp's own; errors are OpenAI's.
    Llama,
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    Json,
    /// A form with files, the model's name in a part of its own. Never kept.
    Multipart,
}

/// What an endpoint does, as far as the gateway cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Generates tokens; may be streamed; the answer depends on sampling.
    Generate,
    /// The same body gives the same answer: embeddings, rerank, tokenise.
    Compute,
}

/// One endpoint that a server answers.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The path, for the caller and on the server alike.
    pub path: &'static str,
    pub protocol: Protocol,
    pub body: BodyKind,
    pub work: Work,
}

/// What the gateway answers by itself on the callers' listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    Health,
    Stats,
    Live,
    Ready,
    Models,
    /// What the caller's own key has used.
    Usage,
    /// `/v1/models/{id}`.
    Model,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Server(&'static Endpoint),
    Own(Own),
}

/// Why a path and a method lead nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Astray {
    NotFound,
    /// With the methods that the path has, as `allow` lists them.
    MethodNotAllowed(&'static str),
}

impl Endpoint {
    /// Whether it is llama.cpp's own, which no other kind of server has.
    pub fn is_llamas_own(&self) -> bool {
        self.protocol == Protocol::Llama || self.path.ends_with("/input_tokens")
    }

    /// What it does, as OpenTelemetry's GenAI conventions name it (`gen_ai.operation.name`); where they have no name,
    /// llama-server's.
    pub fn operation(&self) -> &'static str {
        let last = self.path.rsplit('/').next().unwrap_or(self.path);
        match (self.protocol, last) {
            (Protocol::Anthropic, "messages") | (Protocol::Responses, _) => "chat",
            (_, "completions") if self.path.contains("chat") => "chat",
            (_, "completions" | "completion" | "infill") => "text_completion",
            (_, "embedding" | "embeddings") => "embeddings",
            (_, "reranking") => "rerank",
            _ => last,
        }
    }

    /// Whether a server works on it in one of its slots.
    pub fn takes_slot(&self) -> bool {
        self.work == Work::Generate || self.path.contains("embedding") || self.path.contains("rerank")
    }
}

const fn json(path: &'static str, protocol: Protocol, work: Work) -> Endpoint {
    Endpoint { path, protocol, body: BodyKind::Json, work }
}

const fn form(path: &'static str) -> Endpoint {
    Endpoint { path, protocol: Protocol::OpenAi, body: BodyKind::Multipart, work: Work::Generate }
}

use Protocol::{Anthropic, Llama, OpenAi, Responses};
use Work::{Compute, Generate};

/// Every endpoint of a server. Paths without `/v1` stand here where llama-server has them so; `/completions` without
/// it speaks llama.cpp's own form, as there.
const ENDPOINTS: &[Endpoint] = &[
    json("/v1/chat/completions", OpenAi, Generate),
    json("/chat/completions", OpenAi, Generate),
    json("/v1/completions", OpenAi, Generate),
    json("/v1/responses", Responses, Generate),
    json("/responses", Responses, Generate),
    json("/v1/messages", Anthropic, Generate),
    json("/v1/messages/count_tokens", Anthropic, Compute),
    json("/v1/chat/completions/input_tokens", OpenAi, Compute),
    json("/chat/completions/input_tokens", OpenAi, Compute),
    json("/v1/embeddings", OpenAi, Compute),
    json("/v1/rerank", OpenAi, Compute),
    json("/v1/reranking", OpenAi, Compute),
    json("/completion", Llama, Generate),
    json("/completions", Llama, Generate),
    json("/infill", Llama, Generate),
    json("/tokenize", Llama, Compute),
    json("/detokenize", Llama, Compute),
    json("/apply-template", Llama, Compute),
    json("/embedding", Llama, Compute),
    json("/embeddings", Llama, Compute),
    json("/rerank", Llama, Compute),
    json("/reranking", Llama, Compute),
    form("/v1/audio/transcriptions"),
    form("/audio/transcriptions"),
];

const OWN: &[(&str, Own)] = &[
    ("/health", Own::Health),
    ("/stats", Own::Stats),
    ("/live", Own::Live),
    ("/ready", Own::Ready),
    ("/v1/models", Own::Models),
    ("/models", Own::Models),
    ("/v1/usage", Own::Usage),
];

/// Before an id in `/v1/models/{id}`.
pub const MODEL_PREFIX: &str = "/v1/models/";

static BY_PATH: LazyLock<HashMap<&'static str, Target, RandomState>> = LazyLock::new(|| {
    let servers = ENDPOINTS.iter().map(|endpoint| (endpoint.path, Target::Server(endpoint)));
    servers.chain(OWN.iter().map(|(path, own)| (*path, Target::Own(*own)))).collect()
});

/// Finds what a request is for. `HEAD` is answered as `GET` without its body.
pub fn find(method: &Method, path: &str) -> Result<Target, Astray> {
    let target = match BY_PATH.get(path) {
        Some(target) => *target,
        None if path.strip_prefix(MODEL_PREFIX).is_some_and(|id| !id.is_empty()) => Target::Own(Own::Model),
        None => return Err(Astray::NotFound),
    };
    match target {
        Target::Server(_) if method == Method::POST => Ok(target),
        Target::Server(_) => Err(Astray::MethodNotAllowed("POST, OPTIONS")),
        Target::Own(_) if method == Method::GET || method == Method::HEAD => Ok(target),
        Target::Own(_) => Err(Astray::MethodNotAllowed("GET, HEAD, OPTIONS")),
    }
}

/// Whether anything answers at this path, whatever the method: what a preflight asks.
pub fn is_known_path(path: &str) -> bool {
    !matches!(find(&Method::GET, path), Err(Astray::NotFound))
}

/// Whether llama-server answers POST requests at this path.
pub fn is_endpoint_path(path: &str) -> bool {
    matches!(BY_PATH.get(path), Some(Target::Server(_)))
}

/// Whose envelope a refusal at this path wears.
pub fn protocol_at(path: &str) -> Protocol {
    match BY_PATH.get(path) {
        Some(Target::Server(endpoint)) => endpoint.protocol,
        _ => Protocol::OpenAi,
    }
}

/// Request headers that pass to the server; every other stays here. None of these is a credential or a cookie, and
/// `accept-encoding` is missing so that answers come uncompressed.
pub const HEADERS_PASSED: &[&str] = &[
    "accept",
    "content-type",
    "user-agent",
    "traceparent",
    "tracestate",
    "anthropic-version",
    "anthropic-beta",
    "openai-beta",
];

/// Those of them that can change an answer: part of the cache key.
pub const HEADERS_KEYED: &[&str] = &["anthropic-version", "anthropic-beta", "openai-beta"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_methods_lead_where_the_table_says() {
        let allowed = |allow| Err(Astray::MethodNotAllowed(allow));
        let cases = [
            (Method::GET, "/health", Ok(Target::Own(Own::Health))),
            (Method::HEAD, "/health", Ok(Target::Own(Own::Health))),
            (Method::POST, "/health", allowed("GET, HEAD, OPTIONS")),
            (Method::GET, "/v1/models/qwen%2F3b", Ok(Target::Own(Own::Model))),
            (Method::GET, "/v1/models/", Err(Astray::NotFound)),
            (Method::GET, "/v1/chat/completions", allowed("POST, OPTIONS")),
            (Method::POST, "/v1/chat/completions/", Err(Astray::NotFound)),
            (Method::POST, "/V1/chat/completions", Err(Astray::NotFound)),
            (Method::GET, "/slots", Err(Astray::NotFound)),
            (Method::GET, "/props", Err(Astray::NotFound)),
            (Method::GET, "/metrics", Err(Astray::NotFound)),
            (Method::POST, "/models/load", Err(Astray::NotFound)),
            (Method::GET, "/lora-adapters", Err(Astray::NotFound)),
            (Method::GET, "/v1/streams", Err(Astray::NotFound)),
        ];
        for (method, path, expected) in cases {
            assert_eq!(find(&method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn no_path_stands_twice() {
        assert_eq!(BY_PATH.len(), ENDPOINTS.len() + OWN.len());
    }
}
