//! Plays with a real llama-server: what the gateway promises, held against what llama.cpp really does.
//!
//! Each starts a server and a gateway of its own. `make test` installs what they need and names it in the environment
//! (`LLAMA_PYTHON`, `LLAMA_MODEL`); without that they fail rather than be skipped, since a green run should mean that
//! they ran. A gateway without a file admits ten requests at once, so no play sends one gateway more.

#![expect(clippy::disallowed_methods, reason = "tests read the clock and the environment themselves")]

mod caller;
mod fleet;
mod form;
mod turned;
mod stage;
mod token;
mod upgrade;

use std::time::{Duration, Instant};

use caller::{Reply, get, post};
use serde_json::{Value, json};
use stage::{Gateway, Llama, Model, eventually, within};

const CHAT: &str = "/v1/chat/completions";

fn chat(question: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}], "max_tokens": 24, "temperature": 0.8, "seed": 7})
}

fn with(mut body: Value, members: Value) -> String {
    let Value::Object(members) = members else { panic!("members are an object") };
    body.as_object_mut().expect("a body is an object").extend(members);
    body.to_string()
}

/// An answer without what differs between two generations of the same text, and nothing else: names that the server
/// draws at random, the hour, and how long it took.
fn masked(body: &str) -> String {
    const DRAWN: [&str; 2] = ["id", "item_id"];
    const HOURS: [&str; 3] = ["created", "created_at", "completed_at"];
    const TIMES: [&str; 7] = [
        "prompt_ms",
        "prompt_per_token_ms",
        "prompt_per_second",
        "predicted_ms",
        "predicted_per_token_ms",
        "predicted_per_second",
        "time_ms",
    ];
    let mut text = body.to_owned();
    for name in DRAWN.iter().chain(&HOURS).chain(&TIMES) {
        let key = format!("\"{name}\":");
        let mut parts = text.split(&key);
        let mut result = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find([',', '}']).unwrap_or(part.len());
            result.push_str(&key);
            result.push('…');
            result.push_str(&part[end..]);
        }
        text = result;
    }
    text
}

/// The same request straight to the server and through the gateway: the same answer, and it came from the server.
/// Returns its status.
fn assert_same(llama: &Llama, gateway: &Gateway, path: &str, body: &str) -> u16 {
    // Once before, so that both find the same prompt in the server's own cache and count the same tokens as cached.
    post(llama.at, path, body);
    let direct = post(llama.at, path, body);
    let through = post(gateway.at, path, body);
    assert_eq!(masked(&through.body), masked(&direct.body), "{path} {body}");
    assert_eq!(through.status, direct.status, "{path} {body}");
    assert_eq!(through.header("content-type"), direct.header("content-type"), "{path} {body}");
    assert_ne!(through.header("x-cache"), "hit", "{path} {body}");
    through.status
}

