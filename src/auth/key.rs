//! A key as the operator granted it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use ipnet::IpNet;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use wildmatch::WildMatchPattern;

use super::certificate::CertificateName;

/// The SHA-256 of a key's text. Two of them compare in constant time.
#[derive(Clone, Copy)]
pub struct KeyHash([u8; 32]);

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for KeyHash {}

impl Hash for KeyHash {
    /// By its first bytes: it is random already.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.prefix());
    }
}

impl KeyHash {
    /// Hashes the text of a key, as a caller presents it.
    pub fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Its first eight bytes.
    pub(super) fn prefix(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
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
#[derive(Debug, Clone, PartialEq)]
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

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pattern) in self.0.iter().enumerate() {
            write!(f, "{}{pattern}", if index > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// One key of `auth.keys`.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// What logs, metrics and pages call it; unique.
    pub name: String,
    /// Several while a key is being replaced; none where it is a certificate's alone.
    pub hashes: Vec<KeyHash>,
    /// Whose certificate stands for it.
    pub certificates: Vec<CertificateName>,
    /// `None`: every model.
    pub models: Option<Patterns>,
    pub expires: Option<Timestamp>,
    /// Networks it may come from; empty: any.
    pub from: Vec<IpNet>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        let patterns = Patterns::new(&["qwen*", "a.b"]);
        for (model, allowed) in
            [("qwen2.5-3b", true), ("qwen", true), ("a.b", true), ("axb", false), ("llama", false)]
        {
            assert_eq!(patterns.allow(model), allowed, "{model}");
        }
        assert_eq!(patterns.to_string(), "qwen*, a.b");
    }
}
