//! The key of an answer: what must be equal for two requests to have the same answer.
//!
//! SHA-256 over scope, endpoint, model, and the RFC 8785 form of the body without the members below. Member order,
//! white space and number spelling do not matter; everything else does. The form of the answer does not: one entry
//! serves streams and plain answers alike.

use std::io::{self, Write};

use serde_json::{Map, Number, Value};
use sha2::{Digest as _, Sha256};

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
        hash.part(b"scope", self.scope.map(str::as_bytes));
        hash.part(b"endpoint", Some(self.endpoint.as_bytes()));
        hash.part(b"upstream", Some(self.upstream.as_bytes()));
        hash.part(b"model", self.model.map(str::as_bytes));
        hash.part(b"fingerprint", self.fingerprint.as_ref().map(<[u8; 32]>::as_slice));
        hash.part(b"purge", Some(&self.purge.to_be_bytes()));
        for (name, value) in self.headers {
            hash.part(name.as_bytes(), Some(value));
        }
        hash.part(b"body", Some(self.body));
        hash.finish()
    }
}

/// The part of a key that a body is (without its `model`), and the form that it asks for where that matters. `None`: a
/// number in the body is not held as it was written, and another body could have the same key.
pub fn digest(form: Form, body: &Map<String, Value>) -> Option<Digest> {
    let members = || body.iter().filter(|(name, _)| !NEUTRAL.contains(&name.as_str()));
    if members().any(|(_, value)| may_be_rounded(value)) {
        return None;
    }
    let mut hash = Hasher::new();
    if is_peculiar(form, body) {
        hash.part(b"form", Some(&[form.index() as u8]));
        let options = body.get("stream_options").unwrap_or(&Value::Null);
        write_value(options, &mut hash).expect("a hasher takes every byte");
    }
    hash.part(b"body", None);
    write_object(members().collect(), &mut hash).expect("a hasher takes every byte");
    Some(hash.finish())
}

/// Whether a stream is asked for that tells what cannot be told in another form: then it has an entry of its own.
fn is_peculiar(form: Form, body: &Map<String, Value>) -> bool {
    let asked = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
    let known = |options: &Value| match options {
        Value::Null => true,
        Value::Object(options) => options
            .iter()
            .all(|(name, value)| name == "include_usage" && matches!(value, Value::Null | Value::Bool(_))),
        _ => false,
    };
    form != Form::Plain
        && (SHOWN_IN_STREAMS.iter().any(|name| body.get(*name).is_some_and(asked))
            || !body.get("stream_options").is_none_or(known))
}

/// The key of the same answer in one form only: for shapes that cannot be rendered in another.
pub fn only(key: &Key, form: Form) -> Key {
    let mut hash = Hasher::new();
    hash.part(b"only", Some(&[form.index() as u8]));
    hash.part(b"key", Some(key));
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
    hash.part(b"among", Some(key));
    others.for_each(|other| hash.part(b"other", Some(other.as_bytes())));
    hash.finish()
}

/// Pieces gather up to here before they are hashed: most are a few bytes, and each call has a cost of its own.
const GATHERED_BYTES_MAX: usize = 4 << 10;

struct Hasher {
    hash: Sha256,
    gathered: Vec<u8>,
}

impl Hasher {
    fn new() -> Self {
        Self { hash: Sha256::new(), gathered: Vec::with_capacity(GATHERED_BYTES_MAX) }
    }

    fn add(&mut self, bytes: &[u8]) {
        if self.gathered.len() + bytes.len() <= GATHERED_BYTES_MAX {
            self.gathered.extend_from_slice(bytes);
            return;
        }
        self.hash.update(&self.gathered);
        self.gathered.clear();
        if bytes.len() < GATHERED_BYTES_MAX {
            self.gathered.extend_from_slice(bytes);
        } else {
            self.hash.update(bytes);
        }
    }

    fn finish(mut self) -> Key {
        self.hash.update(&self.gathered);
        self.hash.finalize().into()
    }

