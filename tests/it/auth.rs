//! Who may ask.

use serde_json::Value;

use crate::support::client::get;
use crate::support::expect::{auth, refused, sha256};
use crate::support::gateway::{self, chat};
use crate::support::llama;

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_key_gets_the_same_answer() {
    let llama = llama::scripted().start().await;
    let keys = [("alice", "sk-alice", ""), ("old", "sk-old", "expires: 2020-01-01T00:00:00Z")];
    let gateway = gateway::before(&llama).yaml(&auth(&keys)).start().await;
    let mut caller = gateway.caller().await;
    let wrong = [
        chat("hi"),
        chat("hi").key("sk-wrong"),
        chat("hi").key("sk-old"),
        chat("hi").key(""),
        chat("hi").header("authorization", "Bearer"),
        chat("hi").header("authorization", "Basic c2stYWxpY2U="),
        chat("hi").header("authorization", "Bearer sk-alice sk-alice"),
        chat("hi").header("x-api-key", ""),
        chat("hi").header("x-api-key", "SK-ALICE"),
        chat("hi").key("sk-alice").header("x-api-key", "sk-wrong"),
        chat("hi").key("sk-wrong").header("x-api-key", "sk-alice"),
        chat("hi").key(&sha256("sk-alice")),
        chat("hi").key("sk-alice").key("sk-wrong"),
        chat("hi").header("x-api-key", "sk-alice").header("x-api-key", "sk-wrong"),
    ];
    let mut bodies: Vec<Value> = Vec::new();
    for asked in wrong {
        let answer = caller.send(asked.clone()).await;
        assert_eq!(answer.status, 401, "{asked:?}");
        refused(&answer, 401, "invalid_api_key");
        bodies.push(answer.json());
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert_eq!(llama.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_presented_in_either_header() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml(&auth(&[("alice", "sk-alice", "")])).start().await;
    let mut caller = gateway.caller().await;
    let right = [
        chat("hi").key("sk-alice"),
        chat("hi").header("authorization", "bearer sk-alice"),
        chat("hi").header("x-api-key", "sk-alice"),
        chat("hi").key("sk-alice").header("x-api-key", "sk-alice"),
    ];
    for asked in right {
        assert_eq!(caller.send(asked.clone()).await.status, 200, "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_replaced_while_both_work() {
    let llama = llama::scripted().start().await;
    let hashes = [sha256("sk-before"), sha256("sk-after")];
    let keys = format!("auth: {{keys: [{{name: alice, sha256: [{}]}}]}}", hashes.join(", "));
    let gateway = gateway::before(&llama).yaml(&keys).start().await;
    assert_eq!(gateway.send(chat("hi").key("sk-before")).await.cache(), "miss");
    assert_eq!(gateway.send(chat("hi").key("sk-after")).await.cache(), "hit", "they are one key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_will_expire_works_until_then() {
    let llama = llama::scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", "expires: 2999-01-01T00:00:00Z")]);
    let gateway = gateway::before(&llama).yaml(&keys).start().await;
    assert_eq!(gateway.send(chat("hi").key("sk-alice")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_may_use_only_its_models() {
    let llama = llama::scripted().start().await;
    let models = "models: {tiny: {upstream: local}, large: {upstream: local}}\n";
    let keys = auth(&[("alice", "sk-alice", "models: [large]"), ("bob", "sk-bob", "models: [\"ti*\"]")]);
    let gateway = gateway::before(&llama).yaml(&(keys + models)).start().await;
    let mut caller = gateway.caller().await;
    refused(&caller.send(chat("hi").key("sk-alice")).await, 403, "model_not_allowed");
    assert_eq!(caller.send(chat("hi").key("sk-bob")).await.status, 200);
    assert_eq!(llama.requests(), 1);
    assert_eq!(caller.send(chat("hi").key("sk-bob")).await.cache(), "hit");
    refused(&caller.send(chat("hi").key("sk-alice")).await, 403, "model_not_allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_good_only_from_where_it_may_come() {
    let llama = llama::scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", "from: [10.0.0.0/8, \"2001:db8::/32\"]")]);
    let trusting =
        gateway::before(&llama).yaml(&(keys.clone() + "trusted_proxies: [127.0.0.0/8]\n")).start().await;
    let doubting = gateway::before(&llama).yaml(&keys).start().await;
    for (from, status) in
        [("10.1.2.3", 200), ("2001:db8::1", 200), ("192.0.2.1", 401), ("10.1.2.3, 192.0.2.1", 401)]
    {
        let asked = chat("hi").key("sk-alice").header("x-forwarded-for", from);
        assert_eq!(trusting.send(asked.clone()).await.status, status, "{from}");
        refused(&doubting.send(asked).await, 401, "invalid_api_key");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_key() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml(&auth(&[("alice", "sk-alice", "")])).start().await;
    let mut caller = gateway.caller().await;
    for path in ["/health", "/stats", "/live", "/ready"] {
        assert_eq!(caller.send(get(path)).await.status, 200, "{path}");
    }
    refused(&caller.send(get("/v1/models")).await, 401, "invalid_api_key");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_gateway_says_so_once() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let warned =
        || gateway.stderr().lines().filter(|line| line.contains("WARN") && line.contains("auth")).count();
    eventually!(warned() > 0, "{}", gateway.stderr());
    assert_eq!(warned(), 1, "{}", gateway.stderr());
}
