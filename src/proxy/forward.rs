//! A request on its way to a server: which one, as what, and what is done when that fails.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, header};
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::Session;

use crate::cache::Landing;
use crate::observe::Phase;
use crate::route::{Entry, Errand, Lease, Server, Sign, Turned, Upstream, Wait};
use crate::wire::HEADERS_PASSED;

use super::body::Stop;
use super::context::{Context, InFlight, Keep};
use super::gateway::{Gateway, TLS};
use super::refusal::Refusal;
use super::refuser;
use super::session::late_error;
use super::timing::Late;
use super::trust::is_distrust;
use super::turned::UNRENDERED;

/// llama-server closes an idle connection after 5.01 s (measured, b11434) and says so in a header Pingora's pool does
/// not read.
const POOLED_TIME_MAX: Duration = Duration::from_secs(4);

/// The error of a server that does not accept the gateway's own key.
const CREDENTIALS: ErrorType = ErrorType::Custom("the server did not accept the gateway's own key");

/// Waits for a slot of a server, and counts the request as that server's own. The caller may leave while it waits.
pub(super) async fn choose(gateway: &Gateway, session: &mut Session, ctx: &mut Context) -> Result<(), Stop> {
    let Some(job) = &ctx.job else { return Ok(()) };
    let upstream = &job.resolved.upstream;
    let tie = fastrand::usize(..);
    if !job.endpoint.takes_slot() {
        ctx.route.lease = upstream.again(&[], tie);
        return ctx.route.lease.as_ref().map_or_else(|| Err(away(upstream).into()), |_| Ok(()));
    }
    let key = match (ctx.asked.key().unwrap_or_default(), ctx.asked.user()) {
        (key, None) => Cow::Borrowed(key),
        (key, Some(user)) => Cow::Owned(format!("{key}\n{user}")),
    };
    let priority = ctx.asked.caller.as_ref().map_or(0, |caller| caller.member.priority);
    let cost = job.demand.estimate.saturating_add(job.demand.completion_tokens);
    let errand = Errand { prompt: &job.prompt, key: &key, priority, cost, tie };
    let began = gateway.clock.now();
    let lease = match upstream.enter(errand) {
        Ok(Entry::Lease(lease)) => Ok(lease),
        Ok(Entry::Wait(wait)) => {
            let _counted = InFlight::new(&gateway.metrics.queue_requests);
            queued(session, wait, upstream.spec.queue.wait_max).await?
        }
        Err(turned) => Err(turned),
    };
    let now = gateway.clock.now();
    ctx.route.queued = now.saturating_sub(began);
    gateway.metrics.queue_duration.observe(ctx.route.queued.as_secs_f64());
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
    mut wait: Wait,
    wait_max: Duration,
) -> Result<Result<Lease, Turned>, Stop> {
    tokio::select! {
        biased;
        lease = wait.lease() => Ok(lease),
        gone = session.downstream_session.read_body_or_idle(true) => {
            let gone = gone.err().unwrap_or_else(|| Error::new(ErrorType::ConnectionClosed));
            Err(Stop::Left(gone.into_down()))
        }
        () = tokio::time::sleep(wait_max) => {
            Err(Refusal::QueueTimeout { waited: wait_max, retry_after: wait.likely() }.into())
        }
    }
}

fn away(upstream: &Upstream) -> Refusal {
    Refusal::NoUpstream { retry_after: upstream.spec.health.every.max(Duration::from_secs(1)) }
}

/// Picks the server for another try, whatever it works on already: the request has waited before.
fn choose_again(ctx: &mut Context) -> Result<(), Refusal> {
    let Some(job) = &ctx.job else { return Ok(()) };
    let upstream = &job.resolved.upstream;
    // Its slot is given back first: it may be the only one.
    ctx.route.lease = None;
    ctx.route.lease = upstream.again(&ctx.route.tried, fastrand::usize(..));
    if ctx.route.lease.is_some() { Ok(()) } else { Err(away(upstream)) }
}

