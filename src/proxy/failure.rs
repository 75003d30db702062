//! What is done when a try fails: another one, a refusal, or a clean end to what had begun.

use bytes::Bytes;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::{FailToProxy, Session};

use crate::cache::Landing;
use crate::observe::Phase;

use super::context::Context;
use super::gateway::Gateway;
use super::refusal::Refusal;
use super::respond;
use super::{fault, outlet};

/// What is told of an answer that ended before its end.
pub(super) const BROKE_OFF: Refusal = Refusal::UpstreamError("broke off in the middle of its answer");

/// A caller that left before a server was asked: while its own body was on its way, or while it waited.
pub(super) fn left(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    error: Box<Error>,
) -> Box<Error> {
    ctx.told.left = true;
    let read = session.downstream_session.is_body_done();
    gateway.metrics.disconnected(if read { Phase::Waiting } else { Phase::Sending });
    error
}

/// No connection came about.
pub(super) fn connect(gateway: &Gateway, ctx: &mut Context, mut error: Box<Error>) -> Box<Error> {
    let again = fault::connect_failed(gateway, ctx, &error);
    error.set_retry(again);
    error
}

/// A try failed after the request was sent.
pub(super) fn midway(
    gateway: &Gateway,
    session: &Session,
    ctx: &mut Context,
    mut error: Box<Error>,
    reused: bool,
) -> Box<Error> {
    let again = fault::broke_off(gateway, session, ctx, &error, reused);
    error.set_retry(again);
    error
}

/// An answer that ended without an end and without a frame: its stream gets an error event; a plain one is broken off.
pub(super) fn cut(ctx: &mut Context, body: &mut Option<Bytes>) -> Result<()> {
    fault::cut(ctx);
    let error = respond::broken_stream(&BROKE_OFF, ctx.arrival.protocol);
    let last = ctx.tap.as_ref().and_then(|tap| tap.last_event(&error));
    ctx.route.failure = Some(BROKE_OFF);
    ctx.land(Landing::Broken(BROKE_OFF));
    let Some(event) = last else {
        return Error::e_explain(ErrorType::ConnectionClosed, "an answer without an end")
            .map_err(|error: Box<Error>| error.into_up());
    };
    let sent = body.take().unwrap_or_default();
    *body = Some([sent, event].concat().into());
    Ok(())
}

/// A stream of which a plain answer was to be made, and that said it failed.
pub(super) fn failed(ctx: &mut Context) -> Result<()> {
    const FAILED: Refusal = Refusal::UpstreamError("said that it failed in the middle of its answer");
    ctx.route.failure = Some(FAILED);
    ctx.land(Landing::Broken(FAILED));
    Error::e_explain(ErrorType::InvalidHTTPHeader, "an error in the stream")
        .map_err(|error: Box<Error>| error.into_up())
}

/// The last word on a request that failed for good. Refusals that could still be told have been; what is left are
/// callers that are gone, and answers that had begun.
pub(super) async fn end(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    error: &Error,
) -> FailToProxy {
    // Whatever was told cannot be taken back: the connection ends with it.
    session.downstream_session.set_keepalive(None);
    let begun = outlet::has_begun(session, ctx);
    ctx.told.left |= *error.esource() == ErrorSource::Downstream && ctx.route.failure.is_none();
    if ctx.told.left {
        return FailToProxy { error_code: 0, can_reuse_downstream: false };
    }
    if ctx.is_whole() {
        // All that was to come had come.
        fault::ended(ctx);
        ctx.route.failure = None;
        ctx.land(Landing::Whole);
        let _ = outlet::finish(session, ctx).await;
        return FailToProxy { error_code: ctx.told.status, can_reuse_downstream: false };
    }
    let failure = ctx.route.failure.get_or_insert(BROKE_OFF).clone();
    ctx.land(Landing::Broken(failure.clone()));
    if ctx.has_left() {
        return FailToProxy { error_code: 0, can_reuse_downstream: false };
    }
    if !begun {
        // Not reached by a way that is known; better a plain answer than none.
        let _ = respond::refuse(gateway, session, ctx, failure).await;
    } else if let Some(event) = ctx
        .tap
        .as_ref()
        .and_then(|tap| tap.last_event(&respond::broken_stream(&failure, ctx.arrival.protocol)))
    {
        ctx.told.bytes_out += event.len() as u64;
        let _ = outlet::end_with(session, ctx, event).await;
    }
    FailToProxy { error_code: ctx.told.status, can_reuse_downstream: false }
}
