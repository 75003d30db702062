//! Media that a server would fetch: a caller could make llama-server ask addresses only it can reach.

use serde_json::{Map, Value};

/// Members that name media, in any of the protocols.
const MEDIA: &[&str] = &["image_url", "audio_url", "video_url", "file_url"];

/// Members whose `url` or `data` may be a name, or plain base64.
const INLINE: &[&str] = &["input_audio", "input_video"];

/// Members that hold schemas or code rather than content.
const NOT_CONTENT: &[&str] = &["tools", "functions", "response_format", "json_schema", "text"];

/// The first name in a body that is not a `data:` URL, with the member it stands in.
pub fn remote(members: &Map<String, Value>) -> Option<&'static str> {
    members
        .iter()
        .filter(|(name, _)| !NOT_CONTENT.contains(&name.as_str()))
        .find_map(|(_, value)| in_value(value))
}

fn in_value(value: &Value) -> Option<&'static str> {
    match value {
        Value::Array(items) => items.iter().find_map(in_value),
        Value::Object(members) => in_object(members),
        _ => None,
    }
}

fn in_object(members: &Map<String, Value>) -> Option<&'static str> {
    for name in MEDIA {
        let url = match members.get(*name) {
            Some(Value::String(url)) => Some(url),
            Some(Value::Object(media)) => media.get("url").and_then(|url| match url {
                Value::String(url) => Some(url),
                _ => None,
            }),
            _ => None,
        };
        if url.is_some_and(|url| !is_data(url)) {
            return Some(name);
        }
    }
    for name in INLINE {
        if let Some(Value::Object(media)) = members.get(*name)
            && ["url", "data"].iter().filter_map(|it| media.get(*it)?.as_str()).any(|it| it.contains("://"))
        {
            return Some(name);
        }
    }
    // Anthropic: {"type": "image", "source": {"type": "url", "url": …}}.
    if let Some(Value::Object(source)) = members.get("source")
        && let Some(Value::String(url)) = source.get("url")
        && !is_data(url)
    {
        return Some("source");
    }
    members.values().find_map(in_value)
}

fn is_data(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let members: Map<String, Value> = serde_json::from_str(body).expect("a JSON object");
            assert_eq!(remote(&members), expected, "{body}");
        }
    }
}
