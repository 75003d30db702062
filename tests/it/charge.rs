//! What a review found: ways around limits, and what was charged or held wrongly. Each failed before it was mended.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::client::{Request, get, post};
use crate::support::expect::{auth, refused};
use crate::support::gateway::{self, Gateway, chat};
use crate::support::llama::{Llama, scripted};

async fn before(llama: &Llama, yaml: &str) -> Gateway {
    gateway::before(llama).yaml(yaml).start().await
}

async fn left(gateway: &Gateway) -> u64 {
    let usage = gateway.send(get("/v1/usage").key("sk-alice")).await;
    usage.json()["limits"]["tokens"]["remaining"].as_u64().unwrap_or_else(|| panic!("{usage:?}"))
}

fn tokens(rate: &str) -> String {
    auth(&[("alice", "sk-alice", &format!("limits: {{tokens: {rate}}}"))])
}

fn completion(body: &Value) -> Request {
    post("/completion").json(body).key("sk-alice")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_may_stand_before_its_model() {
    let llama = scripted().start().await;
    let yaml =
        "models: {mini: {upstream: local, as: tiny}, tiny: {upstream: local, limits: {requests: 1/h}}}\n";
    let gateway = before(&llama, yaml).await;
    let ask = async |model: &str, text: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
        gateway.send(post("/v1/chat/completions").json(&body)).await.status
    };
    assert_eq!(ask("tiny", "a").await, 200);
    assert_eq!(ask("tiny", "b").await, 429);
    assert_eq!(ask("mini", "c").await, 429, "an alias is no way around");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_its_usage_is_not_free() {
    let llama = scripted().answers(r#"{"content":"a lot of text"}"#).start().await;
    let gateway = before(&llama, &tokens("1000/day")).await;
    let answer = gateway
        .send(completion(&json!({"prompt": "x", "n_predict": 100, "response_fields": ["content"]})))
        .await;
    assert_eq!(answer.status, 200);
    eventually!(left(&gateway).await == 1000 - 3 - 100, "{}", left(&gateway).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_answers_is_not_free() {
    let one = r#"{"index":0,"content":"a lot of text","stop":true,"timings":{"cache_n":0,"prompt_n":4,"predicted_n":50}}"#;
    let llama = scripted().answers(format!("[{one},{one}]")).start().await;
    let gateway = before(&llama, &tokens("1000/day")).await;
    let answer = gateway.send(completion(&json!({"prompt": ["x", "y"], "n_predict": 50}))).await;
    assert_eq!(answer.status, 200);
    eventually!(left(&gateway).await <= 1000 - 6 - 100, "{}", left(&gateway).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_its_usage_is_charged_by_its_events() {
    let event = |text: &str| {
        format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null}}]}}\n\n"
        )
    };
    let end = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let (a, b) = (event("a"), event("b"));
    let llama = scripted().events([&a, &b, &a, &b, end, "data: [DONE]\n\n"]).start().await;
    let gateway = before(&llama, &tokens("1000/day")).await;
    let answer = gateway.send(gateway::chat_stream("x").key("sk-alice")).await;
    assert_eq!(answer.status, 200);
    eventually!(left(&gateway).await <= 1000 - 32 - 4, "{}", left(&gateway).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_several_prompts_are_charged() {
    let text = |n: u64| json!({"text": "a", "index": n, "logprobs": null, "finish_reason": "length"});
    let plain = json!({"choices": [text(0), text(1)], "object": "text_completion",
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        "timings": {"cache_n": 0, "prompt_n": 3, "predicted_n": 1}});
    let llama = scripted().answers(plain.to_string()).start().await;
    let gateway = before(&llama, &tokens("1000/day")).await;
    // The scripted server counts 3 tokens in any text.
    let body = json!({"prompt": ["x", "y"], "max_tokens": 1});
    gateway.send(post("/v1/completions").json(&body).key("sk-alice")).await;
    eventually!(left(&gateway).await == 1000 - 6 - 2, "{}", left(&gateway).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_fit_is_not_counted_first() {
    let llama = scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {tokens: 1000/day}, budget: [{tokens: 100/day}]")]);
    let gateway = before(&llama, &keys).await;
    for n in 0..10 {
        let body = json!({"model": "tiny", "max_tokens": 5000, "messages": [{"role": "user", "content": n.to_string()}]});
        let answer = gateway.send(post("/v1/chat/completions").json(&body).key("sk-alice")).await;
        refused(&answer, 429, "rate_limit_exceeded");
    }
    assert_eq!(llama.counted(), 0, "whatever the prompt is, it does not fit");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_spent_budget_refuses_is_not_counted_first() {
    let llama = scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", "budget: [{requests: 1/day}]")]);
    let gateway = before(&llama, &keys).await;
    assert_eq!(gateway.send(chat("a").key("sk-alice")).await.status, 200);
    let before = llama.counted();
    for n in 0..10 {
        let answer = gateway.send(chat(&n.to_string()).key("sk-alice")).await;
        refused(&answer, 429, "budget_exceeded");
    }
    assert_eq!(llama.counted() - before, 0, "the budget is spent");
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_of_a_stream_hold_no_bodies() {
    let llama = scripted().streams(["a", "b", "c", "d", "e", "f"]).holds().start().await;
    let gateway = gateway::before(&llama).yaml("body: {max: 8MiB, total: 16MiB}").unprobed().start().await;
    let text: &'static str = "x".repeat(4 << 20).leak();
    let idle = gateway.resident_bytes();
    let _leader = gateway.caller().await.ask(gateway::chat_stream(text)).await;
    eventually!(llama.requests() == 1);
    llama.release();
    let mut waiting = Vec::new();
    for number in 0..30 {
        waiting.push(gateway.caller().await.ask(gateway::chat_stream(text)).await);
        let aboard = async || gateway.scrape().await.sum("ai_gateway_flight_followers", &[]);
        eventually!(aboard().await == f64::from(number + 1));
    }
    let grown = (gateway.resident_bytes() - idle) >> 20;
    assert!(grown < 64, "{grown} MiB, body.total is 16 MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_many_prompts_is_not_held_twice() {
    let llama = scripted().holds().start().await;
    let gateway = gateway::before(&llama).yaml("body: {max: 8MiB, total: 32MiB}").unprobed().start().await;
    let idle = gateway.resident_bytes();
    let mut waiting = Vec::new();
    for number in 0..6 {
        let list = "\"a\",".repeat(1_000_000);
        let body = format!("{{\"n_predict\":{number},\"prompt\":[{list}\"b\"]}}");
        waiting.push(gateway.caller().await.ask(post("/completion").body(body)).await);
        eventually!(llama.requests() == number + 1);
    }
    // What was let go of is given back to the system in a while.
    let grown = || gateway.resident_bytes().saturating_sub(idle) >> 20;
    eventually!(grown() < 96, "{} MiB, body.total is 32 MiB", grown());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_any_letters_is_a_name() {
    let llama = scripted().start().await;
    let keys = auth(&[("webui", "sk-webui", "user_header: x-user, user_limits: {requests: 1/h}")]);
    let gateway = before(&llama, &keys).await;
    let long = "n".repeat(257);
    for name in ["Jürgen", long.as_str()] {
        let ask = async |n: u32| {
            gateway.send(chat(&n.to_string()).key("sk-webui").header("x-user", name)).await.status
        };
        assert_eq!((ask(0).await, ask(1).await), (200, 429), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_reserved_of_a_budget_may_come_back() {
    let llama = scripted().holds().start().await;
    let keys = auth(&[("alice", "sk-alice", "budget: [{tokens: 500/month}]")]);
    let gateway = before(&llama, &keys).await;
    let waiting = gateway.caller().await.ask(chat("a").key("sk-alice")).await;
    eventually!(llama.requests() == 1);
    let answer = gateway.send(chat("b").key("sk-alice")).await;
    llama.release_all();
    waiting.answering("POST").await.finish().await;
    let again = gateway.send(chat("b").key("sk-alice")).await;
    assert_eq!(again.status, 200, "there was enough all the time");
    assert_ne!(answer.header("x-should-retry"), Some("false"), "nothing of it is spent");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_is_no_way_around_a_keys_limit_with_its_model() {
    let llama = scripted().start().await;
    let yaml = "limits: {key_model: {requests: 1/h}}\nmodels: {tiny: {upstream: local}, mini: {upstream: local, as: tiny}, midi: {upstream: local, as: tiny}}\n";
    let gateway = before(&llama, &(auth(&[("alice", "sk-alice", "")]) + yaml)).await;
    let ask = async |model: &str, text: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
        gateway.send(post("/v1/chat/completions").json(&body).key("sk-alice")).await.status
    };
    assert_eq!(ask("tiny", "a").await, 200);
    assert_eq!(ask("tiny", "b").await, 429);
    assert_eq!((ask("mini", "c").await, ask("midi", "d").await), (429, 429), "an alias is no way around");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_writes_into_the_ledger_what_it_likes() {
    let llama = scripted().answers(r#"{"content":"a lot of text"}"#).start().await;
    let keys = auth(&[("alice", "sk-alice", "budget: [{requests: 9/day}]"), ("bob", "sk-bob", "")]);
    let gateway = before(&llama, &keys).await;
    for key in ["sk-alice", "sk-bob"] {
        let body = json!({"prompt": key, "n_predict": u64::MAX});
        assert_eq!(gateway.send(post("/completion").json(&body).key(key)).await.status, 200);
        let told = gateway.send(get("/v1/usage").key(key)).await.json();
        assert_eq!(told["used"]["day"]["completion_tokens"], 0, "{told}");
        assert_eq!(told["used"]["day"]["requests"], 1, "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_reports_of_many_texts_is_what_they_cost() {
    let llama = scripted().start().await;
    let gateway = before(&llama, &tokens("1000/day")).await;
    // More than are counted: they are estimated to have 340. The scripted server reports 12.
    let body = json!({"input": vec!["x".repeat(60); 17]});
    let answer = gateway.send(post("/v1/embeddings").json(&body).key("sk-alice")).await;
    assert_eq!(answer.header("x-ratelimit-remaining-tokens"), Some("660"));
    eventually!(left(&gateway).await == 1000 - 12, "{}", left(&gateway).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_the_queue_has_used_nothing() {
    let llama = scripted().slots(1).holds().start().await;
    let more = "limits: {tokens: 10000/day}";
    let keys = auth(&[("alice", "sk-alice", more), ("bob", "sk-bob", "")]);
    let gateway = before(&llama, &keys).await;
    let _busy = gateway.caller().await.ask(chat("hi").key("sk-bob")).await;
    eventually!(llama.requests() == 1);
    let waiting = async || gateway.scrape().await.sum("ai_gateway_queue_requests", &[]);
    let queued = gateway.caller().await.ask(chat("hi").key("sk-alice")).await;
    eventually!(waiting().await == 1.0);
    assert!(left(&gateway).await < 10_000);
    queued.leaves();
    eventually!(left(&gateway).await == 10_000, "{}", left(&gateway).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_of_a_body_is_not_held_while_its_tokens_are_counted() {
    let llama = scripted().holds_counts().start().await;
    let gateway = gateway::before(&llama).yaml(&tokens("100M/day")).unprobed().start().await;
    let idle = gateway.resident_bytes();
    let list = "1,".repeat(1_000_000);
    let mut waiting = Vec::new();
    for number in 0..6 {
        let body = format!("{{\"messages\":[],\"x\":[{list}{number}]}}");
        waiting
            .push(gateway.caller().await.ask(post("/v1/chat/completions").body(body).key("sk-alice")).await);
        eventually!(llama.counted() == number + 1);
    }
    let grown = (gateway.resident_bytes() - idle) >> 20;
    assert!(grown < 96, "{grown} MiB for six bodies of 2 MB");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_while_its_prompt_is_counted_gives_back_its_place() {
    let llama = scripted().holds_counts().start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {tokens: 100000/day, concurrent: 1}")]);
    let gateway = before(&llama, &keys).await;
    let caller = gateway.caller().await.ask(chat("a").key("sk-alice")).await;
    eventually!(llama.counted() == 1);
    let usage = async || gateway.send(get("/v1/usage").key("sk-alice")).await.json();
    assert_eq!(usage().await["limits"]["concurrent"]["now"], 1);
    drop(caller);
    let left = Instant::now();
    eventually!(usage().await["limits"]["concurrent"]["now"] == 0);
    assert!(left.elapsed() < Duration::from_secs(1), "the count goes on for 2 s: {:?}", left.elapsed());
    let disconnects =
        async |phase| gateway.scrape().await.sum("ai_gateway_client_disconnects_total", &[("phase", phase)]);
    assert_eq!((disconnects("waiting").await, disconnects("sending").await), (1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prompt_of_twins_is_counted_once() {
    let llama = scripted().holds_counts().start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {tokens: 300/day}")]);
    let gateway = before(&llama, &keys).await;
    let twin = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 299});
    let mut callers = Vec::new();
    for _ in 0..20 {
        let request = post("/v1/chat/completions").json(&twin).key("sk-alice");
        callers.push(gateway.caller().await.ask(request).await);
    }
    eventually!(gateway.scrape().await.sum("ai_gateway_flight_followers", &[]) == 19.0);
    llama.release_all();
    for caller in callers {
        assert_eq!(caller.answering("POST").await.status, 429);
    }
    assert_eq!(llama.counted(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_taken_before_the_body_even_where_models_are_limited() {
    let llama = scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {concurrent: 1}")]);
    let model = "models: {tiny: {upstream: local, limits: {requests: 1000/h, concurrent: 3}}}\n";
    let gateway = gateway::before(&llama).yaml(&(keys + model)).unprobed().start().await;
    let mut callers = Vec::new();
    for _ in 0..20 {
        let mut caller = gateway.caller().await;
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-alice\r\n\
            expect: 100-continue\r\ncontent-length: 2097152\r\n\r\n";
        caller.send_raw(head.as_bytes()).await;
        callers.push(caller);
    }
    let refused = async || gateway.scrape().await.sum("ai_gateway_limit_refusals_total", &[]);
    eventually!(refused().await == 19.0);
    drop(callers);
    eventually!(gateway.send(chat("b").key("sk-alice")).await.status == 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_plain_answer_is_charged_what_it_says() {
    let word: &'static str = "x".repeat(2 << 20).leak();
    let llama = scripted().streams([word, "!", "!", "!"]).start().await;
    let gateway = before(&llama, &tokens("1000/day")).await;
    let answer = gateway.send(chat("x").key("sk-alice")).await;
    let line = gateway.line_of(answer.request_id()).await;
    assert_eq!((answer.status, line.number("completion_tokens")), (200, 4), "{line:?}");
    let used = line.number("completion_tokens") + line.number("prompt_tokens");
    assert_eq!(left(&gateway).await, 1000 - used);
    // It does not fit where the bodies have no room for it, and then what was reserved is what counts.
    let gateway = before(&llama, &(tokens("1000/day") + "body: {max: 1MiB, total: 1MiB}\n")).await;
    let answer = gateway.send(chat("x").key("sk-alice")).await;
    let line = gateway.line_of(answer.request_id()).await;
    assert!(line.fields["completion_tokens"].is_null(), "{line:?}");
    assert!(left(&gateway).await <= 1000 - 256);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_another_kind_of_server_is_asked_for_its_usage_and_its_caller_is_not_told() {
    let event = |choices: &str, usage: &str| {
        format!("data: {{\"object\":\"chat.completion.chunk\",\"choices\":{choices},\"usage\":{usage}}}\n\n")
    };
    let said = event("[{\"index\":0,\"delta\":{\"content\":\"Hi\"},\"finish_reason\":\"stop\"}]", "null");
    let usage = event("[]", "{\"prompt_tokens\":5,\"completion_tokens\":30,\"total_tokens\":35}");
    let done = "data: [DONE]\n\n";
    let llama = scripted().events([said.as_str(), usage.as_str(), done]).start().await;
    let gateway = gateway::before(&llama).upstream("kind: openai").yaml(&tokens("1000/day")).start().await;
    let stream = |options: &Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "a"}], "stream": true});
        body.as_object_mut().expect("an object").extend(options.as_object().expect("an object").clone());
        post("/v1/chat/completions").json(&body).key("sk-alice")
    };
    let answer = gateway.send(stream(&json!({}))).await;
    assert_eq!((answer.status, answer.text()), (200, format!("{said}{done}")));
    let asked: Value = serde_json::from_str(&llama.last().text()).expect("JSON");
    assert_eq!(asked["stream_options"], json!({"include_usage": true}));
    assert_eq!(left(&gateway).await, 1000 - 35);
    // What is kept is what the caller got, and who asks for the usage gets it.
    assert_eq!(gateway.send(stream(&json!({}))).await.text(), format!("{said}{done}"));
    let told = gateway.send(stream(&json!({"stream_options": {"include_usage": true}}))).await;
    assert_eq!((told.cache(), told.text()), ("miss", format!("{said}{usage}{done}")));
    // Where nothing counts tokens the request is not changed.
    let gateway = gateway::before(&llama).upstream("kind: openai").start().await;
    let body = r#"{"stream": true, "messages": []}"#;
    let answer = gateway.send(post("/v1/chat/completions").body(body)).await;
    assert_eq!((answer.text(), llama.last().text()), (format!("{said}{usage}{done}"), body.to_owned()));
}