    /// Adds a part so that no two lists of parts give the same bytes: lengths stand before contents.
    fn part(&mut self, name: &[u8], value: Option<&[u8]>) {
        let length = |bytes: &[u8]| (bytes.len() as u64).to_be_bytes();
        self.add(&length(name));
        self.add(name);
        match value {
            None => self.add(&[0]),
            Some(value) => {
                self.add(&[1]);
                self.add(&length(value));
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

/// Whether there is a number in it that may have been an integer of more than 64 bits: these are read as doubles, many
/// as the same one, and only a server knows whether they are the same to it.
fn may_be_rounded(value: &Value) -> bool {
    const INTEGERS: f64 = (1_u64 << 63) as f64;
    match value {
        Value::Number(number) if number.is_f64() => {
            number.as_f64().is_some_and(|double| double.abs() >= INTEGERS)
        }
        Value::Array(items) => items.iter().any(may_be_rounded),
        Value::Object(members) => members.values().any(may_be_rounded),
        _ => false,
    }
}

/// Writes the RFC 8785 form of a value.
fn write_value<W: Write>(value: &Value, out: &mut W) -> io::Result<()> {
    match value {
        Value::Null => out.write_all(b"null"),
        Value::Bool(true) => out.write_all(b"true"),
        Value::Bool(false) => out.write_all(b"false"),
        Value::Number(number) => write_number(number, out),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.write_all(b"[")?;
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.write_all(b",")?;
                }
                write_value(item, out)?;
            }
            out.write_all(b"]")
        }
        Value::Object(members) => write_object(members.iter().collect(), out),
    }
}

fn write_object<W: Write>(mut members: Vec<(&String, &Value)>, out: &mut W) -> io::Result<()> {
    // RFC 8785 sorts by UTF-16 units. `serde_json` sorts by UTF-8 bytes, which is the same order for ASCII.
    if members.iter().any(|(name, _)| !name.is_ascii()) {
        members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    }
    out.write_all(b"{")?;
    for (index, (name, value)) in members.into_iter().enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        write_string(name, out)?;
        out.write_all(b":")?;
        write_value(value, out)?;
    }
    out.write_all(b"}")
}

/// A text as RFC 8785 escapes it (section 3.2.2.2): short escapes, else lower-case `\u00xx`, nothing beyond. Most of a
/// text needs none, and is passed on in long pieces.
fn write_string<W: Write>(text: &str, out: &mut W) -> io::Result<()> {
    out.write_all(b"\"")?;
    let mut rest = text;
    while let Some(at) = plain_bytes(rest.as_bytes()) {
        let (plain, more) = rest.split_at(at);
        out.write_all(plain.as_bytes())?;
        // What must be escaped is ASCII: one byte.
        let (escaped, more) = more.split_at(1);
        match escaped.as_bytes() {
            b"\"" => out.write_all(b"\\\"")?,
            b"\\" => out.write_all(b"\\\\")?,
            b"\n" => out.write_all(b"\\n")?,
            b"\r" => out.write_all(b"\\r")?,
            b"\t" => out.write_all(b"\\t")?,
            b"\x08" => out.write_all(b"\\b")?,
            b"\x0c" => out.write_all(b"\\f")?,
            other => write!(out, "\\u{:04x}", other[0])?,
        }
        rest = more;
    }
    out.write_all(rest.as_bytes())?;
    out.write_all(b"\"")
}

/// How many bytes come before the first that must be escaped; `None`: there is none.
fn plain_bytes(text: &[u8]) -> Option<usize> {
    const PIECE: usize = 32;
    let is_escaped = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    // Without a way out in the middle, a piece is looked at as a whole.
    let mut pieces = text.chunks_exact(PIECE);
    let mut begin = 0;
    for piece in &mut pieces {
        if piece.iter().fold(false, |found, byte| found | is_escaped(*byte)) {
            break;
        }
        begin += PIECE;
    }
    text[begin..].iter().position(|byte| is_escaped(*byte)).map(|at| begin + at)
}

/// Numbers as ECMAScript writes doubles. Integers keep all their digits: llama-server reads a 64-bit seed exactly,
/// so two seeds above 2^53 must not meet in one double. ECMAScript rounds whole doubles above that to 17 digits, which
/// are those of another integer, so these keep all theirs too.
fn write_number<W: Write>(number: &Number, out: &mut W) -> io::Result<()> {
    const EXACT: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
    const EXPONENT: f64 = 1e21;
    match number.as_f64() {
        Some(double) if number.is_f64() && (EXACT..EXPONENT).contains(&double.abs()) => {
            write!(out, "{double:.0}")
        }
        Some(double) if number.is_f64() => out.write_all(ryu_js::Buffer::new().format(double).as_bytes()),
        _ => write!(out, "{number}"),
    }
}

#[cfg(test)]
mod tests;
