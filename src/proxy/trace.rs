//! What a request's trace is told on its way: waits in the queue, tries at servers, and the end.

use std::time::{Duration, SystemTime};

use http::Method;
use pingora::{Error, ErrorSource, ErrorType};

use crate::observe::{Attempt, Line, Times, Trace};
use crate::route::{Kind, Lease, Server, Turned, Upstream};
use crate::wire::{self, Target};

use super::body::Stop;
use super::context::{Context, Job};
use super::fault::late;
use super::forward::CREDENTIALS;
use super::gateway::Gateway;

/// Notes that a request waited in an upstream's queue, and how that ended.
pub(super) fn waited(
    trace: &mut Option<Box<Trace>>,
    upstream: &Upstream,
    (began, ended): (Duration, Duration),
    outcome: &Result<Result<Lease, Turned>, Stop>,
) {
    let Some(trace) = trace else { return };
    let error = match outcome {
        Ok(Ok(_)) => None,
        Ok(Err(Turned::Away)) => Some("no_upstream"),
        Ok(Err(Turned::Full { .. })) => Some("queue_full"),
        Err(Stop::Refused(refusal)) => Some(refusal.told().code),
        Err(Stop::Left(_)) => Some(LEFT),
    };
    trace.waited(&upstream.spec.name, began, ended, error);
}

/// Notes that a try at a server begins.
pub(super) fn tries(trace: &mut Option<Box<Trace>>, now: Duration, number: u32, job: &Job, server: &Server) {
    let Some(trace) = trace else { return };
    let (upstream, server) = (&job.resolved.upstream.spec, &server.spec);
    trace.tries(now, || Attempt {
        number,
        upstream: upstream.name.clone(),
        server: server.name.clone(),
        host: server.url.host.clone(),
        port: server.url.port,
        model: job.resolved.on_server().map(str::to_owned),
        provider: match upstream.kind {
            Kind::Llama => "llama_cpp",
            Kind::OpenAi => "openai",
        },
    });
}

impl Context {
    /// Notes that the try under way has ended. `error`: what it failed of.
    pub(super) fn trace_try_ended(&mut self, error: Option<&'static str>) {
        if let Some(trace) = &mut self.trace {
            trace.try_ended(self.gateway.clock.now(), self.told.upstream_status, error);
        }
    }
}

/// The caller's doing.
const LEFT: &str = "client_closed_request";

/// What a try failed of after it was sent: few words, as `error.type` wants them.
pub(super) fn failed_of(error: &Error) -> &'static str {
    if late(error).is_some() {
        return "timeout";
    }
    match (error.etype(), error.esource()) {
        (_, ErrorSource::Downstream) => LEFT,
        (kind, _) if *kind == CREDENTIALS => "credentials",
        (ErrorType::InvalidHTTPHeader | ErrorType::H1Error, _) => "nonsense",
        _ => "broken",
    }
}

/// Tells of a request that has ended. Looks at the gateway's health are no part of its work.
pub(super) fn tell(gateway: &Gateway, ctx: &Context, line: &Line<'_>) {
    let (Some(traces), Some(trace)) = (&gateway.traces, &ctx.trace) else { return };
    let operation = match wire::find(&Method::POST, line.path) {
        Ok(Target::Server(endpoint)) => Some(endpoint.operation()),
        _ => None,
    };
    let Ok(wall) = SystemTime::try_from(line.ts) else { return };
    let ended = gateway.clock.now();
    traces.tell(trace, line, operation, Times { began: ctx.arrival.begun, ended, wall });
}
