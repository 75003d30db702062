//! A coarse shield against one address that asks too much, before anything is known of it.

use std::net::IpAddr;

use pingora_limits::rate::Rate as Sketch;

use super::name::Limit;
use super::rate::Rate;
use super::subjects::{Allows, Refused};

/// A count of each address's requests in the current second, minute or hour, in 4 MiB whatever comes.
///
/// `pingora-limits` counts in a fixed window, so twice the rate may pass across its edge, and addresses may share
/// a counter: with four rows of 65,536, of 20,000 addresses that each ask as often as they may one request in 400
/// is refused by mistake (`examples/limit_error.rs`; docs/LIMITS.md). Fine for a shield, not for a promise.
pub(super) struct Shield {
    counts: Sketch,
    rate: Rate,
}

impl Shield {
    const ROWS: usize = 4;
    const COLUMNS: usize = 64 << 10;

    pub(super) fn new(rate: Rate) -> Self {
        Self { counts: Sketch::new_with_estimator_config(rate.per, Self::ROWS, Self::COLUMNS), rate }
    }

    pub(super) fn admit(&self, address: IpAddr) -> Result<(), Refused> {
        let seen = self.counts.observe(&subject(address), 1);
        if u64::try_from(seen).unwrap_or(0) <= self.rate.count {
            return Ok(());
        }
        // Refused requests cost nothing here either.
        self.counts.observe(&subject(address), -1);
        let allows = Allows::Rate(self.rate);
        Err(Refused { limit: Limit::ADDRESS, wait: Some(self.rate.per), allows, level: None })
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
        let admits = |address: &str| shield.admit(address.parse().expect("an address")).is_ok();
        assert!(admits("2001:db8::1") && admits("2001:db8::2") && admits("2001:db8::3"));
        assert!(!admits("2001:db8::4"));
        assert!(admits("2001:db8:0:1::1"));
        assert!(admits("192.0.2.1") && admits("::ffff:192.0.2.1") && admits("192.0.2.1"));
        assert!(!admits("192.0.2.1"));
    }
}
