//! A recorded stream, taken apart into its events and put together again.
//!
//! Understood is what llama-server writes: `data:` lines of one JSON value each, with an `event:` line before them on
//! the named protocols, and pings (comments). Anything else that SSE allows, and a stream that was cut off, is not.

use std::borrow::Cow;
use std::fmt::Write;

use super::json::{NULL, Object};

pub(super) const DONE: &str = "[DONE]";

/// One event. Comments before it belong to it.
#[derive(Debug)]
pub(super) struct Event<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) data: &'a str,
    /// All its bytes, the blank line included.
    pub(super) raw: &'a str,
}

impl<'a> Event<'a> {
    /// The data of an event that says no more than its data does: the name, if it has one, is the data's `type`.
    pub(super) fn object(&self) -> Option<Object<'a>> {
        let object = Object::parse(self.data)?;
        if self.name.is_some() && self.name.map(str::to_owned) != object.string("type") {
            return None;
        }
        (!object.has("error")).then_some(object)
    }
}

/// Splits a stream. Events that say `null`, which llama-server sends before the answers to several prompts, are left
/// out, as are comments after the last event.
pub(super) fn split(stream: &str) -> Option<Vec<Event<'_>>> {
    let mut events = Vec::new();
    let (mut start, mut end) = (0, 0);
    let (mut name, mut data) = (None, None);
    for line in stream.split_inclusive('\n') {
        end += line.len();
        let line = line.strip_suffix('\n')?;
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            match data.take() {
                Some(NULL) => {}
                Some(data) => events.push(Event { name, data, raw: &stream[start..end] }),
                // A blank line after a comment ends nothing; the comment stays with the next event.
                None if name.is_none() => continue,
                None => return None,
            }
            (start, name) = (end, None);
        } else if let Some(text) = field(line, "data:") {
            if data.replace(text).is_some() {
                return None;
            }
        } else if let Some(text) = field(line, "event:") {
            if name.replace(text).is_some() {
                return None;
            }
        } else if !line.starts_with(':') {
            return None;
        }
    }
    (name.is_none() && data.is_none()).then_some(events)
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let text = line.strip_prefix(name)?;
    Some(text.strip_prefix(' ').unwrap_or(text))
}

/// Splits a stream that ends with `[DONE]`, which is left out. None of its events may have a name.
pub(super) fn split_done(stream: &str) -> Option<Vec<Event<'_>>> {
    let mut events = split(stream)?;
    let done = events.pop()?;
    let nameless = |event: &Event<'_>| event.name.is_none() && event.data != DONE;
    (done.data == DONE && done.name.is_none() && events.iter().all(nameless)).then_some(events)
}

/// A stream that is being written.
#[derive(Debug, Default)]
pub(super) struct Stream(String);

impl Stream {
    pub(super) fn event(&mut self, data: &Object<'_>) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "data: {data}\n\n");
    }

    /// An event whose name is also the `type` of its data.
    pub(super) fn named<'a>(&mut self, name: &'static str, members: Object<'a>) {
        let mut data = Object::new().with("type", Cow::Owned(format!("\"{name}\"")));
        members.into_iter().for_each(|(name, value)| data.set(name, value));
        let _ = write!(self.0, "event: {name}\ndata: {data}\n\n");
    }

    pub(super) fn raw(&mut self, event: &str) {
        self.0.push_str(event);
    }

    pub(super) fn done(mut self) -> String {
        self.0.push_str("data: [DONE]\n\n");
        self.0
    }

    pub(super) fn end(self) -> String {
        self.0
    }
}
