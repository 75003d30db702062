//! `streamed: always` before a real llama-server: the same plain answers, and a slot that is free at once.

use std::time::{Duration, Instant};

use super::caller::{Reply, post};
use super::form::told;
use super::stage::{Gateway, Llama, Model, eventually};
use super::{CHAT, Value, chat, json, protocols, with};

fn always(llama: &Llama) -> Gateway {
    let server = format!("{{servers: [{{url: \"http://{}\"}}], streamed: always}}", llama.at);
    Gateway::of(&format!("upstreams: {{local: {server}}}\ncache: {{size: 0B}}\n"))
}

#[test]
fn plain_answers_are_those_that_the_server_gives_plainly() {
    let llama = Llama::start(Model::Smol);
    let gateway = always(&llama);
    let several = json!({"n": 1, "logprobs": true, "top_logprobs": 2});
    let extra = serde_json::from_str(&with(chat("Name three colours."), several)).expect("an object");
    for (path, body) in protocols().into_iter().chain([(CHAT, extra)]) {
        let body = with(body, json!({"temperature": 0, "top_k": 1}));
        let (made, direct) = (post(gateway.at, path, &body), post(llama.at, path, &body));
        assert_eq!((made.status, made.header("x-cache")), (200, "bypass"), "{path}: {}", made.body);
        assert_eq!(told(made.json()), told(direct.json()), "{path}");
        assert_eq!(made.header("content-type"), direct.header("content-type"));
    }
}

#[test]
fn who_leaves_a_plain_answer_beside_a_stream_frees_its_slot() {
    let llama = Llama::with_slots(Model::Smol, 2);
    let gateway = always(&llama);
    let long: Value = json!({"max_tokens": 2000, "ignore_eos": true});
    let stream = with(chat("And another."), json!({"max_tokens": 2000, "ignore_eos": true, "stream": true}));
    let mut beside = Reply::to(llama.at, "POST", CHAT, &stream);
    assert!(beside.event().is_some());
    let waiting = super::caller::send(gateway.at, CHAT, &with(chat("Tell me a story."), long));
    eventually("both slots are busy", || llama.slots_busy() == 2);
    drop(waiting);
    let left = Instant::now();
    eventually("one is free again", || llama.slots_busy() == 1);
    assert!(left.elapsed() < Duration::from_secs(2), "{:?}", left.elapsed());
}
