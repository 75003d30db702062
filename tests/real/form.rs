//! One entry, both forms, with what a real llama-server says in each.

use super::caller::post;
use super::stage::{Gateway, Llama, Model};
use super::{CHAT, Value, chat, json, protocols, with};

/// An answer without what differs between two generations of the same text.
pub(crate) fn told(mut answer: Value) -> Value {
    const OWN: [&str; 14] = [
        "id",
        "item_id",
        "call_id",
        "created",
        "created_at",
        "completed_at",
        "timings",
        "id_slot",
        "cached_tokens",
        "cache_read_input_tokens",
        "input_tokens",
        "tokens",
        "tokens_cached",
        "time_ms",
    ];
    match &mut answer {
        Value::Object(members) => {
            members.retain(|name, _| !OWN.contains(&name.as_str()));
            members.values_mut().for_each(|value| *value = told(value.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = told(item.take())),
        _ => {}
    }
    answer
}

fn events(stream: &str) -> Vec<Value> {
    stream.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect()
}

/// What a stream says in words, in whatever pieces, and its last event that is not its end mark.
fn gist(stream: &str) -> (String, Value) {
    let events = events(stream);
    let places = ["/choices/0/delta/content", "/choices/0/text", "/delta/text", "/delta", "/content"];
    let word = |event: &Value| {
        let found = places.iter().find_map(|place| event.pointer(place).and_then(Value::as_str));
        found.unwrap_or_default().to_owned()
    };
    (events.iter().map(word).collect(), told(events.last().cloned().unwrap_or_default()))
}

#[test]
fn a_stream_answers_plain_requests_as_the_server_would() {
    let llama = Llama::start(Model::Smol);
    let gateway = Gateway::before(&llama);
    for (path, body) in protocols() {
        let body = with(body, json!({"temperature": 0, "top_k": 1}));
        let body: Value = serde_json::from_str(&body).expect("an object");
        let stream = post(gateway.at, path, &with(body.clone(), json!({"stream": true})));
        let plain = post(gateway.at, path, &body.to_string());
        assert_eq!(
            (stream.header("x-cache"), plain.header("x-cache")),
            ("miss", "hit"),
            "{path}: {}",
            stream.body
        );
        let direct = post(llama.at, path, &body.to_string());
        assert_eq!(told(plain.json()), told(direct.json()), "{path}");
        assert_eq!(plain.header("content-type"), direct.header("content-type"));
    }
}

#[test]
fn a_plain_answer_answers_streams_as_the_server_would() {
    let llama = Llama::start(Model::Smol);
    let gateway = Gateway::before(&llama);
    for (path, body) in protocols() {
        let body = with(body, json!({"temperature": 0, "top_k": 1}));
        let body: Value = serde_json::from_str(&body).expect("an object");
        let streamed = with(body.clone(), json!({"stream": true}));
        let plain = post(gateway.at, path, &body.to_string());
        let stream = post(gateway.at, path, &streamed);
        assert_eq!(
            (plain.header("x-cache"), stream.header("x-cache")),
            ("miss", "hit"),
            "{path}: {}",
            plain.body
        );
        let direct = post(llama.at, path, &streamed);
        assert_eq!(gist(&stream.body), gist(&direct.body), "{path}");
        assert_eq!(stream.header("content-type"), direct.header("content-type"));
    }
}

#[test]
fn logprobs_and_usage_survive_the_change_of_form() {
    let llama = Llama::start(Model::Smol);
    let gateway = Gateway::before(&llama);
    let extras = json!({"logprobs": true, "top_logprobs": 2});
    let body = with(chat("Name three colours."), extras);
    let body: Value = serde_json::from_str(&body).expect("an object");
    let with_usage = with(body.clone(), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let stream = post(gateway.at, CHAT, &with_usage);
    let plain = post(gateway.at, CHAT, &body.to_string());
    assert_eq!((stream.header("x-cache"), plain.header("x-cache")), ("miss", "hit"), "{}", stream.body);
    let direct = post(llama.at, CHAT, &body.to_string());
    assert_eq!(told(plain.json()), told(direct.json()));
    let without = post(gateway.at, CHAT, &with(body, json!({"stream": true})));
    assert_eq!(without.header("x-cache"), "hit");
    let told_usage = |stream: &str| events(stream).iter().filter(|event| event["usage"].is_object()).count();
    assert_eq!((told_usage(&stream.body) > 0, told_usage(&without.body)), (true, 0));
}
