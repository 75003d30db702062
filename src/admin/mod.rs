//! What operators ask, on a listener of their own.

mod purge;
mod query;
mod servers;
mod usage;

use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, Response, StatusCode, header};
use pingora::apps::http_app::ServeHttp;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use subtle::ConstantTimeEq;

use crate::proxy::own::{self, Report};
use crate::proxy::{Current, Gateway};
use crate::wire::{ErrorBody, Protocol};

/// The class of error of a request that is wrong in itself.
const REQUEST: &str = "invalid_request_error";

/// The operator's listener.
pub(crate) struct Admin(pub(crate) Arc<Current>);

/// A listener for `/metrics` alone.
pub(crate) struct MetricsPage(pub(crate) Arc<Current>);

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let gateway = &self.0.load();
        let head = session.req_header();
        let path = head.uri.path();
        let is_probe = matches!(path, "/live" | "/ready");
        if !is_probe
            && !may_ask(gateway, head.headers.get(header::AUTHORIZATION).map(http::HeaderValue::as_bytes))
        {
            return refusal(
                401,
                "invalid_api_key",
                "authentication_error",
                "Send `Authorization: Bearer TOKEN`, with `admin.token` of the file.",
            );
        }
        match path {
            "/cache" => return purge::answer(gateway, head),
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

/// A page of another site may change nothing here.
fn refuse_cross_site(head: &RequestHeader) -> Option<Response<Vec<u8>>> {
    let message = "A page of another site may not change this.";
    is_cross_site(head).then(|| refusal(403, "cross_site", "permission_error", message))
}

/// Browsers say where a request comes from; what is no browser says nothing.
fn is_cross_site(head: &RequestHeader) -> bool {
    let text = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let site = text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let host = text("host").or(head.uri.authority().map(http::uri::Authority::as_str));
    let origin = text("origin").is_some_and(|origin| {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        authority.is_none() || authority != host
    });
    site || origin
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
        "Nothing is served at this path; there are /live, /ready, /stats, /metrics, /usage, \
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
