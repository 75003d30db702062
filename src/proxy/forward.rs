//! A request on its way to a server: which one, and as what.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, OrErr, Result};
use pingora_proxy::Session;

use crate::route::{Entry, Errand, Lease, Server, Tenant, Turned, Upstream, Wait};
use crate::wire::{BodyKind, Endpoint, HEADERS_PASSED};

use super::ask::Hit;
use super::body::Stop;
use super::context::{Context, InFlight, Job};
use super::exchange::REFUSED;
use super::gateway::Gateway;
use super::heading::X_REQUEST_ID;
use super::refusal::Refusal;
use super::{failure, fallback, fault, outlet, trace};

/// As many as a request to a server may well have.
const HEADERS: usize = 12;

/// The error of a server that does not accept the gateway's own key.
pub(super) const CREDENTIALS: ErrorType =
    ErrorType::Custom("the server did not accept the gateway's own key");

/// Waits for a slot of a server of the model that was asked for, else of one of its fallbacks, and counts the request
/// as that server's own. The caller may leave while it waits. A fallback's answer may be kept already.
pub(super) async fn choose(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
) -> Result<Option<Hit>, Stop> {
    loop {
        match enter(gateway, session, ctx).await {
            Ok(()) => return Ok(None),
            Err(Stop::Refused(refusal)) => Box::pin(fallback::turn(gateway, session, ctx, refusal)).await?,
            Err(left) => return Err(left),
        }
        if let Some(hit) = Box::pin(fallback::kept(gateway, session, ctx)).await {
            return Ok(Some(hit));
        }
    }
}

/// The same after tries that failed, from the first fallback on.
async fn choose_fallback(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    mut refusal: Refusal,
) -> Result<(), Stop> {
    loop {
        fallback::turn(gateway, session, ctx, refusal).await?;
        refusal = match enter(gateway, session, ctx).await {
            Err(Stop::Refused(refusal)) => refusal,
            chosen => return chosen,
        };
    }
}

/// Waits for a slot of a server of the job's own upstream.
async fn enter(gateway: &Gateway, session: &mut Session, ctx: &mut Context) -> Result<(), Stop> {
    fault::refuse_harmful(gateway, ctx)?;
    let Some(job) = &ctx.job else { return Ok(()) };
    let upstream = &Arc::clone(&job.resolved.upstream);
    let began = gateway.clock.now();
    upstream.note_request(began);
    let tie = fastrand::usize(..);
    let (model, slot) = (job.resolved.on_server(), job.endpoint.takes_slot());
    let tenant = tenant(ctx, job);
    // What takes no slot waits for nothing but its model, where a router must load that.
    if !slot && let Some(lease) = upstream.again(model, &[], tenant, tie) {
        ctx.route.lease = Some(lease);
        return Ok(());
    }
    let key = match (ctx.asked.key().unwrap_or_default(), ctx.asked.user()) {
        (key, None) => Cow::Borrowed(key),
        (key, Some(user)) => Cow::Owned(format!("{key}\n{user}")),
    };
    let priority = ctx.asked.caller.as_ref().map_or(0, |caller| caller.member.priority);
    let cost = job.demand.estimate.saturating_add(job.demand.completion_tokens);
    let (prompt, key) = (&job.prompt, key.as_ref());
    let errand = Errand { model, slot, prompt, key, tenant, priority, cost, tie, now: began };
    let mut held = false;
    let lease = match upstream.enter(errand) {
        Ok(Entry::Lease(lease)) => Ok(Ok(lease)),
        Ok(Entry::Wait(wait)) => {
            held = true;
            let _counted = InFlight::new(&gateway.metrics.queue_requests);
            let wait_max = upstream.spec.queue.wait_max;
            Box::pin(queued(session, ctx, wait, wait_max)).await
        }
        Err(turned) => Ok(Err(turned)),
    };
    let now = if held { gateway.clock.now() } else { began };
    let waited = now.saturating_sub(began);
    if held {
        trace::waited(&mut ctx.trace, upstream, (began, now), &lease);
    }
    ctx.route.queued += waited;
    let lease = lease?;
    gateway.metrics.queue_duration.observe(waited.as_secs_f64());
    match lease {
        Ok(lease) => {
            ctx.route.leased_at = now;
            ctx.route.thought = lease.thought;
            ctx.route.lease = Some(lease);
            Ok(())
        }
        Err(Turned::Away) => Err(away(upstream).into()),
        Err(Turned::Full { likely }) => Err(Refusal::QueueFull { retry_after: likely }.into()),
    }
}

