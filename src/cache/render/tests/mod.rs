//! Renderings against what llama-server itself said: the same request, the same seed, in both forms (tests/captures).
//!
//! What must differ between two answers is masked: ids, times, and what the server's KV cache held.

mod laws;

use std::fs;
use std::path::Path;

use super::*;

const STREAM: Form = Form::Stream { include_usage: false };
const USAGE: Form = Form::Stream { include_usage: true };

/// A capture: `{name}.{form}.txt`.
pub(super) struct Capture {
    pub(super) name: String,
    pub(super) form: Form,
    pub(super) body: String,
}

impl Capture {
    /// The dialect is in the name, after the server's build.
    pub(super) fn dialect(&self) -> Dialect {
        match self.name.trim_start_matches("b11434_").split('_').next() {
            Some("chat") => Dialect::Chat,
            Some("completions") => Dialect::Completions,
            Some("responses") => Dialect::Responses,
            Some("messages") => Dialect::Messages,
            _ => Dialect::Native,
        }
    }

    fn render(&self, to: Form) -> String {
        rendered(self.dialect(), self.form, &self.body, to)
            .unwrap_or_else(|| panic!("{} {:?} has no rendering as {to:?}", self.name, self.form))
    }
}

pub(super) fn rendered(dialect: Dialect, from: Form, body: &str, to: Form) -> Option<String> {
    let bytes = render(dialect, from, body.as_bytes(), to)?;
    Some(String::from_utf8(bytes.to_vec()).expect("renderings are UTF-8"))
}

pub(super) fn captures() -> Vec<Capture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let paths =
        fs::read_dir(folder).expect("the captures are there").map(|entry| entry.expect("a file").path());
    let mut paths: Vec<_> = paths.collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let file = path.file_name()?.to_str()?.strip_suffix(".txt")?;
        let (name, form) = file.rsplit_once('.')?;
        let form = match form {
            "plain" => Form::Plain,
            "stream" => STREAM,
            "usage" => USAGE,
            _ => return None,
        };
        Some(Capture { name: name.to_owned(), form, body: fs::read_to_string(path).ok()? })
    };
    let captures: Vec<_> = paths.iter().filter_map(read).collect();
    assert!(captures.len() > 40, "only {} captures", captures.len());
    captures
}

/// Replaces the value after each of these names.
fn mask(text: &str, names: &[&str], which: impl Fn(&str) -> bool) -> String {
    let mut masked = text.to_owned();
    for name in names {
        let mark = format!("\"{name}\":");
        let (mut rest, mut whole) = (masked.as_str(), String::new());
        while let Some(at) = rest.find(&mark) {
            let (before, after) = rest.split_at(at + mark.len());
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<serde_json::Value>();
            let end = values.next().map(|_| values.byte_offset()).expect("a value after a name");
            whole.push_str(before);
            whole.push_str(if which(&after[..end]) { "_" } else { &after[..end] });
            rest = &after[end..];
        }
        masked = whole + rest;
    }
    masked
}

/// Without what differs between any two answers to the same request.
fn same(text: &str) -> String {
    let own = ["id", "item_id", "call_id", "created", "created_at", "completed_at", "timings", "id_slot"];
    let cache = ["time_ms", "cached_tokens", "cache_read_input_tokens", "input_tokens"];
    // Logprobs have an `id` too, the token's.
    let masked = mask(text, &own, |value| !(value.len() < 6 && value.parse::<u32>().is_ok() && value != "0"));
    mask(&mask(&masked, &cache, |_| true), &["id_slot"], |_| true)
}

/// The events of a stream without what is cut into pieces, and each of several like events once.
fn outline(stream: &str) -> Vec<String> {
    let texts = ["content", "reasoning_content", "arguments", "text", "delta", "thinking", "partial_json"];
    let masked = mask(&same(stream), &texts, |value| value.starts_with('"') && value != "\"\"");
    let masked = mask(&masked, &["logprobs", "tokens", "completion_probabilities"], |value| {
        value.starts_with('{') || value.starts_with('[')
    });
    let masked = mask(&masked, &["tokens_predicted"], |_| true);
    let mut events: Vec<String> = masked.split("\n\n").map(str::to_owned).collect();
    events.retain(|event| !event.contains(r#""function":{"arguments""#));
    events.dedup();
    events
}

/// The capture of the same request in another form.
fn twin<'a>(captures: &'a [Capture], of: &Capture, form: Form) -> Option<&'a Capture> {
    captures.iter().find(|other| other.name == of.name && other.form == form)
}

/// The older build's captures were taken with different limits: they have no twins.
fn has_twin(capture: &Capture) -> bool {
    !capture.name.starts_with("b11434")
}

