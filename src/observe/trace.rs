//! Traces: what a request did and when, told to an OpenTelemetry collector. A span for the request, and under it one
//! for each wait in the queue and for each try at a server.
//!
//! A request notes its steps as plain data while it goes; spans are made of them once, when it has ended, and only of
//! a request that is sampled. No prompt and no answer is ever in one. Where no collector is named there is no
//! [`Traces`], and a request costs nothing more.

mod export;
mod name;
mod spans;
mod wire;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanId, TraceId, TraceState};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanProcessor};
use prometheus::IntCounter;

use super::families::Family;
use super::line::Line;
use super::metrics::Metrics;

/// Spans that wait to be sent; about a kilobyte each. A span beyond them is dropped and counted.
const SPANS_QUEUED_MAX: usize = 8192;

/// Steps of a request that become spans: retries and fallbacks are bounded elsewhere, addresses of a name are not.
const STEPS_MAX: usize = 64;

/// What is left when another collector is named is sent for at most that long.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(10);

/// Where traces go, and how many.
#[derive(Debug, Clone, PartialEq)]
pub struct Collector {
    pub url: String,
    pub protocol: Protocol,
    /// Sent along with every batch: a key of the collector's, mostly.
    pub headers: HashMap<String, String>,
    /// Of the requests whose caller has not decided it: 0 to 1.
    pub share: f64,
    /// `service.name`.
    pub service: String,
    /// Whom the collector's certificate must come from; `None`: the system's.
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    Http,
}

/// A request's place in a trace, and its steps so far.
#[derive(Debug)]
pub struct Trace {
    id: TraceId,
    span: SpanId,
    /// Invalid: the trace begins here.
    parent: SpanId,
    state: TraceState,
    sampled: bool,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    span: SpanId,
    began: Duration,
    ended: Option<Duration>,
    error: Option<&'static str>,
    doing: Doing,
}

#[derive(Debug)]
enum Doing {
    Waiting { upstream: String },
    Trying { attempt: Attempt, status: Option<u16> },
}

/// A try at a server.
#[derive(Debug)]
pub struct Attempt {
    pub number: u32,
    pub upstream: String,
    pub server: String,
    pub host: String,
    pub port: u16,
    /// As the server calls it.
    pub model: Option<String>,
    /// What the server is: `llama_cpp`, or `openai` for any that speaks its protocol.
    pub provider: &'static str,
}

impl Trace {
    /// Notes a wait in an upstream's queue. `error`: why it came to nothing.
    pub fn waited(&mut self, upstream: &str, began: Duration, ended: Duration, error: Option<&'static str>) {
        let doing = || Doing::Waiting { upstream: upstream.to_owned() };
        self.step(began, doing);
        self.end_step(ended, None, error);
    }

    /// Notes that a try begins; the one before has ended.
    pub fn tries(&mut self, now: Duration, attempt: impl FnOnce() -> Attempt) {
        self.end_step(now, None, None);
        self.step(now, || Doing::Trying { attempt: attempt(), status: None });
    }

    /// Notes that the try under way, if there is one, has ended. `error`: what it failed of.
    pub fn try_ended(&mut self, now: Duration, status: Option<u16>, error: Option<&'static str>) {
        self.end_step(now, status, error);
    }

    fn step(&mut self, began: Duration, doing: impl FnOnce() -> Doing) {
        if self.steps.len() == STEPS_MAX {
            return;
        }
        // Unsampled, only the ids go on.
        let doing = if self.sampled { doing() } else { Doing::Waiting { upstream: String::new() } };
        self.steps.push(Step { span: wire::new_span_id(), began, ended: None, error: None, doing });
    }

    fn end_step(&mut self, now: Duration, told: Option<u16>, error: Option<&'static str>) {
        let Some(step) = self.steps.last_mut().filter(|step| step.ended.is_none()) else { return };
        step.ended = Some(now);
        step.error = error;
        if let Doing::Trying { status, .. } = &mut step.doing {
            *status = told;
        }
    }
}

/// When a request began and ended, by the clock of its steps and by that on the wall.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub began: Duration,
    pub ended: Duration,
    /// When it ended.
    pub wall: SystemTime,
}

impl Times {
    fn wall_at(&self, time: Duration) -> SystemTime {
        self.wall.checked_sub(self.ended.saturating_sub(time)).unwrap_or(self.wall)
    }
}

/// What becomes spans, on its way to the collector.
pub struct Traces {
    pub collector: Collector,
    /// Begun with the first span: a daemon forks before, and a fork takes no threads along.
    sender: OnceLock<Option<BatchSpanProcessor>>,
    queued: Arc<AtomicUsize>,
    /// By `result`: sent, failed, dropped.
    spans: Family<IntCounter>,
}

impl Traces {
    pub fn new(collector: Collector, metrics: &Metrics) -> Self {
        Self { collector, sender: OnceLock::new(), queued: Arc::default(), spans: metrics.spans.clone() }
    }

    /// Begins a trace, or goes on with the caller's. Its caller's decision to sample it or not is kept.
    pub fn begin(&self, traceparent: Option<&str>, tracestate: Option<&str>) -> Trace {
        let remote = traceparent.and_then(|parent| wire::read(parent, tracestate));
        let (id, parent, state, sampled) = match remote {
            Some(parent) => {
                (parent.trace_id(), parent.span_id(), parent.trace_state().clone(), parent.is_sampled())
            }
            None => {
                let id = wire::new_trace_id();
                (id, SpanId::INVALID, TraceState::NONE, wire::is_within(id, self.collector.share))
            }
        };
        Trace { id, span: wire::new_span_id(), parent, state, sampled, steps: Vec::new() }
    }

    /// Takes in a request that has ended. Never waits.
    pub fn tell(&self, trace: &Trace, line: &Line<'_>, operation: Option<&'static str>, times: Times) {
        if !trace.sampled {
            return;
        }
        let spans = spans::of(trace, line, operation, times);
        let within = |queued: usize| queued.checked_add(spans.len()).filter(|all| *all <= SPANS_QUEUED_MAX);
        let has_room = self.queued.fetch_update(Ordering::AcqRel, Ordering::Relaxed, within).is_ok();
        match self.sender().filter(|_| has_room) {
            Some(sender) => spans.into_iter().for_each(|span| sender.on_end(span)),
            None => self.spans.with(&["dropped"]).inc_by(spans.len() as u64),
        }
    }

    /// Begins to send: what is wrong with the way to the collector is said now.
    pub fn start(&self) {
        self.sender();
    }

    fn sender(&self) -> Option<&BatchSpanProcessor> {
        let start = || {
            export::start(&self.collector, Arc::clone(&self.queued), self.spans.clone())
                .map_err(|why| log::error!("no traces are sent: {why}"))
                .ok()
        };
        self.sender.get_or_init(start).as_ref()
    }

    /// Sends what is queued, for at most that long. Afterwards nothing is taken.
    pub fn close(&self, wait_max: Duration) {
        if let Some(Some(sender)) = self.sender.get() {
            let _ = sender.shutdown_with_timeout(wait_max);
        }
    }
}

impl Drop for Traces {
    /// A file that came after sends elsewhere: what is left here is sent, without holding up anybody.
    fn drop(&mut self) {
        if let Some(Some(sender)) = self.sender.take() {
            let close = std::thread::Builder::new().name("traces".to_owned());
            let _ = close.spawn(move || sender.shutdown_with_timeout(CLOSE_TIME_MAX));
        }
    }
}

#[cfg(test)]
mod tests;
