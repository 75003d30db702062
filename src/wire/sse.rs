//! A server-sent event stream on its way: whole or cut off, and what its events report.
//!
//! Chunks split events anywhere and hold several (measured on llama-server b11434), so lines are put together again
//! across chunks. Only events that can say something of interest are parsed: one search a line, one parse an answer.
//! The bytes themselves are not touched.

use std::sync::LazyLock;

use aho_corasick::packed::Searcher;
use memchr::{memchr, memmem};
use serde::de::IgnoredAny;

use super::endpoint::Protocol;
use super::usage::Usage;

/// A longer line is not read: its event still passes, but says nothing.
const LINE_BYTES_MAX: usize = 256 << 10;

/// Follows one stream.
#[derive(Debug)]
pub struct Watch {
    protocol: Protocol,
    /// The line that the last chunk broke off in.
    carry: Vec<u8>,
    /// The current line is too long to be read.
    skipping: bool,
    ended: bool,
    failed: bool,
    boundary: Boundary,
    /// Events that carried data, its end mark included: about one a token.
    pub events: u64,
    pub usage: Usage,
}

/// What the last bytes sent were, as far as the end of an event is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boundary {
    /// Between events.
    Between,
    /// After a line within an event.
    Line,
    /// Within a line.
    Within,
}

