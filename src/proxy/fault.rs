//! What a try at a server met: whose fault it was, and whether another is made.
//!
//! The server's own faults go on its breaker: no connection, a broken or senseless answer, silence where the file
//! bounds it, and a 502 or 504 of what stands behind it. No other answer does: llama-server has a 500 for prompts that
//! it cannot take, so that would let a caller take servers out.

use std::sync::Arc;

use http::StatusCode;
use pingora::{Error, ErrorSource, ErrorType};
use pingora_proxy::Session;
use sha2::{Digest, Sha256};

use crate::cache::Landing;
use crate::observe::Phase;
use crate::route::{Fingerprint, Grant, Sign};

use super::context::{Context, Keep};
use super::forward::CREDENTIALS;
use super::gateway::{Gateway, TLS};
use super::outlet::has_begun;
use super::refusal::Refusal;
use super::timing::Late;
use super::trace::failed_of;
use super::trust::is_distrust;
use super::turned::UNRENDERED;
use super::wait::late_error;

/// What is told of a server that TLS could not be spoken with.
const DISTRUSTED: Refusal =
    Refusal::UpstreamError("could not be reached by TLS, or its certificate is not trusted");

/// Takes in that no connection came about: nothing was sent, so the next server may be asked whatever the request.
pub(super) fn connect_failed(gateway: &Gateway, ctx: &mut Context, error: &Error) -> bool {
    let distrust = is_distrust(error);
    if let (Some(lease), Some(address)) = (&ctx.route.lease, ctx.route.address.filter(|_| !distrust)) {
        lease.server().address_failed(address);
        ctx.route.addresses_failed += 1;
        if ctx.route.addresses_failed < lease.server().addresses() {
            ctx.route.next_address = true;
            return true;
        }
    }
    ctx.trace_try_ended(Some("connect"));
    blame(ctx, &error.to_string());
    if let (Some(lease), Some(job)) = (&ctx.route.lease, &ctx.job) {
        let server = lease.server();
        // It may come back with another model.
        server.forget_report();
        if distrust {
            gateway.note_distrust(server, error);
            if !job.resolved.upstream.has_left(&ctx.route.tried) {
                // Its certificate will be no other one in a moment.
                ctx.route.failure = Some(DISTRUSTED);
                return true;
            }
        }
    }
    let failure = match error.etype() {
        ErrorType::ConnectTimedout => Refusal::UpstreamTimeout(Late::Connect),
        _ if distrust => DISTRUSTED,
        _ => Refusal::UpstreamError("could not be reached"),
    };
    try_again(gateway, ctx, "connect", failure)
}

/// Puts a fault on the server's account: once a request, however often it tries one server.
fn blame(ctx: &mut Context, why: &str) {
    let Some(lease) = &ctx.route.lease else { return };
    let server = Arc::clone(lease.server());
    if !ctx.route.blamed.iter().any(|blamed| blamed.is(&server)) {
        ctx.gateway.note_fault(&server, why);
        ctx.route.blamed.push(server);
    }
}

/// Whether another try is made; if not, what the caller is told instead. The exchange comes around either way: to the
/// next server, to a fallback or to the refusal.
fn try_again(gateway: &Gateway, ctx: &mut Context, reason: &str, failure: Refusal) -> bool {
    let Some(job) = &ctx.job else { return false };
    let upstream = &job.resolved.upstream;
    let grant = match ctx.route.tries <= upstream.spec.retries {
        true => Some(upstream.may_retry(gateway.clock.now())),
        false => None,
    };
    if let Some(Grant::Spent { first }) = grant {
        let name = &upstream.spec.name;
        gateway.metrics.withheld(name);
        if first {
            log::warn!(
                "upstream `{name}` fails so often that its budget of retries is spent: first failures stand"
            );
        }
    }
    if grant == Some(Grant::Given) {
        gateway.metrics.retried(reason);
        ctx.route.met = Some(failure);
    } else {
        ctx.route.failure = Some(failure);
    }
    true
}

