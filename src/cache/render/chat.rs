//! Chat: each choice is a message, told in deltas; the usage stands on an event of its own, if it was asked for.

use std::collections::BTreeMap;

use super::chunks::{Answer, Choice, Whole, counted};
use super::events::{self, DONE, Stream};
use super::json::{self, NULL, Object, Text};

const PLAIN: &str = "chat.completion";
const CHUNK: &str = "chat.completion.chunk";
/// What stands on every chunk, in this order.
const HEAD: [&str; 5] = ["created", "id", "model", "system_fingerprint", "object"];

/// A message that is being told.
#[derive(Debug, Default)]
struct Message<'a> {
    reasoning: Option<String>,
    content: String,
    calls: BTreeMap<u64, Call<'a>>,
    others: Object<'a>,
}

/// A tool call that is being told.
#[derive(Debug, Default)]
struct Call<'a> {
    arguments: String,
    function: Object<'a>,
    others: Object<'a>,
}

/// The plain answer that a stream amounts to.
pub(super) fn plain(stream: &str) -> Option<Object<'_>> {
    let answer = Answer::gather(stream, CHUNK, |message: &mut Message<'_>, members| {
        message.tell(Object::parse(members.raw("delta")?)?)
    })?;
    answer.plain(PLAIN, say)
}

impl<'a> Message<'a> {
    fn tell(&mut self, mut delta: Object<'a>) -> Option<()> {
        if let Some(piece) = delta.raw("reasoning_content").filter(|piece| *piece != NULL) {
            self.reasoning.get_or_insert_default().push_str(&json::string(piece)?);
        }
        if let Some(piece) = delta.raw("content").filter(|piece| *piece != NULL) {
            self.content.push_str(&json::string(piece)?);
        }
        if let Some(calls) = delta.raw("tool_calls").filter(|calls| *calls != NULL) {
            for call in json::items(calls)? {
                let mut call = Object::parse(call)?;
                let index = json::count(call.raw("index")?)?;
                self.calls.entry(index).or_default().tell(call)?;
            }
        }
        self.others.agree_all(delta)
    }
}

impl<'a> Call<'a> {
    fn tell(&mut self, mut members: Object<'a>) -> Option<()> {
        if let Some(function) = members.raw("function") {
            let mut function = Object::parse(function)?;
            if let Some(piece) = function.raw("arguments") {
                self.arguments.push_str(&json::string(piece)?);
            }
            self.function.agree_all(function)?;
        }
        self.others.agree_all(members)
    }

    fn say(mut self) -> Object<'a> {
        let mut function = Object::new();
        function.adopt(&mut self.function, "name");
        function.set("arguments", json::quoted(&self.arguments));
        function.set_all(self.function);
        let mut call = Object::new();
        call.adopt(&mut self.others, "type");
        call.set("function", function);
        call.set_all(self.others);
        call
    }
}

/// A choice of the plain answer.
fn say<'a>(index: u64, choice: Choice<'a, Message<'a>>) -> Option<Object<'a>> {
    let mut said = choice.said;
    let mut message = Object::new().with("role", said.others.take("role")?);
    // A message of tool calls alone has an empty text too.
    message.set("content", json::quoted(&said.content));
    if let Some(reasoning) = said.reasoning {
        message.set("reasoning_content", json::quoted(&reasoning));
    }
    if !said.calls.is_empty() {
        message.set("tool_calls", json::array(said.calls.into_values().map(Call::say)));
    }
    message.set_all(said.others);
    let mut plain = piece(choice.finish_reason?.into(), index.to_string().into(), "message", message);
    if let Some(logprobs) = choice.logprobs.whole() {
        plain.set("logprobs", logprobs);
    }
    plain.set_all(choice.others);
    Some(plain)
}

fn piece<'a>(reason: Text<'a>, index: Text<'a>, name: &'static str, said: Object<'a>) -> Object<'a> {
    Object::new().with("finish_reason", reason).with("index", index).with(name, said)
}

/// The stream that a plain answer could have been. The choices are told one after the other and finished in reverse:
/// the report that follows the last of them is the first choice's.
pub(super) fn stream(answer: Object<'_>, include_usage: bool) -> Option<String> {
    let mut whole = Whole::of(answer, PLAIN)?;
    whole.head.set("object", json::quoted(CHUNK));
    let head = whole.head.in_order(&HEAD);
    let mut stream = Stream::default();
    let mut ends = Vec::new();
    for mut choice in whole.choices {
        let mut deltas = deltas(Object::parse(choice.raw("message")?)?)?;
        let index = choice.take("index")?;
        let mut logprobs = choice.take("logprobs");
        let last = deltas.pop();
        for delta in deltas {
            stream.event(&chunk(piece(NULL.into(), index.clone(), "delta", delta), &head));
        }
        if let Some(delta) = last {
            let mut piece = piece(NULL.into(), index.clone(), "delta", delta);
            if let Some(logprobs) = logprobs.take() {
                piece.set("logprobs", logprobs);
            }
            stream.event(&chunk(piece, &head));
        }
        let mut end = piece(choice.take("finish_reason")?, index, "delta", Object::new());
        end.set_all(choice);
        ends.push(chunk(end, &head));
    }
    ends.reverse();
    if include_usage {
        let mut told = Object::new().with("choices", "[]");
        told.set_all(head);
        ends.push(told.with("usage", whole.usage?));
    }
    if let Some(last) = ends.last_mut() {
        last.set_all(whole.others);
        if let Some(timings) = whole.timings {
            last.set("timings", timings);
        }
    }
    ends.iter().for_each(|end| stream.event(end));
    Some(stream.done())
}

