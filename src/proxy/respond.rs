//! Answers that do not pass through as they come: refusals, hits, preflights, what the gateway knows by itself, and
//! the marks that every answer bears.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use pingora::{Error, Result};
use pingora_proxy::Session;

use crate::cache::Landing;
use crate::limit::Level;
use crate::observe::Phase;
use crate::wire::Protocol;

use super::arrival;
use super::ask::Hit;
use super::body::{discard, linger};
use super::context::Context;
use super::cors;
use super::gateway::Gateway;
use super::heading::{
    BucketHeaders, CACHE_STATUS, Heading, REQUESTS, RETRY_AFTER_MS, TOKENS, X_AI_GATEWAY_MODEL,
    X_AI_GATEWAY_SERVER, X_CACHE, X_ELAPSED_MS, X_REQUEST_ID, X_SHOULD_RETRY,
};
use super::refusal::{Refusal, Told};
use super::settle;

/// What is written at once.
const PIECE_BYTES_MAX: usize = 64 << 10;

const JSON: &str = "application/json; charset=utf-8";

/// Says no. The connection stays usable if the rest of the caller's body can be thrown away.
pub(super) async fn refuse(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    refusal: Refusal,
) -> Result<()> {
    let told = refusal.told();
    // What the request took is back before the caller can know of it.
    ctx.release();
    let usable = match &refusal {
        Refusal::RequestTimeout => false,
        _ => discard(session, gateway).await,
    };
    if !usable {
        session.downstream_session.set_keepalive(None);
    }
    let body = Bytes::from(told.body(ctx.arrival.protocol));
    let mut answer = Heading::new(told.status);
    answer.set(&header::CONTENT_TYPE, JSON)?;
    tell(&mut answer, &refusal, &told)?;
    note(gateway, ctx, refusal, told.status);
    send(gateway, session, ctx, answer, body).await?;
    if !usable {
        linger(session).await;
    }
    Ok(())
}

fn note(gateway: &Gateway, ctx: &mut Context, refusal: Refusal, status: StatusCode) {
    ctx.land(Landing::Broken(refusal.clone()));
    if let Some(limit) = refusal.limit() {
        gateway.metrics.refused(limit.name());
    }
    ctx.told.status = status.as_u16();
    ctx.told.refusal = Some(refusal);
}

/// The headers that belong to a refusal.
fn tell(answer: &mut Heading, refusal: &Refusal, told: &Told) -> Result<()> {
    if let Some(wait) = told.retry_after {
        // Whole seconds, rounded up, at least 1 (RFC 9110, section 10.2.3); and what SDKs read first.
        answer.set(&header::RETRY_AFTER, wait.as_secs_f64().ceil().max(1.0) as u64)?;
        answer.set(&RETRY_AFTER_MS, wait.as_nanos().div_ceil(1_000_000).max(1) as u64)?;
    }
    if told.final_word {
        answer.set(&X_SHOULD_RETRY, "false")?;
    }
    match refusal {
        Refusal::MethodNotAllowed(allow) => answer.set(&header::ALLOW, *allow)?,
        Refusal::InvalidKey => answer.set(&header::WWW_AUTHENTICATE, "Bearer")?,
        _ => {}
    }
    Ok(())
}

/// Answers from the cache.
pub(super) async fn hit(gateway: &Gateway, session: &mut Session, ctx: &mut Context, hit: Hit) -> Result<()> {
    let Hit { entry, content_type, body } = hit;
    ctx.release();
    gateway.metrics.saved(entry.worth.completion_tokens, entry.worth.time);
    let now = gateway.clock.now();
    let mut answer = Heading::new(StatusCode::OK);
    answer.set(&header::CONTENT_TYPE, content_type.as_ref())?;
    answer.set(&header::AGE, entry.age(now).as_secs())?;
    let ttl = entry.expires_at.saturating_sub(now).as_secs();
    answer.write(&CACHE_STATUS, format_args!("ai-gateway; hit; ttl={ttl}"))?;
    send(gateway, session, ctx, answer, body).await
}

