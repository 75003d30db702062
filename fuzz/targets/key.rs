//! Any body is read as serde_json reads it, or refused, and has one key, however it is spelled; an answer is JSON where
//! serde_json says so.
#![no_main]

use std::fmt::Write;

use ai_gateway::cache::{Dialect, Form, Key, Question, digest};
use ai_gateway::wire::{self, Document, Fault, Noted, Usage};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

const ENDPOINT: &str = "/v1/chat/completions";

/// The one place that knows what a question is made of.
fn key(document: &Document) -> Option<Key> {
    let stream = wire::wants_stream(&document.members).unwrap_or_default();
    let form = Form::asked(Dialect::of(ENDPOINT), stream, &document.members);
    let question = Question {
        scope: None,
        endpoint: ENDPOINT,
        upstream: "local",
        model: document.model.as_ref().map(|model| model.name.as_str()),
        fingerprint: None,
        purge: 0,
        headers: &[],
        body: &digest(form, &document.members)?,
    };
    Some(question.key())
}

/// The value with its members in reverse, white space between all tokens, escapes for all letters and exponents for
/// all fractions.
fn respell(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) => value.to_string(),
        Value::Number(number) if !number.is_f64() => number.to_string(),
        Value::Number(number) => format!("{:e}", number.as_f64().expect("it is a double")),
        Value::String(text) => respell_string(text),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(respell).collect();
            format!("[\r\n{} ]", items.join("\t, "))
        }
        Value::Object(members) => {
            let member =
                |(name, value): (&String, &Value)| format!("{} :\t{}", respell_string(name), respell(value));
            let members: Vec<_> = members.iter().rev().map(member).collect();
            format!("{{ {}\n}}", members.join(" ,\n"))
        }
    }
}

fn respell_string(text: &str) -> String {
    let mut spelled = String::from("\"");
    for unit in text.encode_utf16() {
        write!(spelled, "\\u{unit:04X}").expect("a string takes every letter");
    }
    spelled + "\""
}

/// An answer is read by the same reader, and passed over by it where it is not of interest.
fn told(answer: &[u8]) {
    let noted = Usage::default().note(answer);
    if let Ok(text) = str::from_utf8(answer) {
        let is_json = serde_json::from_str::<&RawValue>(text).is_ok();
        assert_eq!(noted != Noted::Broken, is_json, "{noted:?}");
    }
}

/// A body that is read in steps is the same.
fn in_steps(body: &[u8]) -> Option<Document> {
    let mut reading = wire::Reading::of(&Bytes::copy_from_slice(body));
    loop {
        match reading.go_on(7)? {
            wire::Step::More(more) => reading = more,
            wire::Step::Whole(document) => return Some(document),
        }
    }
}

fuzz_target!(|body: &[u8]| {
    told(body);
    let there: Option<Map<String, Value>> = serde_json::from_slice(body).ok();
    let document = match wire::parse(&Bytes::copy_from_slice(body)) {
        Ok(document) => document,
        Err(Fault::Syntax(why)) => {
            let is_ours = why.contains("is there twice") || why.contains("it has more than");
            assert!(there.is_none() || is_ours, "{why}");
            return;
        }
        Err(Fault::Shape { .. }) => return,
    };
    let first = key(&document);
    assert_eq!(
        in_steps(body).map(|document| (key(&document), document.members.estimate())),
        Some((first, document.members.estimate()))
    );
    let mut whole = document.members.to_json();
    match document.model {
        Some(model) => drop(whole.insert("model".to_owned(), model.name.into())),
        // Where it is null, it is left out.
        None if there.as_ref().is_some_and(|there| there.contains_key("model")) => {
            drop(whole.insert("model".to_owned(), Value::Null));
        }
        None => {}
    }
    assert_eq!(Some(&whole), there.as_ref());
    let whole = Value::Object(whole);
    for spelling in [whole.to_string(), respell(&whole)] {
        let again = wire::parse(&Bytes::copy_from_slice(spelling.as_bytes()))
            .expect("what was parsed can be parsed again");
        assert_eq!(key(&again), first, "{spelling}");
    }
});
