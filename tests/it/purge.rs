//! `DELETE /cache`: what is purged, what is not, and who may.

use serde_json::json;

use crate::support::client::{self, Answer, Request, get, post, request};
use crate::support::expect::auth;
use crate::support::gateway::{self, Gateway, chat, chat_stream};
use crate::support::llama;

fn delete(target: &str) -> Request {
    request("DELETE", target)
}

async fn purge(gateway: &Gateway, query: &str) -> Answer {
    // The operator's listener may open after the callers'.
    eventually!(client::try_connect(gateway.admin_address()).await.is_some());
    gateway.admin(delete(&format!("/cache{query}"))).await
}

fn of(model: &str) -> Request {
    post("/v1/completions").json(&json!({"model": model, "prompt": "hi"}))
}

const MODELS: &str =
    "models: {tiny: {upstream: local}, mini: {upstream: local, as: tiny}, other: {upstream: local}}";

#[tokio::test(flavor = "multi_thread")]
async fn all_of_it() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    for asked in [chat("plain"), chat_stream("stream")] {
        assert_eq!(gateway.send(asked.clone()).await.cache(), "miss");
        assert_eq!(gateway.send(asked).await.cache(), "hit");
    }
    let purged = purge(&gateway, "").await;
    assert_eq!((purged.status, purged.json()), (200, json!({"purged": "all"})));
    let stats = gateway.stats().await;
    assert_eq!((&stats["cache_size"], &stats["cache_entries"]), (&json!(0), &json!(0)));
    for asked in [chat("plain"), chat_stream("stream")] {
        assert_eq!(gateway.send(asked.clone()).await.cache(), "miss");
        assert_eq!(gateway.send(asked).await.cache(), "hit", "it keeps again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_model() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml(MODELS).start().await;
    for name in ["tiny", "mini"] {
        assert_eq!(gateway.send(of("tiny")).await.cache(), "miss");
        gateway.send(of("other")).await;
        assert_eq!(
            purge(&gateway, &format!("?model={name}")).await.json(),
            json!({"purged": {"model": name}})
        );
        assert_eq!(gateway.send(of("other")).await.cache(), "hit");
    }
    assert_eq!(gateway.send(of("mini")).await.cache(), "miss", "an alias and its model are one");
    let unknown = purge(&gateway, "?model=tyni").await;
    assert_eq!(unknown.refusal(), (404, "model_not_found".to_owned()));
    assert_eq!(gateway.send(of("tiny")).await.cache(), "hit", "and nothing was purged");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_key_and_by_both() {
    let llama = llama::scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", ""), ("bob", "sk-bob", "")]);
    let gateway = gateway::before(&llama).yaml(&(keys + MODELS)).start().await;
    let all = async || {
        let mut told = Vec::new();
        for (key, model) in [("alice", "tiny"), ("alice", "other"), ("bob", "tiny"), ("bob", "other")] {
            let answer = gateway.send(of(model).key(&format!("sk-{key}"))).await;
            told.push(answer.cache() == "hit");
        }
        told
    };
    assert_eq!(all().await, [false; 4]);
    assert_eq!(all().await, [true; 4]);
    assert_eq!(purge(&gateway, "?key=alice").await.json(), json!({"purged": {"key": "alice"}}));
    assert_eq!(all().await, [false, false, true, true]);
    let both = purge(&gateway, "?model=other&key=bob").await;
    assert_eq!(both.json(), json!({"purged": {"model": "other", "key": "bob"}}));
    assert_eq!(all().await, [true, true, true, false]);
    assert_eq!(purge(&gateway, "?key=carol").await.refusal(), (404, "key_not_found".to_owned()));
    assert_eq!(purge(&gateway, "?key=alice&model=tyni").await.status, 404);
    assert_eq!(all().await, [true; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_made_meanwhile_is_not_found_afterwards() {
    let llama = llama::scripted().streams(["one", "two"]).holds().start().await;
    let gateway = gateway::before(&llama).start().await;
    let stream = gateway.caller().await.begin(chat_stream("hi")).await;
    assert_eq!(purge(&gateway, "").await.status, 200);
    let after = gateway.caller().await.begin(chat_stream("hi")).await;
    assert_eq!(after.header("x-cache"), Some("miss"), "nor is it joined");
    llama.release_all();
    let (answer, _) = stream.finish().await;
    assert!(answer.whole && answer.text().contains("[DONE]"), "who asked before has it all: {answer:?}");
    let (after, _) = after.finish().await;
    let kept = gateway.send(chat_stream("hi")).await;
    assert_eq!((kept.cache(), &kept.body), ("hit", &after.body));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_and_how() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    assert_eq!(gateway.chat("hi").await.cache(), "miss");
    for query in ["?all", "?model=", "?key=a&key=b", "?model=tiny&ttl=3"] {
        assert_eq!(purge(&gateway, query).await.refusal(), (400, "invalid_request".to_owned()), "{query}");
    }
    for method in ["GET", "POST"] {
        let refused = gateway.admin(request(method, "/cache")).await;
        assert_eq!((refused.status, refused.header("allow")), (405, Some("DELETE")));
    }
    for (name, value) in [
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        let refused = gateway.admin(delete("/cache").header(name, value)).await;
        assert_eq!(refused.refusal(), (403, "cross_site".to_owned()), "{name}: {value}");
    }
    assert_eq!(gateway.chat("hi").await.cache(), "hit", "nothing of this purged");
    let own = delete("/cache").header("Host", "127.0.0.1:9002").header("Origin", "http://127.0.0.1:9002");
    let own = own.header("Sec-Fetch-Site", "same-origin");
    assert_eq!(gateway.admin(own).await.status, 200);
    assert_eq!(gateway.send(delete("/cache")).await.status, 404, "callers have no such path");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_needs_the_token_where_there_is_one() {
    let llama = llama::scripted().start().await;
    let plan = gateway::before(&llama);
    let admin = plan.file().lines().find(|line| line.starts_with("admin:")).expect("a line").to_owned();
    let admin = admin.replace('}', ", token: sesame-sesame-sesame}");
    let gateway = plan.yaml(&admin).start().await;
    assert_eq!(purge(&gateway, "").await.status, 401);
    assert_eq!(gateway.admin(delete("/cache").key("sesame-sesame-sesame")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_no_answers_of_its_own_where_all_are_shared() {
    let llama = llama::scripted().start().await;
    let yaml = auth(&[("alice", "sk-alice", "")]) + "cache: {scope: gateway}";
    let gateway = gateway::before(&llama).yaml(&yaml).start().await;
    assert_eq!(purge(&gateway, "?key=alice").await.status, 400);
    assert_eq!(purge(&gateway, "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_count_what_they_saved() {
    let llama = llama::scripted().streams(["one", "two", "three"]).start().await;
    let gateway = gateway::before(&llama).start().await;
    assert_eq!(gateway.stats().await["saved_tokens"], 0);
    let tokens = gateway.chat("hi").await.json()["usage"]["completion_tokens"].as_u64().expect("a count");
    assert!(tokens > 0);
    for _ in 0..3 {
        assert_eq!(gateway.chat("hi").await.cache(), "hit");
    }
    let (stats, scrape) = (gateway.stats().await, gateway.scrape().await);
    assert_eq!(stats["saved_tokens"], 3 * tokens);
    assert!(stats["saved_seconds"].as_f64().is_some_and(|it| it > 0.0), "{stats}");
    assert_eq!(scrape.sum("ai_gateway_cache_saved_tokens_total", &[]), (3 * tokens) as f64);
    assert!(scrape.sum("ai_gateway_cache_saved_seconds_total", &[]) > 0.0);
    assert!(gateway.admin(get("/stats")).await.json()["saved_tokens"].is_u64());
}
