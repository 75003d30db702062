//! One line of the access log.

use std::io::Write;

use jiff::Timestamp;
use serde::Serialize;

/// What is written of a request: never a key, and a prompt or an answer only where `log.prompts` asks for them.
/// Milliseconds unless another unit is named.
#[derive(Debug, Clone)]
pub struct Line<'a> {
    pub ts: Timestamp,
    pub request_id: &'a str,
    pub trace_id: Option<&'a str>,
    pub key: Option<&'a str>,
    pub user: Option<&'a str>,
    pub method: &'a str,
    /// Without its query.
    pub path: &'a str,
    pub model_requested: Option<&'a str>,
    pub model: Option<&'a str>,
    pub upstream: Option<&'a str>,
    pub server: Option<&'a str>,
    pub attempts: u32,
    pub status: u16,
    pub upstream_status: Option<u16>,
    pub error_code: Option<&'static str>,
    pub limit: Option<&'static str>,
    pub cache: &'static str,
    pub stream: bool,
    /// Whether the whole answer was sent.
    pub complete: bool,
    pub finish_reason: Option<&'a str>,
    pub queue_ms: f64,
    pub ttft_ms: Option<f64>,
    pub prefill_ms: Option<f64>,
    pub generation_ms: Option<f64>,
    pub duration_ms: f64,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub cached_prompt_tokens: Option<u64>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub client_ip: Option<std::net::IpAddr>,
    /// How long the request waited for what replicas share, where they do.
    pub shared_ms: Option<f64>,
    /// What was asked, as JSON; bounded.
    pub prompt: Option<&'a str>,
    /// The text of what was answered; bounded.
    pub answer: Option<&'a str>,
}

/// More than most lines take.
const LINE_BYTES: usize = 1 << 10;

/// Writes members by their fields' names. `Serialize` would look through each name for what must be escaped, which
/// takes longer than the values.
macro_rules! members {
    ($out:ident, $line:ident: $($name:ident),*) => {
        $(
            $out.extend_from_slice(concat!(",\"", stringify!($name), "\":").as_bytes());
            value(&mut $out, &$line.$name);
        )*
    };
}

impl Line<'_> {
    /// As JSON, with its line's end.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LINE_BYTES);
        // Writing to a vector cannot fail.
        let _ = write!(out, "{{\"ts\":\"{}\"", self.ts);
        members!(out, self: request_id, trace_id, key, user, method, path, model_requested, model, upstream, server);
        members!(out, self: attempts, status, upstream_status, error_code, limit, cache, stream, complete);
        members!(out, self: finish_reason, queue_ms, ttft_ms, prefill_ms, generation_ms, duration_ms);
        members!(out, self: prompt_tokens, completion_tokens, cached_prompt_tokens, bytes_in, bytes_out, client_ip);
        if self.shared_ms.is_some() {
            members!(out, self: shared_ms);
        }
        if self.prompt.is_some() {
            members!(out, self: prompt);
        }
        if self.answer.is_some() {
            members!(out, self: answer);
        }
        out.extend_from_slice(b"}\n");
        out
    }
}

fn value(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("texts and numbers serialise");
}

#[cfg(test)]
impl Line<'static> {
    /// Of a request that was refused.
    pub(super) const SAMPLE: Self = Self {
        ts: Timestamp::UNIX_EPOCH,
        request_id: "id",
        trace_id: None,
        key: None,
        user: None,
        method: "POST",
        path: "/v1/completions",
        model_requested: None,
        model: None,
        upstream: None,
        server: None,
        attempts: 0,
        status: 404,
        upstream_status: None,
        error_code: Some("model_not_found"),
        limit: None,
        cache: "bypass",
        stream: false,
        complete: true,
        finish_reason: None,
        queue_ms: 0.0,
        ttft_ms: None,
        prefill_ms: None,
        generation_ms: None,
        duration_ms: 1.0,
        prompt_tokens: None,
        completion_tokens: None,
        cached_prompt_tokens: None,
        bytes_in: 0,
        bytes_out: 0,
        client_ip: None,
        shared_ms: None,
        prompt: None,
        answer: None,
    };
}

/// Milliseconds with three decimals: microseconds are what a clock here can tell.
pub fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
