//! `GET /dashboard/live`: what the operator's page shows, as a stream of events. The first tells all that is kept of
//! the last hour, each further one what is new, once a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, Response, Version, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use tokio::time::{MissedTickBehavior, interval};

use crate::proxy::view::{self, Told};
use crate::proxy::{Current, Gateway};

use super::{may_ask, method_not_allowed, refusal, refuse_unknown, site, write};

pub(super) const PATH: &str = "/dashboard/live";

/// Pages that are told at once.
const PAGES_MAX: usize = 16;

const NEWS_EVERY: Duration = Duration::from_secs(1);

/// What is told of keys reads every bucket: not with each event.
const EVENTS_PER_ACCESS: u64 = 5;

/// A page that reads nothing for so long is given up.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);

/// The pages that are told.
#[derive(Debug, Clone, Default)]
pub(super) struct Pages(Arc<AtomicUsize>);

/// One of them; no more when this is dropped.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Pages {
    fn open(&self) -> Option<Open> {
        let one_more = |open| (open < PAGES_MAX).then_some(open + 1);
        let open = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        open.is_ok().then(|| Open(Arc::clone(&self.0)))
    }
}

pub(super) async fn answer(
    current: &Current,
    pages: &Pages,
    session: &mut ServerSession,
    shutdown: &ShutdownWatch,
) -> pingora::Result<()> {
    if let Some(refusal) = refuse(&current.load(), session) {
        return write(session, refusal).await;
    }
    match pages.open() {
        Some(_open) => tell(current, session, shutdown.clone()).await,
        None => {
            let message = format!("{PAGES_MAX} pages are open, which is all that may be; close one.");
            write(session, refusal(503, "too_many_pages", "overloaded_error", &message)).await
        }
    }
}

fn refuse(gateway: &Gateway, session: &ServerSession) -> Option<Response<Vec<u8>>> {
    let head = session.req_header();
    if head.method != Method::GET {
        return Some(method_not_allowed("GET"));
    }
    refuse_unknown(gateway, head).or_else(|| site::refuse_other_names(gateway, head))
}

async fn tell(
    current: &Current,
    session: &mut ServerSession,
    mut shutdown: ShutdownWatch,
) -> pingora::Result<()> {
    let token = session.req_header().headers.get(header::AUTHORIZATION).cloned();
    session.set_keepalive(None);
    session.set_write_timeout(Some(WRITE_TIME_MAX));
    session.write_response_header(Box::new(head(session)?)).await?;
    let (mut told, mut events) = (Told::default(), 0);
    let mut ticks = interval(NEWS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // The page looks for a successor.
            _ = shutdown.changed() => break,
            // It has gone.
            _ = session.read_body_or_idle(true) => return Ok(()),
        }
        let gateway = current.load();
        if !may_ask(&gateway, token.as_ref().map(http::HeaderValue::as_bytes)) {
            break;
        }
        let news = view::news(&gateway, &mut told, events % EVENTS_PER_ACCESS == 0);
        events += 1;
        session.write_response_body(format!("data: {news}\n\n").into(), false).await?;
    }
    session.write_response_body(bytes::Bytes::new(), true).await
}

fn head(session: &ServerSession) -> pingora::Result<ResponseHeader> {
    let mut head = ResponseHeader::build(200, Some(5))?;
    head.insert_header(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    head.insert_header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
    // A proxy in front should not hold it back.
    head.insert_header("x-accel-buffering", "no")?;
    if session.req_header().version == Version::HTTP_11 {
        head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    Ok(head)
}
