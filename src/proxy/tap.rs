//! An answer's bytes on their way to the caller: watched for their end and their usage, recorded if they are to be
//! kept, or others follow. They are never changed, and never held back.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, header};
use pingora::http::ResponseHeader;

use crate::cache::{Answer, Form, Head, Key, Tape, Worth};
use crate::wire::{BodyKind, Noted, Protocol, Unasked, Usage, Watch, error_event};

use super::context::{Job, Keep};

/// A plain answer that is not kept is read up to here for what it says of its usage, and further as far as
/// `body.total` has room for it.
const READ_FREELY_BYTES_MAX: usize = 1 << 20;
const READ_BYTES_MAX: usize = 64 << 20;

/// One answer.
#[derive(Debug)]
pub(super) struct Tap {
    kind: Kind,
    keep: Option<Keep>,
    /// `None`: larger than what is kept or read, or not of interest.
    recording: Option<Tape>,
    /// What those who follow the answer read it from: one tape with the recording, but where a try before this one has
    /// left something there.
    shared: Option<Tape>,
    entry_bytes_max: usize,
    content_type: Bytes,
    /// Whether its end can be told from its being cut off: by a length or by chunks.
    framed: bool,
    /// Whether its protocol has an end mark for streams. Transcriptions have none.
    marked: bool,
    /// It has as many end marks as answers: only the end of the whole says that there are no more.
    several: bool,
    /// The end mark has passed.
    whole: bool,
    /// What had been recorded then, in bytes.
    recorded: usize,
    /// It is a stream that a plain answer is made of.
    gathers: bool,
    /// All of that.
    gathered: Option<Bytes>,
    /// Takes out what its caller did not ask for.
    unasked: Option<Unasked>,
}

#[derive(Debug)]
enum Kind {
    Stream(Watch),
    Json(Usage),
    Other,
}

/// What the end of an answer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Whole, and to be kept.
    Keep(Keepsake),
    /// Whole, as far as anything tells.
    Whole,
    /// The server ended it before its end: a stream without its mark, or JSON without a frame that is not complete.
    Cut,
    /// The server itself said that it failed.
    Failed,
}

/// A whole answer to be kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Keepsake {
    pub(super) key: Key,
    pub(super) answer: Answer,
}

/// Whether the server says where its answer ends. Ask before the answer is given a frame (`mod.rs`).
pub(super) fn is_framed(answer: &ResponseHeader) -> bool {
    answer.headers.contains_key(header::CONTENT_LENGTH)
        || answer.headers.contains_key(header::TRANSFER_ENCODING)
}

/// What followers are told of an answer before its bytes.
/// `instead`: who answers, where it is another model than was asked for.
pub(super) fn head(answer: &ResponseHeader, instead: Option<(Option<String>, Option<String>)>) -> Head {
    Head { status: answer.status, content_type: content_type(answer), instead }
}

fn content_type(answer: &ResponseHeader) -> Bytes {
    let value = answer.headers.get(header::CONTENT_TYPE);
    value.map(|value| Bytes::copy_from_slice(value.as_bytes())).unwrap_or_default()
}

impl Tap {
    /// Begins with the answer's header. `framed`: by the server itself ([`is_framed`]). `shared`: what others read the
    /// answer from, if it is shared.
    pub(super) fn new(
        job: &Job,
        answer: &ResponseHeader,
        framed: bool,
        entry_bytes_max: usize,
        shared: Option<&Tape>,
    ) -> Self {
        let content_type = content_type(answer);
        let ok = answer.status == StatusCode::OK;
        let kind = match content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii() {
            b"text/event-stream" if ok => Kind::Stream(Watch::new(job.endpoint.protocol)),
            b"application/json" if ok => Kind::Json(Usage::default()),
            _ => Kind::Other,
        };
        let keep = job.keep.filter(|_| ok && framed && !matches!(kind, Kind::Other));
        let gathers = job.turned.is_some() && matches!(kind, Kind::Stream(_));
        // A server that gives no stream, though it was asked for one, gives the plain answer at once.
        let made = |keep: Keep| match kind {
            Kind::Json(_) if job.turned.is_some() => Keep { made: Form::Plain, ..keep },
            _ => keep,
        };
        let keep = keep.map(made);
        let recorded = gathers || keep.is_some() || matches!(kind, Kind::Json(_));
        let recording =
            recorded.then(|| shared.filter(|shared| shared.bytes() == 0).cloned().unwrap_or_default());
        let marked = job.endpoint.body == BodyKind::Json;
        let several = job.endpoint.protocol == Protocol::Llama && job.demand.answers > 1;
        let unasked = (job.unasked && matches!(kind, Kind::Stream(_))).then(Unasked::default);
        Self {
            kind,
            keep,
            recording,
            shared: shared.cloned(),
            entry_bytes_max,
            content_type,
            framed,
            marked,
            several,
            whole: false,
            recorded: 0,
            gathers,
            gathered: None,
            unasked,
        }
    }