/// Waits in the queue, no longer than `wait_max` and than the caller stays.
async fn queued(
    session: &mut Session,
    ctx: &mut Context,
    mut wait: Wait,
    wait_max: Duration,
) -> Result<Result<Lease, Turned>, Stop> {
    let mut over = pin!(tokio::time::sleep(wait_max));
    let mut patience = pin!(tokio::time::sleep(wait.patience().unwrap_or(wait_max)));
    loop {
        let is_patient = wait.patience().is_some();
        tokio::select! {
            biased;
            lease = wait.lease() => return Ok(lease),
            gone = outlet::watch(session, ctx) => return Err(Stop::Left(gone)),
            () = &mut over => {
                return Err(Refusal::QueueTimeout { waited: wait_max, retry_after: wait.likely() }.into());
            }
            () = &mut patience, if is_patient => wait.lose_patience(),
        }
    }
}

fn away(upstream: &Upstream) -> Refusal {
    Refusal::NoUpstream { retry_after: upstream.spec.health.every.max(Duration::from_secs(1)) }
}

/// Whose request it is, where keys must not meet in one KV cache.
fn tenant(ctx: &Context, job: &Job) -> Tenant {
    match (job.endpoint.takes_slot(), job.resolved.upstream.spec.isolated) {
        (false, _) => Tenant::Nobody,
        (true, false) => Tenant::Anybody,
        (true, true) => Tenant::of(ctx.asked.key().unwrap_or_default()),
    }
}

/// Picks the server for another try, whatever it works on already: the request has waited before.
fn choose_again(ctx: &mut Context) -> Result<(), Refusal> {
    let Some(job) = &ctx.job else { return Ok(()) };
    let upstream = &job.resolved.upstream;
    // Its slot is given back first: it may be the only one.
    ctx.route.lease = None;
    let (tried, tie) = (&ctx.route.tried, fastrand::usize(..));
    ctx.route.lease = upstream.again(job.resolved.on_server(), tried, tenant(ctx, job), tie);
    if ctx.route.lease.is_some() { Ok(()) } else { Err(away(upstream)) }
}

/// Where the exchange connects to: the chosen server. The error is [`REFUSED`] once there is no further try.
pub(super) async fn peer(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
) -> Result<Box<HttpPeer>> {
    // Another address of the same server is no other try.
    let goes_on = std::mem::take(&mut ctx.route.next_address);
    if ctx.route.failure.is_none() && ctx.route.attempts > 0 && !goes_on {
        // With no server left to try, what the last try met is the truer word.
        ctx.route.failure = choose_again(ctx).err().map(|none| ctx.route.met.take().unwrap_or(none));
    }
    let begun = outlet::forget_held(ctx);
    // Who follows an answer that is held back has had a part of it.
    if let Some(failure) = ctx.route.failure.take_if(|_| !begun) {
        match Box::pin(choose_fallback(gateway, session, ctx, failure)).await {
            Ok(()) => {}
            Err(Stop::Refused(refusal)) => ctx.route.failure = Some(refusal),
            Err(Stop::Left(error)) => return Err(failure::left(gateway, session, ctx, error)),
        }
    }
    if ctx.route.failure.is_none() {
        ctx.keep_apart();
    }
    if ctx.route.failure.is_some() {
        return Error::e_explain(REFUSED, "the caller is told why");
    }
    let (Some(job), Some(lease)) = (&ctx.job, &ctx.route.lease) else {
        return Error::e_explain(ErrorType::InternalError, "no server was chosen");
    };
    let server = lease.server();
    if !goes_on {
        ctx.route.attempts += 1;
        ctx.route.tries += 1;
        ctx.route.tried.push(server.clone());
        ctx.route.addresses_failed = 0;
        trace::tries(&mut ctx.trace, gateway.clock.now(), ctx.route.attempts, job, server);
    }
    ctx.route.address = address(gateway, server).await;
    let Some(address) = ctx.route.address else {
        return Error::e_explain(
            ErrorType::ConnectError,
            format!("`{}` does not resolve", server.spec.url.host),
        )
        .map_err(|error: Box<Error>| unresolved(gateway, ctx, error));
    };
    let timeouts = job.resolved.upstream.spec.timeouts;
    let mut peer = gateway.trust.peer(server, address);
    peer.options.write_timeout = timeouts.between_bytes;
    peer.options.connection_timeout = timeouts.connect;
    peer.options.total_connection_timeout = timeouts.connect;
    Ok(Box::new(peer))
}