/// Every protocol that generates text, with a body that leaves `stream` open.
fn protocols() -> [(&'static str, Value); 5] {
    let messages = json!([{"role": "user", "content": "What does it do?"}]);
    [
        (CHAT, chat("What does it do?")),
        ("/v1/completions", json!({"prompt": "a small", "max_tokens": 24})),
        ("/completion", json!({"prompt": "a small", "n_predict": 24})),
        ("/v1/messages", json!({"model": "tiny", "messages": messages, "max_tokens": 24})),
        ("/v1/responses", json!({"model": "tiny", "input": "What does it do?", "max_output_tokens": 24})),
    ]
}

#[test]
fn plain_answers_pass_byte_for_byte() {
    let llama = Llama::start(Model::Tiny);
    let gateway = Gateway::before(&llama);
    for (path, body) in protocols() {
        assert_eq!(assert_same(&llama, &gateway, path, &with(body, json!({"seed": 1}))), 200);
    }
}

#[test]
fn streams_pass_byte_for_byte() {
    let llama = Llama::start(Model::Tiny);
    let gateway = Gateway::before(&llama);
    for (path, body) in protocols() {
        assert_eq!(assert_same(&llama, &gateway, path, &with(body, json!({"seed": 2, "stream": true}))), 200);
    }
}

#[test]
fn a_real_model_passes_byte_for_byte_with_all_that_can_be_asked_for() {
    let llama = Llama::start(Model::Smol);
    let gateway = Gateway::before(&llama);
    let question = chat("Name three colours.");
    let extras = json!({"logprobs": true, "top_logprobs": 2, "return_progress": true, "timings_per_token": true,
        "stream": true, "stream_options": {"include_usage": true}});
    assert_eq!(assert_same(&llama, &gateway, CHAT, &question.to_string()), 200);
    assert_eq!(assert_same(&llama, &gateway, CHAT, &with(question, extras)), 200);
}

#[test]
fn what_does_not_generate_passes_byte_for_byte() {
    let llama = Llama::start(Model::Tiny);
    let gateway = Gateway::before(&llama);
    let messages = json!({"messages": [{"role": "user", "content": "hi"}]});
    for (path, body) in [
        ("/tokenize", json!({"content": "a small lighthouse, ünd mehr"})),
        ("/detokenize", json!({"tokens": [356, 361, 371]})),
        ("/apply-template", messages.clone()),
        ("/v1/embeddings", json!({"input": ["a small lighthouse", "over the grey harbour"]})),
        ("/embedding", json!({"content": "a small lighthouse"})),
        ("/v1/messages/count_tokens", with_model(messages.clone())),
        ("/v1/chat/completions/input_tokens", messages),
        // More than the 64 KiB that a proxy holds by the way.
        ("/tokenize", json!({"content": "every evening boat comes home ".repeat(4000)})),
        // Not in this server's power: its refusal passes unchanged.
        ("/v1/rerank", json!({"query": "boats", "documents": ["a small lighthouse"]})),
    ] {
        let status = assert_same(&llama, &gateway, path, &body.to_string());
        assert_eq!(status, if path == "/v1/rerank" { 501 } else { 200 }, "{path}");
    }
}

fn with_model(mut body: Value) -> Value {
    body["model"] = json!("tiny");
    body
}

#[test]
fn the_servers_own_refusal_passes_unchanged_and_is_not_kept() {
    let llama = Llama::start(Model::Tiny);
    let gateway = Gateway::before(&llama);
    let too_long = with(chat(&"boat ".repeat(9000)), json!({"stream": true}));
    for _ in 0..2 {
        assert_eq!(assert_same(&llama, &gateway, CHAT, &too_long), 400);
    }
    let answer = post(gateway.at, CHAT, &too_long);
    assert_eq!(answer.json()["error"]["type"], "exceed_context_size_error");
}

#[test]
fn models_names_what_the_server_serves() {
    let llama = Llama::start(Model::Tiny);
    let gateway = Gateway::before(&llama);
    let models = get(gateway.at, "/v1/models");
    assert_eq!(models.status, 200, "{}", models.body);
    let ids: Vec<Value> =
        models.json()["data"].as_array().expect("a list").iter().map(|model| model["id"].clone()).collect();
    assert!(ids.contains(&json!("tiny")), "{ids:?}");
}

#[test]
fn a_hit_is_the_first_answer_and_needs_no_server() {
    let mut llama = Llama::start(Model::Smol);
    let gateway = Gateway::before(&llama);
    for stream in [false, true] {
        let body = with(chat("What is the sea?"), json!({"max_tokens": 48, "seed": 3, "stream": stream}));
        let first = post(gateway.at, CHAT, &body);
        let second = post(gateway.at, CHAT, &body);
        assert_eq!((first.status, second.status), (200, 200));
        assert_eq!(second.header("x-cache"), "hit");
        if !stream {
            // Streamed second, it may have been rendered from the plain answer: one entry may serve both.
            assert_eq!(first.header("x-cache"), "miss");
            assert!(second.took * 5 < first.took, "a hit took {:?}, a miss {:?}", second.took, first.took);
        }
        assert_eq!(second.body, first.body);
        assert_eq!(second.header("content-type"), first.header("content-type"));
    }
    llama.kill();
    let body = with(chat("What is the sea?"), json!({"max_tokens": 48, "seed": 3, "stream": false}));
    assert_eq!(post(gateway.at, CHAT, &body).header("x-cache"), "hit");
}

#[test]
fn an_answer_that_ends_by_itself_says_so_and_is_kept() {
    let llama = Llama::start(Model::Ends);
    let gateway = Gateway::before(&llama);
    let body = with(chat("And then?"), json!({"max_tokens": 100}));
    for expected in ["miss", "hit"] {
        let answer = post(gateway.at, CHAT, &body);
        assert_eq!(answer.header("x-cache"), expected);
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn events_come_as_they_are_made() {
    let llama = Llama::start(Model::Smol);
    let gateway = Gateway::before(&llama);
    let body =
        with(chat("Tell me about ships."), json!({"max_tokens": 64, "ignore_eos": true, "stream": true}));
    let began = Instant::now();
    let mut reply = Reply::to(gateway.at, "POST", CHAT, &body);
    let mut arrivals = Vec::new();
    while let Some(event) = reply.event() {
        if event.contains(r#""content":""#) {
            arrivals.push(began.elapsed());
        }
    }
    // Held back until the end, all would arrive at once. Compared with each other, not with the clock; and a model that
    // shares its machine with others makes some parts of an answer in half the time of the rest.
    assert!(arrivals.len() > 32, "{arrivals:?}");
    let [first, half, last] = [arrivals[0], arrivals[arrivals.len() / 2], arrivals[arrivals.len() - 1]];
    let all = last.saturating_sub(first);
    let is_spread = all * 3 > last && last.saturating_sub(half) * 8 > all;
    assert!(is_spread, "first {first:?}, half {half:?}, last {last:?}");
}

#[test]
fn a_caller_that_leaves_a_stream_frees_the_slot() {
    let llama = Llama::start(Model::Smol);
    let gateway = Gateway::before(&llama);
    // It would go on for more than a thousand tokens: many seconds.
    let body =
        with(chat("Tell me everything."), json!({"max_tokens": 1500, "ignore_eos": true, "stream": true}));
    let mut reply = Reply::to(gateway.at, "POST", CHAT, &body);
    for _ in 0..5 {
        reply.event().expect("the stream has begun");
    }
    assert!(llama.busy());
    drop(reply);
    within(Duration::from_secs(1), "the slot is free", || !llama.busy());
    let again = post(gateway.at, CHAT, &with(chat("Tell me everything."), json!({"max_tokens": 1})));
    assert_eq!((again.status, again.header("x-cache")), (200, "miss"));
}

#[test]
fn callers_of_the_same_share_one_generation_and_the_last_frees_the_slot() {
    let llama = Llama::start(Model::Tiny);
    let gateway = Gateway::before(&llama);
    let body =
        with(chat("Tell me everything."), json!({"max_tokens": 1500, "ignore_eos": true, "stream": true}));
    let mut first = Reply::to(gateway.at, "POST", CHAT, &body);
    let mut begun: Vec<String> = (0..5).map(|_| first.event().expect("the stream has begun")).collect();
    let mut second = Reply::to(gateway.at, "POST", CHAT, &body);
    let joined: Vec<String> = (0..5).map(|_| second.event().expect("what has been so far")).collect();
    assert_eq!((second.header("x-cache"), &joined), ("shared", &begun));
    drop(first);
    begun.extend((0..20).map(|_| second.event().expect("it goes on for the second")));
    assert!(llama.busy());
    drop(second);
    within(Duration::from_secs(1), "the slot is free", || !llama.busy());
}

#[test]
fn a_server_may_start_late() {
    let mut llama = Llama::late(Model::Tiny);
    let gateway = Gateway::before_a_late(&llama);
    let health = get(gateway.at, "/health");
    assert_eq!((health.status, health.json()), (503, json!({"status": "no upstream"})));
    llama.begin();
    eventually("the gateway has noticed", || get(gateway.at, "/health").status == 200);
    assert_eq!(get(gateway.at, "/health").json(), json!({"status": "ok"}));
    assert_eq!(post(gateway.at, CHAT, &chat("hi").to_string()).status, 200);
}

#[test]
fn a_killed_server_gives_502_until_it_is_back() {
    let mut llama = Llama::start(Model::Tiny);
    let gateway = Gateway::before(&llama);
    assert_eq!(post(gateway.at, CHAT, &chat("one").to_string()).status, 200);
    llama.kill();
    let refused = post(gateway.at, CHAT, &chat("two").to_string());
    assert_eq!(refused.status, 502, "{}", refused.body);
    assert_eq!(refused.json()["error"]["code"], "upstream_error");
    llama.begin();
    eventually("the gateway has noticed", || get(gateway.at, "/health").status == 200);
    assert_eq!(post(gateway.at, CHAT, &chat("two").to_string()).status, 200);
}

#[test]
fn a_stream_whose_server_dies_ends_in_an_error_and_is_not_kept() {
    let mut llama = Llama::start(Model::Smol);
    let gateway = Gateway::before(&llama);
    let body = with(chat("Tell me more."), json!({"max_tokens": 1500, "ignore_eos": true, "stream": true}));
    let mut reply = Reply::to(gateway.at, "POST", CHAT, &body);
    for _ in 0..5 {
        reply.event().expect("the stream has begun");
    }
    llama.kill();
    let rest: Vec<String> = std::iter::from_fn(|| reply.event()).collect();
    let last = rest.last().expect("something follows");
    assert!(last.starts_with("data: {\"error\":"), "{last}");
    assert!(!rest.iter().any(|event| event.contains("[DONE]")));

    llama.begin();
    eventually("the gateway has noticed", || get(gateway.at, "/health").status == 200);
    // Until the gateway has asked it again, nothing is kept or looked for.
    let again = Reply::to(gateway.at, "POST", CHAT, &body);
    assert!(again.status == 200 && again.header("x-cache") != "hit", "{}", again.header("x-cache"));
}
