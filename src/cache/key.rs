//! The key of an answer: what must be equal for two requests to have the same answer.
//!
//! SHA-256 over scope, endpoint, model, and the RFC 8785 form of the body without the members below. Member order,
//! white space and number spelling do not matter; everything else does. The form of the answer does not: one entry
//! serves streams and plain answers alike.

use std::io::{self, Write};

use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

use super::form::Form;

/// The whole hash; a hit compares all of it.
pub type Key = [u8; 32];

/// Members that cannot change the answer, each with the reason.
const NEUTRAL: &[&str] = &[
    "stream",            // the form of the answer: one entry serves them all
    "stream_options",    // the same; but see `Question::is_peculiar`
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
    pub form: Form,
    /// The upstream and the name of the model there.
    pub upstream: &'a str,
    pub model: Option<&'a str>,
    /// What the servers report of that model (file, build, template, defaults); `None`: nothing.
    pub fingerprint: Option<[u8; 32]>,
    /// The number of the last purge that concerns it.
    pub purge: u64,
    /// Headers that pass to the server and can change an answer.
    pub headers: &'a [(&'static str, Vec<u8>)],
    /// The body without `model`.
    pub body: &'a Map<String, Value>,
}

impl Question<'_> {
    pub fn key(&self) -> Key {
        let mut hash = Hasher(Sha256::new());
        hash.part(b"scope", self.scope.map(str::as_bytes));
        hash.part(b"endpoint", Some(self.endpoint.as_bytes()));
        hash.part(b"upstream", Some(self.upstream.as_bytes()));
        hash.part(b"model", self.model.map(str::as_bytes));
        hash.part(b"fingerprint", self.fingerprint.as_ref().map(<[u8; 32]>::as_slice));
        hash.part(b"purge", Some(&self.purge.to_be_bytes()));
        for (name, value) in self.headers {
            hash.part(name.as_bytes(), Some(value));
        }
        if self.is_peculiar() {
            hash.part(b"form", Some(&[self.form.index() as u8]));
            let options = self.body.get("stream_options").unwrap_or(&Value::Null);
            write_value(options, &mut hash).expect("a hasher takes every byte");
        }
        hash.part(b"body", None);
        let members = self.body.iter().filter(|(name, _)| !NEUTRAL.contains(&name.as_str()));
        write_object(members.collect(), &mut hash).expect("a hasher takes every byte");
        hash.0.finalize().into()
    }

    /// Whether a stream is asked for that tells what cannot be told in another form: then it has an entry of its own.
    fn is_peculiar(&self) -> bool {
        let asked = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
        let known = |options: &Value| match options {
            Value::Null => true,
            Value::Object(options) => options.iter().all(|(name, value)| {
                name == "include_usage" && matches!(value, Value::Null | Value::Bool(_))
            }),
            _ => false,
        };
        self.form != Form::Plain
            && (SHOWN_IN_STREAMS.iter().any(|name| self.body.get(*name).is_some_and(asked))
                || !self.body.get("stream_options").is_none_or(known))
    }
}

/// The key of the same answer in one form only: for shapes that cannot be rendered in another.
pub fn only(key: &Key, form: Form) -> Key {
    let mut hash = Hasher(Sha256::new());
    hash.part(b"only", Some(&[form.index() as u8]));
    hash.part(b"key", Some(key));
    hash.0.finalize().into()
}

/// The key of the same answer in the making, where these others may make it instead: who may not have theirs joins a
/// flight that they are no part of.
pub fn among<'a>(key: &Key, others: impl Iterator<Item = &'a str>) -> Key {
    let mut others = others.peekable();
    if others.peek().is_none() {
        return *key;
    }
    let mut hash = Hasher(Sha256::new());
    hash.part(b"among", Some(key));
    others.for_each(|other| hash.part(b"other", Some(other.as_bytes())));
    hash.0.finalize().into()
}

struct Hasher(Sha256);

