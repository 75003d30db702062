//! `POST /servers/{name}/drain` and `/undrain`: a server that is drained gets nothing new and finishes what it has.

use http::{Method, Response, StatusCode};
use pingora::http::RequestHeader;
use serde_json::json;

use crate::proxy::Gateway;

use super::{method_not_allowed, not_found, refusal, site};

pub(super) const PREFIX: &str = "/servers/";

pub(super) fn answer(gateway: &Gateway, head: &RequestHeader) -> Response<Vec<u8>> {
    let rest = head.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let (name, draining) = match rest.rsplit_once('/') {
        Some((name, "drain")) => (name, true),
        Some((name, "undrain")) => (name, false),
        _ => return not_found(),
    };
    if head.method != Method::POST {
        return method_not_allowed("POST");
    }
    if let Some(refusal) = site::refuse_others(gateway, head) {
        return refusal;
    }
    let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
    let mut in_flight = None;
    // Several may have one name, in upstreams of their own: then they are one server to their operator.
    for server in gateway.fleet.servers.iter().filter(|server| server.spec.name == name) {
        server.set_draining(draining);
        server.upstreams().for_each(|upstream| gateway.keep_one(&upstream));
        server.dispatch();
        in_flight = Some(in_flight.unwrap_or(0) + server.in_flight());
    }
    let Some(in_flight) = in_flight else {
        let message = format!("No server is called `{name}`; GET /stats lists them.");
        return refusal(404, "server_not_found", "not_found_error", &message);
    };
    log::info!("server `{name}` {}", if draining { "gets nothing new" } else { "gets requests again" });
    let json = json!({"server": name, "draining": draining, "in_flight": in_flight}).to_string();
    super::answer(StatusCode::OK, "application/json; charset=utf-8", json.into_bytes())
}
