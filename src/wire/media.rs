//! Media that a server would fetch: a caller could make llama-server ask addresses only it can reach.

use super::value::{Json, Name, Value};

/// Whether a body's member of this name holds content, and not schemas or code.
pub(super) fn is_content(name: &[u8]) -> bool {
    !matches!(name, b"tools" | b"functions" | b"response_format" | b"json_schema" | b"text")
}

/// Whether a name of so many bytes may be one of [`remote`]'s.
#[inline]
pub(super) fn may_be_remote(bytes: usize) -> bool {
    matches!(bytes, 6 | 8 | 9 | 11)
}

/// The name of a member, in any of the protocols, that names what is not a `data:` URL.
pub(super) fn remote(name: Name<'_>) -> Option<&'static str> {
    let is_remote = |url: Option<Value<'_>>| url.and_then(Value::as_text).is_some_and(|url| !is_data(&url));
    let named = |known, value: Value<'_>| {
        let url = if matches!(value.read(), Json::Text(_)) { Some(value) } else { value.get("url") };
        is_remote(url).then_some(known)
    };
    // Its `url` or `data` may be a name, or plain base64.
    let inline = |known, value: Value<'_>| {
        let names = |part| value.get(part).and_then(Value::as_text).is_some_and(|it| it.contains("://"));
        ["url", "data"].into_iter().any(names).then_some(known)
    };
    match name.bytes() {
        b"image_url" => named("image_url", name.value()),
        b"audio_url" => named("audio_url", name.value()),
        b"video_url" => named("video_url", name.value()),
        b"file_url" => named("file_url", name.value()),
        b"input_audio" => inline("input_audio", name.value()),
        b"input_video" => inline("input_video", name.value()),
        // Anthropic: {"type": "image", "source": {"type": "url", "url": …}}.
        b"source" => is_remote(name.value().get("url")).then_some("source"),
        _ => None,
    }
}

fn is_data(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use crate::wire::{parse, survey};

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
            assert_eq!(survey(&members).remote_media, expected, "{body}");
        }
    }
}
