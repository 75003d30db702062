//! One request's journey through Pingora's phases, in the order of `phases`. Each hook hands over at once:
//!
//! | phase | room |
//! |---|---|
//! | `early_request_filter` | `arrival`: what the head says |
//! | `request_filter` | `admit`: may it, and is it answered already; `respond`: no, or a hit |
//! | `proxy_upstream_filter` | `exchange`: there and back, through the hooks that follow |
//! | `upstream_peer`, `upstream_request_filter` | `forward`, `fallback`: where to, as what |
//! | `response_filter`, `response_body_filter` | `respond::mark`, `tap`: marked, watched, recorded |
//! | `fail_to_connect`, `error_while_proxy`, `fail_to_proxy` | `fault`, `failure`: another try, or a clean end |
//! | `logging` | `settle`: counted and written |

mod admit;
mod arrival;
mod ask;
mod bodies;
mod body;
mod clock;
mod conduit;
mod context;
mod cors;
mod cost;
mod current;
mod estate;
mod exchange;
mod failure;
mod fallback;
mod fault;
mod follow;
mod forward;
mod gateway;
mod heading;
mod lane;
mod names;
mod outlet;
pub(crate) mod own;
mod passing;
mod phases;
mod quote;
mod refusal;
mod replicas;
mod reply;
pub(crate) mod respond;
mod roster;
mod settle;
mod sharing;
pub(crate) mod side;
mod tap;
mod terms;
mod timing;
mod trace;
mod trust;
mod turned;
mod understood;
pub(crate) mod view;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use crate::cache::{Form, Landing, Leader};
use crate::wire::Own;

use self::admit::Verdict;
use self::body::Stop;
use self::context::Context;
use self::heading::Heading;
use self::tap::Tap;

pub use self::conduit::Conduits;
pub use self::current::Current;
pub use self::estate::{Heir, Item, Testament};
pub use self::gateway::Gateway;
pub use self::phases::Phases;

/// A caller that takes nothing for this long holds a server's slot no longer.
const WRITE_TIME_MAX: Duration = Duration::from_secs(60);

/// The gateway as Pingora's hooks.
pub struct Proxy(pub Arc<Current>);

#[async_trait]
impl ProxyHttp for Proxy {
    /// In a box: it goes from one future into the next, and each would be larger by it.
    type CTX = Box<Context>;

