//! Which pages in a browser may ask: those of this listener, opened under a name that nobody else can give it.
//!
//! Browsers say where a request comes from, what is no browser says nothing. A page elsewhere whose name is made to
//! resolve to this machine (DNS rebinding) looks like one of this listener's own. Where a token is asked for it has
//! none; else only a name that is this machine's own counts: an address, or `localhost`.

use std::net::IpAddr;

use http::Response;
use pingora::http::RequestHeader;

use crate::config::is_loopback;
use crate::proxy::Gateway;

use super::refusal;

/// Refuses a page of another site.
pub(super) fn refuse_others(gateway: &Gateway, head: &RequestHeader) -> Option<Response<Vec<u8>>> {
    let no = |message| Some(refusal(403, "cross_site", "permission_error", message));
    if is_cross_site(head) {
        return no("A page of another site may not do this.");
    }
    let is_page = text(head, "origin").is_some();
    if is_page && !is_trusted(gateway, head) {
        return no(UNTRUSTED);
    }
    None
}

/// Refuses the same where a page need not say that it is one.
pub(super) fn refuse_other_names(gateway: &Gateway, head: &RequestHeader) -> Option<Response<Vec<u8>>> {
    refuse_others(gateway, head).or_else(|| {
        (!is_trusted(gateway, head)).then(|| refusal(403, "cross_site", "permission_error", UNTRUSTED))
    })
}

const UNTRUSTED: &str = "Under this name anybody's page could ask. Open it as http://127.0.0.1:PORT or \
                         http://localhost:PORT, or set `admin.token`.";

fn is_trusted(gateway: &Gateway, head: &RequestHeader) -> bool {
    let admin = &gateway.settings.admin;
    // What other machines reach needs more than a name already.
    admin.token.is_some() || !is_loopback(admin.listen.address.ip()) || host(head).is_some_and(is_own_name)
}

/// The name or address that the listener was asked under, without its port.
pub(super) fn host(head: &RequestHeader) -> Option<&str> {
    authority(head).map(|authority| match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|it| it.is_ascii_digit()) => host,
        _ => authority,
    })
}

fn authority(head: &RequestHeader) -> Option<&str> {
    text(head, "host").or(head.uri.authority().map(http::uri::Authority::as_str))
}

fn text<'a>(head: &'a RequestHeader, name: &str) -> Option<&'a str> {
    head.headers.get(name).map(|value| value.to_str().unwrap_or_default())
}

fn is_own_name(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok() || bare == "localhost" || bare.ends_with(".localhost")
}

fn is_cross_site(head: &RequestHeader) -> bool {
    let site = text(head, "sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let host = authority(head);
    let origin = text(head, "origin").is_some_and(|origin| {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        authority.is_none() || authority != host
    });
    site || origin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut head = RequestHeader::build("POST", b"/", None).expect("a literal");
        for (name, value) in headers {
            head.insert_header(*name, *value).expect("a literal");
        }
        head
    }

    #[test]
    fn a_page_of_another_site_is_told_by_what_its_browser_says() {
        let own = "127.0.0.1:9002";
        let table = [
            (vec![("host", own)], false),
            (vec![("host", own), ("origin", "http://127.0.0.1:9002")], false),
            (vec![("host", own), ("sec-fetch-site", "same-origin")], false),
            (vec![("host", own), ("sec-fetch-site", "none")], false),
            (vec![("host", own), ("sec-fetch-site", "same-site")], true),
            (vec![("host", own), ("sec-fetch-site", "cross-site")], true),
            (vec![("host", own), ("origin", "http://127.0.0.1:9001")], true),
            (vec![("host", own), ("origin", "https://example.com")], true),
            (vec![("host", own), ("origin", "null")], true),
        ];
        for (headers, cross) in table {
            assert_eq!(is_cross_site(&head(&headers)), cross, "{headers:?}");
        }
    }

    #[test]
    fn only_this_machines_own_names_cannot_be_given_by_others() {
        let table = [
            ("127.0.0.1:9002", true),
            ("[::1]:9002", true),
            ("[::1]", true),
            ("localhost:9002", true),
            ("gateway.localhost", true),
            ("rebound.example:9002", false),
            ("localhost.example", false),
            ("", false),
        ];
        for (name, own) in table {
            assert_eq!(host(&head(&[("host", name)])).is_some_and(is_own_name), own, "{name}");
        }
    }
}