/// Where Pingora connects to: the chosen server, or the refuser once there is no further try.
pub(super) async fn peer(gateway: &Gateway, ctx: &mut Context) -> Result<Box<HttpPeer>> {
    // Another address of the same server is no other try.
    let goes_on = std::mem::take(&mut ctx.route.next_address);
    if ctx.route.failure.is_none() && ctx.route.attempts > 0 && !goes_on {
        // With no server left to try, what the last try met is the truer word.
        ctx.route.failure = choose_again(ctx).err().map(|none| ctx.route.met.take().unwrap_or(none));
    }
    ctx.cue.set_holds(false);
    if let Some(refusal) = &ctx.route.failure {
        return Ok(Box::new(refuser::peer(refusal.told().status)));
    }
    let (Some(job), Some(lease)) = (&ctx.job, &ctx.route.lease) else {
        return Error::e_explain(ErrorType::InternalError, "no server was chosen");
    };
    let server = lease.server();
    if !goes_on {
        ctx.route.attempts += 1;
        ctx.route.tried.push(server.clone());
        ctx.route.addresses_failed = 0;
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
    peer.options.connection_timeout = timeouts.connect;
    peer.options.total_connection_timeout = timeouts.connect;
    peer.options.idle_timeout = Some(POOLED_TIME_MAX);
    peer.options.write_timeout = timeouts.between_bytes;
    if ctx.route.broken > 0 {
        // The second try is made on a connection of its own: a pool that died idle has died whole.
        peer.group_key = fastrand::u64(..);
    }
    Ok(Box::new(peer))
}

/// Names are followed beside the requests (`server/probe.rs`); a request looks one up only where that has not yet been
/// done.
async fn address(gateway: &Gateway, server: &Server) -> Option<SocketAddr> {
    if server.address().is_none()
        && let Ok(found) = gateway.names.look_up(&server.spec.url).await
    {
        server.set_addresses(found);
    }
    server.address()
}

fn unresolved(gateway: &Gateway, ctx: &mut Context, mut error: Box<Error>) -> Box<Error> {
    let again = connect_failed(gateway, ctx, &error);
    error.set_retry(again);
    error.into_up()
}

/// The request as the server gets it: made anew, from the endpoint's row and the headers that pass.
pub(super) fn request(
    gateway: &Gateway,
    session: &Session,
    ctx: &Context,
    request: &mut RequestHeader,
) -> Result<()> {
    let (Some(job), Some(lease)) = (&ctx.job, &ctx.route.lease) else { return Ok(()) };
    ctx.route.timing.sent(job.resolved.upstream.spec.timeouts, gateway.clock.now());
    let path = lease.server().path_of(job.endpoint.path);
    let server = &lease.server().spec;
    let mut made = RequestHeader::build(Method::POST, path.as_bytes(), Some(12))?;
    made.insert_header(header::HOST, server.url.host_header())?;
    for name in HEADERS_PASSED {
        for value in session.req_header().headers.get_all(*name) {
            made.append_header(*name, value.clone())?;
        }
    }
    made.insert_header(header::CONTENT_LENGTH, job.body.len())?;
    made.insert_header("x-request-id", &ctx.arrival.request_id)?;
    if let Some(key) = &server.api_key {
        made.insert_header(header::AUTHORIZATION, format!("Bearer {}", key.0))?;
    }
    *request = made;
    Ok(())
}

/// A 101 that nobody asked for would turn the connection into a tunnel.
pub(super) fn refuse_upgrade(status: http::StatusCode) -> Result<()> {
    if status == http::StatusCode::SWITCHING_PROTOCOLS {
        return Error::e_explain(ErrorType::InvalidHTTPHeader, "101 from the server")
            .map_err(|error: Box<Error>| error.into_up());
    }
    Ok(())
}

/// A server's 401 speaks of the gateway's key, since the caller's never went there.
pub(super) fn check_credentials(status: http::StatusCode) -> Result<()> {
    if status == http::StatusCode::UNAUTHORIZED {
        return Error::e_explain(CREDENTIALS, "401 from the server")
            .map_err(|error: Box<Error>| error.into_up());
    }
    Ok(())
}

/// Takes in that no connection came about: nothing was sent, so the next server may be asked whatever the request.
pub(super) fn connect_failed(gateway: &Gateway, ctx: &mut Context, error: &Error) -> bool {
    let distrust = is_distrust(error);
    if let (Some(lease), Some(job)) = (&ctx.route.lease, &ctx.job) {
        let server = lease.server();
        if let Some(address) = ctx.route.address.filter(|_| !distrust) {
            server.address_failed(address);
            ctx.route.addresses_failed += 1;
            if ctx.route.addresses_failed < server.addresses() {
                ctx.route.next_address = true;
                return true;
            }
        }
        // One fault a request, however often it tries one server.
        if ctx.route.tried.iter().filter(|tried| std::ptr::eq(tried.as_ref(), server.as_ref())).count() == 1 {
            gateway.note_fault(server, &error.to_string());
        }
        if distrust {
            gateway.note_distrust(server, error);
            let is_left = |other: &Server| {
                other.takes_requests()
                    && !ctx.route.tried.iter().any(|tried| std::ptr::eq(tried.as_ref(), other))
            };
            if !job.resolved.upstream.servers.iter().any(|other| is_left(other)) {
                // Its certificate will be no other one in a moment.
                ctx.route.failure = Some(DISTRUSTED);
                return true;
            }
        }
    }
    let failure = match error.etype() {
        ErrorType::ConnectTimedout => Refusal::UpstreamError("could not be reached in time"),
        _ if distrust => DISTRUSTED,
        _ => Refusal::UpstreamError("could not be reached"),
    };
    try_again(gateway, ctx, "connect", failure)
}

/// What is told of a server that TLS could not be spoken with.
const DISTRUSTED: Refusal =
    Refusal::UpstreamError("could not be reached by TLS, or its certificate is not trusted");

/// Whether another try is made; if not, what the caller is told instead. Pingora's own retry loop comes around either
/// way: to the next server or to the refuser.
fn try_again(gateway: &Gateway, ctx: &mut Context, reason: &str, failure: Refusal) -> bool {
    let retries = ctx.job.as_ref().map_or(0, |job| job.resolved.upstream.spec.retries);
    if ctx.route.attempts <= retries {
        gateway.metrics.retried(reason);
        ctx.route.met = Some(failure);
    } else {
        ctx.route.failure = Some(failure);
    }
    true
}

/// Takes in that a try failed after the request was sent. True: Pingora comes around again.
pub(super) fn broke_off(
    gateway: &Gateway,
    session: &Session,
    ctx: &mut Context,
    error: &Error,
    reused: bool,
) -> bool {
    let begun = session.response_written().is_some_and(|answer| !answer.status.is_informational());
    if let Some(late) = late(error) {
        ctx.route.failure = Some(Refusal::UpstreamTimeout(late.what()));
        return !begun;
    }
    if *error.esource() == ErrorSource::Downstream {
        ctx.told.left = true;
        if ctx.told.complete {
            return false;
        }
        gateway.metrics.disconnected(if begun { Phase::Answering } else { Phase::Waiting });
        return false;
    }
    if *error.etype() == CREDENTIALS {
        ctx.route.failure = Some(Refusal::UpstreamError("did not accept the gateway's own key"));
        return !begun;
    }
    let failure = Refusal::UpstreamError(match error.etype() {
        ErrorType::InvalidHTTPHeader | ErrorType::H1Error => "answered nonsense",
        _ => "broke off",
    });
    if begun {
        ctx.route.failure = Some(failure);
        return false;
    }
    if ctx.cue.holds() {
        return held_back(gateway, ctx, error, failure);
    }
    if let Some(lease) = &ctx.route.lease {
        // It may have died, and come back with another model before the next try.
        lease.server().forget_report();
        if !reused && ctx.route.broken == 0 {
            gateway.note_fault(lease.server(), "it broke off before it answered");
        }
    }
    // Once more, at most: the connection may have died idle in the pool, or the server of this request.
    ctx.route.broken += 1;
    if ctx.route.broken > 1 {
        ctx.route.failure = Some(failure);
        return true;
    }
    try_again(gateway, ctx, "broken", failure)
}

/// Takes in that an answer which was held back came to nothing. True: Pingora comes around again.
fn held_back(gateway: &Gateway, ctx: &mut Context, error: &Error, failure: Refusal) -> bool {
    if *error.etype() != UNRENDERED {
        // Who followed it live has had a part of it: it is not begun anew.
        ctx.route.failure.get_or_insert(failure);
        return true;
    }
    // The stream itself is whole, for those who follow it as such.
    ctx.land(Landing::Whole);
    ctx.flight = None;
    if let Some(job) = &mut ctx.job {
        job.ask_plainly();
        job.keep = job.keep.map(Keep::only);
        ctx.cue.set_body(job.body.clone());
    }
    gateway.metrics.retried("unrendered");
    ctx.route.met = Some(failure);
    true
}

/// The timeout that an error stands for, if it is one.
fn late(error: &Error) -> Option<Late> {
    [Late::FirstByte, Late::BetweenBytes, Late::Total]
        .into_iter()
        .find(|late| *error.etype() == late_error(*late))
}

/// Takes in that a server began to answer.
pub(super) fn answered(gateway: &Gateway, ctx: &Context) {
    ctx.route.timing.byte(gateway.clock.now());
    if let Some(lease) = &ctx.route.lease {
        gateway.note(lease.server(), Sign::Answer, "");
        lease.server().is_relief(TLS);
    }
}
