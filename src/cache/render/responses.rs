//! OpenAI's responses: the last event of a stream holds the whole answer; those before it tell how it came about.

use super::events::{self, Event, Stream};
use super::json::{self, Object, Text};

/// The events whose names llama-server knows, but for the last.
const KNOWN: [&str; 10] = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.reasoning_text.delta",
    "response.function_call_arguments.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
];
const COMPLETED: &str = "response.completed";
/// OpenAI's way to end an answer that ran into its limit; llama-server calls that completed too (b11549).
const INCOMPLETE: &str = "response.incomplete";

const ANSWER: [&str; 7] = ["created_at", "id", "model", "object", "output", "status", "usage"];
const MESSAGE: [&str; 5] = ["content", "id", "role", "status", "type"];
const ANSWER_STREAMED: [&str; 7] = ["id", "object", "created_at", "status", "model", "output", "usage"];
const MESSAGE_STREAMED: [&str; 5] = ["type", "status", "id", "content", "role"];

/// The plain answer that a stream amounts to.
pub(super) fn plain(stream: &str) -> Option<Object<'_>> {
    let mut events = events::split(stream)?;
    let last = events.pop()?;
    let known =
        |event: &Event<'_>| event.name.is_some_and(|name| KNOWN.contains(&name)) && event.object().is_some();
    (matches!(last.name, Some(COMPLETED | INCOMPLETE)) && events.iter().all(known)).then_some(())?;
    let mut last = last.object()?;
    let mut answer = Object::parse(last.raw("response")?)?;
    (!answer.has("error")).then_some(())?;
    let items = json::items(answer.text("output")?)?;
    let items: Vec<_> = items.into_iter().map(|item| said(Object::parse(item)?)).collect::<Option<_>>()?;
    answer.set("output", json::array(items));
    let mut plain = Object::new();
    // llama-server writes the same time twice.
    let completed = answer.take("completed_at").or_else(|| answer.get("created_at").cloned())?;
    plain.set("completed_at", completed);
    plain.set_all(answer.in_order(&ANSWER));
    // Places in the stream, of no meaning without it.
    ["type", "sequence_number"].into_iter().for_each(|name| drop(last.take(name)));
    plain.agree_all(last)?;
    Some(plain)
}

/// An item of the plain answer.
fn said(mut item: Object<'_>) -> Option<Object<'_>> {
    match item.string("type")?.as_str() {
        "message" => return Some(item.in_order(&MESSAGE)),
        "reasoning" if item.get("status").is_none() => item.set("status", "\"completed\""),
        _ => {}
    }
    Some(item)
}

/// The stream that a plain answer could have been.
pub(super) fn stream(mut answer: Object<'_>) -> Option<String> {
    let last = match answer.string("status")?.as_str() {
        "completed" => COMPLETED,
        "incomplete" => INCOMPLETE,
        _ => return None,
    };
    if answer.get("completed_at").is_some() && answer.get("completed_at") == answer.get("created_at") {
        answer.take("completed_at");
    }
    let timings = answer.take("timings");
    let items = json::items(answer.text("output")?)?;
    let items: Vec<_> = items.into_iter().map(Item::of).collect::<Option<_>>()?;

    let mut stream = Stream::default();
    for name in ["response.created", "response.in_progress"] {
        let mut begun = Object::new();
        ["id", "object"].into_iter().for_each(|name| begun.copy(&answer, name));
        stream.named(name, Object::new().with("response", begun.with("status", "\"in_progress\"")));
    }
    items.iter().for_each(|item| item.begin(&mut stream));
    items.iter().for_each(|item| item.finish(&mut stream));
    answer.set("output", json::array(items.into_iter().map(|item| item.done)));
    let mut end = Object::new().with("response", answer.in_order(&ANSWER_STREAMED));
    if let Some(timings) = timings {
        end.set("timings", timings);
    }
    stream.named(last, end);
    Some(stream.end())
}

/// An item of the output, taken apart.
#[derive(Debug)]
struct Item<'a> {
    kind: Kind<'a>,
    /// What its events call it.
    id: Text<'a>,
    /// As it is while it is being made.
    added: Object<'a>,
    /// What it says.
    text: Text<'a>,
    /// As it is at the end.
    done: Object<'a>,
}

#[derive(Debug)]
enum Kind<'a> {
    Reasoning,
    /// With the one part of its content.
    Message(Object<'a>),
    FunctionCall,
}

impl<'a> Item<'a> {
    fn of(text: &'a str) -> Option<Self> {
        let mut item = Object::parse(text)?;
        (item.string("status")? == "completed").then_some(())?;
        let mut added = item.clone().with("status", "\"in_progress\"");
        let id = item.get("id").cloned();
        match item.string("type")?.as_str() {
            "reasoning" => {
                let part = only_part(&item, "reasoning_text")?;
                added.set("content", "[]");
                // At its end llama-server does not say that reasoning is completed.
                item.take("status");
                let text = part.get("text")?.clone();
                Self { kind: Kind::Reasoning, id: id?, added, text, done: item }.checked()
            }
            "message" => {
                let part = only_part(&item, "output_text")?;
                added.set("content", "[]");
                let (added, done) = (added.in_order(&MESSAGE), item.in_order(&MESSAGE_STREAMED));
                let text = part.get("text")?.clone();
                Self { kind: Kind::Message(part), id: id?, added, text, done }.checked()
            }
            "function_call" => {
                let text = added.take_leaving("arguments", "\"\"")?;
                let id = id.or_else(|| item.get("call_id").cloned())?;
                let added = added.in_order(&["id", "arguments", "call_id", "name", "type", "status"]);
                Self { kind: Kind::FunctionCall, id, added, text, done: item }.checked()
            }
            _ => None,
        }
    }

    fn checked(self) -> Option<Self> {
        (json::string(&self.text).is_some() && json::string(&self.id).is_some()).then_some(self)
    }

    fn begin(&self, stream: &mut Stream) {
        stream.named("response.output_item.added", Object::new().with("item", self.added.clone()));
        let delta = |object: Object<'a>| object.with("delta", self.text.clone());
        match &self.kind {
            Kind::Message(_) => {
                let part = Object::new().with("type", "\"output_text\"").with("text", "\"\"");
                stream.named("response.content_part.added", self.named().with("part", part));
                stream.named("response.output_text.delta", delta(self.named()));
            }
            Kind::Reasoning => {
                let data = delta(Object::new()).with("item_id", self.id.clone());
                stream.named("response.reasoning_text.delta", data);
            }
            Kind::FunctionCall => {
                let data = delta(Object::new()).with("item_id", self.id.clone());
                stream.named("response.function_call_arguments.delta", data);
            }
        }
    }

    fn finish(&self, stream: &mut Stream) {
        if let Kind::Message(part) = &self.kind {
            stream.named("response.output_text.done", self.named().with("text", self.text.clone()));
            stream.named("response.content_part.done", self.named().with("part", part.clone()));
        }
        stream.named("response.output_item.done", Object::new().with("item", self.done.clone()));
    }

    fn named(&self) -> Object<'a> {
        Object::new().with("item_id", self.id.clone())
    }
}

/// The one part of an item's content.
fn only_part<'a>(item: &Object<'a>, kind: &str) -> Option<Object<'a>> {
    let parts = json::items(item.text("content")?)?;
    let [part] = parts.as_slice() else { return None };
    Object::parse(part).filter(|part| part.string("type").is_some_and(|own| own == kind))
}
