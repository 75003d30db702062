//! Media that a server would fetch: a caller could make llama-server ask addresses only it can reach.

use super::value::{Json, Name, Value};

/// Whether a body's member of this name holds content, and not schemas or code.
pub(super) fn is_content(name: &[u8]) -> bool {
    !matches!(name, b"tools" | b"functions" | b"response_format" | b"json_schema" | b"text")
}

/// How a member names media.
#[derive(Clone, Copy)]
enum Kind {
    /// By a URL, or an object that has one.
    Url,
    /// By an object whose `url` or `data` may be a URL, a name, or plain base64.
    Inline,
    /// Anthropic: {"type": "image", "source": {"type": "url", "url": …}}.
    Source,
}

/// Members that name media, in any of the protocols.
const KNOWN: [(&str, Kind); 7] = [
    ("image_url", Kind::Url),
    ("audio_url", Kind::Url),
    ("video_url", Kind::Url),
    ("file_url", Kind::Url),
    ("input_audio", Kind::Inline),
    ("input_video", Kind::Inline),
    ("source", Kind::Source),
];

/// A bit for each of their lengths.
const LENGTHS: u64 = {
    let (mut lengths, mut at) = (0, 0);
    while at < KNOWN.len() {
        lengths |= 1 << KNOWN[at].0.len();
        at += 1;
    }
    lengths
};

/// How they begin.
const BEGINNINGS: [u64; KNOWN.len()] = {
    let (mut beginnings, mut at) = ([0; KNOWN.len()], 0);
    while at < KNOWN.len() {
        let name = KNOWN[at].0.as_bytes();
        let mut byte = 0;
        while byte < 8 {
            beginnings[at] = beginnings[at] << 8 | if byte < name.len() { name[byte] as u64 } else { 0 };
            byte += 1;
        }
        at += 1;
    }
    beginnings
};

/// Whether a name of so many bytes that begins so ([`beginning`](super::names::beginning)) may be one of these.
#[inline(always)]
pub(super) fn may_name(bytes: u32, beginning: u64) -> bool {
    // What most are not is told sooner by their length.
    LENGTHS.checked_shr(bytes).is_some_and(|lengths| lengths & 1 == 1) && BEGINNINGS.contains(&beginning)
}

/// Whether a member of this name names media.
pub(super) fn names(name: Name<'_>) -> bool {
    known(name).is_some()
}

fn known(name: Name<'_>) -> Option<(&'static str, Kind)> {
    KNOWN.into_iter().find(|(known, _)| known.as_bytes() == name.bytes())
}

/// The name of a member that names what is not a `data:` URL.
pub(super) fn remote(name: Name<'_>) -> Option<&'static str> {
    let (known, kind) = known(name)?;
    let value = name.value();
    let is_remote = |url: Option<Value<'_>>| url.and_then(Value::as_text).is_some_and(|url| !is_data(&url));
    let is_there = match kind {
        Kind::Url if matches!(value.read(), Json::Text(_)) => is_remote(Some(value)),
        Kind::Url | Kind::Source => is_remote(value.get("url")),
        Kind::Inline => ["url", "data"]
            .into_iter()
            .any(|part| value.get(part).and_then(Value::as_text).is_some_and(|it| it.contains("://"))),
    };
    is_there.then_some(known)
}

fn is_data(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

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
            (r#"{"messages":[{"content":[{"file_url":"//x/a"}]}]}"#, Some("file_url")),
            (r#"{"messages":[{"audio_url":{"url":"gopher:x"}}]}"#, Some("audio_url")),
            (r#"{"messages":[{"image\u005furl":"http://x/"}]}"#, Some("image_url")),
            (r#"{"messages":[{"video_url":"http://x/"}],"tools":[]}"#, Some("video_url")),
            (r#"{"image_url":"http://x/"}"#, None),
            (r#"{"tools":[{"source":{"url":"http://x/"}}],"input":[{"sources":{"url":"http://x/"}}]}"#, None),
        ];
        for (body, expected) in cases {
            let document = parse(&Bytes::from_static(body.as_bytes())).expect("a JSON object");
            assert_eq!(document.remote_media, expected, "{body}");
        }
    }
}
