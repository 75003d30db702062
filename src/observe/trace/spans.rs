//! The spans of a request that has ended. Attributes have the names of OpenTelemetry's semantic conventions, GenAI's
//! among them; what those do not know begins with `ai_gateway.`.

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::{Attempt, Doing, Step, Times, Trace, name};
use crate::observe::line::Line;

/// Children first, as they ended; the request itself comes last.
pub(super) fn of(
    trace: &Trace,
    line: &Line<'_>,
    operation: Option<&'static str>,
    times: Times,
) -> Vec<SpanData> {
    let scope = InstrumentationScope::builder("ai-gateway").with_version(env!("CARGO_PKG_VERSION")).build();
    let make = Maker { trace, times, scope };
    let mut spans: Vec<_> = trace.steps.iter().map(|step| make.step(step, operation)).collect();
    spans.push(make.request(line, operation));
    spans
}

struct Maker<'a> {
    trace: &'a Trace,
    times: Times,
    scope: InstrumentationScope,
}

impl Maker<'_> {
    fn request(&self, line: &Line<'_>, operation: Option<&'static str>) -> SpanData {
        let model = line.model.or(line.model_requested);
        let name = match (operation, model) {
            (Some(operation), Some(model)) => format!("{operation} {model}"),
            (Some(operation), None) => operation.to_owned(),
            // A path that is not known may be anything: it is no name.
            (None, _) => line.method.to_owned(),
        };
        let error = match (line.error_code, line.status) {
            (Some(code), _) => Some(code.to_owned()),
            (None, 499) => Some("client_closed_request".to_owned()),
            (None, status) => (status >= 400).then(|| status.to_string()),
        };
        // By the conventions a server's span fails of its own faults, not of its caller's.
        let failed = line.status >= 500 || (line.error_code.is_some() && line.status < 400);
        let status = match &error {
            Some(error) if failed => Status::error(error.clone()),
            _ => Status::Unset,
        };
        let parent = self.trace.parent;
        let mut span =
            self.span(self.trace.span, name, SpanKind::Server, (self.times.began, self.times.ended));
        span.parent_span_id = parent;
        span.parent_span_is_remote = parent != SpanId::INVALID;
        span.status = status;
        span.attributes = attributes(line, operation, error);
        span
    }

    fn step(&self, step: &Step, operation: Option<&'static str>) -> SpanData {
        let (name, kind, mut attributes) = match &step.doing {
            Doing::Waiting { upstream } => {
                let upstream = KeyValue::new("ai_gateway.upstream", upstream.clone());
                ("queue".to_owned(), SpanKind::Internal, vec![upstream])
            }
            Doing::Trying { attempt, status } => {
                let named = attempt
                    .model
                    .iter()
                    .fold(operation.unwrap_or("request").to_owned(), |name, model| format!("{name} {model}"));
                (named, SpanKind::Client, tried(attempt, operation, *status))
            }
        };
        let ended = step.ended.unwrap_or(self.times.ended);
        let refused = match &step.doing {
            Doing::Trying { status: Some(status), .. } if *status >= 400 => Some(status.to_string()),
            _ => None,
        };
        let error = step.error.map(str::to_owned).or(refused);
        if let Some(error) = &error {
            attributes.push(KeyValue::new(name::ERROR_TYPE, error.clone()));
        }
        let mut span = self.span(step.span, name, kind, (step.began, ended));
        span.parent_span_id = self.trace.span;
        span.status = error.map_or(Status::Unset, Status::error);
        span.attributes = attributes;
        span
    }

    fn span(
        &self,
        id: SpanId,
        name: String,
        kind: SpanKind,
        (began, ended): (std::time::Duration, std::time::Duration),
    ) -> SpanData {
        let state = self.trace.state.clone();
        SpanData {
            span_context: SpanContext::new(self.trace.id, id, TraceFlags::SAMPLED, false, state),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: kind,
            name: name.into(),
            start_time: self.times.wall_at(began),
            end_time: self.times.wall_at(ended),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

fn tried(attempt: &Attempt, operation: Option<&'static str>, status: Option<u16>) -> Vec<KeyValue> {
    let mut all = Attributes::default();
    all.add(name::GEN_AI_OPERATION_NAME, operation);
    all.add(name::GEN_AI_PROVIDER_NAME, Some(attempt.provider));
    all.add(name::GEN_AI_REQUEST_MODEL, attempt.model.clone());
    all.add(name::SERVER_ADDRESS, Some(attempt.host.clone()));
    all.add(name::SERVER_PORT, Some(i64::from(attempt.port)));
    all.add(name::HTTP_RESPONSE_STATUS_CODE, status.map(i64::from));
    all.add(name::HTTP_REQUEST_RESEND_COUNT, Some(i64::from(attempt.number) - 1).filter(|count| *count > 0));
    all.add("ai_gateway.upstream", Some(attempt.upstream.clone()));
    all.add("ai_gateway.server", Some(attempt.server.clone()));
    all.0
}

/// Of the request. Tokens stand on its span alone, and only where a server made them for it: who adds them up counts
/// none twice.
fn attributes(line: &Line<'_>, operation: Option<&'static str>, error: Option<String>) -> Vec<KeyValue> {
    let mut all = Attributes::default();
    let text = |text: Option<&str>| text.map(str::to_owned);
    let count = |count: Option<u64>| count.and_then(|count| i64::try_from(count).ok());
    all.add(name::HTTP_REQUEST_METHOD, Some(line.method.to_owned()));
    all.add(name::URL_PATH, Some(line.path.to_owned()));
    all.add(name::HTTP_RESPONSE_STATUS_CODE, Some(i64::from(line.status)));
    all.add(name::CLIENT_ADDRESS, line.client_ip.map(|address| address.to_string()));
    all.add(name::ERROR_TYPE, error);
    all.add("ai_gateway.request_id", Some(line.request_id.to_owned()));
    all.add("ai_gateway.key", text(line.key));
    all.add("ai_gateway.user", text(line.user));
    all.add("ai_gateway.limit", line.limit);
    all.add("ai_gateway.cache", Some(line.cache));
    if operation.is_none() {
        return all.0;
    }
    all.add(name::HTTP_ROUTE, Some(line.path.to_owned()));
    all.add(name::GEN_AI_OPERATION_NAME, operation);
    all.add(name::GEN_AI_REQUEST_MODEL, text(line.model_requested.or(line.model)));
    all.add(name::GEN_AI_REQUEST_STREAM, Some(line.stream));
    all.add("ai_gateway.upstream", text(line.upstream));
    all.add("ai_gateway.server", text(line.server));
    all.add("ai_gateway.attempts", Some(i64::from(line.attempts)));
    all.add("ai_gateway.complete", Some(line.complete));
    all.add("ai_gateway.queue_ms", Some(line.queue_ms));
    if let Some(first) = line.ttft_ms.filter(|_| line.error_code.is_none()) {
        all.add(name::GEN_AI_RESPONSE_MODEL, text(line.model));
        all.add(name::GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, Some(first / 1000.0));
    }
    let reasons = line
        .finish_reason
        .map(|reason| Value::Array(Array::String(vec![StringValue::from(reason.to_owned())])));
    all.add(name::GEN_AI_RESPONSE_FINISH_REASONS, reasons);
    if line.attempts > 0 {
        all.add(name::GEN_AI_USAGE_INPUT_TOKENS, count(line.prompt_tokens));
        all.add(name::GEN_AI_USAGE_OUTPUT_TOKENS, count(line.completion_tokens));
        all.add(name::GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, count(line.cached_prompt_tokens));
        all.add("ai_gateway.prefill_ms", line.prefill_ms);
        all.add("ai_gateway.generation_ms", line.generation_ms);
    }
    all.0
}

#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, name: &'static str, value: Option<impl Into<Value>>) {
        self.0.extend(value.map(|value| KeyValue::new(name, value)));
    }
}
