//! Every way the gateway says no (DESIGN 1.4), in its order, and on a connection that stays usable.

use serde_json::json;

use crate::support::client::{get, post, request};
use crate::support::expect::{auth, refused, refused_by_anthropic, says_when};
use crate::support::gateway::{self, chat, chat_stream};
use crate::support::{address::Loopback, llama};

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_not_one_json_object() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
    let wrong: [&[u8]; 13] = [
        b"",
        b"hello",
        b"[1]",
        b"\"text\"",
        b"null",
        b"{\"a\":1,\"a\":2}",
        b"{\"model\":\"x\",\"\\u006dodel\":\"y\"}",
        b"{\"a\":NaN}",
        b"{\"a\":\"\\ud800\"}",
        b"{\"a\":\"\xff\"}",
        b"{\"a\":1} {\"b\":2}",
        b"{\"a\":1",
        deep.as_bytes(),
    ];
    for body in wrong {
        let answer = caller.send(post("/v1/chat/completions").body(body)).await;
        assert_eq!(answer.refusal(), (400, "invalid_json".to_owned()), "{:?}", String::from_utf8_lossy(body));
        refused(&answer, 400, "invalid_json");
    }
    assert_eq!(llama.requests(), 0);
    assert_eq!(caller.send(chat("hi")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_wrong_type() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    let wrong = [
        r#"{"model":7}"#,
        r#"{"model":{"name":"tiny"}}"#,
        r#"{"stream":"yes"}"#,
        r#"{"stream":1}"#,
        r#"{"prompt":"a","id_slot":0}"#,
    ];
    for body in wrong {
        let answer = caller.send(post("/v1/completions").body(body)).await;
        assert_eq!(answer.refusal(), (400, "invalid_request".to_owned()), "{body}");
        refused(&answer, 400, "invalid_request");
    }
    assert_eq!(llama.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn media_that_the_server_would_fetch() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let with_image = |url: &str| {
        let content =
            json!([{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": url}}]);
        post("/v1/chat/completions").json(&json!({"messages": [{"role": "user", "content": content}]}))
    };
    for url in ["http://169.254.169.254/latest", "HTTPS://example.com/a.png", "file:///etc/passwd"] {
        refused(&gateway.send(with_image(url)).await, 400, "remote_media");
    }
    assert_eq!(gateway.send(with_image("data:image/png;base64,iVBORw0KGgo=")).await.status, 200);
    let allowing = gateway::before(&llama).yaml("body: {remote_media: allow}").start().await;
    assert_eq!(allowing.send(with_image("http://example.com/a.png")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_are_not_there() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    let paths = ["/", "/nope", "/slots", "/props", "/metrics", "/lora-adapters", "/v1/streams", "/v1/stream"];
    for path in paths {
        refused(&caller.send(get(path)).await, 404, "not_found");
        refused(&caller.send(post(path).body("{}")).await, 404, "not_found");
    }
    let dodges =
        ["/models/load", "/models/unload", "/v1/chat/../../slots", "//slots", "/v1/%2e%2e/props", "/slots/0"];
    for path in dodges {
        refused(&caller.send(post(path).body("{}")).await, 404, "not_found");
    }
    assert!(llama.requests() == 0 && !llama.probes().iter().any(|it| it.method() != "GET"));
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_that_a_path_does_not_have() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    let cases = [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/completion", "POST"),
        ("PUT", "/health", "GET"),
    ];
    for (method, path, allowed) in cases {
        let answer = caller.send(request(method, path)).await;
        refused(&answer, 405, "method_not_allowed");
        assert!(answer.header("allow").is_some_and(|it| it.contains(allowed)), "{answer:?}");
    }
    assert_eq!(caller.send(chat("hi")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stalls() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("body: {idle: 200ms}").start().await;
    let mut caller = gateway.caller().await;
    caller
        .send_raw(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{\"prompt\":")
        .await;
    let (answer, mut caller) = caller.answering("POST").await.finish().await;
    refused(&answer, 408, "request_timeout");
    assert!(caller.is_closed().await);
    assert_eq!(llama.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("body: {max: 64KiB}").start().await;
    let mut caller = gateway.caller().await;
    let large = format!("{{\"prompt\":\"{}\"}}", "x".repeat(100 << 10));
    refused(&caller.send(post("/v1/completions").body(large.clone())).await, 413, "body_too_large");
    refused(&caller.send(post("/v1/completions").body(large).chunked(1000)).await, 413, "body_too_large");
    assert_eq!(caller.send(chat("hi")).await.status, 200);
    let mut caller = gateway.caller().await;
    caller.send_raw(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741824\r\n\r\n{").await;
    let (answer, _) = caller.answering("POST").await.finish().await;
    refused(&answer, 413, "body_too_large");
    assert_eq!(llama.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_end() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("body: {max: 64KiB, idle: 1s}").start().await;
    let mut caller = gateway.caller().await;
    caller.send_raw(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    caller.send_raw(format!("20000\r\n{}\r\n", "x".repeat(0x20000)).as_bytes()).await;
    let (answer, mut caller) = caller.answering("POST").await.finish().await;
    refused(&answer, 413, "body_too_large");
    assert!(caller.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    refused(&caller.send(chat("hi").header("x-long", &"y".repeat(33 << 10))).await, 431, "headers_too_large");
    let many = (0..100).fold(chat("hi"), |it, number| it.header(&format!("x-{number}"), &"y".repeat(400)));
    refused(&caller.send(many).await, 431, "headers_too_large");
    assert_eq!(caller.send(chat("hi")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_nobody_reaches() {
    let nobody = Loopback::claim();
    let gateway = gateway::before_urls(&[&format!("http://{}", nobody.port(8080))]).unprobed().start().await;
    let mut caller = gateway.caller().await;
    let answer = caller.send(chat("hi")).await;
    refused(&answer, 502, "upstream_error");
    assert_eq!(caller.send(get("/live")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_is_up() {
    let llama = llama::scripted().unhealthy().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    eventually!(caller.send(get("/health")).await.status == 503);
    assert_eq!(caller.send(get("/health")).await.json(), json!({"status": "no upstream"}));
    let answer = caller.send(chat("hi")).await;
    refused(&answer, 503, "no_upstream");
    says_when(&answer);
    llama.becomes(llama::scripted());
    eventually!(caller.send(get("/health")).await.status == 200);
    assert_eq!(caller.send(chat("hi")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_in_time() {
    let llama = llama::scripted().slow_start().start().await;
    let gateway = gateway::before(&llama).upstream("timeouts: {first_byte: 100ms}").start().await;
    let mut caller = gateway.caller().await;
    for asked in [chat("hi"), chat_stream("hi")] {
        let answer = caller.send(asked).await;
        refused(&answer, 504, "upstream_timeout");
        assert_eq!(answer.header("x-should-retry"), Some("false"));
    }
    assert_eq!(llama.requests(), 2, "never tried again after a time-out");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_kept_for_one_who_wants_only_that() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    let answer = caller.send(chat("hi").header("cache-control", "only-if-cached")).await;
    refused(&answer, 504, "not_cached");
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(llama.requests(), 0);
    assert_eq!(caller.send(chat("hi")).await.cache(), "miss");
    let answer = caller.send(chat("hi").header("cache-control", "only-if-cached")).await;
    assert_eq!((answer.status, answer.cache()), (200, "hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_anthropics_words_where_anthropic_is_spoken() {
    let llama = llama::scripted().start().await;
    let models = "models: {tiny: {upstream: local}, other: {upstream: local}}\n";
    let yaml = auth(&[("alice", "sk-alice", "models: [tiny]")]) + models;
    let limits = "limits: {gateway: {requests: 1/h, burst: 5}}";
    let gateway = gateway::before(&llama).yaml(&yaml).yaml(limits).start().await;
    let mut caller = gateway.caller().await;
    let message =
        |model: &str| post("/v1/messages").json(&json!({"model": model, "max_tokens": 1, "messages": []}));
    refused_by_anthropic(&caller.send(message("tiny")).await, 401, "authentication_error");
    let wrong = post("/v1/messages").body("{").header("x-api-key", "sk-alice");
    refused_by_anthropic(&caller.send(wrong).await, 400, "invalid_request_error");
    for (model, status, kind) in [("none", 404, "not_found_error"), ("other", 403, "permission_error")] {
        refused_by_anthropic(
            &caller.send(message(model).header("x-api-key", "sk-alice")).await,
            status,
            kind,
        );
    }
    let hungry = || message("tiny").header("x-api-key", "sk-alice");
    eventually!(caller.send(hungry()).await.status == 429);
    refused_by_anthropic(&caller.send(hungry()).await, 429, "rate_limit_error");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_first_is_said_first_and_costs_nothing() {
    let llama = llama::scripted().start().await;
    let limits = "limits: {gateway: {requests: 1/h, burst: 1}, key: {requests: 1/h, burst: 1}}\n";
    let yaml = auth(&[("alice", "sk-alice", "")]) + limits;
    let gateway = gateway::before(&llama).yaml(&yaml).start().await;
    let mut caller = gateway.caller().await;
    for _ in 0..3 {
        refused(&caller.send(get("/nope")).await, 404, "not_found");
        refused(&caller.send(get("/completion")).await, 405, "method_not_allowed");
        refused(&caller.send(chat("hi").key("sk-wrong")).await, 401, "invalid_api_key");
        refused(&caller.send(post("/completion").body("{").key("sk-wrong")).await, 401, "invalid_api_key");
        assert_eq!(caller.send(get("/health")).await.status, 200);
        assert_eq!(caller.send(get("/stats")).await.status, 200);
        assert_eq!(caller.send(get("/live")).await.status, 200);
    }
    assert_eq!(caller.send(chat("hi").key("sk-alice")).await.status, 200);
    refused(&caller.send(chat("hi").key("sk-alice")).await, 429, "rate_limit_exceeded");
    refused(&caller.send(post("/completion").body("{").key("sk-alice")).await, 429, "rate_limit_exceeded");
    refused(&caller.send(post("/completion").body("{").key("sk-wrong")).await, 401, "invalid_api_key");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_stays_usable_whatever_was_said_on_it() {
    let llama = llama::scripted().start().await;
    let yaml = auth(&[("alice", "sk-alice", "limits: {requests: 1/h, burst: 4}")]) + "body: {max: 1KiB}\n";
    let gateway = gateway::before(&llama).yaml(&yaml).unprobed().start().await;
    let mut caller = gateway.caller().await;
    let large = post("/v1/completions").body("x".repeat(5000)).key("sk-alice");
    let all = [
        (get("/nope"), 404),
        (post("/nope").body("x".repeat(100_000)), 404),
        (get("/v1/completions"), 405),
        (chat("hi"), 401),
        (chat("hi").key("sk-alice"), 200),
        (chat("hi").key("sk-alice"), 200),
        (chat_stream("hi").key("sk-alice"), 200),
        (large, 413),
        (chat("hi").key("sk-alice"), 429),
        (request("OPTIONS", "/v1/completions").header("origin", "http://localhost"), 204),
        (request("HEAD", "/health"), 200),
        (get("/health"), 200),
        (get("/stats"), 200),
    ];
    for (asked, status) in all {
        let answer = caller.send(asked.clone()).await;
        assert_eq!(answer.status, status, "{asked:?}: {answer:?}");
        assert_ne!(answer.header("connection"), Some("close"), "{asked:?}");
    }
}
