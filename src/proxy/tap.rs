//! An answer's bytes on their way to the caller: watched for their end and their usage, recorded if they are to be
//! kept. The bytes are shared with what goes out, never changed, and never held back.

use bytes::Bytes;
use http::{StatusCode, header};
use pingora::http::ResponseHeader;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::cache::{Key, Recording};
use crate::wire::{Usage, Watch, error_event};

use super::context::Job;

/// A plain answer that is not kept is read up to here for what it says of its usage.
const READ_BYTES_MAX: usize = 1 << 20;

/// One answer.
#[derive(Debug)]
pub(super) struct Tap {
    form: Form,
    keep: Option<Key>,
    /// `None`: larger than what is kept, or not of interest.
    recording: Option<Recording>,
    content_type: Bytes,
    /// Whether its end can be told from its being cut off: by a length or by chunks.
    framed: bool,
}

#[derive(Debug)]
enum Form {
    Stream(Watch),
    Json(Usage),
    Other,
}

/// What the end of an answer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Whole, and to be kept.
    Keep(Keepsake),
    /// Whole.
    Whole,
    /// It ended without its end: no length, no chunks, and what came is not complete.
    Cut,
}

/// A whole answer to be kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Keepsake {
    pub(super) key: Key,
    pub(super) content_type: Bytes,
    pub(super) body: Bytes,
}

/// Whether a plain answer is complete JSON and no error in an answer's clothes.
fn is_good(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Failed {
        error: Option<IgnoredAny>,
    }
    let is_error = || serde_json::from_slice::<Failed>(body).is_ok_and(|failed| failed.error.is_some());
    let is_object = body.trim_ascii_start().starts_with(b"{");
    serde_json::from_slice::<IgnoredAny>(body).is_ok() && !(is_object && is_error())
}

/// Whether the server says where its answer ends. Ask before Pingora adds a frame of its own.
pub(super) fn is_framed(answer: &ResponseHeader) -> bool {
    answer.headers.contains_key(header::CONTENT_LENGTH)
        || answer.headers.contains_key(header::TRANSFER_ENCODING)
}

impl Tap {
    /// Begins with the answer's header. `framed`: by the server itself ([`is_framed`]).
    pub(super) fn new(job: &Job, answer: &ResponseHeader, framed: bool, entry_bytes_max: usize) -> Self {
        let value = |name| answer.headers.get(name).map(|value| Bytes::copy_from_slice(value.as_bytes()));
        let content_type = value(header::CONTENT_TYPE).unwrap_or_default();
        let ok = answer.status == StatusCode::OK;
        let form = match content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii() {
            b"text/event-stream" => Form::Stream(Watch::new(job.endpoint.protocol)),
            b"application/json" if ok => Form::Json(Usage::default()),
            _ => Form::Other,
        };
        let keep = job.keep.filter(|_| ok && framed && !matches!(form, Form::Other));
        let recording = match (keep, &form) {
            (Some(_), _) => Some(Recording::new(entry_bytes_max)),
            (None, Form::Json(_)) => Some(Recording::new(READ_BYTES_MAX)),
            (None, _) => None,
        };
        Self { form, keep, recording, content_type, framed }
    }

    pub(super) fn chunk(&mut self, chunk: &Bytes) {
        if let Form::Stream(watch) = &mut self.form {
            watch.feed(chunk);
        }
        if self.recording.as_mut().is_some_and(|recording| !recording.push(chunk)) {
            self.recording = None;
        }
    }

    /// Takes in that the server sent its last byte.
    pub(super) fn end(&mut self) -> End {
        let body = self.recording.take().map(Recording::into_body);
        let whole = match (&mut self.form, &body) {
            (Form::Stream(watch), _) => watch.ended(),
            (Form::Json(usage), Some(body)) => {
                usage.note(body);
                is_good(body)
            }
            (Form::Json(_) | Form::Other, _) => self.framed,
        };
        match (whole, self.keep, body) {
            (true, Some(key), Some(body)) => {
                End::Keep(Keepsake { key, content_type: self.content_type.clone(), body })
            }
            (false, ..) if !self.framed => End::Cut,
            _ => End::Whole,
        }
    }

    /// Whether the answer is a stream of events; then, what ends it when it cannot go on.
    pub(super) fn last_event(&self, error: &str) -> Option<Bytes> {
        match &self.form {
            Form::Stream(watch) => {
                Some(Bytes::from(watch.cut().to_owned() + &error_event(watch.protocol(), error)))
            }
            Form::Json(_) | Form::Other => None,
        }
    }

    pub(super) fn usage(&self) -> Option<&Usage> {
        match &self.form {
            Form::Stream(watch) => Some(&watch.usage),
            Form::Json(usage) => Some(usage),
            Form::Other => None,
        }
    }
}