#[test]
fn a_stream_becomes_the_plain_answer_of_the_server() {
    let captures = captures();
    let streams = captures.iter().filter(|capture| has_twin(capture) && capture.form != Form::Plain);
    for capture in streams {
        let Some(plain) = twin(&captures, capture, Form::Plain) else {
            panic!("{} has no twin", capture.name)
        };
        let (mut ours, mut theirs) = (same(&capture.render(Form::Plain)), same(&plain.body));
        if capture.dialect() == Dialect::Native && capture.name != "native_probs" {
            // The server tells the tokens of a plain answer only if it is asked to.
            [&mut ours, &mut theirs].into_iter().for_each(|it| *it = mask(it, &["tokens"], |_| true));
        }
        if capture.dialect() == Dialect::Responses {
            // The server's plain answer has no timings; what it said in the stream is kept.
            ours = ours.replace(",\"timings\":_", "");
        }
        assert_eq!(ours, theirs, "{} {:?}", capture.name, capture.form);
    }
}

#[test]
fn a_plain_answer_becomes_the_events_of_the_server() {
    let captures = captures();
    let streams = captures.iter().filter(|capture| has_twin(capture) && capture.form != Form::Plain);
    // Of several choices the order is chance; progress and timings on the way are not in a plain answer.
    let differ = ["chat_n2", "completions_n2", "completions_two", "chat_progress"];
    for capture in streams.filter(|it| !differ.contains(&it.name.as_str()) && !it.name.ends_with("per_token"))
    {
        let plain = twin(&captures, capture, Form::Plain).expect("a twin");
        let ours: Vec<_> = outline(&plain.render(capture.form));
        let mut theirs = outline(&capture.body);
        if capture.dialect() == Dialect::Responses {
            theirs.iter_mut().for_each(|event| *event = event.replace(",\"timings\":_", ""));
        }
        assert_eq!(ours, theirs, "{} {:?}", capture.name, capture.form);
    }
}

#[test]
fn usage_comes_and_goes_as_the_server_sends_it() {
    let captures = captures();
    let names: Vec<_> =
        captures.iter().filter(|capture| capture.form == USAGE && has_twin(capture)).collect();
    assert!(names.len() >= 6, "{} streams with usage", names.len());
    for with in names {
        let without = twin(&captures, with, STREAM).expect("a twin");
        assert_eq!(same(&without.render(USAGE)), same(&with.body), "{} with usage", with.name);
        assert_eq!(same(&with.render(STREAM)), same(&without.body), "{} without usage", with.name);
    }
}

#[test]
fn a_plain_answer_is_whole_again_after_a_stream() {
    for capture in captures().iter().filter(|capture| capture.form == Form::Plain) {
        let stream = capture.render(USAGE);
        let plain = rendered(capture.dialect(), USAGE, &stream, Form::Plain);
        assert_eq!(plain.as_deref(), Some(capture.body.as_str()), "{}", capture.name);
    }
}

#[test]
fn white_space_in_a_plain_answer_does_not_cut_an_event() {
    for capture in captures().iter().filter(|capture| capture.form == Form::Plain) {
        let value: serde_json::Value = serde_json::from_str(&capture.body).expect("JSON");
        let dense = value.to_string();
        let pretty = serde_json::to_string_pretty(&value).expect("JSON");
        for body in [pretty.replace('\n', "\r"), pretty, format!("{dense}\n")] {
            for form in [STREAM, USAGE] {
                let [ours, theirs] =
                    [&body, &dense].map(|body| rendered(capture.dialect(), Form::Plain, body, form));
                assert!(ours.is_some() && ours == theirs, "{}: {ours:?}", capture.name);
            }
        }
    }
}

#[test]
fn the_same_form_is_the_same_bytes() {
    for capture in captures() {
        assert_eq!(capture.render(capture.form), capture.body, "{}", capture.name);
    }
    assert_eq!(rendered(Dialect::Chat, Form::Plain, "nonsense", Form::Plain).as_deref(), Some("nonsense"));
}

#[test]
fn what_is_on_the_way_makes_no_difference() {
    for capture in captures().iter().filter(|capture| capture.form != Form::Plain) {
        let plain = capture.render(Form::Plain);
        let ways = [
            capture.body.replace('\n', "\r\n"),
            capture.body.replace("\n\n", "\n\n:\n\n"),
            capture.body.replace("\n\n", "\n\n: ping\n"),
            capture.body.replace("data: ", "data:"),
        ];
        for stream in ways {
            let ours = rendered(capture.dialect(), capture.form, &stream, Form::Plain);
            assert_eq!(ours.as_ref(), Some(&plain), "{}", capture.name);
        }
    }
}

