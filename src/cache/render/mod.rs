//! One entry, both forms: a kept answer rendered from the form it was recorded in into the other, losing nothing.
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

use std::borrow::Cow;

use bytes::Bytes;

use json::Object;

pub use super::form::{Dialect, Form};

/// Renders `body`, recorded as `from`, as `to`; the same form gives the same bytes.
///
/// `None`: the answer failed, is not whole, or has a shape that is not known here.
pub fn render(dialect: Dialect, from: Form, body: &[u8], to: Form) -> Option<Bytes> {
    if from == to {
        return Some(Bytes::copy_from_slice(body));
    }
    let body = std::str::from_utf8(body).ok()?;
    let rendered = match (from, to) {
        (Form::Plain, Form::Stream { include_usage }) => {
            // Values pass as they were spelled, and a line break between two tokens would cut an event.
            let body =
                if body.contains(['\n', '\r']) { Cow::Owned(json::compact(body)?) } else { body.into() };
            let answer = Object::parse(&body).filter(|answer| !answer.has("error"))?;
            match dialect {
                Dialect::Chat => chat::stream(answer, include_usage),
                Dialect::Completions => completions::stream(answer),
                Dialect::Responses => responses::stream(answer),
                Dialect::Messages => messages::stream(answer),
                Dialect::Native => native::stream(answer),
            }
        }
        (Form::Stream { .. }, Form::Stream { include_usage }) => match dialect {
            Dialect::Chat => chat::with_usage(body, include_usage),
            Dialect::Completions => completions::tells_usage(body).then(|| body.to_owned()),
            Dialect::Responses | Dialect::Messages | Dialect::Native => Some(body.to_owned()),
        },
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
