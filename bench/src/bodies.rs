//! A body parsed, and the key of its answer made: both together, since a request that is new pays for both.

use std::hint::black_box;

use ai_gateway::cache::{Dialect, Form, Question, digest};
use ai_gateway::wire::{parse, wants_stream};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::{Part, Work};

const PATH: &str = "/v1/chat/completions";

pub(crate) fn parts() -> Vec<Part> {
    let sizes =
        [("1 KiB", 1, 400), ("4 KiB", 4, 200), ("64 KiB", 64, 40), ("256 KiB", 256, 10), ("1 MiB", 1024, 4)];
    let turns = sizes.map(|(name, kib, times)| {
        Part::new(format!("key/{name}"), times, move || keyed(chat(kib << 10, SHORT)))
    });
    let others = [
        Part::new("key/1 MiB of files", 4, || keyed(chat(1 << 20, FILE))),
        Part::new("key/1 MiB, parsed alone", 4, || parsed(chat(1 << 20, SHORT))),
    ];
    turns.into_iter().chain(others).collect()
}

fn keyed(body: Vec<u8>) -> Work {
    let body = Bytes::from(body);
    Box::new(move || {
        let document = parse(black_box(&body)).expect("a body");
        let stream = wants_stream(&document.members).expect("a flag");
        let form = Form::asked(Dialect::of(PATH), stream, &document.members);
        let digest = digest(form, &document.members).expect("small numbers");
        let question = Question {
            scope: Some("bench"),
            endpoint: PATH,
            upstream: "local",
            model: document.model.as_ref().map(|model| model.name.as_str()),
            fingerprint: Some([7; 32]),
            purge: 0,
            headers: &[],
            body: &digest,
        };
        black_box(question.key());
    })
}

fn parsed(body: Vec<u8>) -> Work {
    let body = Bytes::from(body);
    Box::new(move || drop(black_box(parse(black_box(&body)).expect("a body"))))
}

/// How often a tool's answer says its few lines: once, or as a file does.
const SHORT: usize = 1;
const FILE: usize = 80;

/// A chat of exactly so many bytes, as an agent has it: tools, a system prompt, turns with code and calls in them; of
/// short messages, where a byte costs the most, or of files.
fn chat(bytes: usize, lines: usize) -> Vec<u8> {
    let code = "fn main() {\n\tlet name = std::env::args().nth(1);\n\tprintln!(\"{name:?}\");\n}\n// é 😀\n";
    let turns = [
        json!({"role": "user", "content": "Read src/main.rs and say what it does.\nBe \"brief\": a line a function."}),
        json!({"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function",
            "function": {"name": "read_file", "arguments": "{\"path\":\"src/main.rs\",\"lines\":[1,200]}"}}]}),
        json!({"role": "tool", "tool_call_id": "call_1", "content": code.repeat(lines)}),
    ];
    let mut body = json!({
        "model": "bench", "temperature": 0.7, "top_p": 0.95, "seed": 42, "max_tokens": 512, "stream": true,
        "messages": [{"role": "system", "content": "You are a careful engineer."}],
        "tools": [{"type": "function", "function": {"name": "read_file", "parameters": {"type": "object",
            "properties": {"path": {"type": "string"}, "lines": {"type": "array", "items": {"type": "integer"}}}}}}],
    });
    let mut length = body.to_string().len();
    // The last turn fills what is left.
    let last = |text: String| json!({"role": "user", "content": text});
    let least = last(String::new()).to_string().len() + 1;
    let messages = body["messages"].as_array_mut().expect("a list");
    for turn in turns.iter().cycle() {
        let more = turn.to_string().len() + 1;
        if length + more + least > bytes {
            break;
        }
        length += more;
        messages.push(turn.clone());
    }
    messages.push(last("x".repeat(bytes.saturating_sub(length + least))));
    Value::to_string(&body).into_bytes()
}
