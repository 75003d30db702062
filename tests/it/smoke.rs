//! The seed of the idea, end to end, by environment variables alone.

use serde_json::json;
use tokio::time::Instant;

use crate::support::client::get;
use crate::support::expect::{refused, says_when};
use crate::support::gateway::{self, chat};
use crate::support::{address::Loopback, llama};

#[tokio::test(flavor = "multi_thread")]
async fn health_is_ok_while_a_server_is_up() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::bare(&llama.url()).start().await;
    let health = gateway.send(get("/health")).await;
    assert_eq!((health.status, health.json()), (200, json!({"status": "ok"})));
    let stats = gateway.stats().await;
    for field in ["cache_size", "cache_capacity", "cache_entries"] {
        assert!(stats[field].is_u64(), "{field} in {stats}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_again_comes_from_the_cache() {
    let llama = llama::scripted().streams(["Hel", "lo"]).start().await;
    let gateway = gateway::bare(&llama.url()).start().await;
    let first = gateway.chat("hi").await;
    let again = gateway.chat("hi").await;
    assert_eq!((first.status, first.cache()), (200, "miss"));
    assert_eq!((again.status, again.cache()), (200, "hit"));
    assert_eq!(first.json()["choices"][0]["message"]["content"], "Hello");
    assert_eq!(again.body, first.body);
    assert_eq!(llama.requests(), 1);
    let stats = gateway.stats().await;
    assert_eq!(stats["cache_entries"], 1, "{stats}");
    assert!(stats["cache_size"].as_u64() > Some(0), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifteen_rapid_calls_ten_pass() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::bare(&llama.url()).start().await;
    let began = Instant::now();
    let answers = gateway.volley((0..15).map(|number| chat(&format!("question {number}")))).await;
    // Five a second come back; on a slow machine that can be one more by the end of the volley.
    let refilled = usize::try_from(began.elapsed().as_millis() / 200).expect("a short volley");
    let passed = answers.iter().filter(|answer| answer.status == 200).count();
    assert!((10..=10 + refilled).contains(&passed), "{passed} passed, and {refilled} came back");
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        refused(answer, 429, "rate_limit_exceeded");
        assert_eq!(says_when(answer), 1);
    }
    assert_eq!(llama.requests(), passed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_server_is_a_502() {
    let nobody = Loopback::claim();
    let gateway = gateway::bare(&format!("http://{}", nobody.port(8080))).start().await;
    refused(&gateway.chat("hi").await, 502, "upstream_error");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_url_of_an_endpoint_means_its_server() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::bare(&format!("{}/v1/completions", llama.url())).start().await;
    assert_eq!(gateway.chat("hi").await.status, 200);
    assert_eq!(llama.last().path(), "/v1/chat/completions");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_by_environment() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::bare(&llama.url()).env("GATEWAY_KEY", "sk-one").start().await;
    refused(&gateway.chat("hi").await, 401, "invalid_api_key");
    assert_eq!(gateway.send(chat("hi").key("sk-one")).await.status, 200);
    assert_eq!(llama.last().header("authorization"), None);
}