/// Names are followed beside the requests (`server/probe.rs`); a request looks one up only where that has not yet been
/// done.
async fn address(gateway: &Gateway, server: &Server) -> Option<SocketAddr> {
    if server.address().is_none()
        && let Ok(found) = Box::pin(gateway.names.look_up(&server.spec.url)).await
    {
        server.set_addresses(found);
    }
    server.address()
}

fn unresolved(gateway: &Gateway, ctx: &mut Context, mut error: Box<Error>) -> Box<Error> {
    let again = fault::connect_failed(gateway, ctx, &error);
    error.set_retry(again);
    error.into_up()
}

/// The request as the server gets it: made anew, from the endpoint's row and the headers that pass.
pub(super) fn request(
    gateway: &Gateway,
    session: &Session,
    ctx: &mut Context,
    request: &mut RequestHeader,
) -> Result<()> {
    let (Some(job), Some(lease)) = (&ctx.job, &ctx.route.lease) else { return Ok(()) };
    ctx.route.timing.sent(job.resolved.upstream.spec.timeouts, gateway.clock.now());
    let server = &lease.server().spec;
    let path = lease.server().path_of(job.endpoint.path);
    let path = Uri::try_from(path).or_err(ErrorType::InvalidHTTPHeader, "the path of the server")?;
    let mut made = http::Request::new(()).into_parts().0;
    (made.method, made.uri) = (Method::POST, path);
    let value = |text: &str| {
        HeaderValue::from_str(text).or_err(ErrorType::InvalidHTTPHeader, "a value that no header can have")
    };
    let headers = &mut made.headers;
    headers.reserve(HEADERS);
    headers.insert(header::HOST, value(lease.server().host())?);
    for (name, value) in &session.req_header().headers {
        if HEADERS_PASSED.contains(&name.as_str()) {
            headers.append(name, value.clone());
        }
    }
    if let Some(trace) = &ctx.trace {
        headers.insert("traceparent", value(&trace.traceparent())?);
        match trace.tracestate() {
            Some(state) => drop(headers.insert("tracestate", value(&state)?)),
            None => drop(headers.remove("tracestate")),
        }
    }
    headers.insert(header::CONTENT_LENGTH, job.body.len().into());
    headers.insert(&X_REQUEST_ID, value(&ctx.arrival.request_id)?);
    if let Some(key) = &server.api_key {
        headers.insert(header::AUTHORIZATION, value(&format!("Bearer {}", key.0))?);
    }
    *request = made.into();
    Ok(())
}

/// A 101 that nobody asked for would turn the connection into a tunnel.
pub(super) fn refuse_upgrade(status: StatusCode) -> Result<()> {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Error::e_explain(ErrorType::InvalidHTTPHeader, "101 from the server")
            .map_err(|error: Box<Error>| error.into_up());
    }
    Ok(())
}

/// A stream of no bytes has no end mark, and no filter would see its end.
pub(super) fn refuse_empty_stream(answer: &ResponseHeader, endpoint: &Endpoint) -> Result<()> {
    let says = |name: &HeaderName| answer.headers.get(name).map_or(&b""[..], |value| value.as_bytes());
    let is_stream = says(&header::CONTENT_TYPE).starts_with(b"text/event-stream");
    let is_empty = says(&header::CONTENT_LENGTH) == b"0";
    if is_stream && is_empty && answer.status == StatusCode::OK && endpoint.body == BodyKind::Json {
        return Error::e_explain(ErrorType::InvalidHTTPHeader, "a stream of no bytes")
            .map_err(|error: Box<Error>| error.into_up());
    }
    Ok(())
}

/// A server's 401 speaks of the gateway's key, since the caller's never went there.
pub(super) fn check_credentials(status: StatusCode) -> Result<()> {
    if status == StatusCode::UNAUTHORIZED {
        return Error::e_explain(CREDENTIALS, "401 from the server")
            .map_err(|error: Box<Error>| error.into_up());
    }
    Ok(())
}
