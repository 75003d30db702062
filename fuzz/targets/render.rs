//! No bytes make the rendering panic, and what it renders says what the other form said.
#![no_main]

use ai_gateway::cache::render::{Dialect, Form, render};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use serde_json::value::RawValue;

const DIALECTS: [Dialect; 5] =
    [Dialect::Chat, Dialect::Completions, Dialect::Responses, Dialect::Messages, Dialect::Native];
const STREAM: Form = Form::Stream { include_usage: false };
const USAGE: Form = Form::Stream { include_usage: true };
const STREAMS: [Form; 2] = [STREAM, USAGE];

/// What a plain answer says; `None` where only its spelling could be compared: numbers beyond doubles, depth beyond
/// 128, half of a surrogate pair.
fn said(plain: &[u8]) -> Option<Value> {
    serde_json::from_slice(plain).ok()
}

/// A stream says what a plain answer says.
fn assert_says(dialect: Dialect, form: Form, stream: &[u8], plain: &[u8]) {
    let Some(mut before) = said(plain) else { return };
    // A stream says when it was completed only if that was later than when it was created.
    if dialect == Dialect::Responses && before.get("completed_at").is_none() {
        return;
    }
    // Chat without usage says no more of it than can be counted from its timings, if it has those; and the event
    // that told the usage had a time of its own.
    let tells_usage = dialect != Dialect::Chat || form == USAGE;
    let back = match render(dialect, form, stream, Form::Plain) {
        Some(back) => back,
        None if !tells_usage => return,
        None => panic!("{dialect:?}: no way back from {}", text(stream)),
    };
    // The settings of a plain answer say that it is none, whatever they said before.
    if dialect == Dialect::Native
        && let Some(stream) = before.pointer_mut("/generation_settings/stream")
    {
        *stream = false.into();
    }
    assert!(serde_json::from_slice::<&RawValue>(&back).is_ok(), "{dialect:?}: no JSON: {}", text(&back));
    let mut after = match said(&back) {
        Some(after) => after,
        // The event that told the usage also told the time: the one before it may be a number beyond doubles.
        None if !tells_usage => return,
        None => panic!("{dialect:?}: not comparable any more: {}", text(&back)),
    };
    // A text without logprobs is one whose logprobs are null.
    if dialect == Dialect::Completions {
        [&mut before, &mut after].into_iter().for_each(forget_null_logprobs);
    }
    if !tells_usage {
        [&mut before, &mut after].into_iter().for_each(forget_usage_event);
    }
    assert_eq!(after, before, "{dialect:?}: by way of {}", text(stream));
}

fn forget_null_logprobs(answer: &mut Value) {
    let choices = answer["choices"].as_array_mut().expect("an answer has choices");
    for choice in choices.iter_mut().filter_map(Value::as_object_mut) {
        choice.retain(|name, value| name != "logprobs" || !value.is_null());
    }
}

fn forget_usage_event(answer: &mut Value) {
    let answer = answer.as_object_mut().expect("an answer is an object");
    ["usage", "created"].into_iter().for_each(|name| drop(answer.remove(name)));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A plain answer is whole again after each stream that it can be told as.
fn survives_streams(dialect: Dialect, plain: &[u8]) {
    for form in STREAMS {
        if let Some(stream) = render(dialect, Form::Plain, plain, form) {
            assert_says(dialect, form, &stream, plain);
        }
    }
}

fuzz_target!(|body: &[u8]| {
    for dialect in DIALECTS {
        for form in [Form::Plain, STREAM, USAGE] {
            assert_eq!(render(dialect, form, body, form).as_deref(), Some(body));
        }
        survives_streams(dialect, body);
        let plain = render(dialect, STREAM, body, Form::Plain);
        if let Some(plain) = &plain {
            survives_streams(dialect, plain);
        }
        for (from, to) in [(STREAM, USAGE), (USAGE, STREAM)] {
            let turned = render(dialect, from, body, to);
            if let Some((plain, turned)) = plain.as_ref().zip(turned) {
                assert_says(dialect, to, &turned, plain);
            }
        }
    }
});
