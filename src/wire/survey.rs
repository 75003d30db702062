//! What one pass through a body tells: how many tokens its text is likely to be, and whether it names media that a
//! server would fetch.

use super::media;
use super::tree::Members;
use super::value::{Json, Text, Value};

/// Prompt tokens of an image or a sound, which has no text to measure.
pub(super) const MEDIA_TOKENS: u64 = 1000;

/// What a message, a tool or a prompt costs beyond its text: its place in the template.
const PLACE_TOKENS: u64 = 8;

/// Bytes of text in a token, of ASCII and of other letters: off by a quarter for most texts (docs/LIMITS.md has what
/// was measured).
const ASCII_BYTES_IN_A_TOKEN: u64 = 3;
const OTHER_BYTES_IN_A_TOKEN: u64 = 2;

/// What it tells.
#[derive(Debug, Default)]
pub struct Survey {
    /// The likely number of tokens in all of its text.
    pub estimate: u64,
    /// The first of its members that names media which a server would fetch.
    pub remote_media: Option<&'static str>,
}

/// Looks through all of a body, once.
pub fn survey(body: &Members) -> Survey {
    let mut seen = Survey::default();
    for (name, value) in body.iter() {
        let is_content = media::is_content(name.bytes());
        let Survey { estimate, remote_media } = &mut seen;
        let member = |name| {
            if is_content && remote_media.is_none() {
                *remote_media = media::remote(name);
            }
        };
        value.visit(member, |json| {
            match json {
                Json::Text(text) if is_media(text) => *estimate += MEDIA_TOKENS,
                Json::Text(text) => {
                    let (ascii, others) = text.bytes();
                    *estimate += (ascii as u64).div_ceil(ASCII_BYTES_IN_A_TOKEN);
                    *estimate += (others as u64).div_ceil(OTHER_BYTES_IN_A_TOKEN);
                }
                Json::List(items) if { items }.all(Value::is_number) => {
                    *estimate += items.count() as u64;
                    return false;
                }
                Json::Object(_) => *estimate += PLACE_TOKENS,
                Json::List(_) | Json::Null | Json::Bool(_) | Json::Number(_) => {}
            }
            true
        });
    }
    seen
}

/// Whether it is an image or a sound in a `data:` URL (RFC 2397), and not a text that begins like one.
fn is_media(text: Text<'_>) -> bool {
    if !text.begins_with("data:") {
        return false;
    }
    let text = text.read();
    let head = text.strip_prefix("data:").and_then(|rest| rest.split_once(','));
    head.is_some_and(|(head, _)| head.ends_with(";base64") && !head.contains(char::is_whitespace))
}
