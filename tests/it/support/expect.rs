//! Expectations that many plays share.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::client::Answer;

/// A refusal is one envelope: JSON with a length, a message that says what to do, and a request id.
pub(crate) fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.refusal(), (status, code.to_owned()), "{answer:?}");
    framed_json(answer);
    let error = &answer.json()["error"];
    assert!(error["message"].as_str().is_some_and(|it| !it.is_empty()), "{answer:?}");
    assert!(error["type"].as_str().is_some_and(|it| !it.is_empty()), "{answer:?}");
    assert!(error.get("param").is_some(), "{answer:?}");
}

/// The same in Anthropic's envelope.
pub(crate) fn refused_by_anthropic(answer: &Answer, status: u16, kind: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    framed_json(answer);
    let body = answer.json();
    assert_eq!((&body["type"], &body["error"]["type"]), (&"error".into(), &Value::from(kind)), "{answer:?}");
    assert!(body["error"]["message"].as_str().is_some_and(|it| !it.is_empty()), "{answer:?}");
}

fn framed_json(answer: &Answer) {
    assert!(answer.header("content-type").is_some_and(|it| it.starts_with("application/json")), "{answer:?}");
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()), "{answer:?}");
    assert!(!answer.request_id().is_empty());
}

/// A refusal that says when to come back: whole seconds, and milliseconds that fit them.
pub(crate) fn says_when(answer: &Answer) -> u64 {
    let number = |name| answer.header(name).and_then(|it| it.parse::<u64>().ok());
    let seconds = number("retry-after").unwrap_or_else(|| panic!("no retry-after in {answer:?}"));
    assert!(seconds >= 1, "{answer:?}");
    if let Some(milliseconds) = number("retry-after-ms") {
        assert_eq!(seconds, milliseconds.div_ceil(1000).max(1), "{answer:?}");
    }
    seconds
}

/// `auth` of the file for these keys: name, key, and what else its stanza says.
pub(crate) fn auth(keys: &[(&str, &str, &str)]) -> String {
    let stanzas = keys.iter().map(|(name, key, more)| {
        let more = if more.is_empty() { String::new() } else { format!(", {more}") };
        format!("    - {{name: {name}, sha256: {}{more}}}\n", sha256(key))
    });
    format!("auth:\n  keys:\n{}", stanzas.collect::<String>())
}

pub(crate) fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// How many were answered.
pub(crate) fn passed(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.status == 200).count()
}
