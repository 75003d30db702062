//! An answer as it lies in Valkey: a digest, the length of a head, the head as JSON, and the body, compressed where
//! that helps. The digest is over its key and all that follows, so that what another version, another program or a
//! fault has written is told from an answer.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::cache::entry::{Answer, Worth};
use crate::cache::form::Form;
use crate::cache::key::Key;

/// A smaller body stays as it is.
const COMPRESSED_BYTES_LEAST: usize = 1 << 10;

/// A third of the bytes at a tenth of the time that higher levels take.
const LEVEL: i32 = 1;

/// No body is larger: TinyUFO weighs no more, in 16 bits of KiB.
const BODY_BYTES_MAX: usize = (u16::MAX as usize) << 10;

const DIGEST_BYTES: usize = 32;

/// One answer, and when that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parcel {
    pub(super) answer: Answer,
    /// When it was written.
    pub(super) age: Duration,
    /// What it had left then.
    pub(super) ttl: Duration,
}

#[derive(Serialize, Deserialize)]
struct Head {
    /// Its place among all.
    form: usize,
    content_type: String,
    completion_tokens: u64,
    made_in_ms: u64,
    age_ms: u64,
    ttl_ms: u64,
    /// Of the body.
    bytes: usize,
    zstd: bool,
}

impl Parcel {
    /// `None`: it is none that could be opened again.
    pub(super) fn seal(&self, key: &Key) -> Option<Vec<u8>> {
        let Answer { form, content_type, body, worth } = &self.answer;
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).ok();
        let compressed = (body.len() >= COMPRESSED_BYTES_LEAST)
            .then(|| zstd::bulk::compress(body, LEVEL).ok())
            .flatten()
            .filter(|compressed| compressed.len() < body.len());
        let head = Head {
            form: form.index(),
            content_type: std::str::from_utf8(content_type).ok()?.to_owned(),
            completion_tokens: worth.completion_tokens,
            made_in_ms: milliseconds(worth.time)?,
            age_ms: milliseconds(self.age)?,
            ttl_ms: milliseconds(self.ttl)?,
            bytes: Some(body.len()).filter(|bytes| *bytes <= BODY_BYTES_MAX)?,
            zstd: compressed.is_some(),
        };
        let head = serde_json::to_vec(&head).ok()?;
        let length = u16::try_from(head.len()).ok()?.to_be_bytes();
        let body = compressed.as_deref().unwrap_or(body);
        let digest = digest(key, &[&length, &head, body]);
        Some([&digest, length.as_slice(), &head, body].concat())
    }

    /// `None`: it is none, or not one of this key.
    pub(super) fn open(key: &Key, bytes: &[u8]) -> Option<Self> {
        let (told, rest) = bytes.split_first_chunk::<DIGEST_BYTES>()?;
        if digest(key, &[rest]) != *told {
            return None;
        }
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (head, body) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        let head: Head = serde_json::from_slice(head).ok()?;
        if head.bytes > BODY_BYTES_MAX {
            return None;
        }
        let body = match head.zstd {
            true => Bytes::from(zstd::bulk::decompress(body, head.bytes).ok()?),
            false => Bytes::copy_from_slice(body),
        };
        let form = *Form::ALL.get(head.form)?;
        let worth =
            Worth { completion_tokens: head.completion_tokens, time: Duration::from_millis(head.made_in_ms) };
        let answer = Answer { form, content_type: head.content_type.into(), body, worth };
        let parcel =
            Self { answer, age: Duration::from_millis(head.age_ms), ttl: Duration::from_millis(head.ttl_ms) };
        (parcel.answer.body.len() == head.bytes).then_some(parcel)
    }
}

fn digest(key: &Key, parts: &[&[u8]]) -> [u8; DIGEST_BYTES] {
    let mut hash = Sha256::new();
    hash.update(key);
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(body: &[u8]) -> Parcel {
        let answer = Answer {
            form: Form::Stream { include_usage: true },
            content_type: Bytes::from_static(b"text/event-stream"),
            body: Bytes::copy_from_slice(body),
            worth: Worth { completion_tokens: 7, time: Duration::from_millis(1234) },
        };
        Parcel { answer, age: Duration::from_millis(5), ttl: Duration::from_secs(300) }
    }

    #[test]
    fn an_answer_comes_out_as_it_went_in_and_a_large_one_takes_less() {
        let large = b"data: {\"choices\":[{\"delta\":{\"content\":\"word\"}}]}\n\n".repeat(1000);
        for body in [b"".as_slice(), b"{}", &large] {
            let sealed = parcel(body).seal(&[1; 32]).expect("an answer");
            assert_eq!(Parcel::open(&[1; 32], &sealed), Some(parcel(body)));
            assert!(sealed.len() < 300 + body.len() / 10, "{} of {}", sealed.len(), body.len());
        }
    }

    #[test]
    fn what_is_cut_changed_or_of_another_key_is_no_answer() {
        let sealed = parcel(&b"words and more words ".repeat(100)).seal(&[1; 32]).expect("an answer");
        assert_eq!(Parcel::open(&[2; 32], &sealed), None);
        for end in 0..sealed.len() {
            assert_eq!(Parcel::open(&[1; 32], &sealed[..end]), None, "{end}");
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(Parcel::open(&[1; 32], &changed), None, "{at}");
        }
    }

    #[test]
    fn who_writes_with_the_right_digest_is_not_believed_either() {
        let written = |head: &str, body: &[u8]| {
            let length = u16::try_from(head.len()).expect("short").to_be_bytes();
            let digest = digest(&[1; 32], &[&length, head.as_bytes(), body]);
            [&digest, length.as_slice(), head.as_bytes(), body].concat()
        };
        let head = |form: usize, bytes: usize, zstd: bool| {
            let times = r#""made_in_ms":0,"age_ms":0,"ttl_ms":1"#;
            let rest = r#""content_type":"a/b","completion_tokens":0,"new":1"#;
            format!(r#"{{"form":{form},"bytes":{bytes},"zstd":{zstd},{times},{rest}}}"#)
        };
        let bomb = zstd::bulk::compress(&vec![0; 1 << 20], LEVEL).expect("it compresses");
        assert!(Parcel::open(&[1; 32], &written(&head(0, 2, false), b"{}")).is_some());
        for wrong in [
            written(&head(9, 2, false), b"{}"),
            written(&head(0, 3, false), b"{}"),
            written(&head(0, 2, true), b"{}"),
            written(&head(0, 1000, true), &bomb),
            written(&head(0, 2 << 20, true), &bomb),
            written(&head(0, usize::MAX, true), &bomb),
            written("{}", b"{}"),
            written("", b""),
        ] {
            assert_eq!(Parcel::open(&[1; 32], &wrong), None);
        }
    }
}
