//! What holds for any answer: a plain one is whole again after a stream, and nothing makes the rendering panic.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

const ALL: [Dialect; 5] =
    [Dialect::Chat, Dialect::Completions, Dialect::Responses, Dialect::Messages, Dialect::Native];
const FORMS: [Form; 3] = [Form::Plain, STREAM, USAGE];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        ".{1,12}",
        "[ \"\\\\{}\\[\\]:,\n\t]{1,8}",
        Just("data: [DONE]\n\n".to_owned())
    ]
}

/// A value of any kind, as an unknown member may have it.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e300..1e300).prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z\"]{1,3}", inner, 0..3).prop_map(|it| it.into_iter().collect()),
        ]
    })
}

/// Members that no dialect knows.
fn unknown() -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::btree_map("x_[a-z\"é]{0,3}", anything(), 0..3).prop_map(|it| it.into_iter().collect())
}

fn with(mut value: Value, members: Map<String, Value>) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.extend(members);
    }
    value
}

/// With a member, if there is one.
fn having(value: Value, name: &str, member: Option<impl Into<Value>>) -> Value {
    with(value, member.map(|member| (name.to_owned(), member.into())).into_iter().collect())
}

fn logprobs() -> impl Strategy<Value = Option<Value>> {
    let token = (text(), -9.0..0.0f64, anything())
        .prop_map(|(token, logprob, top)| json!({"token": token, "logprob": logprob, "top_logprobs": [top]}));
    prop::option::of(prop::collection::vec(token, 0..4).prop_map(|tokens| json!({ "content": tokens })))
}

/// Timings, and the usage that the server reports beside them.
fn cost() -> impl Strategy<Value = (Value, Value)> {
    (0..9999u64, 0..9999u64, 0..9999u64, 0.0..1e6f64).prop_map(|(cached, read, written, ms)| {
        let usage = json!({"completion_tokens": written, "prompt_tokens": cached + read,
            "total_tokens": cached + read + written, "prompt_tokens_details": {"cached_tokens": cached}});
        (json!({"cache_n": cached, "prompt_n": read, "predicted_n": written, "predicted_ms": ms}), usage)
    })
}

fn call() -> impl Strategy<Value = Value> {
    (text(), text(), text(), unknown(), unknown()).prop_map(|(id, name, arguments, inner, outer)| {
        let function = with(json!({"name": name, "arguments": arguments}), inner);
        with(json!({"type": "function", "id": id, "function": function}), outer)
    })
}

fn message() -> impl Strategy<Value = Value> {
    let calls = prop::option::of(prop::collection::vec(call(), 1..4));
    (text(), prop::option::of(text()), calls, unknown()).prop_map(|(content, reasoning, calls, others)| {
        let message = with(json!({"role": "assistant", "content": content}), others);
        having(having(message, "reasoning_content", reasoning), "tool_calls", calls)
    })
}

fn answer(
    object: &'static str,
    choices: Vec<Value>,
    (timings, usage): (Value, Value),
    others: Map<String, Value>,
) -> Value {
    let choices = choices.into_iter().enumerate();
    let choices = choices.map(|(index, choice)| having(choice, "index", Some(index))).collect::<Vec<_>>();
    let answer = json!({"choices": choices, "created": 7, "model": "m", "object": object, "id": "chatcmpl-1",
        "system_fingerprint": "b1", "timings": timings, "usage": usage});
    with(answer, others)
}

fn chat() -> impl Strategy<Value = Value> {
    let choice = (message(), logprobs(), unknown()).prop_map(|(message, logprobs, others)| {
        having(with(json!({"finish_reason": "stop", "message": message}), others), "logprobs", logprobs)
    });
    (prop::collection::vec(choice, 1..4), cost(), unknown())
        .prop_map(|(choices, cost, others)| answer("chat.completion", choices, cost, others))
}

fn completions() -> impl Strategy<Value = Value> {
    let choice = (text(), logprobs(), unknown()).prop_map(|(text, logprobs, others)| {
        with(json!({"finish_reason": "length", "text": text, "logprobs": logprobs}), others)
    });
    (prop::collection::vec(choice, 1..4), cost(), unknown())
        .prop_map(|(choices, cost, others)| answer("text_completion", choices, cost, others))
}

fn messages() -> impl Strategy<Value = Value> {
    let block = prop_oneof![
        text().prop_map(|text| json!({"type": "text", "text": text})),
        (text(), text())
            .prop_map(|(it, sign)| json!({"type": "thinking", "thinking": it, "signature": sign})),
        (text(), unknown())
            .prop_map(|(id, input)| json!({"type": "tool_use", "id": id, "name": "f", "input": input})),
    ];
    let block = (block, unknown()).prop_map(|(block, others)| with(block, others));
    let stop = prop::option::of(text());
    (prop::collection::vec(block, 0..4), stop, 0..999u64, unknown()).prop_map(|(content, stop, tokens, others)| {
        let usage = json!({"cache_read_input_tokens": 3, "input_tokens": 4, "output_tokens": tokens});
        let message = json!({"id": "m", "type": "message", "role": "assistant", "content": content, "model": "m",
            "stop_reason": "end_turn", "stop_sequence": stop, "usage": usage});
        with(message, others)
    })
}