fn chunk<'a>(choice: Object<'a>, head: &Object<'a>) -> Object<'a> {
    let mut chunk = Object::new().with("choices", json::array([choice]));
    chunk.set_all(head.clone());
    chunk
}

/// The deltas that tell a message, the role's first.
fn deltas(mut message: Object<'_>) -> Option<Vec<Object<'_>>> {
    let mut role = Object::new().with("role", message.take("role")?).with("content", NULL);
    let mut deltas = Vec::new();
    if let Some(reasoning) = message.take("reasoning_content") {
        json::string(&reasoning)?;
        deltas.push(Object::new().with("reasoning_content", reasoning));
    }
    let content = message.take("content")?;
    if !json::string(&content)?.is_empty() {
        deltas.push(Object::new().with("content", content));
    }
    if let Some(calls) = message.raw("tool_calls") {
        let calls = json::items(calls)?;
        (!calls.is_empty()).then_some(())?;
        for (index, call) in calls.into_iter().enumerate() {
            deltas.push(called(index, Object::parse(call)?)?);
        }
    }
    // What is not known stands with the role.
    role.set_all(message);
    deltas.insert(0, role);
    Some(deltas)
}

/// The delta of a whole tool call.
fn called(index: usize, mut call: Object<'_>) -> Option<Object<'_>> {
    let mut rest = Object::parse(call.raw("function")?)?;
    rest.string("arguments")?;
    call.get("index").is_none().then_some(())?;
    let mut function = Object::new();
    ["name", "arguments"].into_iter().for_each(|name| function.adopt(&mut rest, name));
    function.set_all(rest);
    let mut delta = Object::new().with("index", index.to_string());
    ["id", "type"].into_iter().for_each(|name| delta.adopt(&mut call, name));
    delta.set("function", function);
    delta.set_all(call);
    Some(Object::new().with("tool_calls", json::array([delta])))
}

/// The same stream with or without the events that tell the usage. The timings stand there, or else on the event
/// that finishes the choice; every other byte stays.
pub(super) fn with_usage(stream: &str, wanted: bool) -> Option<String> {
    let events = events::split(stream)?;
    let (done, events) = events.split_last().filter(|(done, _)| done.data == DONE)?;
    let mut rendered = Stream::default();
    // The event that finished a choice: what follows says whether it has its usage.
    let mut finish = None;
    for event in events {
        let mut chunk = event.object()?;
        let choices = json::items(chunk.text("choices")?)?;
        if choices.is_empty() {
            let (ended, raw) = finish.take()?;
            if wanted {
                rendered.raw(raw);
                rendered.raw(event.raw);
            } else {
                rendered.event(&without_usage(ended, chunk)?);
            }
            continue;
        }
        if let Some((ended, raw)) = finish.take() {
            // Timings may stand on the last choice alone.
            let wanted = wanted && ended.has("timings");
            close(ended, raw, wanted, &mut rendered)?;
        }
        if chunk.raw("usage").is_some_and(|usage| usage != NULL) {
            return None;
        }
        let choices: Vec<_> = choices.into_iter().map(Object::parse).collect::<Option<_>>()?;
        if choices.iter().any(|choice| choice.has("finish_reason")) {
            finish = Some((chunk, event.raw));
        } else {
            rendered.raw(event.raw);
        }
    }
    if let Some((ended, raw)) = finish {
        close(ended, raw, wanted, &mut rendered)?;
    }
    rendered.raw(done.raw);
    Some(rendered.end())
}

/// Writes an event that finished a choice and has no usage, and the usage if that is wanted.
fn close(mut ended: Object<'_>, raw: &str, wanted: bool, rendered: &mut Stream) -> Option<()> {
    if !wanted {
        rendered.raw(raw);
        return Some(());
    }
    let timings = ended.raw("timings")?;
    rendered.event(&ended);
    let mut told = Object::new().with("choices", "[]");
    HEAD.into_iter().for_each(|name| told.copy(&ended, name));
    rendered.event(&told.with("usage", counted(timings)?).with("timings", timings));
    Some(())
}

/// The event that finished a choice, with the timings of the usage event that followed.
fn without_usage<'a>(mut ended: Object<'a>, mut told: Object<'a>) -> Option<Object<'a>> {
    told.take("usage")?;
    let timings = told.take("timings");
    // An event that says more than the usage is not one that may be left out.
    told.names().all(|name| ended.get(name).is_some()).then_some(())?;
    if let Some(timings) = timings {
        ended.set("timings", timings);
    }
    Some(ended)
}
