//! A coarse shield against one address that asks too much, before anything is known of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use pingora_limits::rate::Rate as Sketch;

use super::name::Limit;
use super::rate::Rate;
use super::subjects::{Allows, Refused};

/// Addresses of which each has a count of its own: all of them take 140 KiB.
const COUNTED_MAX: usize = 7 << 10;

/// A count of each address's requests in the current second, minute or hour, in bounded memory whatever comes.
///
/// Windows are fixed, so twice the rate may pass across an edge. The first addresses of a window have each a count of
/// their own; those beyond share the counters of `pingora-limits`, 4 MiB that are taken when they are first needed:
/// with four rows of 65,536, of 20,000 addresses that each ask as often as they may one request in 3,500 is refused by
/// mistake (`examples/limit_error.rs`; docs/LIMITS.md). Fine for a shield, not for a promise.
pub(super) struct Shield {
    window: Mutex<Window>,
    more: LazyLock<Sketch, Box<dyn FnOnce() -> Sketch + Send>>,
    rate: Rate,
}

/// The present one, and who has asked in it.
#[derive(Default)]
struct Window {
    number: u128,
    counts: HashMap<u64, u64, RandomState>,
}

impl Shield {
    const ROWS: usize = 4;
    const COLUMNS: usize = 64 << 10;

    pub(super) fn new(rate: Rate) -> Self {
        let sketch = move || Sketch::new_with_estimator_config(rate.per, Self::ROWS, Self::COLUMNS);
        Self { window: Mutex::default(), more: LazyLock::new(Box::new(sketch)), rate }
    }

    pub(super) fn admit(&self, address: IpAddr, now: Duration) -> Result<(), Refused> {
        let subject = subject(address);
        let admitted = self.count(subject, now).unwrap_or_else(|| self.count_among_many(subject));
        if admitted {
            return Ok(());
        }
        let allows = Allows::Rate(self.rate);
        Err(Refused { limit: Limit::ADDRESS, wait: Some(self.rate.per), allows, level: None })
    }

    /// Whether it is admitted, by a count of its own; `None`: there are too many for that. Refused requests cost
    /// nothing.
    fn count(&self, subject: u64, now: Duration) -> Option<bool> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let number = now.as_nanos() / self.rate.per.as_nanos().max(1);
        if window.number != number {
            window.number = number;
            window.counts.clear();
        }
        if window.counts.len() >= COUNTED_MAX && !window.counts.contains_key(&subject) {
            return None;
        }
        let seen = window.counts.entry(subject).or_default();
        let admitted = *seen < self.rate.count;
        *seen += u64::from(admitted);
        Some(admitted)
    }

    fn count_among_many(&self, subject: u64) -> bool {
        let seen = self.more.observe(&subject, 1);
        let admitted = u64::try_from(seen).unwrap_or(0) <= self.rate.count;
        if !admitted {
            self.more.observe(&subject, -1);
        }
        admitted
    }
}

/// An IPv4 address, or the /64 of an IPv6 one: the least that one subscriber is given.
fn subject(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u64::from(u32::from(v4)),
        IpAddr::V6(v6) => (u128::from(v6) >> 64) as u64 | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shield_counts_a_subscriber_not_an_address() {
        let shield = Shield::new("3/h".parse().expect("a rate"));
        let admits =
            |address: &str| shield.admit(address.parse().expect("an address"), Duration::ZERO).is_ok();
        assert!(admits("2001:db8::1") && admits("2001:db8::2") && admits("2001:db8::3"));
        assert!(!admits("2001:db8::4"));
        assert!(admits("2001:db8:0:1::1"));
        assert!(admits("192.0.2.1") && admits("::ffff:192.0.2.1") && admits("192.0.2.1"));
        assert!(!admits("192.0.2.1"));
    }

    #[test]
    fn a_window_has_an_end() {
        let shield = Shield::new("2/min".parse().expect("a rate"));
        let from = "192.0.2.1".parse().expect("an address");
        let admits = |seconds| shield.admit(from, Duration::from_secs(seconds)).is_ok();
        assert_eq!([0, 30, 59, 60, 60, 119, 120].map(admits), [true, true, false, true, true, false, true]);
    }

    #[test]
    fn of_more_addresses_than_are_counted_each_is_held_to_its_rate() {
        let shield = Shield::new("1/day".parse().expect("a rate"));
        let admitted = |_| {
            let admits = |number: u32| shield.admit(IpAddr::V4(number.into()), Duration::ZERO).is_ok();
            (0..COUNTED_MAX as u32 + 1000).filter(|number| admits(*number)).count()
        };
        // Some may share a counter.
        assert!(admitted(0) > COUNTED_MAX + 900);
        assert_eq!(admitted(1), 0);
    }
}
