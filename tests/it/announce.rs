//! PROXY protocol: a caller behind a TCP balancer keeps its address.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tokio::time::Instant;

use crate::support::client::get;
use crate::support::gateway::{self, Folder, Gateway, PORT};
use crate::support::llama;
use crate::support::tls::{Authority, trusting};

const TLS_PORT: u16 = 9443;

const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.2 56324 443\r\n";
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x09\xc0\x00\x02\x02\xdc\x04\x01\xbb";

/// One with a plain listener and one with TLS, behind a balancer that it trusts.
async fn with_tls(folder: &Folder, authority: &Authority, bounds: &str) -> Gateway {
    let llama = llama::scripted().start().await;
    let plan = gateway::before(&llama);
    let (cert, key) = authority.server().write(folder);
    let (plain, tls) = (plan.address(PORT), plan.address(TLS_PORT));
    let tls = format!("{{address: {tls}, tls: {{cert: {}, key: {}}}}}", cert.display(), key.display());
    let file = format!("listen: [{{address: {plain}}}, {tls}]\ntrusted_proxies: [127.0.0.0/8]\n{bounds}");
    plan.yaml(&file).start().await
}

/// How long a connection is kept whose balancer sends this and nothing more.
fn kept(address: SocketAddr, bytes: &[u8]) -> Duration {
    // The gateway's clock may start before `connect` is back.
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time");
    stream.write_all(bytes).expect("it reads");
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    begun.elapsed()
}

/// What is answered to these bytes on a connection of their own.
fn told(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(gateway.address()).expect("it listens");
    stream.write_all(bytes).expect("it reads");
    let mut answer = Vec::new();
    // A connection that is dropped may be reset.
    drop(stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

fn asked(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_balancer_says_who_it_is_in_both_versions_or_not_at_all() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("trusted_proxies: [127.0.0.0/8]").start().await;
    let cases: [(&[u8], &str, &str); 4] = [
        (LINE, "/one", "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n", "/two", "2001:db8::7"),
        (BINARY, "/three", "192.0.2.9"),
        (b"", "/four", "127.0.0.1"),
    ];
    for (head, path, address) in cases {
        let answer = told(&gateway, &[head, &asked(path)].concat());
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        assert_eq!(gateway.line_for(path).await.text("client_ip"), address);
    }
    assert_eq!(told(&gateway, b"PROXY TCP4 nobody nowhere 1 2\r\n"), "", "a broken one is not answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_believed() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let answer = told(&gateway, &[LINE, &asked("/five")].concat());
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_begins_after_the_header() {
    let (folder, authority) = (Folder::new("announce-tls"), Authority::new());
    let gateway = with_tls(&folder, &authority, "").await;
    for (head, path, address) in
        [(LINE, "/one", "192.0.2.7"), (BINARY, "/two", "192.0.2.9"), (b"", "/three", "127.0.0.1")]
    {
        for (hand, version) in [(trusting(&authority), "13"), (trusting(&authority).tls12(), "12")] {
            let path = format!("{path}/{version}");
            let mut caller = hand.after(head).caller(gateway.at(TLS_PORT)).await;
            assert_eq!(caller.send(get(&path)).await.status, 404);
            assert_eq!(gateway.line_for(&path).await.text("client_ip"), address);
        }
    }
    let failures = gateway.scrape().await.sum("ai_gateway_tls_handshake_failures_total", &[]);
    assert_eq!((failures, gateway.errors()), (0.0, Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_that_stays_silent_holds_no_connection_for_long() {
    let (folder, authority) = (Folder::new("announce-silent"), Authority::new());
    let bounds = "connections: {handshake: 300ms, head: 400ms, idle: 600ms}";
    let gateway = with_tls(&folder, &authority, bounds).await;
    let (plain, tls) = (gateway.address(), gateway.at(TLS_PORT));
    let times = |millis: [u64; 2]| millis.map(Duration::from_millis);
    for (address, bytes, [least, bound]) in [
        (tls, &b""[..], times([300, 300])),
        (tls, &LINE[..9], times([300, 600])),
        (tls, LINE, times([300, 600])),
        (tls, BINARY, times([300, 600])),
        (plain, b"", times([600, 600])),
        (plain, &BINARY[..15], times([300, 900])),
        (plain, LINE, times([400, 1200])),
    ] {
        let kept = tokio::task::spawn_blocking(move || kept(address, bytes)).await.expect("no panic");
        // A busy machine may be late.
        assert!((least..bound + Duration::from_secs(3)).contains(&kept), "{bytes:?} at {address}: {kept:?}");
    }
    assert_eq!(gateway.errors(), [""; 0]);
}
