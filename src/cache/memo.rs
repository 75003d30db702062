//! Bodies that were read before: the same bytes are not parsed again to find their answer.
//!
//! What is remembered of a body is what a look-up needs of it, under its bytes alone: who asks, which model that is and
//! what is kept are decided anew each time. A body is remembered once it has been answered from the cache, so that what
//! is asked only once takes no room.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::quality::RandomState;
use tinyufo::TinyUfo;

use super::form::Form;
use super::key::{Digest, Hasher};

/// Bodies that are remembered: 4 MiB or so.
const BODIES_MAX: usize = 16 << 10;

/// TinyUFO's tables begin with room for so many, and grow. Its sketch of what is asked for often does not: for all of
/// them it took 700 KiB, and `force_put` never asks it.
const BODIES_BEGUN: usize = 1 << 10;

/// What a look-up needs to know of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gist {
    /// The name of the model in it.
    pub model: Option<String>,
    pub stream: bool,
    pub form: Form,
    /// The same body always has the same answer.
    pub deterministic: bool,
    pub digest: Digest,
}

/// A body is looked for by so many bytes at its begin and its end.
const END_BYTES: usize = 4 << 10;

struct Known {
    /// All of a hash of the endpoint and the body's bytes: what finds it is 64 bits, which somebody could make collide.
    bytes: [u8; 32],
    gist: Gist,
}

/// The memory of bodies.
pub struct Memo {
    known: TinyUfo<u64, Arc<Known>>,
    hasher: RandomState,
}

impl Default for Memo {
    fn default() -> Self {
        Self { known: TinyUfo::new(BODIES_MAX, BODIES_BEGUN), hasher: RandomState::default() }
    }
}

impl Memo {
    /// What is known of a body that was sent to this endpoint.
    pub fn recall(&self, endpoint: &str, body: &[u8]) -> Option<Gist> {
        // What nobody knows is hashed with the quick hash alone.
        let known = self.known.get(&self.place(endpoint, body))?;
        (known.bytes == bytes(endpoint, body)).then(|| known.gist.clone())
    }

    pub fn remember(&self, endpoint: &str, body: &[u8], gist: Gist) {
        let known = Known { bytes: bytes(endpoint, body), gist };
        self.known.force_put(self.place(endpoint, body), Arc::new(known), 1);
    }

    /// By its length, and by how it begins and ends, if it is long: to hash all of 256 KiB took 12 µs for each body
    /// that is new. What is found is compared whole. Of two that differ in their middles alone, the later one is known.
    fn place(&self, endpoint: &str, body: &[u8]) -> u64 {
        let rest = body.len().saturating_sub(END_BYTES);
        let (begin, end) = (body.get(..rest.min(END_BYTES)), body.get(rest..));
        self.hasher.hash_one((endpoint, body.len(), begin, end))
    }
}

fn bytes(endpoint: &str, body: &[u8]) -> [u8; 32] {
    let mut hash = Hasher::new();
    // No endpoint has a line's end in it.
    [endpoint.as_bytes(), b"\n", body].into_iter().for_each(|part| hash.add(part));
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gist() -> Gist {
        Gist { model: None, stream: false, form: Form::Plain, deterministic: true, digest: [7; 32] }
    }

    #[test]
    fn a_body_is_known_by_its_bytes_at_its_endpoint() {
        let memo = Memo::default();
        assert_eq!(memo.recall("/completion", b"{}"), None);
        memo.remember("/completion", b"{}", gist());
        assert_eq!(memo.recall("/completion", b"{}"), Some(gist()));
        assert_eq!(memo.recall("/v1/completions", b"{}"), None);
        assert_eq!(memo.recall("/completion", b"{ }"), None);
    }

    #[test]
    fn long_bodies_are_told_from_each_other_wherever_they_differ() {
        for bytes in [2 * END_BYTES - 1, 2 * END_BYTES, 3 * END_BYTES] {
            let memo = Memo::default();
            let body = vec![b'a'; bytes];
            memo.remember("/completion", &body, gist());
            for at in [0, END_BYTES - 1, END_BYTES, bytes / 2, bytes - END_BYTES, bytes - 1] {
                let mut other = body.clone();
                other[at] = b'b';
                assert_eq!(memo.recall("/completion", &other), None, "{bytes}, {at}");
            }
            assert_eq!(memo.recall("/completion", &body[1..]), None);
            assert_eq!(memo.recall("/completion", &body), Some(gist()));
        }
    }

    #[test]
    fn the_latest_are_known() {
        let memo = Memo::default();
        let bodies: Vec<_> = (0..2 * BODIES_MAX).map(|number| number.to_string()).collect();
        for body in &bodies {
            memo.remember("/completion", body.as_bytes(), gist());
            assert_eq!(memo.recall("/completion", body.as_bytes()), Some(gist()));
        }
        let known = bodies.iter().filter(|body| memo.recall("/completion", body.as_bytes()).is_some());
        assert!((BODIES_MAX / 2..=BODIES_MAX).contains(&known.count()));
    }

    #[test]
    fn what_is_found_by_its_place_is_compared_whole() {
        let memo = Memo::default();
        let another = Known { bytes: bytes("/completion", b"[]"), gist: gist() };
        memo.known.force_put(memo.place("/completion", b"{}"), Arc::new(another), 1);
        assert_eq!(memo.recall("/completion", b"{}"), None);
    }
}
