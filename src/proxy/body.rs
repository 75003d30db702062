//! A caller's body: read ahead within bounds, or thrown away so that the connection stays usable.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header;
use pingora::{Error, ErrorType};
use pingora_proxy::Session;
use tokio::time::timeout;

use super::bodies::BodyShare;
use super::gateway::Gateway;
use super::refusal::Refusal;

/// Reserved at once, whatever length is announced.
const RESERVED_BYTES_MAX: u64 = 1 << 20;

/// The longest that a body may take on the whole; silences are bounded apart.
const BODY_TIME_MAX: Duration = Duration::from_secs(15 * 60);

/// The longest that a body nobody wants is listened to, and the least of it that is, whatever `body.max` says.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(10);
const DISCARD_BYTES_LEAST: u64 = 1 << 20;

/// Why a request goes no further.
#[derive(Debug)]
pub(super) enum Stop {
    Refused(Refusal),
    /// The caller left; there is nobody to answer.
    Left(Box<Error>),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Reads the whole body, in either framing.
pub(super) async fn read(
    session: &mut Session,
    gateway: &Gateway,
    share: &mut BodyShare,
) -> Result<Bytes, Stop> {
    let bounds = gateway.settings.body;
    let too_large = Refusal::BodyTooLarge { bytes_max: bounds.bytes_max };
    let announced = announced(session);
    if announced.is_some_and(|length| length > bounds.bytes_max) {
        return Err(too_large.into());
    }
    if waits_to_be_asked(session) {
        go_on(session).await?;
    }
    let begun = gateway.clock.now();
    let mut first: Option<Bytes> = None;
    let mut body = BytesMut::new();
    let mut length: u64 = 0;
    while let Some(chunk) = next(session, bounds.idle).await? {
        length += chunk.len() as u64;
        if length > bounds.bytes_max {
            return Err(too_large.into());
        }
        if !gateway.bodies.grow(share, chunk.len() as u64) {
            return Err(Refusal::BodiesFull.into());
        }
        if gateway.clock.now().saturating_sub(begun) > BODY_TIME_MAX {
            return Err(Refusal::RequestTimeout.into());
        }
        // A body that comes in one piece is never copied.
        if let Some(first) = first.take() {
            body.reserve(announced.unwrap_or(0).min(RESERVED_BYTES_MAX) as usize);
            body.extend_from_slice(&first);
            body.extend_from_slice(&chunk);
        } else if body.is_empty() {
            first = Some(chunk);
        } else {
            body.extend_from_slice(&chunk);
        }
    }
    Ok(first.unwrap_or_else(|| body.freeze()))
}

async fn next(session: &mut Session, idle: Duration) -> Result<Option<Bytes>, Stop> {
    match timeout(idle, session.downstream_session.read_request_body()).await {
        Err(_) => Err(Refusal::RequestTimeout.into()),
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(error)) if matches!(error.etype(), ErrorType::ReadTimedout) => {
            Err(Refusal::RequestTimeout.into())
        }
        Ok(Err(error)) if is_misframed(&error) => Err(Refusal::InvalidRequest {
            message: "the chunks of the body are not framed as HTTP frames them".to_owned(),
            param: None,
        }
        .into()),
        Ok(Err(error)) => Err(Stop::Left(error.into_down())),
    }
}

/// Pingora's own errors for chunks that are none; it does not export their constants.
fn is_misframed(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::Custom("InvalidChunk" | "InvalidTrailerEnd"))
}

/// The `content-length`, where there is one. Pingora has refused those that are wrong or differ.
pub(super) fn announced(session: &Session) -> Option<u64> {
    session.req_header().headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Whether the caller keeps its body back until it is asked for (`expect: 100-continue`), and has not been.
fn waits_to_be_asked(session: &Session) -> bool {
    if session.response_written().is_some() {
        return false;
    }
    let expect = session.req_header().headers.get(header::EXPECT);
    expect.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

async fn go_on(session: &mut Session) -> Result<(), Stop> {
    // Pingora takes a 100 before the body for an answer before the body, and would close the connection for it.
    session.downstream_session.set_close_on_response_before_downstream_finish(false);
    let asked = session.downstream_session.write_continue_response().await;
    session.downstream_session.set_close_on_response_before_downstream_finish(true);
    asked.map_err(|error| Stop::Left(error.into_down()))
}

/// Throws the rest of the body away, up to twice what a body may have. True if all of it was read: then the
/// connection is usable.
pub(super) async fn discard(session: &mut Session, gateway: &Gateway) -> bool {
    let bounds = gateway.settings.body;
    let bytes_max = bounds.bytes_max.saturating_mul(2).max(DISCARD_BYTES_LEAST);
    if session.downstream_session.is_body_done() {
        return true;
    }
    let length = announced(session);
    if length.is_some_and(|length| length > bytes_max) {
        return false;
    }
    if waits_to_be_asked(session) {
        // To be asked for it and then not heard is a lesser evil than a lost connection, while it is small.
        let is_small = length.is_some_and(|length| length <= DISCARD_BYTES_LEAST);
        if !is_small || go_on(session).await.is_err() {
            return false;
        }
    }
    let all = async {
        let mut read: u64 = 0;
        loop {
            match session.downstream_session.read_request_body().await {
                Ok(Some(chunk)) => read += chunk.len() as u64,
                Ok(None) => return true,
                Err(_) => return false,
            }
            if read > bytes_max {
                return false;
            }
        }
    };
    timeout(DISCARD_TIME_MAX.min(bounds.idle), all).await.unwrap_or(false)
}

/// Listens a moment longer before the connection closes: a caller that is still sending would have its answer torn
/// away by a reset (RFC 9112, section 9.6).
pub(super) async fn linger(session: &mut Session) {
    const LINGER_TIME_MAX: Duration = Duration::from_secs(1);
    let rest = async { while let Ok(Some(_)) = session.downstream_session.read_request_body().await {} };
    let _ = timeout(LINGER_TIME_MAX, rest).await;
}
