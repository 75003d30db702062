//! Media that a server would fetch: a caller could make llama-server ask addresses only it can reach.

use super::tree::Members;
use super::value::{Json, Value};

/// Members that name media, in any of the protocols.
const MEDIA: &[&str] = &["image_url", "audio_url", "video_url", "file_url"];

/// Members whose `url` or `data` may be a name, or plain base64.
const INLINE: &[&str] = &["input_audio", "input_video"];

/// Members that hold schemas or code rather than content.
const NOT_CONTENT: &[&str] = &["tools", "functions", "response_format", "json_schema", "text"];

/// The first name in a body that is not a `data:` URL, with the member it stands in.
pub fn remote(members: &Members) -> Option<&'static str> {
    members
        .iter()
        .filter(|(name, _)| !NOT_CONTENT.contains(&name.text()))
        .flat_map(|(_, value)| value.members_within())
        .find_map(|(name, value)| in_member(name.bytes(), value))
}

fn in_member(name: &[u8], value: Value<'_>) -> Option<&'static str> {
    let known = |names: &[&'static str]| names.iter().find(|known| known.as_bytes() == name).copied();
    let is_remote = |url: Option<Value<'_>>| url.and_then(Value::as_text).is_some_and(|url| !is_data(&url));
    if let Some(known) = known(MEDIA) {
        return is_remote(if matches!(value.read(), Json::Text(_)) { Some(value) } else { value.get("url") })
            .then_some(known);
    }
    if let Some(known) = known(INLINE) {
        let names = |part| value.get(part).and_then(Value::as_text).is_some_and(|it| it.contains("://"));
        return ["url", "data"].into_iter().any(names).then_some(known);
    }
    // Anthropic: {"type": "image", "source": {"type": "url", "url": …}}.
    (name == b"source" && is_remote(value.get("url"))).then_some("source")
}

fn is_data(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::wire::parse;

    #[test]
    fn only_data_urls_pass() {
        let cases = [
            (
                r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":"http://10.0.0.1/a"}}]}]}"#,
                Some("image_url"),
            ),
            (
                r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":"file:///etc/passwd"}}]}]}"#,
                Some("image_url"),
            ),
            (
                r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]}]}"#,
                None,
            ),
            (
                r#"{"input":[{"content":[{"type":"input_image","image_url":"HTTPS://x/"}]}]}"#,
                Some("image_url"),
            ),
            (
                r#"{"messages":[{"content":[{"type":"image","source":{"type":"url","url":"https://x/"}}]}]}"#,
                Some("source"),
            ),
            (r#"{"messages":[{"content":[{"type":"image","source":{"type":"base64","data":"AA"}}]}]}"#, None),
            (r#"{"messages":[{"content":[{"input_video":{"url":"http://x/"}}]}]}"#, Some("input_video")),
            (r#"{"messages":[{"content":[{"input_audio":{"data":"file:///x"}}]}]}"#, Some("input_audio")),
            (r#"{"messages":[{"content":[{"input_audio":{"data":"UklGRg=="}}]}]}"#, None),
            (r#"{"tools":[{"parameters":{"properties":{"image_url":{"url":"http://x"}}}}]}"#, None),
            (r#"{"messages":[{"content":"see http://x/"}]}"#, None),
        ];
        for (body, expected) in cases {
            let members = parse(&Bytes::from_static(body.as_bytes())).expect("a JSON object").members;
            assert_eq!(remote(&members), expected, "{body}");
        }
    }
}