fn responses() -> impl Strategy<Value = Value> {
    let item = prop_oneof![
        text().prop_map(|text| json!({"type": "reasoning", "id": "rs_1", "summary": [], "status": "completed",
            "content": [{"type": "reasoning_text", "text": text}]})),
        (text(), unknown()).prop_map(|(text, others)| {
            let part = with(json!({"type": "output_text", "annotations": [], "text": text}), others);
            json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
        }),
        (text(), text()).prop_map(|(name, arguments)| json!({"type": "function_call", "call_id": "fc_1",
            "name": name, "arguments": arguments, "status": "completed"})),
    ];
    let item = (item, unknown()).prop_map(|(item, others)| with(item, others));
    (prop::collection::vec(item, 0..4), 0..2u64, unknown()).prop_map(|(output, later, others)| {
        let answer = json!({"id": "resp_1", "object": "response", "created_at": 7, "completed_at": 7 + later,
            "model": "m", "status": "completed", "output": output, "usage": {"input_tokens": 1}});
        with(answer, others)
    })
}

fn native() -> impl Strategy<Value = Value> {
    let tokens = prop::collection::vec(any::<u32>(), 0..4);
    let probabilities = prop::option::of(prop::collection::vec(anything(), 0..3));
    (text(), tokens, probabilities, unknown(), unknown()).prop_map(
        |(content, tokens, probabilities, inner, outer)| {
            let settings = with(json!({"stream": false, "top_k": 40}), inner);
            let answer = json!({"index": 0, "content": content, "tokens": tokens, "id_slot": 1, "stop": true,
            "tokens_predicted": 3, "generation_settings": settings, "timings": {"cache_n": 1}});
            having(with(answer, outer), "completion_probabilities", probabilities)
        },
    )
}

fn plain() -> impl Strategy<Value = (Dialect, Value)> {
    prop_oneof![
        chat().prop_map(|answer| (Dialect::Chat, answer)),
        completions().prop_map(|answer| (Dialect::Completions, answer)),
        messages().prop_map(|answer| (Dialect::Messages, answer)),
        responses().prop_map(|answer| (Dialect::Responses, answer)),
        native().prop_map(|answer| (Dialect::Native, answer)),
    ]
}

/// Every rendering of a body, whatever it is.
fn render_all(body: &[u8]) {
    for dialect in ALL {
        for from in FORMS {
            for to in FORMS {
                render(dialect, from, body, to);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_plain_answer_survives_a_stream((dialect, answer) in plain()) {
        let body = answer.to_string();
        for form in [STREAM, USAGE] {
            let stream = rendered(dialect, Form::Plain, &body, form).expect("a stream");
            let back = rendered(dialect, form, &stream, Form::Plain).expect("a plain answer");
            prop_assert_eq!(serde_json::from_str::<Value>(&back).expect("JSON"), answer.clone(), "{}", stream);
        }
    }

    #[test]
    fn a_stream_survives_a_change_of_usage(answer in chat()) {
        let body = answer.to_string();
        let streams = [STREAM, USAGE].map(|form| rendered(Dialect::Chat, Form::Plain, &body, form));
        let [Some(without), Some(with)] = streams else { panic!("no stream of {body}") };
        // The usage event of an answer with unknown members says more than the usage: it may not be left out.
        if answer.as_object().is_some_and(|answer| !answer.keys().any(|name| name.starts_with("x_"))) {
            let away = rendered(Dialect::Chat, USAGE, &with, STREAM);
            prop_assert_eq!(away.as_ref(), Some(&without));
        }
        let with = rendered(Dialect::Chat, STREAM, &without, USAGE).expect("a stream with usage");
        let away = rendered(Dialect::Chat, USAGE, &with, STREAM);
        prop_assert_eq!(away.as_ref(), Some(&without));
        let plain = rendered(Dialect::Chat, USAGE, &with, Form::Plain).expect("a plain answer");
        prop_assert_eq!(serde_json::from_str::<Value>(&plain).expect("JSON"), answer);
    }

    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        render_all(&body);
    }

    #[test]
    fn no_damage_makes_it_panic(
        which in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3u8, ".{0,6}"), 1..6),
    ) {
        let captures = captures();
        let mut body = which.get(&captures).body.clone().into_bytes();
        for (at, kind, text) in edits {
            let at = at.index(body.len().max(1)).min(body.len());
            match kind {
                0 => body.truncate(at),
                1 => drop(body.splice(at..at, text.bytes())),
                _ => drop(body.drain(at..(at + text.len()).min(body.len()))),
            }
        }
        render_all(&body);
    }
}