/// Takes in that a try failed after the request was sent. True: the exchange comes around again.
pub(super) fn broke_off(
    gateway: &Gateway,
    session: &Session,
    ctx: &mut Context,
    error: &Error,
    reused: bool,
) -> bool {
    let begun = has_begun(session, ctx);
    let ended = ctx.told.complete || ctx.is_whole();
    ctx.trace_try_ended(Some(failed_of(error)).filter(|_| !ended));
    if let Some(late) = late(error) {
        // How long an answer takes in all is its caller's doing too.
        if late != Late::Total {
            blame(ctx, late.what());
        }
        ctx.route.failure = Some(Refusal::UpstreamTimeout(late));
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
    let nonsense = matches!(error.etype(), ErrorType::InvalidHTTPHeader | ErrorType::H1Error);
    let failure = Refusal::UpstreamError(if nonsense { "answered nonsense" } else { "broke off" });
    if begun {
        if !ctx.is_whole() {
            died(ctx);
        }
        ctx.route.failure = Some(failure);
        return false;
    }
    if ctx.outlet.holds {
        return held_back(gateway, ctx, error, failure);
    }
    if let Some(lease) = &ctx.route.lease {
        // It may have died, and come back with another model before the next try.
        lease.server().forget_report();
    }
    if !reused {
        blame(ctx, if nonsense { "it answered nonsense" } else { "it broke off before it answered" });
    }
    if !nonsense && let Some(refusal) = felled(gateway, ctx) {
        ctx.route.failure = Some(refusal);
        return true;
    }
    // Once more, at most: the connection may have died idle in the pool, or the server of this request.
    ctx.route.broken += 1;
    if ctx.route.broken > 1 {
        ctx.route.failure = Some(failure);
        return true;
    }
    try_again(gateway, ctx, "broken", failure)
}

/// Takes in that an answer which was held back came to nothing. True: the exchange comes around again.
fn held_back(gateway: &Gateway, ctx: &mut Context, error: &Error, failure: Refusal) -> bool {
    if *error.etype() != UNRENDERED {
        if ctx.route.failure.is_none() {
            died(ctx);
        }
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
    }
    gateway.metrics.retried("unrendered");
    ctx.route.met = Some(failure);
    true
}

/// Takes in that an answer broke off after it had begun.
pub(super) fn cut(ctx: &mut Context) {
    ctx.trace_try_ended(Some("broken"));
    blame(ctx, "it broke off in the middle of an answer");
}

/// The same, where its connection ended with it.
fn died(ctx: &mut Context) {
    if let Some(lease) = &ctx.route.lease {
        // The server may have died, and come back with another model.
        lease.server().forget_report();
    }
    cut(ctx);
}

/// The timeout that an error stands for, if it is one.
pub(super) fn late(error: &Error) -> Option<Late> {
    if *error.etype() == ErrorType::WriteTimedout && *error.esource() == ErrorSource::Upstream {
        return Some(Late::BetweenBytes);
    }
    [Late::FirstByte, Late::BetweenBytes, Late::Total]
        .into_iter()
        .find(|late| *error.etype() == late_error(*late))
}

/// Takes in that a server began to answer.
pub(super) fn answered(gateway: &Gateway, ctx: &mut Context, status: StatusCode) {
    ctx.route.timing.byte(gateway.clock.now());
    if speaks_of_a_fault(status) {
        blame(ctx, &format!("it answered {}", status.as_u16()));
        return;
    }
    if let Some(request) = &ctx.route.fingerprint {
        gateway.felled.forgive(request);
    }
    note(ctx, Sign::Answer);
    if let Some(lease) = ctx.route.lease.as_ref().filter(|lease| lease.server().spec.url.tls) {
        lease.server().is_relief(TLS);
    }
}

/// Takes in that a server answered to the end.
pub(super) fn ended(ctx: &Context) {
    let status = ctx.told.upstream_status.and_then(|status| StatusCode::from_u16(status).ok());
    if status.is_some_and(|status| !speaks_of_a_fault(status)) {
        note(ctx, Sign::Whole);
    }
}

fn note(ctx: &Context, sign: Sign) {
    if let Some(lease) = &ctx.route.lease {
        ctx.gateway.note(lease.server(), sign, "");
    }
}

fn speaks_of_a_fault(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT)
}

/// Takes in that the server broke off on this request. A refusal: it is not the first.
fn felled(gateway: &Gateway, ctx: &mut Context) -> Option<Refusal> {
    let request = fingerprint(ctx)?;
    let server = ctx.route.lease.as_ref()?.server();
    let harm = gateway.felled.note(request, server, gateway.clock.now())?;
    gateway.metrics.requests_barred.inc();
    log::warn!(
        "request {} broke {} servers, the last of them `{}`: it is refused for {} s",
        ctx.arrival.request_id,
        harm.servers,
        server.spec.name,
        harm.wait.as_secs()
    );
    Some(Refusal::Harmful(harm))
}

/// Refuses what took servers down before.
pub(super) fn refuse_harmful(gateway: &Gateway, ctx: &mut Context) -> Result<(), Refusal> {
    if gateway.felled.is_empty() {
        return Ok(());
    }
    let harm = fingerprint(ctx).and_then(|request| gateway.felled.harm(&request, gateway.clock.now()));
    let Some(harm) = harm else { return Ok(()) };
    gateway.metrics.requests_barred.inc();
    Err(Refusal::Harmful(harm))
}

/// What tells a request from others, whichever model comes to it in the end.
fn fingerprint(ctx: &mut Context) -> Option<Fingerprint> {
    let job = ctx.job.as_ref()?;
    let request = *ctx.route.fingerprint.get_or_insert_with(|| {
        let mut hash = Sha256::new();
        for part in [job.endpoint.path, ctx.asked.model_requested.as_deref().unwrap_or_default()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.update(job.original.as_ref().unwrap_or(&job.body));
        hash.finalize().into()
    });
    Some(request)
}
