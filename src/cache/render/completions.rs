//! Completions: each choice is a text, and every stream tells its usage on the chunk that finishes a choice.

use super::chunks::{Answer, Choice, Whole};
use super::events::{self, Stream};
use super::json::{self, NULL, Object, Text};

const OBJECT: &str = "text_completion";

/// The plain answer that a stream amounts to.
pub(super) fn plain(stream: &str) -> Option<Object<'_>> {
    let answer = Answer::gather(stream, OBJECT, |said: &mut String, members| {
        said.push_str(&json::string(members.raw("text")?)?);
        Some(())
    })?;
    answer.plain(OBJECT, say)
}

/// Whether a stream tells its usage on a chunk that finishes a choice: as llama-server's do, asked or not.
pub(super) fn tells_usage(stream: &str) -> bool {
    let last = events::split_done(stream).and_then(|mut events| events.pop()?.object());
    last.is_some_and(|last| {
        let finishes = last.text("choices").and_then(json::items).is_some_and(|choices| !choices.is_empty());
        finishes && last.has("usage")
    })
}

fn say(index: u64, choice: Choice<'_, String>) -> Option<Object<'_>> {
    let logprobs = choice.logprobs.whole().unwrap_or(NULL.into());
    let text = json::quoted(&choice.said);
    let mut plain = piece(text, index.to_string().into(), logprobs, choice.finish_reason?.into());
    plain.set_all(choice.others);
    Some(plain)
}

fn piece<'a>(text: Text<'a>, index: Text<'a>, logprobs: Text<'a>, finish_reason: Text<'a>) -> Object<'a> {
    let piece = Object::new().with("text", text).with("index", index).with("logprobs", logprobs);
    piece.with("finish_reason", finish_reason)
}

/// The stream that a plain answer could have been: one chunk of text for each choice, then the chunks that finish
/// them, the first choice last, because the report that stands on its chunk is of that choice.
pub(super) fn stream(answer: Object<'_>) -> Option<String> {
    let mut whole = Whole::of(answer, OBJECT)?;
    let mut usage = Some(whole.usage?);
    let mut stream = Stream::default();
    let mut ends = Vec::new();
    for mut choice in whole.choices {
        let (index, text) = (choice.take("index")?, choice.take("text")?);
        json::string(&text)?;
        let logprobs = choice.take("logprobs").unwrap_or(NULL.into());
        if text != "\"\"" || logprobs != NULL {
            let piece = piece(text, index.clone(), logprobs, NULL.into());
            stream.event(&chunk(piece, &whole.head, None));
        }
        let mut end = piece("\"\"".into(), index, NULL.into(), choice.take("finish_reason")?);
        end.set_all(choice);
        ends.push(end);
    }
    while let Some(end) = ends.pop() {
        let last = ends.is_empty();
        let mut chunk = chunk(end, &whole.head, usage.take_if(|_| last));
        if last {
            if let Some(timings) = whole.timings.take() {
                chunk.set("timings", timings);
            }
            chunk.set_all(std::mem::take(&mut whole.others));
        }
        stream.event(&chunk);
    }
    Some(stream.done())
}

/// A chunk; its members stand in the order of a plain answer.
fn chunk<'a>(choice: Object<'a>, head: &Object<'a>, usage: Option<Text<'a>>) -> Object<'a> {
    let mut head = head.clone();
    let id = head.take("id");
    let mut chunk = Object::new().with("choices", json::array([choice]));
    chunk.set_all(head);
    chunk.set("object", json::quoted(OBJECT));
    if let Some(usage) = usage {
        chunk.set("usage", usage);
    }
    if let Some(id) = id {
        chunk.set("id", id);
    }
    chunk
}