impl Hasher {
    /// Adds a part so that no two lists of parts give the same bytes: lengths stand before contents.
    fn part(&mut self, name: &[u8], value: Option<&[u8]>) {
        let length = |bytes: &[u8]| (bytes.len() as u64).to_be_bytes();
        self.0.update(length(name));
        self.0.update(name);
        match value {
            None => self.0.update([0]),
            Some(value) => {
                self.0.update([1]);
                self.0.update(length(value));
                self.0.update(value);
            }
        }
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

/// serde_json escapes as RFC 8785 does: short escapes, else lower-case `\u00xx`, nothing beyond.
fn write_string<W: Write>(text: &str, out: &mut W) -> io::Result<()> {
    serde_json::to_writer(out, text).map_err(io::Error::from)
}

/// Numbers as ECMAScript writes doubles. Integers keep all their digits: llama-server reads a 64-bit seed exactly,
/// so two seeds above 2^53 must not meet in one double.
fn write_number<W: Write>(number: &Number, out: &mut W) -> io::Result<()> {
    match number.as_f64() {
        Some(double) if number.is_f64() => out.write_all(ryu_js::Buffer::new().format(double).as_bytes()),
        _ => write!(out, "{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(json: &str) -> String {
        let mut out = Vec::new();
        write_value(&serde_json::from_str(json).expect("JSON"), &mut out).expect("a vector takes every byte");
        String::from_utf8(out).expect("UTF-8")
    }

    fn key(body: &str) -> Key {
        let body = serde_json::from_str(body).expect("a JSON object");
        question(&body).key()
    }

    fn question(body: &Map<String, Value>) -> Question<'_> {
        Question {
            scope: None,
            endpoint: "/v1/completions",
            form: Form::Plain,
            upstream: "local",
            model: Some("tiny"),
            fingerprint: None,
            purge: 0,
            headers: &[],
            body,
        }
    }

    #[test]
    fn the_canonical_form_is_rfc_8785s() {
        // Numbers and strings of RFC 8785, section 3.2.2; sorting of 3.2.3.
        assert_eq!(
            canonical(
                r#"{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],
                "string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}"#
            ),
            concat!(
                r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"#,
                r#""string":"€$\u000f\nA'B\"\\\\\"/"}"#
            )
        );
        assert_eq!(canonical(r#"{"\ufb33":1,"\ud83d\ude00":2,"a":3}"#), "{\"a\":3,\"😀\":2,\"\u{fb33}\":1}");
        assert_eq!(canonical("[1.0, -0.0, 1e2, 18446744073709551615]"), "[1,0,100,18446744073709551615]");
    }

    #[test]
    fn spelling_does_not_matter_and_everything_else_does() {
        let same = key(r#"{"prompt":"hi","temperature":1,"n":2}"#);
        for body in [
            r#"{ "n" : 2.0, "temperature":1.0, "prompt":"\u0068i" }"#,
            r#"{"prompt":"hi","temperature":1,"n":2,"user":"me","metadata":{"a":1},"stream":false}"#,
        ] {
            assert_eq!(key(body), same, "{body}");
        }
        for body in [
            r#"{"prompt":"hi ","temperature":1,"n":2}"#,
            r#"{"prompt":"hi","temperature":1,"n":3}"#,
            r#"{"prompt":"hi","temperature":"1","n":2}"#,
            r#"{"prompt":["hi"],"temperature":1,"n":2}"#,
            r#"{"prompt":"hi","temperature":1,"n":2,"seed":null}"#,
            r#"{"prompt":"hi","temperature":1,"n":2,"options":{"user":"me"}}"#,
        ] {
            assert_ne!(key(body), same, "{body}");
        }
        assert_ne!(key(r#"{"seed":9007199254740992}"#), key(r#"{"seed":9007199254740993}"#));
    }

    #[test]
    fn every_part_of_a_question_counts() {
        let body = Map::new();
        let base = question(&body).key();
        let others = [
            Question { scope: Some("alice"), ..question(&body) },
            Question { endpoint: "/completion", ..question(&body) },
            Question { upstream: "other", ..question(&body) },
            Question { model: None, ..question(&body) },
            Question { fingerprint: Some([0; 32]), ..question(&body) },
            Question { purge: 1, ..question(&body) },
            Question { headers: &[("anthropic-beta", Vec::new())], ..question(&body) },
        ]
        .map(|question| question.key());
        for (index, other) in others.iter().enumerate() {
            assert_ne!(*other, base);
            assert!(!others[..index].contains(other));
        }
    }

    #[test]
    fn the_form_counts_where_a_stream_tells_more() {
        const STREAM: Form = Form::Stream { include_usage: false };
        let key = |body: &str, form: Form| {
            let body = serde_json::from_str(body).expect("a JSON object");
            Question { form, ..question(&body) }.key()
        };
        for (body, shared) in [
            ("{}", true),
            (r#"{"stream_options":null}"#, true),
            (r#"{"stream_options":{"include_usage":true}}"#, true),
            (r#"{"return_progress":false,"timings_per_token":null}"#, true),
            (r#"{"stream_options":{"include_usage":"yes"}}"#, false),
            (r#"{"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#, false),
            (r#"{"stream_options":[]}"#, false),
            (r#"{"return_progress":true}"#, false),
            (r#"{"timings_per_token":true}"#, false),
        ] {
            assert_eq!(key(body, Form::Plain) == key(body, STREAM), shared, "{body}");
        }
        let keys =
            [Form::Plain, STREAM, Form::Stream { include_usage: true }].map(|form| only(&[7; 32], form));
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2] && !keys.contains(&[7; 32]));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,4}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_its_own(value in any_json()) {
            let once = canonical(&value.to_string());
            prop_assert_eq!(canonical(&once), once);
        }
    }
}
