//! What operators ask, on a listener of their own.

mod dashboard;
mod live;
mod purge;
mod query;
mod servers;
mod site;
mod usage;

use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, Response, StatusCode, header};
use pingora::apps::http_app::ServeHttp;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use subtle::ConstantTimeEq;

use crate::proxy::own::{self, Report};
use crate::proxy::{Current, Gateway};
use crate::wire::{ErrorBody, Protocol};

use self::live::Pages;

/// The class of error of a request that is wrong in itself.
const REQUEST: &str = "invalid_request_error";

/// How long a connection may be idle between two requests.
const IDLE_SECONDS_MAX: u64 = 60;

/// The operator's listener.
pub(crate) struct Admin {
    current: Arc<Current>,
    pages: Pages,
}

/// A listener for `/metrics` alone.
pub(crate) struct MetricsPage(pub(crate) Arc<Current>);

/// Not Pingora's `ServeHttp`, which knows only whole answers: the page's own has no end.
#[async_trait]
impl HttpServerApp for Admin {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !session.read_request().await.unwrap_or(false) {
            return None;
        }
        session.set_keepalive((!*shutdown.borrow()).then_some(IDLE_SECONDS_MAX));
        // Whoever asks and leaves is told nothing more; nobody needs to know.
        let _ = if session.req_header().uri.path() == live::PATH {
            live::answer(&self.current, &self.pages, &mut session, shutdown).await
        } else {
            let answer = self.answer(session.req_header()).await;
            write(&mut session, answer).await
        };
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }
}

async fn write(session: &mut ServerSession, answer: Response<Vec<u8>>) -> pingora::Result<()> {
    let (head, body) = answer.into_parts();
    session.write_response_header(Box::new(head.into())).await?;
    session.write_response_body(body.into(), true).await
}

impl Admin {
    pub(crate) fn new(current: Arc<Current>) -> Self {
        Self { current, pages: Pages::default() }
    }

    async fn answer(&self, head: &RequestHeader) -> Response<Vec<u8>> {
        let gateway = &self.current.load();
        let path = head.uri.path();
        if let Some(part) = dashboard::part(path) {
            return dashboard::answer(gateway, head, part);
        }
        let is_probe = matches!(path, "/live" | "/ready");
        if let Some(refusal) = refuse_unknown(gateway, head).filter(|_| !is_probe) {
            return refusal;
        }
        match path {
            "/cache" => return purge::answer(gateway, head).await,
            "/usage" => return usage::answer(gateway, head).await,
            _ if path.starts_with(servers::PREFIX) => return servers::answer(gateway, head),
            _ => {}
        }
        let page: fn(&Gateway) -> Report = match path {
            "/live" => own::live,
            "/ready" => own::ready,
            "/health" => own::health,
            "/stats" => own::detailed_stats,
            "/metrics" if is_read(&head.method) => return metrics(gateway),
            "/metrics" => own::live,
            _ => return not_found(),
        };
        if !is_read(&head.method) {
            return method_not_allowed("GET, HEAD");
        }
        let (status, json) = page(gateway);
        answer(status, "application/json; charset=utf-8", json.into_bytes())
    }
}

fn refuse_unknown(gateway: &Gateway, head: &RequestHeader) -> Option<Response<Vec<u8>>> {
    let presented = head.headers.get(header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
    (!may_ask(gateway, presented)).then(|| {
        refusal(
            401,
            "invalid_api_key",
            "authentication_error",
            "Send `Authorization: Bearer TOKEN`, with `admin.token` of the file.",
        )
    })
}

fn may_ask(gateway: &Gateway, authorization: Option<&[u8]>) -> bool {
    let Some(token) = &gateway.settings.admin.token else { return true };
    let presented = authorization.and_then(|value| value.strip_prefix(b"Bearer "));
    presented.is_some_and(|presented| presented.ct_eq(token.0.as_bytes()).into())
}

#[async_trait]
impl ServeHttp for MetricsPage {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let head = session.req_header();
        match head.uri.path() {
            "/metrics" if is_read(&head.method) => metrics(&self.0.load()),
            "/metrics" => method_not_allowed("GET, HEAD"),
            _ => not_found(),
        }
    }
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

fn metrics(gateway: &Gateway) -> Response<Vec<u8>> {
    let (page, content_type) = own::metrics(gateway);
    answer(StatusCode::OK, content_type, page)
}

fn not_found() -> Response<Vec<u8>> {
    refusal(
        404,
        "not_found",
        "not_found_error",
        "Nothing is served at this path; there are /dashboard, /live, /ready, /stats, /metrics, /usage, \
         DELETE /cache and POST /servers/{name}/drain|undrain.",
    )
}

fn method_not_allowed(allow: &'static str) -> Response<Vec<u8>> {
    let message = format!("This path has only {allow}.");
    let mut refusal = refusal(405, "method_not_allowed", REQUEST, &message);
    refusal.headers_mut().insert(header::ALLOW, http::HeaderValue::from_static(allow));
    refusal
}

fn refusal(status: u16, code: &'static str, kind: &'static str, message: &str) -> Response<Vec<u8>> {
    let status = StatusCode::from_u16(status).expect("statuses here are literals");
    let json = ErrorBody { message, kind, code, param: None }.to_json(Protocol::OpenAi);
    answer(status, "application/json; charset=utf-8", json.into_bytes())
}

fn answer(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Vec<u8>> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CONTENT_LENGTH, body.len())
        .header(header::CACHE_CONTROL, "no-store")
        .body(body)
        .expect("headers here are literals")
}
