//! llama.cpp's own completions: pieces of content, then one event that is the plain answer but for its content.
//!
//! A stream always tells the tokens, a plain answer only if it was asked to (`return_tokens`). They are kept where the
//! stream told them, and none are made up where the plain answer did not.

use super::events::{self, Stream};
use super::json::{self, Object};

const PROBABILITIES: &str = "completion_probabilities";
const SETTINGS: &str = "generation_settings";
/// On the way only: how far the answer has come.
const PASSING: [&str; 6] =
    ["stop", "id_slot", "tokens_predicted", "tokens_evaluated", "timings", "prompt_progress"];

/// The plain answer that a stream amounts to. Several answers in one stream are not known: llama-server's plain
/// answer to the same request is a list that lacks some of them (b11549).
pub(super) fn plain(stream: &str) -> Option<Object<'_>> {
    let mut events = events::split(stream)?;
    events.iter().all(|event| event.name.is_none()).then_some(())?;
    let mut whole = events.pop()?.object()?;
    (whole.get("stop")? == "true").then_some(())?;
    let (mut content, mut tokens, mut probabilities) = (String::new(), Vec::new(), Vec::new());
    for event in events {
        let mut piece = event.object()?;
        (piece.get("stop")? == "false").then_some(())?;
        content.push_str(&json::string(piece.raw("content")?)?);
        if let Some(pieces) = piece.raw("tokens") {
            tokens.push(json::inside(pieces)?);
        }
        if let Some(pieces) = piece.raw(PROBABILITIES) {
            probabilities.push(json::inside(pieces)?);
        }
        PASSING.into_iter().for_each(|name| drop(piece.take(name)));
        // What else a piece says, such as its index, the whole must say too.
        piece.into_iter().all(|(name, value)| whole.get(&name) == Some(&value)).then_some(())?;
    }
    content.push_str(&whole.string("content")?);
    whole.set("content", json::quoted(&content));
    if let Some(own) = whole.get("tokens").cloned() {
        let all = json::joined(tokens.into_iter().chain([json::inside(&own)?]));
        whole.set("tokens", all);
    } else if !tokens.is_empty() {
        whole.set("tokens", json::joined(tokens));
    }
    if !probabilities.is_empty() {
        whole.get(PROBABILITIES).is_none().then_some(())?;
        whole.set(PROBABILITIES, json::joined(probabilities));
    }
    set_form(&mut whole, "false")?;
    Some(whole)
}

/// The stream that a plain answer could have been: one piece of content, if there is any, and the end.
pub(super) fn stream(mut answer: Object<'_>) -> Option<String> {
    (answer.get("stop")? == "true").then_some(())?;
    let mut stream = Stream::default();
    let content = answer.take_leaving("content", "\"\"")?;
    let tokens = answer.take_leaving("tokens", "[]");
    let probabilities = answer.take(PROBABILITIES);
    let says_tokens = match &tokens {
        Some(tokens) => !json::inside(tokens)?.is_empty(),
        None => false,
    };
    if let Some(probabilities) = &probabilities {
        json::inside(probabilities)?;
    }
    if !json::string(&content)?.is_empty() || says_tokens || probabilities.is_some() {
        let mut piece = Object::new();
        piece.copy(&answer, "index");
        piece.set("content", content);
        if let Some(tokens) = tokens {
            piece.set("tokens", tokens);
        }
        piece.set("stop", "false");
        if answer.get("id_slot").is_some() {
            // As long as it generates, llama-server tells no slot.
            piece.set("id_slot", "-1");
        }
        ["tokens_predicted", "tokens_evaluated"].into_iter().for_each(|name| piece.copy(&answer, name));
        if let Some(probabilities) = probabilities {
            piece.set(PROBABILITIES, probabilities);
        }
        stream.event(&piece);
    }
    set_form(&mut answer, "true")?;
    stream.event(&answer);
    Some(stream.end())
}

/// The settings of an answer say whether it is a stream.
fn set_form(answer: &mut Object<'_>, stream: &'static str) -> Option<()> {
    let Some(text) = answer.get(SETTINGS).cloned() else { return Some(()) };
    let mut settings = Object::parse(&text)?;
    if settings.get("stream").is_some() {
        settings.set("stream", stream);
        let settings = settings.to_string();
        answer.set(SETTINGS, settings);
    }
    Some(())
}
