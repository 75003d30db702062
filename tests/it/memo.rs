//! The same bytes are not read twice to find their answer, and get no other answer for that.

use std::fs;

use serde_json::json;

use crate::support::client::{Request, post, request};
use crate::support::expect::{auth, refused};
use crate::support::gateway;
use crate::support::llama;

/// One body with all that decides whether an answer to it is kept.
fn asked() -> Request {
    post("/v1/completions").json(&json!({"model": "tiny", "prompt": "hi", "seed": 7}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_read_before_is_answered_only_to_whom_it_may() {
    let llama = llama::scripted().start().await;
    let keys = auth(&[
        ("alice", "sk-alice", ""),
        ("bob", "sk-bob", ""),
        ("carol", "sk-carol", "models: [other]"),
        ("dave", "sk-dave", "cache: none"),
    ]);
    let yaml = "models: {tiny: {upstream: local}, other: {upstream: local}}\n";
    let gateway = gateway::before(&llama).yaml(&(keys + yaml)).start().await;
    let ask = async |request: Request| gateway.send(request).await;
    let first = ask(asked().key("sk-alice")).await;
    for _ in 0..4 {
        let again = ask(asked().key("sk-alice")).await;
        assert_eq!((again.cache(), &again.body), ("hit", &first.body));
    }
    assert_eq!(llama.requests(), 1);
    assert_eq!(ask(asked().key("sk-bob")).await.cache(), "miss", "what alice may see is not bob's");
    refused(&ask(asked().key("sk-carol")).await, 403, "model_not_allowed");
    assert_eq!(ask(asked().key("sk-dave")).await.cache(), "bypass");
    refused(&ask(asked().key("sk-nobody")).await, 401, "invalid_api_key");
    let fresh = ask(asked().key("sk-alice").header("cache-control", "no-cache")).await;
    assert_eq!((fresh.cache(), llama.requests()), ("miss", 4));
    let none = ask(asked().key("sk-alice").header("cache-control", "no-store")).await;
    assert_eq!((none.cache(), llama.requests()), ("bypass", 5));
    let old = ask(asked().key("sk-alice").header("cache-control", "max-age=0")).await;
    assert_eq!((old.cache(), llama.requests()), ("miss", 6));
    assert_eq!(ask(asked().key("sk-alice")).await.cache(), "hit");
    assert_eq!(gateway.admin(request("DELETE", "/cache")).await.status, 200);
    let purged = ask(asked().key("sk-alice")).await;
    assert_eq!((purged.status, purged.cache()), (200, "miss"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_read_before_means_what_its_endpoint_and_headers_say() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let body = json!({"messages": [], "prompt": "hi", "input": "hi"});
    let mut asked = 0;
    for path in ["/v1/chat/completions", "/v1/completions", "/completion", "/v1/embeddings"] {
        for beta in ["", "a", "b"] {
            let request = || match beta {
                "" => post(path).json(&body),
                beta => post(path).json(&body).header("openai-beta", beta),
            };
            let first = gateway.send(request()).await;
            asked += 1;
            for _ in 0..3 {
                let again = gateway.send(request()).await;
                assert_eq!((again.cache(), &again.body), ("hit", &first.body), "{path} {beta}");
            }
            assert_eq!(llama.requests(), asked, "{path} {beta}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_read_before_asks_for_the_form_that_it_asks_for() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let plain = || post("/v1/chat/completions").json(&json!({"messages": []}));
    let stream = || post("/v1/chat/completions").json(&json!({"messages": [], "stream": true}));
    for _ in 0..4 {
        let (plain, stream) = (gateway.send(plain()).await, gateway.send(stream()).await);
        assert!(
            plain.header("content-type").is_some_and(|it| it.starts_with("application/json")),
            "{plain:?}"
        );
        assert_eq!(stream.header("content-type"), Some("text/event-stream"));
        assert!(stream.text().ends_with("data: [DONE]\n\n"));
    }
    assert_eq!(llama.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_read_before_meets_the_rules_of_a_new_file() {
    let llama = llama::scripted().start().await;
    let yaml = |allowed: &str| format!("body: {{remote_media: {allowed}}}");
    let plan = gateway::before(&llama).yaml(&yaml("allow"));
    let file = plan.file();
    let gateway = plan.start().await;
    let image = json!({"type": "image_url", "image_url": {"url": "http://192.0.2.1/a.png"}});
    let asked = || {
        post("/v1/chat/completions")
            .json(&json!({"messages": [{"role": "user", "content": [image.clone()]}]}))
    };
    for cache in ["miss", "hit", "hit", "hit"] {
        assert_eq!(gateway.send(asked()).await.cache(), cache);
    }
    fs::write(gateway.config(), file.replace(&yaml("allow"), &yaml("deny"))).expect("the folder is ours");
    eventually!(gateway.send(asked()).await.status == 400);
    refused(&gateway.send(asked()).await, 400, "remote_media");
}
