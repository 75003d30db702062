//! Where the servers of a model cannot answer, another model does, as if it had been asked for.

use serde_json::{Value, json};

use crate::support::client::{Answer, Request, post};
use crate::support::expect::{auth, refused};
use crate::support::gateway::{self, Gateway, UNPROBED};
use crate::support::llama::{Llama, scripted};

const MODELS: &str = "models:\n  large: {upstream: one, as: big, fallback: [secret, small]}\n  \
                      secret: {upstream: two}\n  small: {upstream: two, as: tiny, request: {set: {top_k: 7}}}\n";

/// Two upstreams of one server each; the first with more settings.
async fn before_two(one: &Llama, two: &Llama, first: &str, second: &str, rest: &str) -> Gateway {
    let upstream = |name: &str, llama: &Llama, more: &str| {
        let health = if more.contains("health:") { String::new() } else { format!(", {UNPROBED}") };
        format!("  {name}: {{servers: [{{url: {}}}]{health}{more}}}\n", llama.url())
    };
    let yaml =
        format!("upstreams:\n{}{}{MODELS}{rest}", upstream("one", one, first), upstream("two", two, second));
    gateway::before(one).yaml(&yaml).start().await
}

fn ask(model: &str, text: &str) -> Request {
    ask_unnamed(model, text).key("sk-alice")
}

fn ask_unnamed(model: &str, text: &str) -> Request {
    let messages = json!([{"role": "user", "content": text}]);
    post("/v1/chat/completions").json(&json!({"model": model, "messages": messages}))
}

/// Alice may not use the first fallback.
fn keys() -> String {
    auth(&[("alice", "sk-alice", "models: [large, small]"), ("bob", "sk-bob", "")])
}

fn arrived(llama: &Llama, member: &str) -> Value {
    serde_json::from_str::<Value>(&llama.last().text()).expect("JSON")[member].clone()
}

