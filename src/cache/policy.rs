//! What the operator wants kept.

use std::time::Duration;

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
