//! A trace's place on the wire: `traceparent` and `tracestate` of W3C Trace Context, read and written.

use std::collections::HashMap;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceId};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use super::Trace;

/// As much as the specification asks everybody to pass on (section 3.3.1.5).
const STATE_BYTES_MAX: usize = 512;

/// The caller's span; `None` where there is none that can be gone on with.
pub(super) fn read(traceparent: &str, tracestate: Option<&str>) -> Option<SpanContext> {
    let mut carried = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    if let Some(state) = tracestate.filter(|state| state.len() <= STATE_BYTES_MAX) {
        carried.insert("tracestate".to_owned(), state.to_owned());
    }
    let context =
        TraceContextPropagator::new().extract_with_context(&opentelemetry::Context::new(), &carried);
    let span = context.span().span_context().clone();
    span.is_valid().then_some(span)
}

/// Ids are unique, not secret. An id of zeros would be none.
pub(super) fn new_trace_id() -> TraceId {
    TraceId::from(fastrand::u128(1..))
}

pub(super) fn new_span_id() -> SpanId {
    SpanId::from(fastrand::u64(1..))
}

/// Whether a trace is among that share of all: every gateway decides alike, by the id's last 56 bits, which W3C Trace
/// Context level 2 asks to be random.
pub(super) fn is_within(id: TraceId, share: f64) -> bool {
    let bytes = id.to_bytes();
    let random = bytes[9..].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    (random as f64) < share * (1_u64 << 56) as f64
}

impl Trace {
    /// 32 hexadecimal digits.
    pub fn id(&self) -> String {
        self.id.to_string()
    }

    /// What the server of the try under way is told: it is the parent of what that does.
    pub fn traceparent(&self) -> String {
        let span = self.steps.last().filter(|step| step.ended.is_none()).map_or(self.span, |step| step.span);
        format!("00-{}-{span}-{:02x}", self.id, u8::from(self.sampled))
    }

    /// What the caller's other systems have to say; `None`: nothing.
    pub fn tracestate(&self) -> Option<String> {
        Some(self.state.header()).filter(|state| !state.is_empty())
    }
}
