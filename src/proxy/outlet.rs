//! The way out to the caller while a server works for it.
//!
//! It tells at once that the caller left, or that the answer is late; it writes at the caller's pace, or, where others
//! follow the answer, at theirs: then neither a caller that leaves nor one that reads slowly ends it for them. And it
//! holds back the header of a plain answer that is made of a stream until the answer is whole.

use std::future::poll_fn;
use std::task::Poll;

use futures_util::FutureExt;
use http::header;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;

use super::context::Context;
use super::lane::Lane;
use super::wait::{Alarm, LAG_BYTES_MAX, catch_up, late, late_error, left, poll_write};

/// How a caller is given its answer.
#[derive(Default)]
pub(super) struct Outlet {
    alarm: Alarm,
    /// The caller is gone, and its answer goes on for its followers: nothing more is read from it or written to it.
    hidden: bool,
    /// Bytes that were queued for a caller that takes them slower than its followers.
    lag_bytes: usize,
    /// How a caller over HTTP/2 is written to, once others follow its answer.
    lane: Option<Lane>,
    /// The answer's header waits for its body.
    pub(super) holds: bool,
    held: Option<Box<ResponseHeader>>,
}

impl Outlet {
    /// Whether the caller is gone, and its answer goes on for others.
    pub(super) fn is_hidden(&self) -> bool {
        self.hidden
    }
}

/// Waits until the answer must not go on: its caller left and nobody else wants it, or it is late.
pub(super) async fn watch(session: &mut Session, ctx: &mut Context) -> Box<Error> {
    let session = &mut *session.downstream_session;
    loop {
        let Outlet { alarm, hidden, lane, .. } = &mut ctx.outlet;
        let late = late(&ctx.route.timing, ctx.gateway.clock, alarm);
        let is_hidden = *hidden;
        let followed = async {
            match &ctx.flight {
                Some(flight) if is_hidden => flight.abandoned().await,
                _ => {}
            }
            Error::explain(ErrorType::ConnectionClosed, "the last follower left")
        };
        let gone = tokio::select! {
            biased;
            left = left(session, lane), if !is_hidden => left,
            gone = followed, if is_hidden => return gone.into_down(),
            late = late => return Error::explain(late_error(late), late.what()).into_up(),
        };
        if !hide(session, ctx) {
            return gone.into_down();
        }
    }
}

/// Takes in that the caller is gone. True: others follow its answer, and it goes on for them.
fn hide(session: &mut HttpSession, ctx: &mut Context) -> bool {
    let goes_on = ctx.flight.as_ref().is_some_and(|flight| flight.leader_leaves());
    if goes_on {
        ctx.outlet.hidden = true;
        session.set_keepalive(None);
        ctx.guards.permit = None;
    }
    goes_on
}

/// Gives the caller what has come. True: by what it was told, that was all.
pub(super) async fn write(session: &mut Session, ctx: &mut Context, tasks: Vec<HttpTask>) -> Result<bool> {
    let session = &mut *session.downstream_session;
    let tasks = if ctx.outlet.holds { hold(ctx, tasks)? } else { tasks };
    // Its header says so; a connection that it offered to keep is kept, until it is idle.
    if !ctx.gateway.is_ready() && tasks.iter().any(|task| matches!(task, HttpTask::Header(..))) {
        session.set_keepalive(None);
    }
    let ends = tasks.iter().any(HttpTask::is_end);
    let written = match tasks.is_empty() || ctx.outlet.hidden {
        true => still_wanted(session, ctx).map(|()| ends),
        false => give(session, ctx, tasks).await,
    };
    let ended = match written {
        Ok(ended) => ended,
        Err(_) if hide(session, ctx) => ends,
        Err(left) => return Err(left.into_down()),
    };
    // The time that the caller took to take them is not the server's silence.
    let now = ctx.gateway.clock.now();
    ctx.route.timing.byte(now);
    match ctx.route.timing.due() {
        // A server that never pauses leaves no time to wait for this.
        Some((due, late)) if due <= now && !ends => {
            Err(Error::explain(late_error(late), late.what()).into_up())
        }
        _ => Ok(ended),
    }
}

/// Whether somebody waits for an answer of which nothing is written now. A server that never pauses leaves no time to
/// [`watch`].
fn still_wanted(session: &mut HttpSession, ctx: &mut Context) -> Result<()> {
    let gone = match ctx.outlet.hidden {
        true if ctx.flight.as_ref().is_some_and(|flight| flight.followers() > 0) => None,
        true => Some(Error::explain(ErrorType::ConnectionClosed, "the last follower left")),
        false => left(session, &mut ctx.outlet.lane).now_or_never(),
    };
    gone.map_or(Ok(()), Err)
}