/// Answers with JSON of the gateway's own.
pub(super) async fn own(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    status: StatusCode,
    json: String,
) -> Result<()> {
    ctx.release();
    let mut answer = Heading::new(status);
    answer.set(&header::CONTENT_TYPE, JSON)?;
    answer.set(&header::CACHE_CONTROL, "no-store")?;
    send(gateway, session, ctx, answer, Bytes::from(json)).await
}

/// Tells a browser what a page may send.
pub(super) async fn preflight(gateway: &Gateway, session: &mut Session, ctx: &mut Context) -> Result<()> {
    if !discard(session, gateway).await {
        session.downstream_session.set_keepalive(None);
    }
    let mut answer = Heading::new(StatusCode::NO_CONTENT);
    answer.set(&header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS")?;
    let asked = session.req_header().headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    match asked {
        Some(asked) => answer.set(&header::ACCESS_CONTROL_ALLOW_HEADERS, asked)?,
        None => answer.set(&header::ACCESS_CONTROL_ALLOW_HEADERS, cors::ALLOWED_HEADERS)?,
    }
    answer.set(&header::ACCESS_CONTROL_MAX_AGE, 7200)?;
    mark(gateway, ctx, &mut answer)?;
    ctx.told.status = StatusCode::NO_CONTENT.as_u16();
    let sent = session.write_response_header(answer.finish(), true).await;
    ctx.told.complete = sent.is_ok();
    sent.map_err(|error| left(ctx, error))
}

pub(super) async fn send(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    mut answer: Heading,
    body: Bytes,
) -> Result<()> {
    ctx.told.status = answer.status.as_u16();
    answer.set(&header::CONTENT_LENGTH, body.len())?;
    mark(gateway, ctx, &mut answer)?;
    tell_elapsed(gateway, ctx, &mut answer)?;
    ctx.told.first_byte = Some(gateway.clock.now().saturating_sub(ctx.arrival.begun));
    ctx.told.bytes_out = body.len() as u64;
    ctx.told.hears(&body);
    settle::count(gateway, ctx);
    let sent = async {
        session.write_response_header(answer.finish(), false).await?;
        // In pieces: the write timeout is for each, and a caller that reads slowly does read.
        let mut rest = body;
        while rest.len() > PIECE_BYTES_MAX {
            session.write_response_body(Some(rest.split_to(PIECE_BYTES_MAX)), false).await?;
        }
        session.write_response_body(Some(rest), true).await
    };
    match sent.await {
        Ok(()) => {
            ctx.told.complete = true;
            Ok(())
        }
        Err(error) => Err(left(ctx, error)),
    }
}

pub(super) fn left(ctx: &mut Context, error: Box<Error>) -> Box<Error> {
    if !std::mem::replace(&mut ctx.told.left, true) && !ctx.told.complete {
        let begun = ctx.told.first_byte.is_some();
        ctx.gateway.metrics.disconnected(if begun { Phase::Answering } else { Phase::Waiting });
    }
    error.into_down()
}

/// How long the request has taken, in milliseconds.
fn tell_elapsed(gateway: &Gateway, ctx: &Context, answer: &mut Heading) -> Result<()> {
    let micros = gateway.clock.now().saturating_sub(ctx.arrival.begun).as_micros() as u64;
    answer.write(&X_ELAPSED_MS, format_args!("{}.{:03}", micros / 1000, micros % 1000))
}

/// The marks that every answer bears, whoever made it.
pub(super) fn mark(gateway: &Gateway, ctx: &Context, answer: &mut Heading) -> Result<()> {
    answer.set(&X_REQUEST_ID, ctx.arrival.request_id.as_str())?;
    answer.set(&X_CACHE, HeaderValue::from_static(ctx.asked.cache.name()))?;
    if !answer.headers.contains_key(&CACHE_STATUS) {
        answer.set(&CACHE_STATUS, HeaderValue::from_static(ctx.asked.cache_status))?;
    }
    let names = gateway.settings.answer_headers;
    if let Some(model) = ctx.asked.model.as_deref().filter(|_| names.model) {
        answer.set(&X_AI_GATEWAY_MODEL, header_text(model).as_ref())?;
    }
    if let Some(server) = ctx.server().filter(|_| names.server) {
        answer.set(&X_AI_GATEWAY_SERVER, header_text(&server.spec.name).as_ref())?;
    }
    let origin = cors::allow(&gateway.settings.cors, ctx.arrival.origin.as_deref());
    if origin.varies {
        answer.add(&header::VARY, "Origin")?;
    }
    if let Some(allow) = origin.allow {
        answer.set(&header::ACCESS_CONTROL_ALLOW_ORIGIN, allow)?;
        answer.set(&header::ACCESS_CONTROL_EXPOSE_HEADERS, cors::EXPOSED)?;
    }
    if let Some(level) = ctx.asked.requests {
        tell_level(answer, &REQUESTS, level)?;
    }
    if let Some(level) = ctx.asked.tokens.or_else(|| ctx.asked.subjects.tokens(gateway.clock.now())) {
        tell_level(answer, &TOKENS, level)?;
    }
    Ok(())
}

fn tell_level(answer: &mut Heading, names: &BucketHeaders, level: Level) -> Result<()> {
    answer.set(&names.limit, level.limit)?;
    answer.set(&names.remaining, level.remaining)?;
    answer.write(&names.reset, format_args!("{}", Reset(level.reset)))
}

/// A name as a header can say it: what is not printable ASCII is percent-encoded (RFC 3986, section 2.1).
fn header_text(name: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'%';
    if name.bytes().all(is_plain) {
        return Cow::Borrowed(name);
    }
    name.bytes()
        .map(|byte| match byte {
            byte if is_plain(byte) => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// Takes away what a server says that is not the gateway's to repeat: its CORS, and its side of the connection.
pub(super) fn unmark(answer: &mut Heading) {
    let hops = answer.headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> =
        hops.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect();
    let is_taken =
        |name: &HeaderName| is_servers_own(name.as_str()) || named.iter().any(|named| named == name.as_str());
    let taken: Vec<_> = answer.headers.keys().filter(|name| is_taken(name)).cloned().collect();
    for name in taken {
        answer.headers.remove(name);
    }
}

fn is_servers_own(name: &str) -> bool {
    matches!(
        name,
        "access-control-allow-origin"
            | "access-control-allow-credentials"
            | "access-control-allow-methods"
            | "access-control-allow-headers"
            | "access-control-expose-headers"
            | "access-control-max-age"
            | "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "alt-svc"
            | "trailer"
            | "upgrade"
            | "set-cookie"
            | "age"
            | "cache-status"
            | "x-cache"
            | "x-elapsed-ms"
            | "x-request-id"
            | "x-ai-gateway-model"
            | "x-ai-gateway-server"
    ) || name.starts_with("x-ratelimit-")
}

/// The error that ends a stream which cannot go on.
pub(super) fn broken_stream(refusal: &Refusal, protocol: Protocol) -> String {
    refusal.told().body(protocol)
}

/// The whole answer to a caller whose head does not come to its end, as HTTP/1.1: there is no request to answer by.
pub(crate) fn late_head() -> Vec<u8> {
    let told = Refusal::RequestTimeout.told();
    let body = told.body(Protocol::OpenAi);
    format!(
        "HTTP/1.1 {}\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\nx-request-id: {}\r\nconnection: close\r\n\r\n\
         {body}",
        told.status,
        body.len(),
        arrival::new_id(),
    )
    .into_bytes()
}

/// A time as OpenAI writes it: `250ms`, `1s`, `6m0s`, `1h0m0s`.
struct Reset(Duration);

impl Display for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // In 64 bits: divided in 128, and written so, it would take longer than all else in the header.
        let millis = self
            .0
            .as_secs()
            .saturating_mul(1000)
            .saturating_add(u64::from(self.0.subsec_nanos().div_ceil(1_000_000)));
        if millis < 1000 {
            return write!(f, "{millis}ms");
        }
        let seconds = millis.div_ceil(1000);
        match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
            (0, 0, s) => write!(f, "{s}s"),
            (0, m, s) => write!(f, "{m}m{s}s"),
            (h, m, s) => write!(f, "{h}h{m}m{s}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_openai_writes_them() {
        let cases = [
            (0, "0ms"),
            (1, "1ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1001, "2s"),
            (360_000, "6m0s"),
            (3_661_000, "1h1m1s"),
        ];
        for (millis, text) in cases {
            assert_eq!(Reset(Duration::from_millis(millis)).to_string(), text);
        }
    }
}
