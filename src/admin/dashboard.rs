//! `GET /dashboard`: the operator's page and its parts, which are within the binary and hold no data. So anybody may
//! have them, which they must: a browser that opens a page sends no token. The page asks for it, and sends it with what
//! it asks for itself (`live.rs`).

use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use pingora::http::RequestHeader;

use crate::proxy::{Gateway, view};

use super::{is_read, method_not_allowed, site};

/// A part of the page.
pub(super) struct Part {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

const PARTS: [Part; 5] = [
    Part {
        path: "/dashboard",
        content_type: "text/html; charset=utf-8",
        text: include_str!("dashboard/page.html"),
    },
    Part {
        path: "/dashboard/page.css",
        content_type: "text/css; charset=utf-8",
        text: include_str!("dashboard/page.css"),
    },
    Part {
        path: "/dashboard/page.js",
        content_type: "text/javascript; charset=utf-8",
        text: include_str!("dashboard/page.js"),
    },
    Part {
        path: "/dashboard/uplot.css",
        content_type: "text/css; charset=utf-8",
        text: include_str!("dashboard/uplot.min.css"),
    },
    Part {
        path: "/dashboard/uplot.js",
        content_type: "text/javascript; charset=utf-8",
        text: include_str!("dashboard/uplot.min.js"),
    },
];

/// Stands in the page for the callers' address.
const ORIGIN: &str = "{callers-origin}";

pub(super) fn part(path: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.path == path)
}

pub(super) fn answer(gateway: &Gateway, head: &RequestHeader, part: &Part) -> Response<Vec<u8>> {
    if !is_read(&head.method) {
        return method_not_allowed("GET, HEAD");
    }
    let host = site::host(head).filter(|host| is_plain(host));
    let origin = host.and_then(|host| view::callers_origin(&gateway.settings, host)).unwrap_or_default();
    let body = part.text.replace(ORIGIN, &origin).into_bytes();
    let mut answer = super::answer(StatusCode::OK, part.content_type, body);
    // Nothing but its own parts, and nobody to ask but this listener and, with a prompt to try, the gateway.
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self' {origin}; \
         form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    );
    let policy = HeaderValue::from_str(&policy).expect("the origin is of plain characters");
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Whether it can stand in a page and a header as it is.
fn is_plain(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|it| it.is_ascii_alphanumeric() || b".-_:[]".contains(&it))
}
