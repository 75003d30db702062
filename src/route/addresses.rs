//! Where a server's name leads: every address that it has, and the one that is connected to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;

/// Of a name with more, the first count.
pub const ADDRESSES_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Addresses {
    known: ArcSwap<Vec<SocketAddr>>,
    /// The place of the one that could be connected to last.
    at: AtomicUsize,
}

impl Addresses {
    /// The address to connect to; `None` while there is none.
    pub(super) fn current(&self) -> Option<SocketAddr> {
        let known = self.known.load();
        let at = self.at.load(Ordering::Relaxed).checked_rem(known.len())?;
        known.get(at).copied()
    }

    pub(super) fn count(&self) -> usize {
        self.known.load().len()
    }

    /// Takes in what the name resolves to; whether that is news. The address in use stays in use where it is among
    /// them; else IPv4 comes first: llama-server listens there by default.
    pub(super) fn set(&self, mut found: Vec<SocketAddr>) -> bool {
        found.sort_unstable();
        found.dedup();
        found.sort_by_key(SocketAddr::is_ipv6);
        found.truncate(ADDRESSES_MAX);
        if found.is_empty() || **self.known.load() == found {
            return false;
        }
        let kept = self.current().and_then(|current| found.iter().position(|address| *address == current));
        self.known.store(found.into());
        self.at.store(kept.unwrap_or_default(), Ordering::Relaxed);
        true
    }

    /// Turns to the next, after this one could not be connected to. Of many that fail at once, one turns.
    pub(super) fn failed(&self, address: SocketAddr) {
        let at = self.at.load(Ordering::Relaxed);
        if self.current() == Some(address) {
            let next = at.wrapping_add(1);
            let _ = self.at.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_its_turn_and_the_one_that_answers_stays() {
        let [one, two, six]: [SocketAddr; 3] =
            ["127.0.0.1:80", "127.0.0.2:80", "[::1]:80"].map(|text| text.parse().expect("an address"));
        let addresses = Addresses::default();
        assert_eq!((addresses.current(), addresses.count()), (None, 0));
        addresses.failed(one);
        assert!(addresses.set(vec![six, two, one, two]));
        assert_eq!((addresses.current(), addresses.count()), (Some(one), 3), "IPv4 first");
        addresses.failed(one);
        addresses.failed(one);
        assert_eq!(addresses.current(), Some(two), "two that failed at once turn once");
        assert!(!addresses.set(vec![two, one, six]), "the same in another order");
        assert!(!addresses.set(Vec::new()), "nothing is no news");
        assert!(addresses.set(vec![six, two]));
        assert_eq!(addresses.current(), Some(two), "it is still there");
        addresses.failed(two);
        assert_eq!(addresses.current(), Some(six));
        addresses.failed(six);
        assert_eq!(addresses.current(), Some(two), "and around");
        assert!(addresses.set(vec![one]));
        assert_eq!(addresses.current(), Some(one));
    }
}
