//! Requests that took servers down: one that broke off on two servers without an answer would take down the next, so
//! it is refused for a while.
//!
//! Known by a hash of what was asked, so that it makes no difference who asks, or whether it comes as a retry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::server::Server;

/// Requests that are remembered, at about 150 bytes each: 600 KiB.
const REQUESTS_MAX: usize = 4096;

/// For how long, from the last time.
const REMEMBERED: Duration = Duration::from_secs(60);

/// So many servers are enough.
const SERVERS_ENOUGH: usize = 2;

/// Servers that are remembered of one request. More of them fall only to copies sent at once.
const SERVERS_MAX: usize = 8;

/// A SHA-256 over endpoint, model and body.
pub type Fingerprint = [u8; 32];

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Harm {
    /// On which it broke off.
    pub servers: usize,
    /// When it may be tried again.
    pub wait: Duration,
}

/// The requests that broke off lately.
#[derive(Debug, Default)]
pub struct Felled(Mutex<HashMap<Fingerprint, Fall>>);

#[derive(Debug)]
struct Fall {
    /// By their numbers.
    servers: Vec<u64>,
    at: Duration,
}

impl Fall {
    fn harm(&self, now: Duration) -> Option<Harm> {
        let wait = (self.at + REMEMBERED).saturating_sub(now);
        let harms = self.servers.len() >= SERVERS_ENOUGH && !wait.is_zero();
        harms.then_some(Harm { servers: self.servers.len(), wait })
    }
}

impl Felled {
    fn falls(&self) -> MutexGuard<'_, HashMap<Fingerprint, Fall>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is nothing to look for: then no body need be hashed.
    pub fn is_empty(&self) -> bool {
        self.falls().is_empty()
    }

    /// Takes in that a server broke off without an answer. `Some`: with that it is enough.
    pub fn note(&self, request: Fingerprint, server: &Arc<Server>, now: Duration) -> Option<Harm> {
        let mut falls = self.falls();
        falls.retain(|_, fall| fall.at + REMEMBERED > now);
        if falls.len() >= REQUESTS_MAX && !falls.contains_key(&request) {
            let oldest = falls.iter().min_by_key(|(_, fall)| fall.at).map(|(request, _)| *request);
            oldest.map(|oldest| falls.remove(&oldest));
        }
        let fall = falls.entry(request).or_insert(Fall { servers: Vec::new(), at: now });
        fall.at = now;
        if !fall.servers.contains(&server.number) && fall.servers.len() < SERVERS_MAX {
            fall.servers.push(server.number);
        }
        fall.harm(now)
    }

    /// Whether a request is refused.
    pub fn harm(&self, request: &Fingerprint, now: Duration) -> Option<Harm> {
        self.falls().get(request)?.harm(now)
    }

    /// Takes in that a request was answered after all.
    pub fn forgive(&self, request: &Fingerprint) {
        self.falls().remove(request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{HealthCheck, Kind, ServerSpec, Slots, SwapBounds};

    fn server(name: &str) -> Arc<Server> {
        let url = "http://127.0.0.1:8080".parse().expect("a URL");
        let spec =
            ServerSpec { name: name.to_owned(), url, api_key: None, ca: None, slots: Slots::Auto, weight: 1 };
        Arc::new(Server::new(spec, Kind::Llama, HealthCheck::default(), SwapBounds::default()))
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_request_that_broke_two_servers_is_refused_for_a_minute() {
        let (felled, one, two) = (Felled::default(), server("one"), server("two"));
        let (bad, other) = ([1; 32], [2; 32]);
        assert!(felled.is_empty());
        assert_eq!(felled.note(bad, &one, at(0)), None);
        assert_eq!(felled.note(bad, &one, at(5)), None, "the same server again");
        assert_eq!(felled.note(bad, &two, at(10)), Some(Harm { servers: 2, wait: at(60) }));
        assert_eq!(felled.harm(&bad, at(40)), Some(Harm { servers: 2, wait: at(30) }));
        assert_eq!((felled.harm(&other, at(40)), felled.harm(&bad, at(70))), (None, None));
        assert_eq!(felled.note(bad, &two, at(71)), None, "what is long ago does not count");
        felled.forgive(&bad);
        assert!(felled.is_empty());
    }

    #[test]
    fn the_oldest_makes_room() {
        let (felled, one, two) = (Felled::default(), server("one"), server("two"));
        let request = |number: usize| {
            let mut request = [0; 32];
            request[..8].copy_from_slice(&number.to_be_bytes());
            request
        };
        for number in 0..=REQUESTS_MAX {
            felled.note(request(number), &one, Duration::from_millis(number as u64));
        }
        assert_eq!(felled.falls().len(), REQUESTS_MAX);
        assert_eq!(felled.note(request(0), &two, at(5)), None, "it was the oldest");
        assert!(felled.note(request(REQUESTS_MAX), &two, at(5)).is_some());
    }
}
