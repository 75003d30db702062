//! `streamed: always`: a plain answer that the server made as a stream is the same answer, and whoever leaves is gone.
//! And `models.*.request`: what callers do not decide.

use serde_json::{Value, json};

use crate::support::client::{Request, post};
use crate::support::expect::{auth, refused};
use crate::support::gateway::{self, Gateway, Plan, chat};
use crate::support::llama::{Llama, scripted};

const GENERATED: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/completion"];

fn asked(path: &str) -> Request {
    post(path).json(&json!({"model": "tiny", "max_tokens": 16, "prompt": "x", "input": "x",
        "messages": [{"role": "user", "content": "x"}]}))
}

fn always(llama: &Llama) -> Plan {
    gateway::before(llama).upstream("streamed: always")
}

fn arrived(llama: &Llama) -> Value {
    serde_json::from_str(&llama.last().text()).expect("JSON")
}

/// Without what llama-server tells in streams alone, unless it is asked to (`return_tokens`).
fn untokened(mut answer: Value) -> Value {
    answer.as_object_mut().expect("an object").remove("tokens");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_answer_made_as_a_stream_is_the_same_answer() {
    for path in GENERATED {
        let (direct, llama) = (scripted().start().await, scripted().start().await);
        let expected = gateway::before(&direct).start().await.send(asked(path)).await;
        for cache in ["", "cache: {size: 0B}\n"] {
            let gateway = always(&llama).yaml(cache).start().await;
            let answer = gateway.send(asked(path)).await;
            assert_eq!((answer.status, answer.whole), (200, true), "{path}: {answer:?}");
            let length = answer.body.len().to_string();
            assert_eq!(answer.header("content-length"), Some(length.as_str()), "{path}");
            assert_eq!(answer.header("content-type"), expected.header("content-type"), "{path}");
            assert!(answer.header("transfer-encoding").is_none() && answer.header("x-elapsed-ms").is_some());
            assert_eq!(arrived(&llama)["stream"], true, "{path}");
            if cache.is_empty() {
                assert_eq!(untokened(answer.json()), untokened(expected.json()), "{path}");
                let again = gateway.send(asked(path)).await;
                assert_eq!((again.cache(), again.json()), ("hit", answer.json()), "{path}");
            }
            let line = gateway.line_of(answer.request_id()).await;
            assert_eq!(
                (line.number("completion_tokens"), &line.fields["stream"]),
                (2, &json!(false)),
                "{path}"
            );
            assert_eq!(line.number("bytes_out"), answer.body.len() as u64, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_what_generates_nothing_pass_as_they_came() {
    let llama = scripted().start().await;
    let gateway = always(&llama).start().await;
    for (path, body) in [
        ("/completion", r#"{ "stream" : true }"#),
        // Two answers, which no stream tells as one.
        ("/completion", r#"{ "prompt" : "x", "n_cmpl" : 2 }"#),
        ("/v1/embeddings", r#"{ "input" : "x" }"#),
    ] {
        assert_eq!(gateway.send(post(path).body(body)).await.status, 200);
        assert_eq!(llama.last().text(), body, "byte for byte");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_refusal_passes_unchanged() {
    let llama = scripted().status(400).answers(r#"{"error":{"code":400,"message":"no"}}"#).start().await;
    let gateway = always(&llama).start().await;
    let answer = gateway.send(chat("x")).await;
    assert_eq!((answer.status, answer.text().as_str()), (400, r#"{"error":{"code":400,"message":"no"}}"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_on_the_way_has_its_status_and_is_not_kept() {
    let broken = [
        scripted().streams(["a", "b", "c"]).dies_after(2),
        scripted().streams(["a", "b", "c"]).without_end_mark(),
        scripted()
            .events(["data: {\"error\":{\"code\":500,\"message\":\"x\",\"type\":\"server_error\"}}\n\n"]),
    ];
    for script in broken {
        let llama = script.start().await;
        let gateway = always(&llama).start().await;
        let mut caller = gateway.caller().await;
        refused(&caller.send(chat("x")).await, 502, "upstream_error");
        assert_eq!(llama.requests(), 1, "what was begun is not begun anew");
        llama.becomes(scripted());
        let answer = caller.send(chat("x")).await;
        assert_eq!(answer.status, 200, "the connection is usable");
        assert_ne!(answer.cache(), "hit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_plain_form_is_asked_for_plainly() {
    let odd = "data: {\"object\":\"chat.completion.chunk\",\"choices\":7}\n\ndata: [DONE]\n\n";
    let llama = scripted().events([odd]).start().await;
    let gateway = always(&llama).start().await;
    let answer = gateway.send(chat("x")).await;
    assert_eq!((answer.status, llama.requests()), (200, 2), "{answer:?}");
    assert_eq!(answer.json()["object"], "chat.completion");
    assert!(arrived(&llama).get("stream").is_none(), "as the caller asked");
    let scrape = gateway.scrape().await;
    assert_eq!(scrape.sum("ai_gateway_retries_total", &[("reason", "unrendered")]), 1.0);
    // Each form has an entry of its own, and for a minute the next is asked for plainly at once.
    assert_eq!(gateway.send(chat("x")).await.cache(), "hit");
    let usage = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": true,
        "stream_options": {"include_usage": true}});
    let stream = gateway.send(post("/v1/chat/completions").json(&usage)).await;
    assert_eq!((stream.cache(), stream.text().as_str()), ("hit", odd));
    assert_eq!((gateway.send(chat("y")).await.status, llama.requests()), (200, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn twins_of_any_form_share_one_generation() {
    let llama = scripted().holds().start().await;
    let gateway = always(&llama).start().await;
    let request = |form: &Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body.as_object_mut().expect("an object").extend(form.as_object().expect("an object").clone());
        post("/v1/chat/completions").json(&body)
    };
    let leader = gateway.caller().await.ask(request(&json!({}))).await;
    eventually!(llama.requests() == 1);
    let plain = gateway.caller().await.ask(request(&json!({}))).await;
    let usage = json!({"stream": true, "stream_options": {"include_usage": true}});
    llama.release();
    let mut live = gateway.caller().await.begin(request(&usage)).await;
    let event = live.event().await.unwrap_or_default();
    assert!(event.contains("role"), "who wants what is made follows it live: {event}");
    llama.release_all();
    let (first, _) = leader.answering("POST").await.finish().await;
    let (twin, _) = plain.answering("POST").await.finish().await;
    let (stream, _) = live.finish().await;
    assert_eq!((first.cache(), twin.cache(), stream.cache()), ("miss", "shared", "shared"));
    assert_eq!((first.json(), llama.requests()), (twin.json(), 1));
    assert!(stream.text().contains("[DONE]"));
}

async fn leaves_while_held(gateway: &Gateway, llama: &Llama) {
    let caller = gateway.caller().await.ask(chat("x")).await;
    llama.release();
    llama.release();
    eventually!(llama.requests() == 1);
    let left = caller.leaves();
    eventually!(!llama.cancelled().is_empty());
    let took = llama.cancelled()[0] - left;
    assert!(took < std::time::Duration::from_millis(100), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_while_its_plain_answer_is_made_is_gone_at_once() {
    let llama = scripted().streams(["a", "b", "c", "d"]).holds().start().await;
    let gateway = always(&llama).start().await;
    leaves_while_held(&gateway, &llama).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_settled_by_what_the_stream_tells() {
    let llama = scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {tokens: 1000/day}")]);
    let gateway = always(&llama).yaml(&keys).start().await;
    let answer = gateway.send(chat("x").key("sk-alice")).await;
    let line = gateway.line_of(answer.request_id()).await;
    let used = line.number("prompt_tokens") + line.number("completion_tokens");
    let next = gateway.send(chat("x").key("sk-alice")).await;
    let left = (1000 - used).to_string();
    assert_eq!(next.header("x-ratelimit-remaining-tokens"), Some(left.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_do_not_decide_what_the_operator_has() {
    let llama = scripted().start().await;
    let models = "models:\n  tiny: {upstream: local}\n  tuned: {upstream: local, as: tiny, request: {set: {top_k: 40, \
        grammar: 'root ::= \"x\"', stop: [a, 1]}, default: {temperature: 0.7}, remove: [logit_bias], max_tokens: 8}}\n";
    let gateway = gateway::before(&llama).yaml(models).start().await;
    let body = r#"{"model": "tuned", "top_k": 1, "logit_bias": {"1": 2}, "x": 1.10, "max_tokens": 9, "messages": []}"#;
    let answer = gateway.send(post("/v1/chat/completions").body(body)).await;
    let sent = r#"{"model":"tiny","top_k":40,"x":1.10,"max_tokens":8,"messages":[],"grammar":"root ::= \"x\"","stop":["a",1],"temperature":0.7}"#;
    assert_eq!((answer.status, llama.last().text().as_str()), (200, sent));
    // What comes to the same is the same question; what another model is asked is another.
    let same = r#"{"model": "tuned", "x": 1.1, "max_tokens": 100, "temperature": 0.7, "messages": []}"#;
    assert_eq!(gateway.send(post("/v1/chat/completions").body(same)).await.cache(), "hit");
    let plain = r#"{"model":"tiny", "messages": []}"#;
    assert_eq!(gateway.send(post("/v1/chat/completions").body(plain)).await.status, 200);
    assert_eq!(llama.last().text(), plain);
    // What generates nothing has nothing to decide.
    let embed = r#"{"model": "tuned", "input": "x"}"#;
    assert_eq!(gateway.send(post("/v1/embeddings").body(embed)).await.status, 200);
    assert_eq!(llama.last().text(), r#"{"model": "tiny", "input": "x"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_gives_no_streams_is_asked_once() {
    let body = r#"{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"}}]}"#;
    let script = || scripted().events([body]).with_length().content_type("application/json");
    let llama = script().start().await;
    let gateway = always(&llama).start().await;
    for cache in ["miss", "hit"] {
        let answer = gateway.send(chat("a")).await;
        assert_eq!((answer.cache(), answer.text().as_str(), llama.requests()), (cache, body, 1));
    }
    llama.becomes(script().slow_start());
    let leader = gateway.caller().await.ask(chat("b")).await;
    eventually!(llama.requests() == 2);
    let follower = gateway.caller().await.ask(chat("b")).await;
    eventually!(gateway.scrape().await.sum("ai_gateway_flight_followers", &[]) == 1.0);
    llama.release_all();
    for caller in [leader, follower] {
        assert_eq!(caller.answering("POST").await.finish().await.0.text(), body);
    }
    assert_eq!(llama.requests(), 2);
}
