//! What the head of a request says, before anything is decided.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderName, header};
use ipnet::IpNet;
use pingora_proxy::Session;

use crate::observe::Trace;
use crate::wire;

use super::context::Arrival;
use super::gateway::Gateway;
use super::heading::X_REQUEST_ID;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A longer path is cut in logs; no path that leads anywhere is as long.
const PATH_BYTES_MAX: usize = 256;

/// Reads the head into `arrival`. Where traces are told, the request's own begins.
pub(super) fn read(gateway: &Gateway, session: &Session, arrival: &mut Arrival) -> Option<Box<Trace>> {
    let head = session.req_header();
    let text = |name: &HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
    arrival.request_id = text(&X_REQUEST_ID).filter(|id| is_sane_id(id)).map_or_else(new_id, str::to_owned);
    let trace = gateway.traces.as_ref().map(|traces| traces.begin(text(&TRACEPARENT), text(&TRACESTATE)));
    arrival.trace_id = match &trace {
        Some(trace) => Some(trace.id()),
        None => text(&TRACEPARENT).and_then(trace_id).map(str::to_owned),
    };
    arrival.method = head.method.clone();
    let path = head.uri.path();
    arrival.path = path[..path.floor_char_boundary(PATH_BYTES_MAX)].to_owned();
    arrival.protocol = wire::protocol_at(path);
    arrival.origin = text(&header::ORIGIN).map(str::to_owned);
    if let Some(peer) = session.client_addr().and_then(|address| address.as_inet()) {
        let forwarded = head.headers.get_all(&X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        arrival.client_ip = client_ip(peer.ip(), forwarded, &gateway.settings.trusted_proxies);
    }
    trace.map(Box::new)
}

/// Printable, without what would break a log line or a header, and not endless.
fn is_sane_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte))
}

/// Unique, not secret.
pub(super) fn new_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

/// The trace's id in a `traceparent` (W3C Trace Context, section 3.2): `00-{32 hex}-{16 hex}-{2 hex}`.
fn trace_id(traceparent: &str) -> Option<&str> {
    let id = traceparent.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

/// The address the request came from: the peer's, or, where the peer is a trusted proxy, the last one that the chain
/// of trusted proxies vouches for.
fn client_ip<'a>(peer: IpAddr, forwarded: impl Iterator<Item = &'a str>, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let mut address = peer.to_canonical();
    let hops: Vec<&str> = forwarded.flat_map(|value| value.split(',')).map(str::trim).collect();
    for hop in hops.into_iter().rev() {
        if !is_trusted(address) {
            break;
        }
        let Some(named) = address_of(hop) else { break };
        address = named.to_canonical();
    }
    address
}

/// The address in a hop, which some proxies write with a port, or in brackets.
fn address_of(hop: &str) -> Option<IpAddr> {
    let with_port = || hop.parse::<SocketAddr>().ok().map(|hop| hop.ip());
    let bare = hop.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().or_else(with_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("a network")];
        let cases: [(&str, &[&str], &str); 8] = [
            ("192.0.2.1", &["203.0.113.9"], "192.0.2.1"),
            ("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["198.51.100.7, 203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["198.51.100.7", "203.0.113.9, 10.0.0.2"], "203.0.113.9"),
            ("10.0.0.1", &["203.0.113.9:4711"], "203.0.113.9"),
            ("10.0.0.1", &["[2001:db8::1]:80"], "2001:db8::1"),
            ("10.0.0.1", &["nonsense"], "10.0.0.1"),
            ("::ffff:10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
        ];
        for (peer, forwarded, expected) in cases {
            let found = client_ip(peer.parse().expect("an address"), forwarded.iter().copied(), &trusted);
            assert_eq!(found.to_string(), expected, "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn ids_are_taken_over_if_they_are_sane() {
        assert!(is_sane_id("req-1.2:3_4") && is_sane_id(&new_id()));
        for id in ["", "a b", "a\"b", &"x".repeat(129)] {
            assert!(!is_sane_id(id), "{id}");
        }
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace_id(traceparent), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(trace_id("00-x-y-z"), None);
    }
}