#[test]
fn a_stream_that_was_cut_off_has_no_rendering() {
    for capture in captures().iter().filter(|capture| capture.form != Form::Plain) {
        let ends = capture.body.match_indices('\n').map(|(at, _)| at + 1);
        for end in ends.filter(|end| *end < capture.body.len()) {
            let (dialect, from) = (capture.dialect(), capture.form);
            let cut = &capture.body[..end];
            assert_eq!(rendered(dialect, from, cut, Form::Plain), None, "{}: {cut}", capture.name);
        }
    }
}

#[test]
fn a_shape_that_is_not_known_has_no_rendering() {
    let chat = |events: &[&str]| {
        let events = events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>();
        let stream = events.replace('@', r#""object":"chat.completion.chunk","choices":[{"index":0"#);
        rendered(Dialect::Chat, STREAM, &stream, Form::Plain)
    };
    let role = r#"{@,"delta":{"role":"assistant","content":null,"x":1}}]}"#;
    let end =
        r#"{@,"delta":{},"finish_reason":"stop"}],"timings":{"cache_n":1,"prompt_n":2,"predicted_n":3}}"#;
    assert!(chat(&[role, end, "[DONE]"]).is_some());
    let streams: [&[&str]; 12] = [
        &[],
        &["[DONE]"],
        &[role, "[DONE]"],
        &[role, end, end, "[DONE]"],
        &[role, end, "[DONE]", end],
        // Nothing tells the usage.
        &[role, r#"{@,"delta":{},"finish_reason":"stop"}]}"#, "[DONE]"],
        // An unknown member with two values.
        &[role, r#"{@,"delta":{"x":2}}]}"#, end, "[DONE]"],
        &[role, r#"{"error":{"message":"out of memory"}}"#, "[DONE]"],
        &[role, r#"{@,"delta":{"content":7}}]}"#, end, "[DONE]"],
        &[role, r#"{@,"delta":{"content":"\ud83d"}}]}"#, end, "[DONE]"],
        &[role, r#"{@,"delta":{"a":1,"a":1}}]}"#, end, "[DONE]"],
        &[role, r#"{@,"delta":{"tool_calls":[{"function":{"arguments":"1"}}]}}]}"#, end, "[DONE]"],
    ];
    for stream in streams {
        assert_eq!(chat(stream), None, "{stream:?}");
    }
    let answers = [
        (Dialect::Chat, r#"{"error":{"message":"no"}}"#),
        (Dialect::Chat, r#"{"object":"chat.completion","choices":[],"usage":{}}"#),
        (Dialect::Chat, r#"{"object":"list","choices":[{"index":0,"finish_reason":"stop"}]}"#),
        (Dialect::Native, r#"[{"content":"a","stop":true}]"#),
        (Dialect::Native, r#"{"content":"a"}"#),
        (Dialect::Native, r#"{"content":"a","stop":true,"tokens":{"a":1}}"#),
        (Dialect::Native, r#"{"content":"a","stop":true,"completion_probabilities":null}"#),
        (
            Dialect::Messages,
            r#"{"type":"message","stop_reason":"end_turn","content":[{"type":"server_tool_use"}]}"#,
        ),
        (Dialect::Responses, r#"{"status":"failed","output":[]}"#),
        (
            Dialect::Responses,
            r#"{"status":"completed","output":[{"type":"web_search_call","status":"completed"}]}"#,
        ),
    ];
    for (dialect, body) in answers {
        assert_eq!(rendered(dialect, Form::Plain, body, USAGE), None, "{body}");
    }
    let events = ["event: response.audio.delta\ndata: {\"type\":\"response.audio.delta\"}\n\n", "id: 1\n\n"];
    for stream in events {
        assert_eq!(rendered(Dialect::Responses, STREAM, stream, Form::Plain), None, "{stream}");
    }
}

#[test]
fn what_is_deep_or_large_is_rendered_without_harm() {
    let end =
        r#"{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"#;
    let role = end.replace("{}", r#"{"role":"assistant"}"#).replace("\"stop\"", "null");
    let stream = |member: &str| {
        let timings = r#""timings":{"cache_n":1,"prompt_n":2,"predicted_n":3}"#;
        format!("data: {role}\"y\":1}}\n\ndata: {end}{timings},{member}}}\n\ndata: [DONE]\n\n")
    };
    let deep = format!("\"x\":{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    let plain = rendered(Dialect::Chat, STREAM, &stream(&deep), Form::Plain).expect("a rendering");
    assert!(plain.contains(&deep));
    let many: Vec<_> = (0..1 << 20).map(|number| format!("\"x{number}\":1")).collect();
    assert_eq!(rendered(Dialect::Chat, STREAM, &stream(&many.join(",")), Form::Plain), None);
    // Few members on each of many events.
    let events = (0..1 << 16).map(|number| format!("data: {role}\"x{number}\":1}}\n\n")).collect::<String>();
    assert_eq!(rendered(Dialect::Chat, STREAM, &(events + &stream("\"x\":1")), Form::Plain), None);
}
