//! What one pass through a body tells: how many tokens its text is likely to be, and whether it names media that a
//! server would fetch.

use super::media;
use super::tree::{Members, Node};
use super::value::{Name, Text};

/// Prompt tokens of an image or a sound, which has no text to measure.
pub(super) const MEDIA_TOKENS: u64 = 1000;

/// What a message, a tool or a prompt costs beyond its text: its place in the template.
const PLACE_TOKENS: u64 = 8;

/// Bytes of text in a token, of ASCII and of other letters: off by a quarter for most texts (docs/LIMITS.md has what
/// was measured).
const ASCII_BYTES_IN_A_TOKEN: u32 = 3;
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
        let nodes = value.nodes();
        let mut at = 0;
        while let Some(node) = nodes.get(at) {
            match *node {
                Node::Name { bytes, .. } if !media::may_be_remote(bytes as usize - 2) => {}
                Node::Name { .. } | Node::NameApart { .. } => {
                    if is_content && seen.remote_media.is_none() {
                        seen.remote_media = media::remote(Name(value.further(at)));
                    }
                }
                Node::Spelled { bytes, escapes, has_others: false, .. }
                    if !is_media(Text(value.further(at))) =>
                {
                    seen.estimate += u64::from((bytes - 2 - escapes).div_ceil(ASCII_BYTES_IN_A_TOKEN));
                }
                Node::Spelled { .. } | Node::Apart(..) => seen.estimate += tokens(Text(value.further(at))),
                Node::Object { .. } => seen.estimate += PLACE_TOKENS,
                Node::List(end) => {
                    let items = nodes.get(at + 1..end as usize - value.at).unwrap_or_default();
                    // Tokens.
                    if items.iter().all(Node::is_number) {
                        seen.estimate += items.len() as u64;
                        at += items.len();
                    }
                }
                Node::Null | Node::Bool(_) | Node::Unsigned(_) | Node::Signed(_) | Node::Double(_) => {}
            }
            at += 1;
        }
    }
    seen
}

#[inline(never)]
fn tokens(text: Text<'_>) -> u64 {
    if is_media(text) {
        return MEDIA_TOKENS;
    }
    let (ascii, others) = text.bytes();
    (ascii as u64).div_ceil(ASCII_BYTES_IN_A_TOKEN.into()) + (others as u64).div_ceil(OTHER_BYTES_IN_A_TOKEN)
}

/// Whether it is an image or a sound in a `data:` URL (RFC 2397), and not a text that begins like one.
#[inline]
fn is_media(text: Text<'_>) -> bool {
    text.begins_with("data:") && is_data_url(text)
}

#[cold]
fn is_data_url(text: Text<'_>) -> bool {
    let text = text.read();
    let head = text.strip_prefix("data:").and_then(|rest| rest.split_once(','));
    head.is_some_and(|(head, _)| head.ends_with(";base64") && !head.contains(char::is_whitespace))
}