impl Watch {
    pub fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            carry: Vec::new(),
            skipping: false,
            ended: false,
            failed: false,
            boundary: Boundary::Between,
            events: 0,
            usage: Usage::default(),
        }
    }

    /// Whether the protocol's own end mark has passed (`[DONE]`, `message_stop`, `response.completed`, `"stop":true`)
    /// and no event said that something failed.
    pub fn ended(&self) -> bool {
        self.ended && !self.failed
    }

    /// Whether an event said that something failed.
    pub fn failed(&self) -> bool {
        self.failed
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// What must be sent before another event: nothing between events, a blank line where one was cut through.
    pub fn cut(&self) -> &'static str {
        match self.boundary {
            Boundary::Between => "",
            Boundary::Line => "\n",
            Boundary::Within => "\n\n",
        }
    }

    /// Takes in the next bytes of the stream.
    pub fn feed(&mut self, mut chunk: &[u8]) {
        while let Some(end) = memchr(b'\n', chunk) {
            let (line, rest) = (&chunk[..end], &chunk[end + 1..]);
            if self.skipping || self.carry.len() + line.len() > LINE_BYTES_MAX {
                self.skipping = false;
                self.carry.clear();
                self.boundary = Boundary::Line;
            } else if self.carry.is_empty() {
                self.line(line);
            } else {
                let mut whole = std::mem::take(&mut self.carry);
                whole.extend_from_slice(line);
                self.line(&whole);
                whole.clear();
                self.carry = whole;
            }
            chunk = rest;
        }
        if !chunk.is_empty() {
            self.boundary = Boundary::Within;
            if self.carry.len() + chunk.len() > LINE_BYTES_MAX {
                self.carry = Vec::new();
                self.skipping = true;
            } else if !self.skipping {
                self.carry.extend_from_slice(chunk);
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            self.boundary = Boundary::Between;
            return;
        }
        self.boundary = Boundary::Line;
        let Some(data) = line.strip_prefix(b"data:") else { return };
        let data = data.strip_prefix(b" ").unwrap_or(data);
        self.events += 1;
        if data == b"[DONE]" {
            self.ended |= matches!(self.protocol, Protocol::OpenAi);
            return;
        }
        if is_of_interest(data) {
            self.usage.note(data);
            self.note(data);
        }
    }

    /// Takes in what an event says of the stream's end.
    fn note(&mut self, data: &[u8]) {
        #[derive(serde::Deserialize, Default)]
        #[serde(default)]
        struct End {
            r#type: Option<String>,
            stop: Option<bool>,
            error: Option<IgnoredAny>,
        }
        let Ok(end) = serde_json::from_slice::<End>(data) else { return };
        let has_failed = matches!(end.r#type.as_deref(), Some("response.failed" | "error"));
        self.failed |= end.error.is_some() || has_failed;
        self.ended |= match self.protocol {
            Protocol::OpenAi => false,
            Protocol::Anthropic => end.r#type.as_deref() == Some("message_stop"),
            // A response that ran into its token limit ends with `response.incomplete`, as whole as the other.
            Protocol::Responses => {
                matches!(end.r#type.as_deref(), Some("response.completed" | "response.incomplete"))
            }
            Protocol::Llama => end.stop == Some(true),
        };
    }
}

/// What an event holds if it is worth parsing, and what the value after it must begin with; `None`: anything.
const MARKS: [(&str, Option<u8>); 8] = [
    ("\"usage\"", Some(b'{')),
    ("\"timings\"", Some(b'{')),
    ("\"finish_reason\"", Some(b'"')),
    ("\"stop_reason\"", Some(b'"')),
    ("\"stop\"", Some(b't')),
    ("\"message_stop\"", None),
    ("\"response.", None),
    ("\"error\"", Some(b'{')),
];

/// Finds all of them at once. `None`: not on this processor.
static FINDER: LazyLock<Option<Searcher>> = LazyLock::new(|| Searcher::new(MARKS.map(|(text, _)| text)));

/// Whether an event is worth parsing. No two marks of a document overlap: each begins and ends a string, or begins one.
fn is_of_interest(data: &[u8]) -> bool {
    let is_told = |end: usize, value: Option<u8>| {
        let mut after = data[end..].iter();
        value.is_none_or(|value| after.find(|byte| !matches!(byte, b' ' | b':')) == Some(&value))
    };
    match &*FINDER {
        Some(all) => all.find_iter(data).any(|mark| is_told(mark.end(), MARKS[mark.pattern().as_usize()].1)),
        None => MARKS
            .iter()
            .any(|(text, value)| memmem::find_iter(data, text).any(|at| is_told(at + text.len(), *value))),
    }
}

/// An event that ends a stream which cannot go on, in the protocol's own form.
pub fn error_event(protocol: Protocol, error: &str) -> String {
    match protocol {
        Protocol::OpenAi | Protocol::Llama => format!("data: {error}\n\n"),
        Protocol::Anthropic | Protocol::Responses => format!("event: error\ndata: {error}\n\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n: ping\n\n\
        data: {\"choices\":[{\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3}}\n\n\
        data: [DONE]\n\n";

    fn watch(protocol: Protocol, stream: &str, step: usize) -> Watch {
        let mut watch = Watch::new(protocol);
        stream.as_bytes().chunks(step).for_each(|chunk| watch.feed(chunk));
        watch
    }

    #[test]
    fn any_chunking_tells_the_same() {
        for stream in [CHAT.to_owned(), CHAT.replace('\n', "\r\n")] {
            for step in 1..stream.len() + 1 {
                let watch = watch(Protocol::OpenAi, &stream, step);
                assert!(watch.ended(), "chunks of {step}");
                assert_eq!(watch.usage.completion_tokens, Some(3), "chunks of {step}");
                assert_eq!(watch.usage.finish_reason.as_deref(), Some("stop"), "chunks of {step}");
                assert_eq!(watch.cut(), "", "chunks of {step}");
            }
        }
    }

    #[test]
    fn each_protocol_has_its_own_end() {
        let cases = [
            (Protocol::OpenAi, "data: [DONE]\n\n", true),
            (Protocol::OpenAi, "data: {\"content\":\"[DONE]\"}\n\n", false),
            (Protocol::OpenAi, "data: {\"stop\":true}\n\n", false),
            (Protocol::OpenAi, "data: {\"error\":{\"message\":\"\"}}\n\ndata: [DONE]\n\n", false),
            (Protocol::Anthropic, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", true),
            (
                Protocol::Anthropic,
                "data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"message_stop\"}}\n\n",
                false,
            ),
            (Protocol::Anthropic, "data: [DONE]\n\n", false),
            (
                Protocol::Responses,
                "event: response.completed\ndata: {\"type\":\"response.completed\"}\n\n",
                true,
            ),
            (Protocol::Responses, "data: {\"type\":\"response.created\"}\n\n", false),
            (Protocol::Llama, "data: {\"content\":\"\",\"stop\": true}\n\n", true),
            (Protocol::Llama, "data: {\"content\":\"\\\"stop\\\":true\",\"stop\":false}\n\n", false),
        ];
        for (protocol, stream, ended) in cases {
            assert_eq!(watch(protocol, stream, 7).ended(), ended, "{protocol:?} {stream}");
        }
    }

    #[test]
    fn a_cut_event_is_closed_before_the_next() {
        let cases = [
            ("", ""),
            ("data: 1\n\n", ""),
            ("data: 1\n", "\n"),
            ("data: 1", "\n\n"),
            ("data: 1\r\n\r\n", ""),
        ];
        for (stream, cut) in cases {
            assert_eq!(watch(Protocol::OpenAi, stream, 3).cut(), cut, "{stream:?}");
        }
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut watch = Watch::new(Protocol::OpenAi);
        (0..64).for_each(|_| watch.feed(&[b'x'; 16 << 10]));
        assert!(watch.carry.capacity() <= 2 * LINE_BYTES_MAX);
        watch.feed(b"\n\ndata: [DONE]\n\n");
        assert!(watch.ended());
    }

    #[test]
    fn a_line_too_long_to_be_read_is_so_in_any_chunks() {
        let line = format!("data: {{\"pad\":\"{}\",\"stop\":true}}\n\n", "x".repeat(LINE_BYTES_MAX));
        let ended = |size: usize| {
            let mut watch = Watch::new(Protocol::Llama);
            line.as_bytes().chunks(size).for_each(|chunk| watch.feed(chunk));
            assert_eq!(watch.cut(), "");
            watch.ended()
        };
        assert_eq!([ended(line.len()), ended(1 << 16), ended(1000)], [false; 3]);
    }
}
