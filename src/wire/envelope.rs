//! Error bodies, as each protocol's clients read them.

use serde::Serialize;

use super::endpoint::Protocol;

/// What an error says.
#[derive(Debug, Clone, Copy)]
pub struct ErrorBody<'a> {
    pub message: &'a str,
    /// OpenAI's class of error: `invalid_request_error`, `rate_limit_error` …
    pub kind: &'static str,
    pub code: &'static str,
    pub param: Option<&'a str>,
}

#[derive(Serialize)]
struct OpenAi<'a> {
    error: OpenAiError<'a>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    r#type: &'a str,
    code: &'a str,
    param: Option<&'a str>,
}

#[derive(Serialize)]
struct Anthropic<'a> {
    r#type: &'static str,
    error: AnthropicError<'a>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    r#type: &'a str,
    message: &'a str,
    code: &'a str,
    param: Option<&'a str>,
}

impl ErrorBody<'_> {
    /// The JSON text of the protocol's envelope, on one line.
    pub fn to_json(self, protocol: Protocol) -> String {
        let Self { message, kind, code, param } = self;
        let json = match protocol {
            Protocol::Anthropic => serde_json::to_string(&Anthropic {
                r#type: "error",
                error: AnthropicError { r#type: anthropic_kind(kind), message, code, param },
            }),
            Protocol::OpenAi | Protocol::Responses | Protocol::Llama => {
                serde_json::to_string(&OpenAi { error: OpenAiError { message, r#type: kind, code, param } })
            }
        };
        json.expect("strings always serialise")
    }
}

/// Anthropic's name for a class of error (docs: API errors), where it differs from OpenAI's.
fn anthropic_kind(kind: &'static str) -> &'static str {
    match kind {
        "insufficient_quota" => "rate_limit_error",
        "server_error" => "api_error",
        "timeout_error" => "timeout_error",
        other => other,
    }
}