    /// Takes in a chunk and leaves of it what goes on. `Some` once: when a stream's end mark has passed, whatever may
    /// follow it. `took`: how long it has taken so far. `room`: whether so many bytes more may be held.
    pub(super) fn chunk(
        &mut self,
        chunk: &mut Bytes,
        took: impl FnOnce() -> Duration,
        room: impl FnOnce(u64) -> bool,
    ) -> Option<End> {
        if let Kind::Stream(watch) = &mut self.kind {
            watch.feed(chunk);
        }
        if let Some(unasked) = &mut self.unasked {
            *chunk = unasked.pass(chunk);
        }
        self.record(chunk, room);
        let Kind::Stream(watch) = &mut self.kind else { return None };
        let ends = watch.ended() && watch.cut().is_empty() && !self.whole && !self.several;
        ends.then(|| {
            self.whole = true;
            // What may follow the mark is recorded too.
            let body = self.recording.as_ref().and_then(Tape::body);
            self.recorded = self.recording.as_ref().map_or(0, Tape::bytes);
            self.gathered = body.clone().filter(|_| self.gathers);
            self.kept(body, took())
        })
    }

    fn record(&mut self, chunk: &Bytes, room: impl FnOnce(u64) -> bool) {
        if let Some(recording) = &self.recording {
            let bytes = recording.bytes().saturating_add(chunk.len());
            self.keep = self.keep.filter(|_| bytes <= self.entry_bytes_max);
            let read = || {
                let free = bytes <= READ_FREELY_BYTES_MAX;
                (self.gathers || matches!(self.kind, Kind::Json(_)))
                    && (free || bytes <= READ_BYTES_MAX && room(chunk.len() as u64))
            };
            if self.keep.is_some() || read() {
                recording.push(chunk);
            } else {
                self.recording = None;
            }
        }
        let recorded = |shared: &&Tape| self.recording.as_ref().is_some_and(|it| it.is(shared));
        if let Some(shared) = self.shared.as_ref().filter(|shared| !recorded(shared)) {
            shared.push(chunk);
        }
    }

    /// What waited for the rest of its event, once no more comes.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        let rest = self.unasked.as_mut()?.rest();
        self.record(&rest, |_| false);
        Some(rest).filter(|rest| !rest.is_empty())
    }

    /// Whether the bytes are held back, because a plain answer is made of them.
    pub(super) fn gathers(&self) -> bool {
        self.gathers
    }

    /// All bytes of such an answer.
    pub(super) fn gathered(&self) -> Option<Bytes> {
        self.gathered.clone()
    }

    /// Whether it is a stream whose end mark has passed.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    fn kept(&self, body: Option<Bytes>, took: Duration) -> End {
        match (self.keep, body) {
            (Some(Keep { key, made: form, .. }), Some(body)) => {
                let content_type = self.content_type.clone();
                let answer = Answer { form, content_type, body, worth: self.worth(took) };
                End::Keep(Keepsake { key, answer })
            }
            _ => End::Whole,
        }
    }

    /// Takes in that the server sent its last byte, and how long the whole took. Of a stream whose end mark has passed,
    /// what it says is whether more is to be kept than was.
    pub(super) fn end(&mut self, took: Duration) -> End {
        let recording = self.recording.take();
        if self.whole {
            let failed = matches!(&self.kind, Kind::Stream(watch) if watch.failed());
            let more = recording.filter(|more| more.bytes() > self.recorded && !self.gathers && !failed);
            return more.map_or(End::Whole, |recording| self.kept(recording.body(), took));
        }
        let body = recording.as_ref().and_then(Tape::body);
        self.gathered = body.clone().filter(|_| self.gathers);
        let good = match (&mut self.kind, &body) {
            (Kind::Stream(watch), _) if watch.failed() => return End::Failed,
            (Kind::Stream(watch), _) if !watch.ended() && self.marked => return End::Cut,
            // The mark came without the blank line that ends its event, or there is none.
            (Kind::Stream(watch), _) => watch.ended(),
            (Kind::Json(usage), Some(body)) => {
                let noted = usage.note(body);
                if noted == Noted::Broken && !self.framed {
                    return End::Cut;
                }
                noted == Noted::Good
            }
            // Nothing tells: what a server ends is taken as whole, and not kept.
            (Kind::Json(_) | Kind::Other, _) => false,
        };
        if good { self.kept(body, took) } else { End::Whole }
    }

    /// What the answer took by the server's own account, else as seen from here.
    fn worth(&self, took: Duration) -> Worth {
        let usage = self.usage();
        let told = usage.and_then(|usage| Some(usage.generation_ms? + usage.prefill_ms.unwrap_or_default()));
        let told = told.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok());
        let completion_tokens = usage.and_then(|usage| usage.completion_tokens).unwrap_or_default();
        // A server's account is not longer than what was waited for.
        Worth { completion_tokens, time: told.unwrap_or(took).min(took) }
    }

    /// Whether the answer is a stream of events; then, what ends it when it cannot go on.
    pub(super) fn last_event(&self, error: &str) -> Option<Bytes> {
        match &self.kind {
            Kind::Stream(watch) if !self.gathers => {
                Some(Bytes::from(watch.cut().to_owned() + &error_event(watch.protocol(), error)))
            }
            _ => None,
        }
    }

    pub(super) fn is_stream(&self) -> bool {
        matches!(self.kind, Kind::Stream(_))
    }

    /// Events of a stream so far: about one a token.
    pub(super) fn events(&self) -> u64 {
        match &self.kind {
            Kind::Stream(watch) => watch.events,
            Kind::Json(_) | Kind::Other => 0,
        }
    }

    pub(super) fn usage(&self) -> Option<&Usage> {
        match &self.kind {
            Kind::Stream(watch) => Some(&watch.usage),
            Kind::Json(usage) => Some(usage),
            Kind::Other => None,
        }
    }
}

#[cfg(test)]
mod tests;