fn model_at(llama: &Llama) -> Value {
    arrived(llama, "model")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_read_before_is_read_again_for_a_fallback() {
    let (one, two) = (scripted().start().await, scripted().start().await);
    let gateway = before_two(&one, &two, "", "", &keys()).await;
    for cache in ["miss", "hit", "hit"] {
        assert_eq!(gateway.send(ask("large", "hi")).await.cache(), cache);
    }
    one.dies().await;
    let answer = gateway.send(ask("large", "hi").header("cache-control", "no-cache")).await;
    assert_eq!((answer.status, model_at(&two), arrived(&two, "top_k")), (200, json!("tiny"), json!(7)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_model_answers_as_if_it_had_been_asked_for() {
    let (one, two) = (scripted().start().await, scripted().start().await);
    let health = ", health: {every: 50ms, timeout: 2s, down_after: 2, up_after: 1}";
    let gateway = before_two(&one, &two, health, "", &keys()).await;
    one.dies().await;
    let answer = gateway.send(ask("large", "hi")).await;
    assert_eq!((answer.status, answer.cache()), (200, "miss"), "{answer:?}");
    assert_eq!((two.requests(), model_at(&two)), (1, json!("tiny")), "the one that alice may use");
    assert_eq!(arrived(&two, "top_k"), 7, "and what the file decides for it");
    let line = gateway.line_of(answer.request_id()).await;
    let told = ["model_requested", "model", "upstream", "server"].map(|field| line.text(field).to_owned());
    assert_eq!(told[..3], ["large", "tiny", "two"]);
    assert_eq!(told[3], two.url().trim_start_matches("http://"));
    let scrape = gateway.scrape().await;
    let labels = [("model", "large"), ("fallback", "small")];
    assert_eq!(scrape.sum("ai_gateway_fallbacks_total", &labels), 1.0);
    assert!(scrape.has("ai_gateway_requests_total", &[("model", "tiny"), ("upstream", "two")]));

    // It is kept as the answer of the model that gave it …
    let hit = gateway.send(ask("small", "hi")).await;
    assert_eq!((hit.cache(), hit.body == answer.body, two.requests()), ("hit", true, 1));
    // … which is found by who falls back to that once more …
    eventually!(gateway.scrape().await.sum("ai_gateway_server_up", &[("upstream", "one")]) == 0.0);
    let again = gateway.send(ask("large", "hi")).await;
    assert_eq!((again.status, again.cache(), two.requests()), (200, "hit", 1));
    assert_eq!(gateway.line_of(again.request_id()).await.text("model"), "tiny");
    // … and the model that was asked for is tried first again.
    one.comes_back().await;
    eventually!(gateway.scrape().await.sum("ai_gateway_server_up", &[("upstream", "one")]) == 1.0);
    let own = gateway.send(ask("large", "hi")).await;
    assert_eq!((own.status, one.requests(), two.requests()), (200, 1, 1));
    assert_eq!((model_at(&one), arrived(&one, "top_k")), (json!("big"), Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn fallbacks_are_asked_in_their_order() {
    let (one, two) = (scripted().start().await, scripted().start().await);
    let gateway = before_two(&one, &two, "", "", &keys()).await;
    one.dies().await;
    assert_eq!(gateway.send(ask_unnamed("large", "hi").key("sk-bob")).await.status, 200);
    assert_eq!(model_at(&two), "secret");
    two.becomes(scripted().dies_at_once());
    // What the model that was asked for met is told.
    let answer = gateway.send(ask("large", "nobody")).await;
    refused(&answer, 502, "upstream_error");
    assert!(answer.text().contains("could not be reached"), "{answer:?}");
    let line = gateway.line_of(answer.request_id()).await;
    assert_eq!((line.text("model"), line.text("upstream")), ("big", "one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_and_a_long_wait_lead_on() {
    for queue in [", queue: {waiting: 0}", ", queue: {wait: 100ms}"] {
        let (one, two) = (scripted().slots(1).holds().start().await, scripted().start().await);
        let gateway = before_two(&one, &two, queue, "", "").await;
        let busy = gateway.caller().await.ask(ask("large", "first")).await;
        eventually!(one.requests() == 1);
        let answer = gateway.send(ask("large", "second")).await;
        assert_eq!((answer.status, one.requests(), two.requests()), (200, 1, 1), "{queue}");
        one.release_all();
        assert_eq!(busy.answering("POST").await.finish().await.0.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_before_its_answer_goes_on_and_what_timed_out_does_not() {
    let scripts =
        [(scripted().dies_at_once(), 2), (scripted().garbage(), 2), (scripted().api_key("sk-other"), 0)];
    for (script, tries) in scripts {
        let (one, two) = (script.start().await, scripted().start().await);
        let gateway = before_two(&one, &two, "", "", "").await;
        for text in ["a", "b"] {
            let body = format!("{text}{}", "x".repeat(200 << 10));
            let answer = gateway.send(ask("large", &body)).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let arrived: Value = serde_json::from_str(&two.last().text()).expect("the whole body");
            assert_eq!(arrived["messages"][0]["content"], body.as_str());
        }
        assert_eq!(two.requests(), 2);
        assert!(tries == 0 || one.requests() == 2 * tries, "{}", one.requests());
    }
    let (one, two) = (scripted().holds().start().await, scripted().start().await);
    let gateway = before_two(&one, &two, ", timeouts: {first_byte: 100ms}", "", "").await;
    refused(&gateway.send(ask("large", "hi")).await, 504, "upstream_timeout");
    assert_eq!(two.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_broke_a_server_of_each_model_goes_no_further() {
    let (one, two) = (scripted().dies_at_once().start().await, scripted().dies_at_once().start().await);
    let gateway = before_two(&one, &two, "", "", "").await;
    for _ in 0..2 {
        let answer = gateway.send(ask("large", "poison")).await;
        refused(&answer, 502, "upstream_error");
        assert_eq!(answer.header("x-should-retry"), Some("false"));
    }
    assert_eq!((one.requests(), two.requests()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_that_speaks_another_protocol_is_no_fallback() {
    let (one, two) = (scripted().start().await, scripted().start().await);
    let gateway = before_two(&one, &two, "", ", kind: openai", "").await;
    one.dies().await;
    let prompt = |path: &str| post(path).json(&json!({"model": "large", "prompt": "a"}));
    refused(&gateway.send(prompt("/completion")).await, 502, "upstream_error");
    assert_eq!(gateway.send(prompt("/v1/completions")).await.status, 200);
    let tokens = post("/tokenize").json(&json!({"model": "large", "content": "a"}));
    refused(&gateway.send(tokens).await, 502, "upstream_error");
    assert_eq!(two.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_gets_the_fallbacks_answer_too() {
    let (one, two) = (scripted().slots(1).holds().start().await, scripted().start().await);
    let gateway = before_two(&one, &two, ", queue: {wait: 1500ms}", "", "").await;
    let busy = gateway.caller().await.ask(ask("large", "first")).await;
    eventually!(one.requests() == 1);
    let leader = gateway.caller().await.ask(ask("large", "both")).await;
    eventually!(gateway.stats().await["queue"] == 1);
    let follower = gateway.send(ask("large", "both")).await;
    let (answer, _) = leader.answering("POST").await.finish().await;
    assert_eq!((answer.status, follower.status, two.requests()), (200, 200, 1));
    assert_eq!((answer.body == follower.body, follower.cache()), (true, "shared"));
    for answer in [&answer, &follower] {
        let line = gateway.line_of(answer.request_id()).await;
        let told = ["model_requested", "model", "upstream"].map(|field| line.text(field).to_owned());
        assert_eq!(told, ["large", "secret", "two"]);
    }
    one.release_all();
    assert_eq!(busy.answering("POST").await.finish().await.0.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_answer_that_is_made_of_a_stream_falls_back_before_it_has_begun_and_not_after() {
    let (one, two) = (scripted().dies_at_once().start().await, scripted().start().await);
    let gateway = before_two(&one, &two, ", streamed: always", "", "").await;
    let answer = gateway.send(ask("large", "hi")).await;
    assert_eq!((answer.status, arrived(&two, "stream")), (200, json!(true)));
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "Hello");
    assert_eq!(gateway.send(ask("secret", "hi")).await.cache(), "hit");
    one.becomes(scripted().dies_after(1));
    refused(&gateway.send(ask("large", "cut")).await, 502, "upstream_error");
    assert_eq!(two.requests(), 1);
}

/// Two callers of one question wait for the one slot of its model, and are told after a while: then `first` falls back.
async fn wait_in_vain(gateway: &Gateway, one: &Llama, first: Request, second: Request) -> [Answer; 2] {
    let busy = gateway.caller().await.ask(ask("large", "first")).await;
    eventually!(one.requests() == 1);
    let leader = gateway.caller().await.ask(first).await;
    eventually!(gateway.stats().await["queue"] == 1);
    let second = gateway.send(second).await;
    let (first, _) = leader.answering("POST").await.finish().await;
    one.release_all();
    assert_eq!(busy.answering("POST").await.finish().await.0.status, 200);
    [first, second]
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_use_a_fallback_does_not_get_its_answer_from_another_key_nor_keeps_it_from_that() {
    let keys = auth(&[("alice", "sk-alice", ""), ("bob", "sk-bob", "models: [large]")]);
    let rest = keys + "cache: {scope: gateway}\n";
    for alice_leads in [true, false] {
        let (one, two) = (scripted().slots(1).holds().start().await, scripted().start().await);
        let gateway = before_two(&one, &two, ", queue: {wait: 1s}", "", &rest).await;
        let [alice, bob] = ["sk-alice", "sk-bob"].map(|key| ask_unnamed("large", "both").key(key));
        let (first, second) = if alice_leads { (alice, bob) } else { (bob, alice) };
        let mut answers = wait_in_vain(&gateway, &one, first, second).await;
        if !alice_leads {
            answers.reverse();
        }
        assert_eq!(answers[0].status, 200, "{answers:?}");
        refused(&answers[1], 503, "queue_timeout");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_gets_a_kept_answer_in_the_form_that_it_asked_for() {
    let (one, two) = (scripted().slots(1).holds().start().await, scripted().start().await);
    let gateway = before_two(&one, &two, ", streamed: always, queue: {wait: 1s}", "", "").await;
    assert_eq!(gateway.send(ask("secret", "both")).await.status, 200);
    let stream = json!({"model": "large", "messages": [{"role": "user", "content": "both"}], "stream": true,
        "stream_options": {"include_usage": true}});
    let stream = post("/v1/chat/completions").json(&stream);
    let [leader, follower] = wait_in_vain(&gateway, &one, ask("large", "both"), stream).await;
    assert_eq!((leader.status, leader.cache(), follower.cache()), (200, "hit", "shared"));
    assert_eq!(follower.header("content-type"), Some("text/event-stream"), "{follower:?}");
    assert!(follower.text().ends_with("data: [DONE]\n\n"), "{follower:?}");
    assert_eq!(two.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_use_a_fallbacks_answer_asks_for_its_own_model_and_is_written_down_as_that() {
    let (one, two) = (scripted().slots(1).holds().start().await, scripted());
    let two = two.answers(r#"{"odd": 1}"#).slow_start().start().await;
    let gateway = before_two(&one, &two, ", queue: {wait: 200ms}", "", "").await;
    let busy = gateway.caller().await.ask(ask("large", "first")).await;
    eventually!(one.requests() == 1);
    let leader = gateway.caller().await.ask(ask("large", "both")).await;
    eventually!(two.requests() == 1);
    let stream = json!({"model": "large", "messages": [{"role": "user", "content": "both"}], "stream": true});
    let follower = gateway.caller().await.ask(post("/v1/chat/completions").json(&stream)).await;
    eventually!(gateway.scrape().await.sum("ai_gateway_flight_followers", &[]) == 1.0);
    one.release_all();
    assert_eq!(busy.answering("POST").await.finish().await.0.status, 200);
    two.release_all();
    assert_eq!(leader.answering("POST").await.finish().await.0.text(), r#"{"odd": 1}"#);
    let (answer, _) = follower.answering("POST").await.finish().await;
    assert_eq!((answer.status, one.requests()), (200, 2), "{answer:?}");
    let line = gateway.line_of(answer.request_id()).await;
    assert_eq!((line.text("model"), line.text("upstream")), ("big", "one"));
}
