//! Whose prompts a server may hold in its KV cache, where keys must not meet there (`isolation: key`).
//!
//! A server that began when the gateway looked on holds nothing; it is then the server of the first key that comes,
//! whose requests find their prompts again. Once a second key has come, nobody's prompts are reused: what a request
//! finds would tell how another's began (llama.cpp #27148). A server that was there before the gateway holds nobody
//! knows what.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::balance::Place;
use super::server::Server;

const NOBODY: u64 = 0;
const SEVERAL: u64 = 1;

/// Whose a request is, as far as a KV cache is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenant {
    /// It leaves nothing there.
    Nobody,
    /// Keys may meet.
    Anybody,
    /// A key's, by a hash of its name.
    Key(u64),
}

impl Tenant {
    pub fn of(key: &str) -> Self {
        let bytes = <sha2::Sha256 as sha2::Digest>::digest(key);
        let hash = bytes.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte));
        Self::Key(hash.max(SEVERAL + 1))
    }
}

/// Whose prompts one server holds.
#[derive(Debug)]
pub(super) struct Tenancy(AtomicU64);

impl Tenancy {
    /// Of a server of which nothing is known.
    pub(super) fn unknown() -> Self {
        Self(AtomicU64::new(SEVERAL))
    }

    /// Takes in that the server has begun anew.
    pub(super) fn renew(&self) {
        self.0.store(NOBODY, Ordering::Release);
    }

    /// Takes in a request; whether its prompt may be found in the KV cache.
    pub(super) fn admit(&self, tenant: Tenant) -> bool {
        let own = match tenant {
            Tenant::Nobody => return true,
            Tenant::Anybody => SEVERAL,
            Tenant::Key(own) => own,
        };
        let before = match self.0.load(Ordering::Acquire) {
            SEVERAL => SEVERAL,
            _ => {
                let after = |now: u64| Some(if now == NOBODY || now == own { own } else { SEVERAL });
                self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, after).unwrap_or(SEVERAL)
            }
        };
        tenant == Tenant::Anybody || before == NOBODY || before == own
    }

    fn rank(&self, key: u64) -> u8 {
        match self.0.load(Ordering::Acquire) {
            own if own == key => 0,
            NOBODY => 1,
            SEVERAL => 2,
            _ => 3,
        }
    }
}

/// Of these servers, those where a key does the least harm: its own, else one that holds nothing, else one where
/// several have met already.
pub(super) fn fitting(choice: Vec<Place<'_>>, tenant: Tenant) -> Vec<Place<'_>> {
    let Tenant::Key(key) = tenant else { return choice };
    let rank = |server: &Arc<Server>| server.tenancy().rank(key);
    let best = choice.iter().map(|place| rank(place.server)).min();
    choice.into_iter().filter(|place| Some(rank(place.server)) == best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_finds_its_prompts_until_another_comes() {
        let (alice, bob) = (Tenant::of("alice"), Tenant::of("bob"));
        let server = Tenancy::unknown();
        assert!(!server.admit(alice), "it may hold anything");
        server.renew();
        assert!(server.admit(alice) && server.admit(alice));
        assert!(!server.admit(bob) && !server.admit(alice) && !server.admit(bob));
        server.renew();
        assert!(
            server.admit(Tenant::Nobody) && server.admit(bob) && server.admit(Tenant::Anybody),
            "whoever is not told apart is not held back"
        );
        assert!(!server.admit(bob), "but others are from it");
    }

    #[test]
    fn a_key_goes_where_it_does_the_least_harm() {
        let [alice, bob] = [2, 3];
        let free = Tenancy::unknown();
        free.renew();
        let own = Tenancy::unknown();
        own.renew();
        own.admit(Tenant::Key(alice));
        assert_eq!([&own, &free, &Tenancy::unknown()].map(|server| server.rank(alice)), [0, 1, 2]);
        assert_eq!(own.rank(bob), 3);
    }
}
