//! Budgets, users, and limits by model: who may ask how much of what.

use serde_json::{Value, json};

use crate::support::client::{Request, get};
use crate::support::expect::{auth, refused, says_when};
use crate::support::gateway::{self, Gateway, chat};
use crate::support::llama::scripted;

async fn usage(gateway: &Gateway) -> Value {
    gateway.send(get("/v1/usage").key("sk-alice")).await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_spent_once_and_its_end_is_told() {
    let llama = scripted().start().await;
    // Each answer takes 10 tokens and may take 288.
    let keys = auth(&[("alice", "sk-alice", "budget: [{tokens: 305/day}, {requests: 100/month}]")]);
    let gateway = gateway::before(&llama).yaml(&keys).start().await;
    for number in 0..2 {
        let answer = gateway.send(chat(&number.to_string()).key("sk-alice")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let spent = gateway.send(chat("2").key("sk-alice")).await;
    refused(&spent, 429, "budget_exceeded");
    assert_eq!(spent.json()["error"]["type"], "insufficient_quota");
    assert_eq!(spent.header("x-should-retry"), Some("false"));
    assert!(says_when(&spent) <= 24 * 3600, "{spent:?}");
    let line = gateway.line_of(spent.request_id()).await;
    assert_eq!((line.text("limit"), line.text("error_code")), ("key.budget", "budget_exceeded"));
    assert_eq!(gateway.send(chat("0").key("sk-alice")).await.cache(), "hit", "what is kept costs nothing");
    let told = usage(&gateway).await;
    let used = |period: &str, what: &str| told["used"][period][what].as_u64();
    assert_eq!((used("day", "requests"), used("month", "requests")), (Some(3), Some(3)), "{told}");
    assert_eq!(
        (used("day", "prompt_tokens"), used("day", "completion_tokens")),
        (Some(16), Some(4)),
        "{told}"
    );
    assert_eq!((used("day", "cached_tokens"), used("day", "prefill_ms")), (Some(4), Some(74)), "{told}");
    assert_eq!(
        (&told["budgets"][0]["used"], &told["budgets"][0]["remaining"]),
        (&json!(20), &json!(285)),
        "{told}"
    );
    assert_eq!(
        (&told["budgets"][1]["of"], &told["budgets"][1]["used"]),
        (&json!("requests"), &json!(3)),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_race_cannot_overspend_a_budget() {
    let llama = scripted().holds().start().await;
    let keys = auth(&[("alice", "sk-alice", "budget: [{requests: 5/day}]")]);
    let gateway = gateway::before(&llama).yaml(&keys).start().await;
    let mut callers = Vec::new();
    for number in 0..30 {
        callers.push(gateway.caller().await.ask(chat(&number.to_string()).key("sk-alice")).await);
    }
    let refusals =
        async || gateway.scrape().await.sum("ai_gateway_limit_refusals_total", &[("limit", "key.budget")]);
    eventually!(refusals().await == 25.0);
    eventually!(llama.requests() == 5);
    llama.release_all();
    for caller in callers {
        caller.answering("POST").await.finish().await;
    }
    refused(&gateway.send(chat("more").key("sk-alice")).await, 429, "budget_exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_within_a_key_have_limits_of_their_own() {
    let llama = scripted().start().await;
    let webui = "user_header: x-openwebui-user-id, user_limits: {requests: 2/h}, limits: {requests: 5/h}";
    let keys = auth(&[("webui", "sk-webui", webui), ("plain", "sk-plain", "")]);
    let gateway = gateway::before(&llama).yaml(&keys).start().await;
    let ask = async |key: &str, user: &str| {
        let asked: Request = chat("hi").key(key).header("x-openwebui-user-id", user);
        let answer = gateway.send(asked).await;
        let line = gateway.line_of(answer.request_id()).await;
        (answer.status, line.text("limit").to_owned(), line.fields["user"].clone())
    };
    let good = |user: Value| (200, String::new(), user);
    let no = |limit: &str, user: &str| (429, limit.to_owned(), json!(user));
    assert_eq!(ask("sk-webui", "ann").await, good(json!("ann")));
    assert_eq!(ask("sk-webui", "ann").await, good(json!("ann")));
    assert_eq!(ask("sk-webui", "ann").await, no("user.requests", "ann"));
    assert_eq!(ask("sk-webui", "ben").await, good(json!("ben")));
    assert_eq!(ask("sk-webui", "cat").await, good(json!("cat")));
    assert_eq!(ask("sk-webui", "dan").await, good(json!("dan")));
    assert_eq!(ask("sk-webui", "eve").await, no("key.requests", "eve"), "the key's own limit holds for all");
    assert_eq!(ask("sk-plain", "ann").await, good(Value::Null), "nobody else is believed");
    assert_eq!(llama.last().header("x-openwebui-user-id"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_limited_by_model_and_a_refusal_costs_the_others_nothing() {
    let llama = scripted().start().await;
    let yaml = "models: {tiny: {upstream: local}, mini: {upstream: local, as: tiny}, \
                big: {upstream: local, limits: {requests: 2/h}, key_limits: {requests: 1/h}}}\n\
                limits: {gateway: {requests: 6/h}, model: {requests: 3/h}}\n";
    let keys = auth(&[("alice", "sk-alice", ""), ("bob", "sk-bob", ""), ("carol", "sk-carol", "")]);
    let gateway = gateway::before(&llama).yaml(&(keys + yaml)).start().await;
    let ask = async |key: &str, model: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "x"}]});
        let answer =
            gateway.send(crate::support::client::post("/v1/chat/completions").json(&body).key(key)).await;
        gateway.line_of(answer.request_id()).await.text("limit").to_owned()
    };
    assert_eq!(ask("sk-alice", "big").await, "");
    for _ in 0..5 {
        assert_eq!(ask("sk-alice", "big").await, "key_model.requests");
    }
    assert_eq!(ask("sk-bob", "big").await, "");
    assert_eq!(ask("sk-carol", "big").await, "model.requests");
    assert_eq!(ask("sk-bob", "big").await, "key_model.requests", "of two that refuse, the last to end");
    for model in ["tiny", "mini", "tiny"] {
        assert_eq!(ask("sk-alice", model).await, "", "{model}");
    }
    assert_eq!(ask("sk-bob", "mini").await, "model.requests", "an alias counts as its model");
    // Five of six were admitted. What cannot be used costs one like any other.
    assert_eq!(ask("sk-bob", "unknown").await, "");
    assert_eq!(ask("sk-bob", "unknown").await, "gateway.requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_has_used_is_its_own_to_read() {
    let llama = scripted().start().await;
    let keys =
        auth(&[("alice", "sk-alice", "limits: {requests: 2/h, concurrent: 3}"), ("bob", "sk-bob", "")]);
    let gateway = gateway::before(&llama).yaml(&keys).start().await;
    refused(&gateway.send(get("/v1/usage")).await, 401, "invalid_api_key");
    gateway.send(chat("hi").key("sk-alice")).await;
    gateway.send(chat("hi").key("sk-bob")).await;
    for _ in 0..3 {
        let told = usage(&gateway).await;
        assert_eq!((&told["key"], &told["used"]["day"]["requests"]), (&json!("alice"), &json!(1)));
        assert_eq!(told["limits"]["requests"]["remaining"], 1, "asking costs nothing: {told}");
        assert_eq!((&told["limits"]["concurrent"]["limit"], &told["budgets"]), (&json!(3), &json!([])));
    }
}
