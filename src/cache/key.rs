//! The key of an answer: what must be equal for two requests to have the same answer.
//!
//! SHA-256 over scope, endpoint, model, and the RFC 8785 form of the body without the members below, which goes into it
//! by its BLAKE3 hash where it is long. Member order, white space and number spelling do not matter; everything else
//! does. The form of the answer does not: one entry serves streams and plain answers alike.

use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

use crate::wire::{Canonical, Members, Name, Value};

use super::form::Form;

/// The whole hash; a hit compares all of it.
pub type Key = [u8; 32];

/// What a body adds to it.
pub type Digest = [u8; 32];

/// Members that cannot change the answer, each with the reason.
const NEUTRAL: &[&str] = &[
    "stream",            // the form of the answer: one entry serves them all
    "stream_options",    // the same; but see `is_peculiar`
    "user",              // an abuse-tracking id; the server ignores it
    "metadata",          // the caller's own notes, echoed nowhere by llama-server
    "safety_identifier", // OpenAI's successor of `user`
    "prompt_cache_key",  // OpenAI's hint for cache placement
    "store",             // whether OpenAI would keep it for its owner
    "service_tier",      // OpenAI's price class
    "sse_ping_interval", // comments between the events of a stream
];

/// Members that put events into a stream of which a plain answer knows nothing.
const SHOWN_IN_STREAMS: &[&str] = &[
    "return_progress",   // how much of the prompt has been read
    "timings_per_token", // timings on every event
];

/// Everything that tells one answer from another.
#[derive(Debug)]
pub struct Question<'a> {
    /// Whose answers: a key's name, or nothing where all are shared.
    pub scope: Option<&'a str>,
    /// The endpoint's path on the server.
    pub endpoint: &'a str,
    /// The upstream and the name of the model there.
    pub upstream: &'a str,
    pub model: Option<&'a str>,
    /// What the servers report of that model (file, build, template, defaults); `None`: nothing.
    pub fingerprint: Option<[u8; 32]>,
    /// The number of the last purge that concerns it.
    pub purge: u64,
    /// Headers that pass to the server and can change an answer.
    pub headers: &'a [(&'static str, Vec<u8>)],
    /// Of the body, by [`digest`].
    pub body: &'a Digest,
}

impl Question<'_> {
    pub fn key(&self) -> Key {
        let mut hash = Hasher::new();
        hash.part(Part::Scope, self.scope.map(str::as_bytes));
        hash.part(Part::Endpoint, Some(self.endpoint.as_bytes()));
        hash.part(Part::Upstream, Some(self.upstream.as_bytes()));
        hash.part(Part::Model, self.model.map(str::as_bytes));
        hash.part(Part::Fingerprint, self.fingerprint.as_ref().map(<[u8; 32]>::as_slice));
        hash.part(Part::Purge, Some(&self.purge.to_be_bytes()));
        for (name, value) in self.headers {
            hash.part(Part::Header, Some(name.as_bytes()));
            hash.part(Part::HeaderValue, Some(value));
        }
        hash.part(Part::Body, Some(self.body));
        hash.finish()
    }
}

/// The part of a key that a body is (without its `model`), and the form that it asks for where that matters. `None`: a
/// number in the body is not held as it was written, and another body could have the same key.
pub fn digest(form: Form, body: &Members) -> Option<Digest> {
    let mut hash = Hasher::new();
    hash.part(Part::Body, None);
    let options = is_peculiar(form, body).then(|| {
        hash.part(Part::Form, Some(&[form.index() as u8]));
        body.get("stream_options").filter(|options| !options.is_null())
    });
    let mut canonical = Canonical::to(hash);
    if let Some(options) = options.flatten() {
        canonical.value(options).ok()?;
    }
    let names = body.iter().map(|(name, _)| name);
    canonical.object(names.filter(|name| !NEUTRAL.contains(&name.text()))).ok()?;
    let is_held = !canonical.may_be_rounded();
    canonical.finish().ok().filter(|_| is_held).map(Hasher::finish)
}

