//! How many tokens a body's text is likely to be.

use super::value::{Json, Text, Value};

/// Prompt tokens of an image or a sound, which has no text to measure.
pub(super) const MEDIA_TOKENS: u64 = 1000;

/// What a message, a tool or a prompt costs beyond its text: its place in the template.
pub(super) const PLACE_TOKENS: u64 = 8;

/// Bytes of text in a token, of ASCII and of other letters: off by a quarter for most texts (docs/LIMITS.md has what
/// was measured).
const ASCII_BYTES_IN_A_TOKEN: u32 = 3;
const OTHER_BYTES_IN_A_TOKEN: u64 = 2;

/// Of all that is in a value. A body's is summed up as it is read (`scan.rs`).
pub(super) fn of_value(value: Value<'_>) -> u64 {
    match value.read() {
        Json::Text(text) => of_text(text),
        // Tokens.
        Json::List(items) if { items }.all(Value::is_number) => items.count() as u64,
        Json::List(items) => items.map(of_value).sum(),
        Json::Object(members) => PLACE_TOKENS + members.map(|(_, value)| of_value(value)).sum::<u64>(),
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
    }
}

#[inline(never)]
fn of_text(text: Text<'_>) -> u64 {
    if is_media(text) {
        return MEDIA_TOKENS;
    }
    let (ascii, others) = text.bytes();
    (ascii as u64).div_ceil(ASCII_BYTES_IN_A_TOKEN.into()) + (others as u64).div_ceil(OTHER_BYTES_IN_A_TOKEN)
}

/// Of a text that is ASCII and no media, which has so many bytes when it is read.
#[inline]
pub(super) fn of_ascii(bytes: u32) -> u64 {
    bytes.div_ceil(ASCII_BYTES_IN_A_TOKEN).into()
}

/// How a text begins that may be media.
const MEDIA: &str = "data:";

/// Whether a text may that begins with this byte.
#[inline]
pub(super) fn may_be_media(byte: Option<u8>) -> bool {
    byte == MEDIA.bytes().next()
}

/// Whether it is an image or a sound in a `data:` URL (RFC 2397), and not a text that begins like one.
fn is_media(text: Text<'_>) -> bool {
    if !text.begins_with(MEDIA) {
        return false;
    }
    let text = text.read();
    let head = text.strip_prefix(MEDIA).and_then(|rest| rest.split_once(','));
    head.is_some_and(|(head, _)| head.ends_with(";base64") && !head.contains(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::wire::parse;

    /// What is summed up as a body is read is what is in it, also once it says something else.
    #[test]
    fn an_estimate_is_that_of_all_members() {
        let long = "0123456789".repeat(100);
        let body = format!(
            r#"{{"model":"abcdef","messages":[{{"content":"a é \n {long}"}},{{"content":[{{"image_url":
            {{"url":"data:image/png;base64,{long}"}}}},"data:text","d",""]}}],"prompt":[1,2.5,-3,4e5],
            "mixed":[1,"a",[2,3],[]],"temperature":0.5,"stop":null,"\u0061":"\u0062c{long}日本語","{{":{{}}}}"#
        );
        let mut members = parse(&body.into()).expect("an object").members;
        let sum =
            |members: &crate::wire::Members| members.iter().map(|(_, value)| of_value(value)).sum::<u64>();
        assert_eq!(members.estimate(), sum(&members));
        let (before, image) = (members.estimate(), MEDIA_TOKENS + 4 * PLACE_TOKENS);
        assert!(before > image + 334 + 334 + 5, "{before}");
        members.insert("tools", &json!([{"name": "a_tool", "at": [1, 2, 3]}]));
        assert_eq!(members.estimate(), before + PLACE_TOKENS + 2 + 3);
        assert!(members.remove("messages") && !members.remove("none"));
        assert_eq!(members.estimate(), sum(&members));
        members.insert("prompt", &json!("abc"));
        assert_eq!(members.estimate(), sum(&members));
    }
}
