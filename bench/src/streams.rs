//! A stream of 200 events, as it passes and as a hit: its usage read, and rendered into the other forms.

use std::fmt::Write;
use std::hint::black_box;

use ai_gateway::cache::render::render;
use ai_gateway::cache::{Dialect, Form};
use ai_gateway::wire::{Protocol, Watch};
use serde_json::json;

use crate::{Part, Work};

const EVENTS: usize = 200;
const STREAM: Form = Form::Stream { include_usage: false };
const WITH_USAGE: Form = Form::Stream { include_usage: true };

pub(crate) fn parts() -> Vec<Part> {
    vec![
        Part::new("stream/watched", 20, watched),
        Part::new("stream/as plain", 5, || rendered(STREAM, Form::Plain)),
        Part::new("stream/with usage", 5, || rendered(STREAM, WITH_USAGE)),
        Part::new("plain/as stream", 5, || rendered(Form::Plain, STREAM)),
    ]
}

/// Each event comes by itself, as it does from a server.
fn watched() -> Work {
    let stream = stream();
    Box::new(move || {
        let mut watch = Watch::new(Protocol::OpenAi);
        black_box(&stream).split_inclusive("\n\n").for_each(|event| watch.feed(event.as_bytes()));
        assert!(watch.ended() && watch.usage.completion_tokens == Some(EVENTS as u64));
        black_box(watch);
    })
}

fn rendered(from: Form, to: Form) -> Work {
    let stream = stream();
    let body = match from {
        Form::Plain => {
            render(Dialect::Chat, STREAM, stream.as_bytes(), Form::Plain).expect("a plain answer").into()
        }
        Form::Stream { .. } => stream.into_bytes(),
    };
    Box::new(move || {
        black_box(render(Dialect::Chat, from, black_box(&body), to).expect("a rendering"));
    })
}

/// As llama-server writes it.
fn stream() -> String {
    let mut stream = String::new();
    let mut event = |delta: serde_json::Value, finish: Option<&str>| {
        let mut chunk = json!({
            "choices": [{"finish_reason": finish, "index": 0, "delta": delta}], "created": 1_790_000_000,
            "id": "chatcmpl-0123456789abcdefghijklmnopqrstuv", "model": "bench", "system_fingerprint": "b1-bench",
            "object": "chat.completion.chunk",
        });
        if finish.is_some() {
            chunk["timings"] = json!({"cache_n": 8, "prompt_n": 24, "prompt_ms": 12.5, "prompt_per_token_ms": 0.52,
                "prompt_per_second": 1920.0, "predicted_n": EVENTS, "predicted_ms": 2000.0,
                "predicted_per_token_ms": 10.0, "predicted_per_second": 100.0});
        }
        // Writing to a string cannot fail.
        let _ = write!(stream, "data: {chunk}\n\n");
    };
    event(json!({"role": "assistant", "content": null}), None);
    (0..EVENTS).for_each(|number| event(json!({"content": format!(" word{number}")}), None));
    event(json!({}), Some("stop"));
    stream + "data: [DONE]\n\n"
}