    fn new_ctx(&self) -> Box<Context> {
        Box::new(Context::new(self.0.load()))
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<()> {
        let gateway = Arc::clone(&ctx.gateway);
        let downstream = &mut session.downstream_session;
        if downstream.get_keepalive().is_some() {
            let idle = gateway.settings.connections.idle_seconds();
            downstream.set_keepalive(Some(idle).filter(|_| gateway.is_ready()));
        }
        downstream.set_write_timeout(Some(WRITE_TIME_MAX));
        // Pingora's own would be 60 s whatever the file says; ours comes first, and has an answer.
        downstream.set_read_timeout(Some(gateway.settings.body.idle + Duration::from_secs(1)));
        ctx.trace = arrival::read(&gateway, session, &mut ctx.arrival);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        let gateway = Arc::clone(&ctx.gateway);
        // What is rare is in boxes, here and below: every request's future would be as large as the largest of them.
        let mut verdict = admit::admit(&gateway, session, ctx).await;
        while let Ok(Verdict::Follow(aboard)) = verdict {
            match Box::pin(follow::follow(&gateway, session, ctx, *aboard)).await? {
                None => return Ok(true),
                Some(next) => verdict = next,
            }
        }
        match verdict {
            Ok(Verdict::Forward(job)) => {
                ctx.job = Some(job);
                return Ok(false);
            }
            Ok(Verdict::Hit(hit)) => respond::hit(&gateway, session, ctx, hit).await?,
            Ok(Verdict::Follow(_)) => {}
            Ok(Verdict::Preflight) => respond::preflight(&gateway, session, ctx).await?,
            Ok(Verdict::Own(own)) => Box::pin(answer_own(&gateway, session, ctx, own)).await?,
            Err(Stop::Refused(refusal)) => Box::pin(respond::refuse(&gateway, session, ctx, refusal)).await?,
            Err(Stop::Left(error)) => return Err(failure::left(&gateway, session, ctx, error)),
        }
        Ok(true)
    }

    async fn proxy_upstream_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        let gateway = Arc::clone(&ctx.gateway);
        match forward::choose(&gateway, session, ctx).await {
            Ok(None) => exchange::exchange(self, session, ctx).await.map(|()| false),
            Ok(Some(hit)) => Box::pin(respond::hit(&gateway, session, ctx, hit)).await.map(|()| false),
            Err(Stop::Refused(refusal)) => {
                Box::pin(respond::refuse(&gateway, session, ctx, refusal)).await?;
                Ok(false)
            }
            Err(Stop::Left(error)) => Err(failure::left(&gateway, session, ctx, error)),
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        forward::peer(&Arc::clone(&ctx.gateway), session, ctx).await
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        forward::request(&Arc::clone(&ctx.gateway), session, ctx, request)
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        answer: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let gateway = Arc::clone(&ctx.gateway);
        forward::refuse_upgrade(answer.status)?;
        if answer.status.is_informational() {
            return Ok(());
        }
        if let Some(job) = &ctx.job {
            forward::refuse_empty_stream(answer, job.endpoint)?;
            fault::answered(&gateway, ctx, answer.status);
        }
        ctx.told.upstream_status = Some(answer.status.as_u16());
        forward::check_credentials(answer.status)?;
        if let Some(job) = &ctx.job {
            let framed = tap::is_framed(answer);
            if let Some(leader) = &ctx.leads {
                leader.head(tap::head(answer, fallback::instead(ctx)));
            }
            let shared = ctx.leads.as_ref().map(Leader::tape);
            ctx.tap = Some(Tap::new(job, answer, framed, gateway.store.entry_bytes_max(), shared));
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        let gateway = Arc::clone(&ctx.gateway);
        if answer.status.is_informational() {
            return Ok(());
        }
        let mut heading = Heading::take(answer);
        let marked = answered(&gateway, session, ctx, &mut heading);
        heading.put(answer);
        marked
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        let gateway = Arc::clone(&ctx.gateway);
        passing::pass(&gateway, ctx, body, end_of_stream)?;
        if let Some(body) = body {
            ctx.told.hears(body);
            ctx.told.bytes_out += body.len() as u64;
        }
        if end_of_stream {
            if !ctx.told.failed && ctx.route.failure.is_none() {
                ctx.complete();
            }
            let now = gateway.clock.now();
            ctx.release_at(now);
            settle::count_at(&gateway, ctx, now);
        }
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Self::CTX,
        error: Box<Error>,
    ) -> Box<Error> {
        failure::connect(&Arc::clone(&ctx.gateway), ctx, error)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut Self::CTX,
        client_reused: bool,
    ) -> Box<Error> {
        failure::midway(&Arc::clone(&ctx.gateway), session, ctx, error, client_reused)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Self::CTX) -> FailToProxy {
        let gateway = Arc::clone(&ctx.gateway);
        failure::end(&gateway, session, ctx, error).await
    }

    async fn logging(&self, _session: &mut Session, _error: Option<&Error>, ctx: &mut Self::CTX) {
        let gateway = Arc::clone(&ctx.gateway);
        settle::count(&gateway, ctx);
        settle::write(&gateway, ctx);
    }

    /// Failures stand in the access log and the metrics; a caller that leaves is no failure of ours.
    fn suppress_error_log(&self, _session: &Session, ctx: &Self::CTX, _error: &Error) -> bool {
        ctx.told.left || ctx.has_left() || ctx.is_whole() || ctx.route.failure.is_some()
    }

    /// Without the query, which may hold what is nobody's business.
    fn request_summary(&self, _session: &Session, ctx: &Self::CTX) -> String {
        format!("{} {}, request {}", ctx.arrival.method, ctx.arrival.path, ctx.arrival.request_id)
    }
}

/// Takes in the header of a server's answer, and makes it the gateway's own.
fn answered(gateway: &Gateway, session: &Session, ctx: &mut Context, answer: &mut Heading) -> Result<()> {
    respond::unmark(answer);
    ctx.told.status = answer.status.as_u16();
    frame(session, answer)?;
    if ctx.tap.as_ref().is_some_and(Tap::gathers) {
        answer.set(&header::CONTENT_TYPE, Form::Plain.content_type())?;
        ctx.outlet.holds = true;
    }
    if is_bodiless(answer) {
        // No body filter will see its end.
        fault::ended(ctx);
        ctx.told.complete = true;
        ctx.land(Landing::Whole);
        ctx.release();
        settle::count(gateway, ctx);
    }
    respond::mark(gateway, ctx, answer)
}

async fn answer_own(gateway: &Gateway, session: &mut Session, ctx: &mut Context, own: Own) -> Result<()> {
    if !body::discard(session, gateway).await {
        session.downstream_session.set_keepalive(None);
    }
    let member = ctx.asked.caller.as_ref().map(|caller| caller.member.as_ref());
    let report = match own {
        Own::Health => Ok(own::health(gateway)),
        Own::Stats => Ok(own::stats(gateway)),
        Own::Live => Ok(own::live(gateway)),
        Own::Ready => Ok(own::ready(gateway)),
        Own::Models => Ok(own::model_list(gateway, member)),
        Own::Usage => Ok(own::usage(gateway, ctx.asked.caller.as_ref())),
        Own::Model => own::model(gateway, member, &ctx.arrival.path),
    };
    match report {
        Ok((status, json)) => respond::own(gateway, session, ctx, status, json).await,
        Err(refusal) => respond::refuse(gateway, session, ctx, refusal).await,
    }
}

/// Gives an answer that has neither length nor chunks a frame, so that the connection outlives it. HTTP/1.0 has none.
fn frame(session: &Session, answer: &mut Heading) -> Result<()> {
    let is_stream = answer
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|it| it.as_bytes().starts_with(b"text/event-stream"));
    if is_stream {
        // An error event may have to follow what was announced.
        answer.headers.remove(header::CONTENT_LENGTH);
    }
    if session.req_header().version == Version::HTTP_10 {
        answer.headers.remove(header::TRANSFER_ENCODING);
    } else if !is_bodiless(answer) && !answer.headers.contains_key(header::CONTENT_LENGTH) {
        answer.set(&header::TRANSFER_ENCODING, "chunked")?;
    }
    Ok(())
}

fn is_bodiless(answer: &Heading) -> bool {
    matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || answer.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length == "0")
}
