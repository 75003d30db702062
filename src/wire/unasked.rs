//! Takes the usage out of a stream whose caller did not ask for it: the gateway did, as a limit of tokens needs it.
//!
//! The event is one of its own, with no choices (OpenAI's `include_usage`). All others pass as they came, each as soon
//! as it is whole: what a chunk breaks off in waits for the next.

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// An event that is longer is passed on unread.
const EVENT_BYTES_MAX: usize = 256 << 10;

/// One stream.
#[derive(Debug, Default)]
pub struct Unasked {
    /// The event that the last chunk broke off in.
    begun: BytesMut,
    /// That event is too long to be one of usage.
    long: bool,
}

impl Unasked {
    /// What goes on of a chunk.
    pub fn pass(&mut self, chunk: &Bytes) -> Bytes {
        if self.begun.is_empty() && !self.long && ends_event(chunk) && !mentions_usage(chunk) {
            return chunk.clone();
        }
        self.begun.extend_from_slice(chunk);
        let mut passed = BytesMut::with_capacity(self.begun.len());
        while let Some(end) = event_end(&self.begun) {
            let event = self.begun.split_to(end);
            if std::mem::take(&mut self.long) || !is_usage(&event) {
                passed.extend_from_slice(&event);
            }
        }
        self.long |= self.begun.len() > EVENT_BYTES_MAX;
        if self.long {
            passed.extend_from_slice(&self.begun.split());
        }
        passed.freeze()
    }

    /// What is left of a stream that has ended.
    pub fn rest(&mut self) -> Bytes {
        self.begun.split().freeze()
    }
}

/// Where the first event ends, its blank line included.
fn event_end(bytes: &[u8]) -> Option<usize> {
    let ends = [b"\n\n".as_slice(), b"\n\r\n"];
    ends.iter().filter_map(|end| memmem::find(bytes, end).map(|at| at + end.len())).min()
}

fn ends_event(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n\n") || bytes.ends_with(b"\n\r\n")
}

fn mentions_usage(bytes: &[u8]) -> bool {
    memmem::find(bytes, b"\"usage\"").is_some()
}

/// Whether an event tells the usage and nothing else.
fn is_usage(event: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Chunk {
        choices: Vec<IgnoredAny>,
        usage: Option<IgnoredAny>,
    }
    if !mentions_usage(event) {
        return false;
    }
    let data = event.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"data:"));
    let chunk = data.and_then(|data| serde_json::from_slice::<Chunk>(data).ok());
    chunk.is_some_and(|chunk| chunk.choices.is_empty() && chunk.usage.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a \\\"usage\\\" b\"}}],\"usage\":null}\n\n\
        : ping\n\ndata: {\"choices\":[{\"finish_reason\":\"stop\"}],\"usage\":{\"x\":1}}\r\n\r\n\
        data: {\"choices\":[],\"usage\":{\"total_tokens\":3}}\n\ndata: [DONE]\n\n";

    #[test]
    fn the_usage_goes_and_the_rest_stays_in_whatever_chunks() {
        let expected = STREAM.replace("data: {\"choices\":[],\"usage\":{\"total_tokens\":3}}\n\n", "");
        for size in 1..=STREAM.len() {
            let mut unasked = Unasked::default();
            let chunks = STREAM.as_bytes().chunks(size);
            let mut passed: Vec<u8> =
                chunks.flat_map(|chunk| unasked.pass(&Bytes::copy_from_slice(chunk))).collect();
            passed.extend(unasked.rest());
            assert_eq!(String::from_utf8_lossy(&passed), expected, "in chunks of {size}");
        }
    }

    #[test]
    fn an_event_is_passed_on_as_soon_as_it_is_whole() {
        let mut unasked = Unasked::default();
        assert_eq!(unasked.pass(&Bytes::from_static(b"data: {\"a\":1}\n\ndata: {")), "data: {\"a\":1}\n\n");
        assert_eq!(unasked.pass(&Bytes::from_static(b"\"b\":1}\n\n")), "data: {\"b\":1}\n\n");
    }

    #[test]
    fn an_event_without_end_is_not_held() {
        let mut unasked = Unasked::default();
        let piece = Bytes::from(vec![b'x'; EVENT_BYTES_MAX]);
        assert!(unasked.pass(&piece).is_empty());
        assert_eq!(unasked.pass(&piece).len(), 2 * EVENT_BYTES_MAX);
        assert_eq!(unasked.pass(&piece).len(), EVENT_BYTES_MAX);
        assert_eq!(unasked.pass(&Bytes::from_static(b"\n\ndata: {\"choices\":[],\"usage\":{}}\n\n")), "\n\n");
    }
}
