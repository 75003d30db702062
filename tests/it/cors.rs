//! Browsers: who may call from where, decided here and not by the server.

use crate::support::client::{Answer, Request, request};
use crate::support::expect::{auth, refused};
use crate::support::gateway::{self, chat};
use crate::support::llama;

const ALLOWED: &str = "access-control-allow-origin";

fn preflight(origin: &str) -> Request {
    request("OPTIONS", "/v1/chat/completions")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization, content-type")
}

fn admits(answer: &Answer, origin: &str) -> bool {
    answer.header(ALLOWED).is_some_and(|allowed| allowed == "*" || allowed == origin)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_needs_no_key_and_costs_no_limit() {
    let llama = llama::scripted().start().await;
    let limits = "limits: {gateway: {requests: 1/h, burst: 1}}\ncors: {origins: [\"*\"]}\n";
    let gateway = gateway::before(&llama).yaml(&(auth(&[("alice", "sk-alice", "")]) + limits)).start().await;
    let mut caller = gateway.caller().await;
    for _ in 0..5 {
        let answer = caller.send(preflight("https://app.example")).await;
        assert_eq!((answer.status, answer.body.len()), (204, 0));
        assert!(admits(&answer, "https://app.example"), "{answer:?}");
        let methods = answer.header("access-control-allow-methods").unwrap_or_default();
        assert!(methods.contains("POST"), "{answer:?}");
        let headers = answer.header("access-control-allow-headers").unwrap_or_default().to_ascii_lowercase();
        // `*` does not cover `authorization` (Fetch standard), so it is named.
        assert!(headers.contains("authorization"), "{answer:?}");
        assert_eq!(answer.header("access-control-allow-credentials"), None);
    }
    assert_eq!(caller.send(chat("hi").key("sk-alice")).await.status, 200);
    assert_eq!(llama.requests(), 1);
    refused(
        &caller.send(request("OPTIONS", "/nope").header("origin", "https://app.example")).await,
        404,
        "not_found",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_headers_are_replaced() {
    let llama = llama::scripted()
        .header("Access-Control-Allow-Credentials", "true")
        .header("Access-Control-Expose-Headers", "x-secret")
        .start()
        .await;
    let yaml = "cors: {origins: [\"https://app.example\"]}";
    let gateway = gateway::before(&llama).yaml(yaml).start().await;
    for _ in 0..2 {
        let answer = gateway.send(chat("hi").header("origin", "https://app.example")).await;
        let allowed = answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(ALLOWED));
        assert_eq!(allowed.map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["https://app.example"]);
        assert_eq!(answer.header("access-control-allow-credentials"), None);
        let exposed = answer.header("access-control-expose-headers").unwrap_or_default().to_ascii_lowercase();
        for name in ["x-request-id", "x-cache", "x-elapsed-ms", "x-ratelimit-remaining-requests"] {
            assert!(exposed.contains(name), "{name} is not exposed: {answer:?}");
        }
        assert!(!exposed.contains("x-secret"), "{answer:?}");
    }
    assert_eq!(llama.requests(), 1, "a hit has them too");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_origins_that_are_named_are_admitted() {
    let llama = llama::scripted().start().await;
    let yaml = "cors: {origins: [\"https://app.example\"]}";
    let gateway = gateway::before(&llama).yaml(yaml).start().await;
    for origin in ["https://evil.example", "http://app.example", "https://app.example.evil", "null"] {
        let answer = gateway.send(chat("hi").header("origin", origin)).await;
        assert!(!admits(&answer, origin), "{origin}: {answer:?}");
        assert!(!admits(&gateway.send(preflight(origin)).await, origin), "{origin}");
    }
    let two_answers = [gateway.send(preflight("https://app.example")).await, gateway.chat("hi").await];
    assert!(two_answers[0].header("vary").is_some_and(|it| it.to_ascii_lowercase().contains("origin")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_gateway_admits_pages_of_this_machine_only() {
    let llama = llama::scripted().start().await;
    let open = gateway::before(&llama).start().await;
    let origins = ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:8080", "https://app.example"];
    let admitted = [true, true, true, false];
    for (origin, expected) in origins.into_iter().zip(admitted) {
        assert_eq!(admits(&open.send(preflight(origin)).await, origin), expected, "{origin}");
        assert_eq!(
            admits(&open.send(chat("hi").header("origin", origin)).await, origin),
            expected,
            "{origin}"
        );
    }
    let closed = gateway::before(&llama).yaml(&auth(&[("alice", "sk-alice", "")])).start().await;
    assert!(admits(&closed.send(preflight("https://app.example")).await, "https://app.example"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_can_be_read_by_the_page() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml(&auth(&[("alice", "sk-alice", "")])).start().await;
    let answer = gateway.send(chat("hi").header("origin", "https://app.example")).await;
    refused(&answer, 401, "invalid_api_key");
    assert!(admits(&answer, "https://app.example"), "{answer:?}");
}
