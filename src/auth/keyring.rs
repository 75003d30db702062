//! Every key that may be presented.
//!
//! A presented text is hashed, and its hash looked up among the hashes of all keys, which compare in constant time
//! ([`KeyHash`]). What decides about a key stands beside its hash, and a text that is unknown is held against the key
//! next to it: so it takes the steps of one that has expired, and a hundred thousand keys cost about what ten cost
//! (`examples/key_lookup.rs` measures both). Names of certificates are no secrets, and looked up as they are.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

use super::certificate::{CertificateName, ClientCertificate};
use super::key::{Key, KeyHash};

/// Who presented a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The key's place among those of the keyring.
    pub index: usize,
}

/// What is asked of every key.
#[derive(Debug)]
pub struct Keyring {
    /// Every hash, in order.
    entries: Vec<Entry>,
    /// Where among the entries those begin whose hashes begin with these bits, for all such beginnings, and their end.
    /// Hashes are even: there is about one entry for each.
    begins: Vec<u32>,
    /// The keys that are certificates.
    certificates: HashMap<CertificateName, Grant>,
    /// Where keys may come from: each list once, so that those in use are near.
    origins: Vec<Vec<IpNet>>,
}

/// A hash, and what decides whether it counts.
#[derive(Debug)]
struct Entry {
    hash: KeyHash,
    grant: Grant,
}

/// Whose it is, and when and where it counts.
#[derive(Debug, Clone, Copy)]
struct Grant {
    /// The place of its key, and of the key's list of origins.
    index: u32,
    origins: u32,
    expires: Timestamp,
}

impl Keyring {
    pub fn new(keys: Vec<Key>) -> Self {
        let mut entries = Vec::with_capacity(keys.len());
        let mut origins = Vec::new();
        let mut known = HashMap::new();
        let mut by_certificate = HashMap::new();
        for (index, Key { hashes, certificates, expires, from, .. }) in keys.into_iter().enumerate() {
            let place = *known.entry(from).or_insert_with_key(|from| {
                origins.push(from.clone());
                small(origins.len() - 1)
            });
            let expires = expires.unwrap_or(Timestamp::MAX);
            let grant = Grant { index: small(index), origins: place, expires };
            entries.extend(hashes.into_iter().map(|hash| Entry { hash, grant }));
            by_certificate.extend(certificates.into_iter().map(|name| (name, grant)));
        }
        entries.sort_unstable_by_key(|entry| entry.hash.prefix());
        let beginnings = entries.len().next_power_of_two();
        let begin =
            |at: usize| small(entries.partition_point(|entry| beginning(&entry.hash, beginnings) < at));
        let begins = (0..=beginnings).map(begin).collect();
        Self { entries, begins, certificates: by_certificate, origins }
    }

    /// Who presents this text now, from there. Unknown, expired and from elsewhere look alike.
    pub fn identify(&self, text: &[u8], from: IpAddr, now: Timestamp) -> Option<Caller> {
        let hash = KeyHash::of(text);
        let near = self.near(&hash);
        let found = near.iter().position(|entry| entry.hash == hash);
        let entry = near.get(found.unwrap_or_default())?;
        let counts = self.counts(&entry.grant, from, now);
        (found.is_some() & counts).then_some(Caller { index: entry.grant.index as usize })
    }

    /// Whose certificate this is. One that is several keys' is nobody's: which of them pays would be a guess.
    pub fn identify_certificate(
        &self,
        certificate: &ClientCertificate,
        from: IpAddr,
        now: Timestamp,
    ) -> Option<Caller> {
        let mut grants = certificate.names.iter().filter_map(|name| self.certificates.get(name));
        let grant = grants.next()?;
        let alone = grants.all(|other| other.index == grant.index);
        (alone & self.counts(grant, from, now)).then_some(Caller { index: grant.index as usize })
    }

    fn counts(&self, grant: &Grant, from: IpAddr, now: Timestamp) -> bool {
        let in_time = now < grant.expires;
        let from = from.to_canonical();
        let origins = &self.origins[grant.origins as usize];
        let in_place = origins.is_empty() || origins.iter().any(|network| network.contains(&from));
        in_time & in_place
    }

    /// The entries whose hashes begin as this one does; at least one, if there is any.
    fn near(&self, hash: &KeyHash) -> &[Entry] {
        let at = beginning(hash, self.begins.len() - 1);
        let [begin, end] = [self.begins[at], self.begins[at + 1]].map(|it| it as usize);
        let begin = begin.min(self.entries.len().saturating_sub(1));
        &self.entries[begin..end.max(begin + 1).min(self.entries.len())]
    }
}

/// Half the size keeps an entry within a line of the processor's cache.
fn small(place: usize) -> u32 {
    u32::try_from(place).expect("a file of so many keys is larger than any that is read")
}

/// The number of the hash's first bits, of so many (a power of two).
fn beginning(hash: &KeyHash, of: usize) -> usize {
    ((u128::from(hash.prefix()) * of as u128) >> 64) as usize
}

/// What a request presents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presented<'a> {
    /// Nothing at all: its certificate may speak for it.
    Nothing,
    Key(&'a [u8]),
    /// What is no key, or several.
    Unclear,
}

