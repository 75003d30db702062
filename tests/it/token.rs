//! Tokens: reserved before, settled after, given back when nothing came of it. The scripted server counts 32 tokens in
//! any chat, and reports 8 and one for each word.

use serde_json::{Value, json};

use crate::support::client::{Answer, Request, post};
use crate::support::expect::{auth, refused, says_when};
use crate::support::gateway::{self, Gateway, chat, chat_stream};
use crate::support::llama::{Llama, scripted};

const PROMPT: u64 = 32;
const USED: u64 = 10;

fn asked(text: &str, more: &Value) -> Request {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    post("/v1/chat/completions").json(&body).key("sk-alice")
}

fn keys(tokens: &str) -> String {
    let limits = format!("limits: {{tokens: {tokens}}}");
    auth(&[("alice", "sk-alice", &limits), ("bob", "sk-bob", "")])
}

async fn before(llama: &Llama, yaml: &str) -> Gateway {
    gateway::before(llama).yaml(yaml).start().await
}

fn remaining(answer: &Answer) -> u64 {
    answer.header("x-ratelimit-remaining-tokens").expect("tokens are limited").parse().expect("a number")
}

/// What is left of Alice's tokens, by her own account.
async fn left(gateway: &Gateway) -> u64 {
    let usage = gateway.send(crate::support::client::get("/v1/usage").key("sk-alice")).await;
    usage.json()["limits"]["tokens"]["remaining"].as_u64().unwrap_or_else(|| panic!("{usage:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_reserved_at_admission_and_settled_by_the_usage() {
    let llama = scripted().holds().start().await;
    let gateway = before(&llama, &keys("10000/day")).await;
    let waiting = gateway.caller().await.ask(asked("hi", &json!({"max_tokens": 100}))).await;
    eventually!(llama.requests() == 1);
    assert_eq!(left(&gateway).await, 10_000 - PROMPT - 100);
    llama.release_all();
    let (answer, _) = waiting.answering("POST").await.finish().await;
    assert_eq!(remaining(&answer), 10_000 - PROMPT - 100, "as it was when the header was sent");
    assert_eq!(answer.header("x-ratelimit-limit-tokens"), Some("10000"));
    eventually!(left(&gateway).await == 10_000 - USED);
    let unbounded = gateway.send(asked("another", &json!({}))).await;
    assert_eq!(remaining(&unbounded), 10_000 - USED - PROMPT - 256);
    let several = gateway.send(asked("several", &json!({"n": 3, "max_tokens": 100}))).await;
    assert_eq!(remaining(&several), 10_000 - 2 * USED - PROMPT - 300);
    assert_eq!(llama.counted(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_settled_whether_it_tells_its_usage_or_its_timings() {
    let llama = scripted().start().await;
    let gateway = before(&llama, &keys("10000/day")).await;
    let usage = json!({"stream": true, "stream_options": {"include_usage": true}});
    for (number, form) in [json!({"stream": true}), usage].iter().enumerate() {
        gateway.send(asked(&number.to_string(), form)).await;
        let used = USED * (number as u64 + 1);
        eventually!(left(&gateway).await == 10_000 - used);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_race_cannot_reserve_more_than_there_is() {
    let llama = scripted().holds().start().await;
    let gateway = before(&llama, &keys("1000/day")).await;
    let mut callers = Vec::new();
    for number in 0..40 {
        callers
            .push(gateway.caller().await.ask(asked(&number.to_string(), &json!({"max_tokens": 100}))).await);
    }
    let refusals =
        async || gateway.scrape().await.sum("ai_gateway_limit_refusals_total", &[("limit", "key.tokens")]);
    eventually!(refusals().await == 33.0);
    eventually!(llama.requests() as u64 == 1000 / (PROMPT + 100));
    llama.release_all();
    let mut statuses = Vec::new();
    for caller in callers {
        let (answer, _) = caller.answering("POST").await.finish().await;
        if answer.status == 429 {
            refused(&answer, 429, "rate_limit_exceeded");
            assert!(says_when(&answer) > 1 && answer.text().contains("key.tokens"), "{answer:?}");
        }
        statuses.push(answer.status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 7, "{statuses:?}");
    eventually!(left(&gateway).await == 1000 - 7 * USED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_fit_says_so() {
    let llama = scripted().start().await;
    let gateway = before(&llama, &keys("1000/day")).await;
    let answer = gateway.send(asked("hi", &json!({"max_tokens": 969}))).await;
    refused(&answer, 429, "rate_limit_exceeded");
    assert_eq!((answer.header("x-should-retry"), answer.header("retry-after")), (Some("false"), None));
    assert!(answer.text().contains("1001 tokens") && answer.text().contains("ask for less"), "{answer:?}");
    assert_eq!(gateway.send(asked("hi", &json!({"max_tokens": 968}))).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_costs_nothing() {
    for script in [scripted().status(500), scripted().dies_at_once(), scripted().dies_after_bytes(40)] {
        let llama = script.start().await;
        let gateway = before(&llama, &keys("1000/day")).await;
        for form in [json!({"stream": true}), json!({})] {
            gateway.send(asked("hi", &form)).await;
        }
        eventually!(left(&gateway).await == 1000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_pays_for_what_was_made() {
    let llama = scripted().streams(["a", "b", "c", "d"]).holds().start().await;
    let gateway = before(&llama, &keys("1000/day")).await;
    let mut stream = gateway.caller().await.begin(asked("hi", &json!({"stream": true}))).await;
    for _ in 0..2 {
        llama.release();
    }
    for _ in 0..3 {
        stream.event().await.expect("an event");
    }
    stream.leaves();
    // The prompt as it was counted, and an event for each token: the role's and two words'.
    eventually!(left(&gateway).await == 1000 - PROMPT - 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_and_shared_answers_cost_no_tokens() {
    let llama = scripted().holds().start().await;
    let gateway = before(&llama, &keys("1000/day")).await;
    let leader = gateway.caller().await.ask(asked("hi", &json!({}))).await;
    eventually!(llama.requests() == 1);
    let follower = gateway.caller().await.ask(asked("hi", &json!({}))).await;
    let aboard = async || gateway.scrape().await.sum("ai_gateway_flight_followers", &[]);
    eventually!(aboard().await == 1.0);
    llama.release_all();
    leader.answering("POST").await.finish().await;
    let (shared, _) = follower.answering("POST").await.finish().await;
    let hit = gateway.send(asked("hi", &json!({"stream": true}))).await;
    assert_eq!((shared.cache(), hit.cache(), llama.requests()), ("shared", "hit", 1));
    assert_eq!(remaining(&hit), 1000 - USED);
    assert_eq!(left(&gateway).await, 1000 - USED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_caller_that_may_not_leaves_the_answer_to_the_next() {
    let llama = scripted().holds_counts().start().await;
    let gateway = before(&llama, &(keys("100/day") + "cache: {scope: gateway}\n")).await;
    // Alice is first. While a server counts for her, Bob joins her; then it turns out that she has too few tokens.
    let hi = |key: &str, stream: bool| {
        let messages = json!([{"role": "user", "content": "hi"}]);
        let body = json!({"model": "tiny", "max_tokens": 80, "stream": stream, "messages": messages});
        post("/v1/chat/completions").json(&body).key(key)
    };
    let alice = gateway.caller().await.ask(hi("sk-alice", false)).await;
    eventually!(llama.counted() == 1);
    let bobs = [hi("sk-bob", false), hi("sk-bob", true), hi("sk-bob", false)];
    let mut waiting = Vec::new();
    for bob in bobs {
        waiting.push(gateway.caller().await.ask(bob).await);
    }
    let aboard = async || gateway.scrape().await.sum("ai_gateway_flight_followers", &[]);
    eventually!(aboard().await == 3.0);
    llama.release_all();
    let (alice, _) = alice.answering("POST").await.finish().await;
    refused(&alice, 429, "rate_limit_exceeded");
    let mut outcomes = Vec::new();
    for bob in waiting {
        let (answer, _) = bob.answering("POST").await.finish().await;
        assert_eq!(answer.status, 200, "her limit is not his: {answer:?}");
        outcomes.push(answer.cache().to_owned());
    }
    assert_eq!(llama.requests(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "miss").count(), 1, "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_counted_only_where_it_matters_and_estimated_where_the_server_cannot() {
    let llama = scripted().start().await;
    let gateway = before(&llama, &keys("10000/day")).await;
    gateway.send(chat("hi").key("sk-bob")).await;
    assert_eq!(llama.counted(), 0, "Bob has no limit of tokens");
    let prompt = "one two three four five six seven";
    for (path, body, counted) in [
        ("/v1/messages", json!({"max_tokens": 1, "messages": []}), PROMPT),
        ("/v1/completions", json!({"prompt": prompt, "max_tokens": 1}), 3),
        ("/completion", json!({"prompt": prompt, "n_predict": 1}), 3),
        ("/completion", json!({"prompt": [1, 2, 3, 4], "n_predict": 1}), 4),
    ] {
        let before = left(&gateway).await;
        let answer = gateway.send(post(path).json(&body).key("sk-alice")).await;
        assert_eq!(before - remaining(&answer), counted + 1, "{path}");
        eventually!(left(&gateway).await > remaining(&answer) || counted < USED);
    }
    let llama = scripted().does_not_count().start().await;
    let gateway = before(&llama, &keys("10000/day")).await;
    let answer = gateway.send(asked(&"x".repeat(3000), &json!({"max_tokens": 1}))).await;
    let estimate = 10_000 - remaining(&answer) - 1;
    assert!((1000..1050).contains(&estimate), "{estimate}");
    for n in 0..20 {
        gateway.send(asked(&n.to_string(), &json!({"max_tokens": 1}))).await;
    }
    let counted = llama.counted();
    assert!((1..10).contains(&counted), "it said that it does not count, and was asked {counted} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_model_and_of_a_key_with_it_are_limited_too() {
    let llama = scripted().start().await;
    let models = "models: {tiny: {upstream: local, limits: {tokens: 500/day}, key_limits: {tokens: 300/day}}, \
                  mini: {upstream: local, as: tiny}}\n";
    let keys = auth(&[("alice", "sk-alice", ""), ("bob", "sk-bob", "")]);
    let gateway = before(&llama, &(keys + models)).await;
    let refusal = async |key: &str, model: &str, tokens: u64| {
        let text = format!("{key} {model} {tokens}");
        let body =
            json!({"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": text}]});
        let answer = gateway.send(post("/v1/chat/completions").json(&body).key(key)).await;
        gateway.line_of(answer.request_id()).await.text("limit").to_owned()
    };
    assert_eq!(refusal("sk-alice", "tiny", 280).await, "key_model.tokens");
    assert_eq!(refusal("sk-alice", "tiny", 250).await, "");
    assert_eq!(refusal("sk-alice", "mini", 480).await, "key_model.tokens", "an alias is no way around");
    assert_eq!(refusal("sk-bob", "mini", 290).await, "key_model.tokens", "of either limit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_counted_is_not_slowed() {
    let llama = scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let answer = gateway.send(chat_stream("hi")).await;
    assert_eq!((answer.status, llama.counted()), (200, 0));
    assert_eq!(answer.header("x-ratelimit-remaining-tokens"), None);
}
