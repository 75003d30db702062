//! One entry, both forms: a kept answer rendered from the form it was recorded in into the other, losing nothing.
//!
//! Not asked by the store yet: until it is, an entry answers in the form it was recorded in alone.
//!
//! Pure functions of the bytes. What llama-server would have said in the wanted form is what comes out, member order
//! included; members that this does not know pass as they were spelled. Where a shape leaves a doubt there is no
//! rendering, and the answer is served only as it was recorded. Checked against llama-server b11434 and b11549
//! (tests/captures), whose `tools/server/server-task.cpp` is the source of both forms.

mod json;
mod events;
mod chunks;
mod chat;
mod completions;
mod native;
mod messages;
mod responses;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use json::Object;

/// Whose shapes an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's chat: choices of messages and deltas.
    Chat,
    /// OpenAI's completions: choices of text.
    Completions,
    /// OpenAI's responses: named events.
    Responses,
    /// Anthropic's messages: named events.
    Messages,
    /// llama.cpp's own completions.
    Native,
}

impl Dialect {
    /// Of an endpoint, by its path on the server; `None` where answers have one form only.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" | "/chat/completions" => Some(Self::Chat),
            "/v1/completions" => Some(Self::Completions),
            "/v1/responses" | "/responses" => Some(Self::Responses),
            "/v1/messages" => Some(Self::Messages),
            "/completion" | "/completions" | "/infill" => Some(Self::Native),
            _ => None,
        }
    }
}

/// In which form an answer was recorded or is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    Stream {
        /// Whether a chat's stream ends with an event that tells the usage. Other dialects always tell it.
        include_usage: bool,
    },
}

/// Renders `body`, recorded as `from`, as `to`; the same form gives the same bytes.
///
/// `None`: the answer failed, is not whole, or has a shape that is not known here.
pub fn render(dialect: Dialect, from: Form, body: &[u8], to: Form) -> Option<Bytes> {
    let same = match (from, to) {
        (Form::Stream { .. }, Form::Stream { .. }) => from == to || dialect != Dialect::Chat,
        _ => from == to,
    };
    if same {
        return Some(Bytes::copy_from_slice(body));
    }
    let body = std::str::from_utf8(body).ok()?;
    let rendered = match (from, to) {
        (Form::Plain, Form::Stream { include_usage }) => {
            let answer = Object::parse(body).filter(|answer| !answer.has("error"))?;
            match dialect {
                Dialect::Chat => chat::stream(answer, include_usage),
                Dialect::Completions => completions::stream(answer),
                Dialect::Responses => responses::stream(answer),
                Dialect::Messages => messages::stream(answer),
                Dialect::Native => native::stream(answer),
            }
        }
        (Form::Stream { .. }, Form::Stream { include_usage }) => chat::with_usage(body, include_usage),
        (_, Form::Plain) => match dialect {
            Dialect::Chat => chat::plain(body),
            Dialect::Completions => completions::plain(body),
            Dialect::Responses => responses::plain(body),
            Dialect::Messages => messages::plain(body),
            Dialect::Native => native::plain(body),
        }
        .map(|answer| answer.to_string()),
    };
    rendered.map(Bytes::from)
}
