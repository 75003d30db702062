//! What the operator wants kept.

use std::time::Duration;

use crate::wire::{Members, Value};

/// Who may see an answer that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Nobody sees another key's answers.
    #[default]
    Key,
    /// Everybody shares them.
    Gateway,
}

/// Which answers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Answers {
    #[default]
    All,
    /// Only where the same request must give the same answer: temperature 0, a fixed seed, embeddings.
    Deterministic,
    None,
}

impl Answers {
    /// Whether an answer is kept. `deterministic`: the same body always has the same one.
    pub fn keep(self, deterministic: bool) -> bool {
        match self {
            Self::All => true,
            Self::Deterministic => deterministic,
            Self::None => false,
        }
    }
}

/// Whether the same body must always have the same answer: temperature 0, or a fixed seed.
pub fn is_deterministic(body: &Members) -> bool {
    let is_zero = |value: Value<'_>| value.as_f64() == Some(0.0);
    // llama-server takes a negative seed for a random one.
    let is_fixed = |value: Value<'_>| value.as_f64().is_some_and(|seed| seed >= 0.0);
    body.get("temperature").is_some_and(is_zero) || body.get("seed").is_some_and(is_fixed)
}

/// `cache` of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachePolicy {
    pub ttl: Duration,
    /// Bytes held, all overhead counted; 0: no cache.
    pub size_bytes_max: u64,
    /// A larger answer is not kept.
    pub entry_bytes_max: u64,
    pub scope: Scope,
    pub answers: Answers,
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(300),
            size_bytes_max: 64 << 20,
            entry_bytes_max: 1 << 20,
            scope: Scope::Key,
            answers: Answers::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::wire::parse;

    #[test]
    fn an_answer_is_deterministic_where_its_request_makes_it_so() {
        let cases = [
            (r#"{"temperature":0}"#, true),
            (r#"{"temperature":0.0,"seed":-1}"#, true),
            (r#"{"seed":42}"#, true),
            (r#"{"seed":-1}"#, false),
            (r#"{"seed":"42"}"#, false),
            (r#"{"temperature":0.1}"#, false),
            ("{}", false),
        ];
        for (body, kept) in cases {
            let members = parse(&Bytes::from_static(body.as_bytes())).expect("a JSON object").members;
            assert_eq!(is_deterministic(&members), kept, "{body}");
        }
        assert!(Answers::Deterministic.keep(true) && !Answers::Deterministic.keep(false));
        assert!(Answers::All.keep(false) && !Answers::None.keep(true));
    }
}