/// Writes at the caller's pace, or, where others follow, at theirs: what the caller does not take at once is queued, up
/// to a bound, and then the caller is cut.
async fn give(session: &mut HttpSession, ctx: &mut Context, mut tasks: Vec<HttpTask>) -> Result<bool> {
    let Outlet { lag_bytes, lane, .. } = &mut ctx.outlet;
    let behind = lane.is_some() || session.has_pending_downstream_proxy_tasks();
    let is_followed = || ctx.flight.as_ref().is_some_and(|flight| flight.followers() > 0);
    if !behind && !is_followed() {
        return session.response_duplex_vec(tasks).await;
    }
    let ends = tasks.iter().any(HttpTask::is_end);
    if matches!(session, HttpSession::H2(_)) && lane.is_none() {
        // The header takes no time.
        let headers = tasks.iter().take_while(|task| matches!(task, HttpTask::Header(..))).count();
        if session.response_duplex_vec(tasks.drain(..headers).collect()).await? {
            return Ok(true);
        }
        *lane = Lane::of(session);
        if lane.is_none() {
            return session.response_duplex_vec(tasks).await;
        }
    }
    for task in tasks {
        if let HttpTask::Body(Some(chunk), _) = &task {
            *lag_bytes += chunk.len();
        }
        match lane {
            Some(lane) => lane.push(task),
            None => session.send_downstream_proxy_task(task),
        }
    }
    let written = poll_fn(|cx| Poll::Ready(poll_write(session, lane, cx))).await;
    match written {
        Poll::Ready(written) => {
            *lag_bytes = 0;
            written?;
        }
        Poll::Pending if *lag_bytes > LAG_BYTES_MAX => {
            catch_up(session, lane).await?;
            *lag_bytes = 0;
        }
        Poll::Pending => {}
    }
    Ok(ends)
}

/// Whether somebody has had a part of the answer. A caller that is gone is written nothing, and those who follow have
/// had it all the same.
pub(super) fn has_begun(session: &Session, ctx: &Context) -> bool {
    session.response_written().is_some_and(|answer| !answer.status.is_informational())
        || ctx.outlet.hidden && ctx.tap.is_some()
}

/// Takes back what is not to go out yet.
fn hold(ctx: &mut Context, tasks: Vec<HttpTask>) -> Result<Vec<HttpTask>> {
    let held = &mut ctx.outlet.held;
    let mut out = Vec::with_capacity(tasks.len() + 1);
    for task in tasks {
        match task {
            HttpTask::Header(header, false) => *held = Some(header),
            HttpTask::Body(Some(body), end) if !body.is_empty() => {
                if let Some(mut header) = held.take() {
                    header.remove_header(&header::TRANSFER_ENCODING);
                    header.insert_header(header::CONTENT_LENGTH, body.len())?;
                    let elapsed = ctx.gateway.clock.now().saturating_sub(ctx.arrival.begun);
                    let elapsed = crate::observe::milliseconds(elapsed);
                    header.insert_header("x-elapsed-ms", format!("{elapsed:.3}"))?;
                    out.push(HttpTask::Header(header, false));
                }
                out.push(HttpTask::Body(Some(body), end));
            }
            HttpTask::Body(_, false) => {}
            last => out.push(last),
        }
    }
    Ok(out)
}

/// Whether the header of an answer is held back, of which nothing has gone out. It is forgotten.
pub(super) fn forget_held(ctx: &mut Context) -> bool {
    ctx.outlet.held = None;
    std::mem::take(&mut ctx.outlet.holds)
}

/// Ends an answer that is whole. An error: its caller did not take the end, or has been gone for long.
pub(super) async fn finish(session: &mut Session, ctx: &mut Context) -> Result<()> {
    if ctx.outlet.hidden {
        return Err(Error::explain(ErrorType::ConnectionClosed, "the answer went on for others").into_down());
    }
    end(&mut session.downstream_session, ctx, None).await.map_err(Error::into_down)
}

/// Ends an answer that is not, with what is still to be said of that.
pub(super) async fn end_with(session: &mut Session, ctx: &mut Context, last: bytes::Bytes) -> Result<()> {
    end(&mut session.downstream_session, ctx, Some(last)).await
}

async fn end(session: &mut HttpSession, ctx: &mut Context, last: Option<bytes::Bytes>) -> Result<()> {
    if let Some(lane) = &mut ctx.outlet.lane {
        lane.push(HttpTask::Body(last, true));
        return lane.drain(session.get_write_timeout()).await;
    }
    while session.has_pending_downstream_proxy_tasks() {
        session.write_downstream_proxy_tasks().await?;
    }
    match last {
        Some(last) => session.write_response_body(last, true).await,
        None => session.finish_body().await,
    }
}
