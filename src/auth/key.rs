//! A key as the operator granted it.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use wildmatch::WildMatchPattern;

/// The SHA-256 of a key's text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Hashes the text of a key, as a caller presents it.
    pub fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for KeyHash {
    type Err = String;

    /// Reads 64 hexadecimal digits, as `ai-gateway key new` prints them.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash)
            .map_err(|_| "expected 64 hexadecimal digits, as `ai-gateway key new` prints them".to_owned())?;
        Ok(Self(hash))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", hex::encode(&self.0[..4]))
    }
}

/// Model names a key may use: exact names and patterns with `*`.
#[derive(Debug, Clone)]
pub struct Patterns(Vec<Pattern>);

/// `*` stands for any characters, none among them; nothing else is special.
type Pattern = WildMatchPattern<'*', '\0'>;

impl Patterns {
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Self {
        Self(patterns.iter().map(|pattern| Pattern::new(pattern.as_ref())).collect())
    }

    pub fn allow(&self, model: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(model))
    }
}

/// One key of `auth.keys`.
#[derive(Debug, Clone)]
pub struct Key {
    /// What logs, metrics and pages call it; unique.
    pub name: String,
    /// At least one; several while a key is being replaced.
    pub hashes: Vec<KeyHash>,
    /// `None`: every model.
    pub models: Option<Patterns>,
    pub expires: Option<Timestamp>,
    /// Networks it may come from; empty: any.
    pub from: Vec<IpNet>,
}
