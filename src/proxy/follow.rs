//! A caller that joined an answer in the making: all that has been sent so far at once, then as it comes. A plain
//! answer is given when it is whole, and so is one that is made in another form.

use bytes::Bytes;
use http::{StatusCode, header};
use pingora::{Error, Result};
use pingora_proxy::Session;

use crate::cache::{Follower, Form, Head, Landing, News};
use crate::wire::error_event;

use super::admit::Verdict;
use super::ask::{self, Aboard, Again};
use super::body::Stop;
use super::context::Context;
use super::failure::BROKE_OFF;
use super::gateway::Gateway;
use super::heading::{Heading, X_ACCEL_BUFFERING};
use super::refusal::Refusal;
use super::respond;
use super::settle;

/// Gives an answer that is being made, or says what is to be done instead.
pub(super) async fn follow(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    mut aboard: Aboard,
) -> Result<Option<Result<Verdict, Stop>>> {
    let live = aboard.follower.form() == aboard.keep.form;
    let mut head: Option<Head> = None;
    let mut held: Vec<Bytes> = Vec::new();
    let landing = loop {
        let news = next(session, ctx, &mut aboard.follower).await?;
        if let Some((model, upstream)) = news.head.as_ref().and_then(|head| head.instead.clone()) {
            (ctx.asked.model, ctx.asked.upstream) = (model, upstream);
        }
        head = head.or(news.head);
        held.extend(news.chunks.into_iter().filter(|_| live));
        if let Some(head) = head.as_ref().filter(|head| live && is_stream(head)) {
            // It is no longer this caller's business to make the answer.
            ctx.guards.body = None;
            let Aboard { follower, job, .. } = aboard;
            drop(job);
            return stream(gateway, session, ctx, follower, head, held, news.landing).await.map(|()| None);
        }
        if let Some(landing) = news.landing {
            break landing;
        }
    };
    drop(held);
    let head = match (head, landing) {
        (_, Landing::Declined(counted)) => {
            aboard.job.demand.note_counted(counted);
            return Ok(Some(ask::ask_again(gateway, session, ctx, aboard, Again::Declined).await));
        }
        (Some(head), Landing::Whole) => head,
        (None, Landing::Whole) | (_, Landing::Lost) => {
            return respond::refuse(gateway, session, ctx, BROKE_OFF).await.map(|()| None);
        }
        (_, Landing::Broken(refusal)) => {
            return respond::refuse(gateway, session, ctx, refusal).await.map(|()| None);
        }
    };
    let Aboard { follower, keep, .. } = &aboard;
    // A refusal of the server's own has one form, and what it gave plainly is plain, whatever it was asked for.
    let is_plain = keep.form == Form::Plain && !is_stream(&head);
    if live || head.status != StatusCode::OK || is_plain {
        return whole(gateway, session, ctx, &head, follower.whole()).await.map(|()| None);
    }
    let render = || ask::rendered(keep.dialect, follower.form(), follower.whole(), keep.form);
    let body = follower.rendering(keep.form).get_or_init(render).await.clone();
    ask::note_rendering(gateway, body.is_some());
    let Some(body) = body else {
        return Ok(Some(ask::ask_again(gateway, session, ctx, aboard, Again::Unrendered).await));
    };
    let head = Head { content_type: Bytes::from_static(keep.form.content_type().as_bytes()), ..head };
    whole(gateway, session, ctx, &head, body).await.map(|()| None)
}

fn is_stream(head: &Head) -> bool {
    head.status == StatusCode::OK && head.content_type.starts_with(b"text/event-stream")
}

/// Waits for news, or for the caller to leave.
async fn next(
    session: &mut Session,
    ctx: &mut Context,
    follower: &mut Follower<Refusal>,
) -> Result<News<Refusal>> {
    tokio::select! {
        biased;
        news = follower.next() => Ok(news),
        gone = session.downstream_session.read_body_or_idle(true) => {
            let gone = gone.err().unwrap_or_else(|| Error::new(pingora::ErrorType::ConnectionClosed));
            Err(respond::left(ctx, gone))
        }
    }
}

async fn whole(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    head: &Head,
    body: Bytes,
) -> Result<()> {
    // What the request took is back before its caller can know of it.
    ctx.release();
    let mut answer = Heading::new(head.status);
    answer.set(&header::CONTENT_TYPE, head.content_type.as_ref())?;
    respond::send(gateway, session, ctx, answer, body).await
}

async fn stream(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    mut follower: Follower<Refusal>,
    head: &Head,
    mut chunks: Vec<Bytes>,
    mut landing: Option<Landing<Refusal>>,
) -> Result<()> {
    let mut answer = Heading::new(head.status);
    answer.set(&header::CONTENT_TYPE, head.content_type.as_ref())?;
    answer.set(&X_ACCEL_BUFFERING, "no")?;
    if session.req_header().version != http::Version::HTTP_10 {
        answer.set(&header::TRANSFER_ENCODING, "chunked")?;
    }
    respond::mark(gateway, ctx, &mut answer)?;
    ctx.told.status = head.status.as_u16();
    let sent = session.write_response_header(answer.finish(), false).await;
    sent.map_err(|error| respond::left(ctx, error))?;
    // The last bytes that were sent, to tell whether an event was cut through.
    let mut tail = Bytes::new();
    loop {
        for chunk in chunks {
            let elapsed = gateway.clock.now().saturating_sub(ctx.arrival.begun);
            ctx.told.first_byte.get_or_insert(elapsed);
            ctx.told.bytes_out += chunk.len() as u64;
            ctx.told.hears(&chunk);
            tail = chunk.slice(chunk.len().saturating_sub(4)..);
            let sent = session.write_response_body(Some(chunk), false).await;
            sent.map_err(|error| respond::left(ctx, error))?;
        }
        if let Some(landing) = landing {
            return end(gateway, session, ctx, &tail, landing).await;
        }
        let news = next(session, ctx, &mut follower).await?;
        (chunks, landing) = (news.chunks, news.landing);
    }
}

async fn end(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    tail: &[u8],
    landing: Landing<Refusal>,
) -> Result<()> {
    ctx.guards.permit = None;
    let failure = match landing {
        Landing::Whole => None,
        Landing::Broken(refusal) => Some(refusal),
        Landing::Lost | Landing::Declined(_) => Some(BROKE_OFF),
    };
    let last = failure.as_ref().map(|refusal| {
        let error = respond::broken_stream(refusal, ctx.arrival.protocol);
        Bytes::from(cut(tail).to_owned() + &error_event(ctx.arrival.protocol, &error))
    });
    ctx.told.bytes_out += last.as_ref().map_or(0, |last| last.len() as u64);
    ctx.told.complete = last.is_none();
    ctx.route.failure = failure;
    settle::count(gateway, ctx);
    let sent = session.write_response_body(last, true).await;
    sent.map_err(|error| respond::left(ctx, error))
}

/// What closes an event that was cut through.
fn cut(tail: &[u8]) -> &'static str {
    match tail {
        [] | [.., b'\n', b'\n'] | [.., b'\n', b'\r', b'\n'] => "",
        [.., b'\n'] => "\n",
        _ => "\n\n",
    }
}
