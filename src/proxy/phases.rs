//! A request's way through the phases: which hook comes when, and what becomes of the caller's connection.
//!
//! Pingora's own application (`HttpProxy`) calls the same hooks in the same order, and has between them what the
//! gateway does not use: modules, a cache, a loop to servers (`exchange.rs` is the gateway's own). There is room for
//! all of that in its future, 14 KiB, made for each request and held as long as a stream lasts.

use std::io::Cursor;
use std::sync::Arc;

use async_trait::async_trait;
use http::Method;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::server::ShutdownWatch;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::{ProxyHttp, Session};

use super::Proxy;
use super::context::Context;

/// The gateway as a service has it.
pub struct Phases {
    pub proxy: Proxy,
    pub server_options: Option<HttpServerOptions>,
    pub h2_options: Option<H2Options>,
}

#[async_trait]
impl HttpServerApp for Phases {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let mut session = taken(session);
        if !has_come(&mut session).await {
            return None;
        }
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        let mut ctx = self.proxy.new_ctx();
        let answered = answer(&self.proxy, &mut session, &mut ctx).await;
        let is_usable = match &answered {
            Ok(()) => true,
            Err(error) => fail(&self.proxy, &mut session, &mut ctx, error).await,
        };
        self.proxy.logging(&mut session, answered.err().as_deref(), &mut ctx).await;
        drop(ctx);
        if !is_usable {
            return None;
        }
        let persistent = HttpPersistentSettings::for_session(&session);
        let stream = session.downstream_session.finish().await.ok().flatten()?;
        Some(ReusedHttpStream::from_reusable_stream(stream, persistent))
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.h2_options.clone()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.server_options.as_ref()
    }
}

/// The session as hooks have it. Pingora makes one of a stream alone, so this takes the place of one that was made of
/// nothing.
fn taken(session: ServerSession) -> Session {
    let mut taken = Session::new_h1(Box::new(Cursor::new(Vec::new())));
    *taken.downstream_session = session;
    taken
}

/// Waits for the head of a request. What is none is answered here.
async fn has_come(session: &mut Session) -> bool {
    let status = match session.downstream_session.read_request().await {
        // Callers connect to servers through no gateway.
        Ok(true) if session.req_header().method == Method::CONNECT => 405,
        Ok(has_come) => return has_come,
        Err(error) if *error.etype() == ErrorType::InvalidHTTPHeader => {
            log::debug!("no request: {error}");
            400
        }
        Err(error) => {
            log::debug!("no request could be read: {error}");
            session.downstream_session.shutdown().await;
            return false;
        }
    };
    if let Err(error) = session.downstream_session.respond_error(status).await {
        log::debug!("a caller was not told {status}: {error}");
    }
    session.downstream_session.shutdown().await;
    false
}

/// Answers a request. An error is what [`ProxyHttp::fail_to_proxy`] puts an end to.
async fn answer(proxy: &Proxy, session: &mut Session, ctx: &mut Box<Context>) -> Result<()> {
    proxy.early_request_filter(session, ctx).await?;
    if proxy.request_filter(session, ctx).await? {
        return Ok(());
    }
    proxy.proxy_upstream_filter(session, ctx).await?;
    match session.response_written() {
        Some(_) => Ok(()),
        None => Error::e_explain(ErrorType::InternalError, "no answer was written"),
    }
}

/// Whether the connection can be used again.
async fn fail(proxy: &Proxy, session: &mut Session, ctx: &mut Box<Context>, error: &Error) -> bool {
    let end = proxy.fail_to_proxy(session, error, ctx).await;
    if !proxy.suppress_error_log(session, ctx, error) {
        let request = proxy.request_summary(session, ctx);
        log::error!("a request failed: {error}, status: {}, {request}", end.error_code);
    }
    end.can_reuse_downstream
}