/// The key that a request presents: `authorization: Bearer …` or `x-api-key`, given the values of both headers.
///
/// It may stand in several of them if it is the same in all; keys that differ are refused, since one would be ignored.
pub fn presented<'a>(
    authorization: impl Iterator<Item = &'a [u8]>,
    x_api_key: impl Iterator<Item = &'a [u8]>,
) -> Presented<'a> {
    let bearer = authorization.map(|value| {
        let (scheme, rest) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
    });
    let all = bearer.chain(x_api_key.map(|value| Some(value.trim_ascii())));
    // Some clients always send both headers, one of them empty.
    let mut all = all.filter(|key| key.is_none_or(|key| !key.is_empty()));
    match all.next() {
        None => Presented::Nothing,
        Some(Some(first)) if all.all(|other| other == Some(first)) => Presented::Key(first),
        Some(_) => Presented::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, text: &str, expires: Option<&str>, from: &[&str]) -> Key {
        Key {
            name: name.to_owned(),
            hashes: vec![KeyHash::of(text.as_bytes())],
            certificates: vec![
                text.parse().expect("a name"),
                format!("dns:{text}.x").parse().expect("a name"),
            ],
            models: None,
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
                .map(|caller| ["alice", "bob", "carol"][caller.index])
        };
        let (then, later) = ("2025-12-31T23:59:59Z", "2026-01-01T00:00:00Z");
        assert_eq!(who("sk-a", "192.0.2.1", later), Some("alice"));
        assert_eq!(who("sk-x", "192.0.2.1", later), None);
        assert_eq!(who("sk-b", "192.0.2.1", then), Some("bob"));
        assert_eq!(who("sk-b", "192.0.2.1", later), None);
        assert_eq!(who("sk-c", "::ffff:10.1.2.3", later), Some("carol"));
        assert_eq!(who("sk-c", "192.0.2.1", later), None);
    }

    #[test]
    fn a_certificate_is_one_keys_in_its_time_and_its_place() {
        let keyring = Keyring::new(vec![
            key("alice", "alice", None, &[]),
            key("bob", "bob", Some("2026-01-01T00:00:00Z"), &[]),
            key("carol", "carol", None, &["10.0.0.0/8"]),
        ]);
        let later = "2026-01-01T00:00:00Z".parse::<Timestamp>().expect("a time");
        let who = |names: &[&str], from: &str| {
            let names = names.iter().map(|name| name.parse().expect("a name")).collect();
            let from = from.parse().expect("an address");
            let caller = keyring.identify_certificate(&ClientCertificate { names }, from, later);
            caller.map(|caller| ["alice", "bob", "carol"][caller.index])
        };
        assert_eq!(who(&["alice"], "192.0.2.1"), Some("alice"));
        assert_eq!(who(&["unknown", "dns:ALICE.x", "alice"], "192.0.2.1"), Some("alice"));
        assert_eq!(who(&["dns:alice"], "192.0.2.1"), None, "a name of another kind");
        assert_eq!(who(&["alice", "dns:carol.x"], "10.0.0.1"), None, "two keys");
        assert_eq!(who(&["bob"], "192.0.2.1"), None, "expired");
        assert_eq!(who(&["carol"], "192.0.2.1"), None, "from elsewhere");
        assert_eq!(who(&["carol"], "10.0.0.1"), Some("carol"));
        assert_eq!(who(&[], "10.0.0.1"), None);
    }

    #[test]
    fn every_key_of_many_is_found_and_no_other() {
        for count in [0, 1, 2, 3, 100, 1_000] {
            let name = |number: usize| format!("sk-{number}");
            let keyring = Keyring::new((0..count).map(|at| key(&name(at), &name(at), None, &[])).collect());
            let who = |text: &str| {
                let from = "192.0.2.1".parse().expect("an address");
                keyring.identify(text.as_bytes(), from, Timestamp::UNIX_EPOCH)
            };
            for at in 0..count {
                assert_eq!(who(&name(at)), Some(Caller { index: at }));
                assert_eq!(who(&name(at + count)), None);
            }
            assert_eq!(who(""), None);
        }
    }

    #[test]
    fn one_key_a_request() {
        let sk = Presented::Key(b"sk");
        let cases: [(Option<&'static str>, Option<&'static str>, Presented); 12] = [
            (None, None, Presented::Nothing),
            (Some("Bearer sk"), None, sk),
            (Some("bearer  sk "), None, sk),
            (Some("Basic c2s="), None, Presented::Unclear),
            (Some("sk"), None, Presented::Unclear),
            (Some("Bearer "), None, Presented::Nothing),
            (Some("Bearer "), Some(""), Presented::Nothing),
            (None, Some("sk"), sk),
            (Some("Bearer sk"), Some("sk"), sk),
            (Some("Bearer sk"), Some("other"), Presented::Unclear),
            (Some("Bearer sk"), Some(""), sk),
            (Some("Bearer "), Some("sk"), sk),
        ];
        for (authorization, x_api_key, expected) in cases {
            let bytes = |value: Option<&'static str>| value.map(str::as_bytes).into_iter();
            let found = presented(bytes(authorization), bytes(x_api_key));
            assert_eq!(found, expected, "{authorization:?} {x_api_key:?}");
        }
    }
}
