//! Every key that may be presented.
//!
//! A presented text is hashed, and its hash looked up by a prefix; candidates are compared whole in constant time.
//! A text that is unknown, wrong or expired takes the same steps, and a hundred thousand keys cost what one costs.

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use subtle::ConstantTimeEq;

use super::key::{Key, KeyHash};

/// Who presented a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller<'a> {
    /// The key's place in the file; the same for its limits.
    pub index: usize,
    pub name: &'a str,
}

/// The keys of one configuration.
#[derive(Debug)]
pub struct Keyring {
    keys: Vec<Key>,
    /// By the first eight bytes of a hash.
    by_prefix: HashMap<u64, Vec<(KeyHash, usize)>>,
}

impl Keyring {
    pub fn new(keys: Vec<Key>) -> Self {
        let mut by_prefix: HashMap<u64, Vec<(KeyHash, usize)>> = HashMap::new();
        for (index, key) in keys.iter().enumerate() {
            for hash in &key.hashes {
                by_prefix.entry(prefix(hash)).or_default().push((*hash, index));
            }
        }
        Self { keys, by_prefix }
    }

    /// Who presents this text now, from there. Unknown, expired and from elsewhere look alike.
    pub fn identify(&self, text: &[u8], from: IpAddr, now: Timestamp) -> Option<Caller<'_>> {
        let hash = KeyHash::of(text);
        let candidates = self.by_prefix.get(&prefix(&hash)).map_or(&[][..], Vec::as_slice);
        let index = candidates
            .iter()
            .find(|(known, _)| known.as_bytes().ct_eq(hash.as_bytes()).into())
            .map(|(_, index)| *index)?;
        let key = &self.keys[index];
        let in_time = key.expires.is_none_or(|expires| now < expires);
        let from = from.to_canonical();
        let in_place = key.from.is_empty() || key.from.iter().any(|network| network.contains(&from));
        (in_time && in_place).then_some(Caller { index, name: &key.name })
    }

    /// Whether a key may use a model, by the name that callers use.
    pub fn may_use(&self, index: usize, model: &str) -> bool {
        self.keys[index].models.as_ref().is_none_or(|models| models.allow(model))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.name.as_str())
    }
}

fn prefix(hash: &KeyHash) -> u64 {
    let bytes = hash.as_bytes();
    u64::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]])
}

/// The key that a request presents: `authorization: Bearer …` or `x-api-key`, given the values of both headers.
///
/// It may stand in several of them if it is the same in all; keys that differ are refused, since one would be ignored.
pub fn presented<'a>(
    authorization: impl Iterator<Item = &'a [u8]>,
    x_api_key: impl Iterator<Item = &'a [u8]>,
) -> Option<&'a [u8]> {
    let bearer = authorization.map(|value| {
        let (scheme, rest) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
    });
    let all = bearer.chain(x_api_key.map(|value| Some(value.trim_ascii())));
    // Some clients always send both headers, one of them empty.
    let mut all = all.filter(|key| key.is_none_or(|key| !key.is_empty()));
    let first = all.next()??;
    all.all(|other| other == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Patterns;

    fn key(name: &str, text: &str, expires: Option<&str>, from: &[&str]) -> Key {
        Key {
            name: name.to_owned(),
            hashes: vec![KeyHash::of(text.as_bytes())],
            models: Some(Patterns::new(&["qwen*"])),
            expires: expires.map(|time| time.parse().expect("a time")),
            from: from.iter().map(|network| network.parse().expect("a network")).collect(),
        }
    }

    #[test]
    fn a_key_is_known_by_its_hash_its_time_and_its_place() {
        let keyring = Keyring::new(vec![
            key("alice", "sk-a", None, &[]),
            key("bob", "sk-b", Some("2026-01-01T00:00:00Z"), &[]),
            key("carol", "sk-c", None, &["10.0.0.0/8"]),
        ]);
        let now = |time: &str| time.parse::<Timestamp>().expect("a time");
        let who = |text: &str, from: &str, time: &str| {
            keyring
                .identify(text.as_bytes(), from.parse().expect("an address"), now(time))
                .map(|caller| caller.name)
        };
        let (then, later) = ("2025-12-31T23:59:59Z", "2026-01-01T00:00:00Z");
        assert_eq!(who("sk-a", "192.0.2.1", later), Some("alice"));
        assert_eq!(who("sk-x", "192.0.2.1", later), None);
        assert_eq!(who("sk-b", "192.0.2.1", then), Some("bob"));
        assert_eq!(who("sk-b", "192.0.2.1", later), None);
        assert_eq!(who("sk-c", "::ffff:10.1.2.3", later), Some("carol"));
        assert_eq!(who("sk-c", "192.0.2.1", later), None);
        assert!(keyring.may_use(0, "qwen2.5-3b") && !keyring.may_use(0, "llama"));
    }

    #[test]
    fn one_key_a_request() {
        let cases: [(Option<&'static str>, Option<&'static str>, Option<&str>); 11] = [
            (None, None, None),
            (Some("Bearer sk"), None, Some("sk")),
            (Some("bearer  sk "), None, Some("sk")),
            (Some("Basic c2s="), None, None),
            (Some("sk"), None, None),
            (Some("Bearer "), None, None),
            (None, Some("sk"), Some("sk")),
            (Some("Bearer sk"), Some("sk"), Some("sk")),
            (Some("Bearer sk"), Some("other"), None),
            (Some("Bearer sk"), Some(""), Some("sk")),
            (Some("Bearer "), Some("sk"), Some("sk")),
        ];
        for (authorization, x_api_key, expected) in cases {
            let bytes = |value: Option<&'static str>| value.map(str::as_bytes).into_iter();
            let found = presented(bytes(authorization), bytes(x_api_key));
            assert_eq!(found, expected.map(str::as_bytes), "{authorization:?} {x_api_key:?}");
        }
    }
}
