//! What people would read of a request and of its answer: the prompt, and the text. For the access log, where the
//! operator asks for it; nothing else looks at it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::Value;

use super::tree::Members;
use super::value;

/// Stands at the end of a text that was cut.
const CUT: &str = "…[cut]";

/// Members of bodies that hold prompts, in whichever protocol.
const PROMPTS: [&str; 11] = [
    "system",
    "instructions",
    "messages",
    "prompt",
    "input",
    "input_prefix",
    "input_suffix",
    "input_extra",
    "query",
    "documents",
    "content",
];

/// The members of a body that hold its prompt, as JSON, up to so many bytes.
pub fn prompt(members: &Members, bytes_max: usize) -> String {
    // Borrowed: a prompt may be as long as a body.
    let held: BTreeMap<&str, value::Value<'_>> =
        PROMPTS.iter().filter_map(|name| Some((*name, members.get(name)?))).collect();
    let mut json = Bounded { bytes: Vec::new(), bytes_max };
    let whole = serde_json::to_writer(&mut json, &held).is_ok();
    let text = String::from_utf8_lossy(&json.bytes).into_owned();
    cut(text, bytes_max, whole)
}

/// The text of an answer, plain or a stream, in whichever protocol, up to so many bytes. `None`: there is none in it.
pub fn answer(body: &[u8], bytes_max: usize) -> Option<String> {
    let mut text = String::new();
    if body.trim_ascii_start().starts_with(b"{") {
        gather(&serde_json::from_slice(body).ok()?, &mut text);
    } else {
        for line in body.split(|byte| *byte == b'\n') {
            let Some(json) = line.strip_prefix(b"data:") else { continue };
            if let Ok(event) = serde_json::from_slice(json) {
                gather(&event, &mut text);
            }
            if text.len() > bytes_max {
                break;
            }
        }
    }
    (!text.is_empty()).then(|| cut(text, bytes_max, true))
}

fn cut(mut text: String, bytes_max: usize, whole: bool) -> String {
    if text.len() > bytes_max || !whole {
        text.truncate(text.floor_char_boundary(bytes_max));
        text.push_str(CUT);
    }
    text
}

/// Adds what an answer, or an event of one, says.
fn gather(value: &Value, text: &mut String) {
    let mut add = |value: &Value| text.push_str(value.as_str().unwrap_or_default());
    for choice in list(&value["choices"]) {
        add(&choice["text"]);
        for message in [&choice["delta"], &choice["message"]] {
            add(&message["reasoning_content"]);
            add(&message["content"]);
            for call in list(&message["tool_calls"]) {
                add(&call["function"]["name"]);
                add(&call["function"]["arguments"]);
            }
        }
    }
    // llama.cpp's own; Anthropic's plain answer has a list there.
    add(&value["content"]);
    let outputs = list(&value["output"]).iter().flat_map(|output| list(&output["content"]));
    for part in list(&value["content"]).iter().chain(outputs) {
        add(&part["thinking"]);
        add(&part["text"]);
    }
    // An event of /v1/responses, and one of /v1/messages.
    add(&value["delta"]);
    for name in ["thinking", "text", "partial_json"] {
        add(&value["delta"][name]);
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Takes so many bytes, and fails.
struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.bytes_max.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..room]);
        if room < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(room) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::wire::parse;

    #[test]
    fn the_text_of_every_protocol_is_found() {
        let cases = [
            r#"{"choices":[{"message":{"role":"assistant","content":"ab"}}]}"#,
            "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\ndata: [DONE]\n\n",
            r#"{"choices":[{"text":"ab"}]}"#,
            r#"{"content":"ab","stop":true}"#,
            r#"{"type":"message","content":[{"type":"text","text":"ab"}]}"#,
            "event: content_block_delta\ndata: {\"delta\":{\"type\":\"text_delta\",\"text\":\"ab\"}}\n\n",
            r#"{"object":"response","output":[{"content":[{"type":"output_text","text":"ab"}]}]}"#,
            "data: {\"type\":\"response.output_text.delta\",\"delta\":\"ab\"}\n\n\
             data: {\"response\":{\"output\":[{\"content\":[{\"text\":\"ab\"}]}]}}\n\n",
        ];
        for body in cases {
            assert_eq!(answer(body.as_bytes(), 100).as_deref(), Some("ab"), "{body}");
        }
        assert_eq!(answer(br#"{"data":[{"embedding":[0.1]}]}"#, 100), None);
        assert_eq!(answer(br#"{"error":{"message":"no"}}"#, 100), None);
    }

    #[test]
    fn both_are_bounded_and_say_so() {
        let body = json!({"messages": [{"role": "user", "content": "ä".repeat(100_000)}], "model": "tiny"});
        let members = |json: &Value| parse(&json.to_string().into()).expect("an object").members;
        let told = prompt(&members(&body), 1000);
        assert!(
            told.starts_with(r#"{"messages":[{"#)
                && told.ends_with(CUT)
                && told.len() <= 1000 + CUT.len() + 2
        );
        let whole = json!({"prompt": "hi", "model": "tiny"});
        assert_eq!(prompt(&members(&whole), 1000), r#"{"prompt":"hi"}"#);
        let told = answer(json!({"content": "ä".repeat(1000)}).to_string().as_bytes(), 99).expect("a text");
        assert_eq!(told, "ä".repeat(49) + CUT);
    }
}
