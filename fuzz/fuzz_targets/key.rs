//! Any body is parsed or refused, and what is parsed has one key in whatever spelling.
#![no_main]

use ai_gateway::cache::{Form, Key, Question};
use ai_gateway::wire::{self, Document};
use libfuzzer_sys::fuzz_target;

fn key(document: &Document) -> Key {
    let options = document.members.get("stream_options");
    let stream = wire::wants_stream(&document.members).unwrap_or_default();
    Question {
        scope: None,
        endpoint: "/v1/chat/completions",
        form: if stream { Form::Stream(options) } else { Form::Plain },
        upstream: "local",
        model: document.model.as_ref().map(|model| model.name.as_str()),
        fingerprint: None,
        purge: 0,
        headers: &[],
        body: &document.members,
    }
    .key()
}

fuzz_target!(|body: &[u8]| {
    let Ok(document) = wire::parse(body) else { return };
    let _ = wire::refuse_slot(&document.members);
    let first = key(&document);
    let again = serde_json::to_vec(&document.members).expect("what was parsed can be written");
    let mut again = wire::parse(&again).expect("what was written can be parsed");
    again.model = document.model;
    assert_eq!(key(&again), first);
});
