//! PROXY protocol: a caller behind a TCP balancer keeps its address.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::gateway::{self, Gateway};
use crate::support::llama;

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
    let binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x09\xc0\x00\x02\x02\xdc\x04\x01\xbb";
    let cases: [(&[u8], &str, &str); 4] = [
        (b"PROXY TCP4 192.0.2.7 192.0.2.2 56324 443\r\n", "/one", "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n", "/two", "2001:db8::7"),
        (binary, "/three", "192.0.2.9"),
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
    let head = b"PROXY TCP4 192.0.2.7 192.0.2.2 56324 443\r\n";
    let answer = told(&gateway, &[&head[..], &asked("/five")].concat());
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}