/// Whether a stream is asked for that tells what cannot be told in another form: then it has an entry of its own.
fn is_peculiar(form: Form, body: &Members) -> bool {
    let asked = |value: Value<'_>| !value.is_null() && value.as_bool() != Some(false);
    let is_known = |(name, value): (Name<'_>, Value<'_>)| {
        name.text() == "include_usage" && (value.is_null() || value.as_bool().is_some())
    };
    let known = |options: Value<'_>| {
        options.is_null() || options.as_object().is_some_and(|mut options| options.all(is_known))
    };
    form != Form::Plain
        && (SHOWN_IN_STREAMS.iter().any(|name| body.get(name).is_some_and(asked))
            || !body.get("stream_options").is_none_or(known))
}

/// The key of the same answer in one form only: for shapes that cannot be rendered in another.
pub fn only(key: &Key, form: Form) -> Key {
    let mut hash = Hasher::new();
    hash.part(Part::Only, Some(&[form.index() as u8]));
    hash.part(Part::Key, Some(key));
    hash.finish()
}

/// The key of the same answer in the making, where these others may make it instead: who may not have theirs joins a
/// flight that they are no part of.
pub fn among<'a>(key: &Key, others: impl Iterator<Item = &'a str>) -> Key {
    let mut others = others.peekable();
    if others.peek().is_none() {
        return *key;
    }
    let mut hash = Hasher::new();
    hash.part(Part::Among, Some(key));
    others.for_each(|other| hash.part(Part::Other, Some(other.as_bytes())));
    hash.finish()
}

/// What has no more bytes is hashed at once. Pieces of what has more gather up to here: BLAKE3 goes through as many of
/// its chunks of 1 KiB at once as there are, and up to sixteen.
const SHORT_BYTES_MAX: usize = 16 << 10;

/// What is hashed of what is long begins with it, and nothing that is short: parts have smaller numbers, and paths
/// begin with a slash.
const LONG: u8 = 0xff;

/// Room for this is there from the start: what most questions are.
const USUAL_BYTES: usize = 1 << 10;

/// What a part of what is hashed is: a byte, where a name would be hashed too (SHA-256 goes by 64 bytes).
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Part {
    Scope,
    Endpoint,
    Upstream,
    Model,
    Fingerprint,
    Purge,
    Header,
    HeaderValue,
    Body,
    Form,
    Only,
    Key,
    Among,
    Other,
}

/// SHA-256 of what is short, and of what is longer that of its BLAKE3 hash: SHA-256 has instructions of its own, but
/// BLAKE3 goes through many parts of a text at once, in a fifth of the time.
pub(super) struct Hasher {
    gathered: Vec<u8>,
    long: Option<Box<blake3::Hasher>>,
}

impl Hasher {
    pub(super) fn new() -> Self {
        Self { gathered: Vec::with_capacity(USUAL_BYTES), long: None }
    }

    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        while bytes.len() > SHORT_BYTES_MAX - self.gathered.len() {
            let (first, rest) = bytes.split_at(SHORT_BYTES_MAX - self.gathered.len());
            self.gathered.extend_from_slice(first);
            self.long.get_or_insert_default().update(&self.gathered);
            self.gathered.clear();
            bytes = rest;
        }
        self.gathered.extend_from_slice(bytes);
    }

    pub(super) fn finish(self) -> Key {
        let Self { gathered, long } = self;
        let hash = match long {
            None => Sha256::digest(gathered),
            Some(mut long) => {
                let hash = long.update(&gathered).finalize();
                Sha256::new().chain_update([LONG]).chain_update(hash.as_bytes()).finalize()
            }
        };
        hash.into()
    }

    /// Adds a part so that no two lists of parts give the same bytes: lengths stand before contents. None is as long as
    /// 4 GiB.
    fn part(&mut self, part: Part, value: Option<&[u8]>) {
        match value {
            None => self.add(&[part as u8, 0]),
            Some(value) => {
                let [a, b, c, d] = u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes();
                self.add(&[part as u8, 1, a, b, c, d]);
                self.add(value);
            }
        }
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.add(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
