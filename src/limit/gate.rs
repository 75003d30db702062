//! The limits of one gateway: all that apply must admit, and a refusal costs nothing.
//!
//! Each bucket has a lock of its own, held for some nanoseconds and never across an await. A request that two
//! buckets must admit holds both, always the gateway's first, so that no refusal by one takes from the other even
//! for a moment: never one more than a bucket allows, and never one fewer.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pingora_limits::rate::Rate as Sketch;

use super::bucket::{Bucket, Level, Ruling, Shape};
use super::rate::{Allowance, Rate};

/// Which limit refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    GatewayRequests,
    KeyRequests,
    GatewayConcurrent,
    KeyConcurrent,
    Address,
}

impl Limit {
    pub const ALL: [Self; 5] = [
        Self::GatewayRequests,
        Self::KeyRequests,
        Self::GatewayConcurrent,
        Self::KeyConcurrent,
        Self::Address,
    ];

    /// As the file, logs and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::GatewayRequests => "gateway.requests",
            Self::KeyRequests => "key.requests",
            Self::GatewayConcurrent => "gateway.concurrent",
            Self::KeyConcurrent => "key.concurrent",
            Self::Address => "ip.requests",
        }
    }

    pub fn is_concurrency(self) -> bool {
        matches!(self, Self::GatewayConcurrent | Self::KeyConcurrent)
    }
}

/// A refusal: which limit, and the true wait until it would admit (for concurrency, unknown).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub limit: Limit,
    pub wait: Option<Duration>,
    /// What the limit allows, as the operator wrote it: a rate's count or a number of requests at once.
    pub allows: Allows,
    /// What is left in the tightest bucket that applies.
    pub level: Option<Level>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allows {
    Rate(Rate),
    AtOnce(u32),
}

/// An admitted request. Its place among the concurrent ones returns on drop, however the caller leaves.
#[derive(Debug)]
pub struct Permit {
    _places: Vec<Place>,
    /// The tightest request bucket that applied.
    pub level: Option<Level>,
}

#[derive(Debug)]
struct Place(Arc<AtomicU32>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// What limits one subject: the gateway or a key.
#[derive(Debug)]
struct Quota {
    requests: Option<(Mutex<Bucket>, Rate)>,
    concurrent: Option<(Arc<AtomicU32>, u32)>,
}

impl Quota {
    fn new(allowance: Allowance) -> Self {
        let bucket = |rate| Mutex::new(Bucket::full(Shape::new(rate, allowance.burst)));
        Self {
            requests: allowance.requests.map(|rate| (bucket(rate), rate)),
            concurrent: allowance.concurrent.map(|most| (Arc::new(AtomicU32::new(0)), most)),
        }
    }

    fn lock(&self) -> Locked<'_> {
        let (bucket, rate) = self.requests.as_ref()?;
        Some((bucket.lock().unwrap_or_else(PoisonError::into_inner), *rate))
    }

    fn enter(&self, limit: Limit) -> Result<Option<Place>, Refused> {
        let Some((count, most)) = &self.concurrent else { return Ok(None) };
        let within = |now: u32| (now < *most).then_some(now + 1);
        match count.fetch_update(Ordering::AcqRel, Ordering::Relaxed, within) {
            Ok(_) => Ok(Some(Place(Arc::clone(count)))),
            Err(_) => Err(Refused { limit, wait: None, allows: Allows::AtOnce(*most), level: None }),
        }
    }
}

/// All limits of a gateway.
pub struct Gate {
    gateway: Quota,
    /// By the key's place in the keyring.
    keys: Vec<Quota>,
    addresses: Option<Shield>,
}

impl Gate {
    /// `keys`: each key's own allowance, already completed from `limits.key` ([`Allowance::or`]).
    pub fn new(gateway: Allowance, keys: Vec<Allowance>, ip: Option<Rate>) -> Self {
        Self {
            gateway: Quota::new(gateway),
            keys: keys.into_iter().map(Quota::new).collect(),
            addresses: ip.map(Shield::new),
        }
    }

    /// The coarse shield before authentication.
    pub fn admit_address(&self, address: IpAddr) -> Result<(), Refused> {
        self.addresses.as_ref().map_or(Ok(()), |shield| shield.admit(address))
    }

    /// Asks every limit that applies to one request of a key (`None`: an open gateway).
    pub fn admit(&self, key: Option<usize>, now: Duration) -> Result<Permit, Refused> {
        let key = key.and_then(|key| self.keys.get(key));
        let mut gateway_bucket = self.gateway.lock();
        let mut key_bucket = key.and_then(Quota::lock);
        let mut asked =
            [(Limit::GatewayRequests, &mut gateway_bucket), (Limit::KeyRequests, &mut key_bucket)];
        let before = tightest(&asked, now);
        for (limit, bucket) in &asked {
            if let Some((bucket, rate)) = bucket.as_ref()
                && let Ruling::Wait(wait) = bucket.ruling(now)
            {
                return Err(Refused {
                    limit: *limit,
                    wait: Some(wait),
                    allows: Allows::Rate(*rate),
                    level: before,
                });
            }
        }
        let mut places = Vec::new();
        let full = |refused| Refused { level: before, ..refused };
        places.extend(self.gateway.enter(Limit::GatewayConcurrent).map_err(full)?);
        if let Some(key) = key {
            places.extend(key.enter(Limit::KeyConcurrent).map_err(full)?);
        }
        for (_, bucket) in &mut asked {
            if let Some((bucket, _)) = bucket {
                bucket.take(now);
            }
        }
        let level = tightest(&asked, now);
        Ok(Permit { _places: places, level })
    }
}

type Locked<'a> = Option<(MutexGuard<'a, Bucket>, Rate)>;

/// The level of the bucket that has the least left.
fn tightest(asked: &[(Limit, &mut Locked<'_>)], now: Duration) -> Option<Level> {
    let levels = asked.iter().filter_map(|(_, bucket)| bucket.as_ref().map(|(bucket, _)| bucket.level(now)));
    levels.min_by_key(|level| level.remaining)
}

/// A count of each address's requests in the current second, minute or hour, in 512 KiB whatever comes.
///
/// `pingora-limits` counts in a fixed window, so twice the rate may pass across its edge, and addresses may share
/// a counter: with four rows of 16,384, one in a million sees another's requests counted as its own once some
/// thousands are active. Fine for a shield, not for a promise.
struct Shield {
    counts: Sketch,
    rate: Rate,
}

impl Shield {
    const ROWS: usize = 4;
    const COLUMNS: usize = 16 << 10;

    fn new(rate: Rate) -> Self {
        Self { counts: Sketch::new_with_estimator_config(rate.per, Self::ROWS, Self::COLUMNS), rate }
    }

    fn admit(&self, address: IpAddr) -> Result<(), Refused> {
        let seen = self.counts.observe(&subject(address), 1);
        if u64::try_from(seen).unwrap_or(0) <= self.rate.count {
            return Ok(());
        }
        // Refused requests cost nothing here either.
        self.counts.observe(&subject(address), -1);
        Err(Refused {
            limit: Limit::Address,
            wait: Some(self.rate.per),
            allows: Allows::Rate(self.rate),
            level: None,
        })
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

    fn allowance(requests: Option<&str>, burst: Option<u64>, concurrent: Option<u32>) -> Allowance {
        Allowance {
            requests: requests.map(|rate| rate.parse().expect("a rate")),
            burst,
            tokens: None,
            concurrent,
        }
    }

    fn refused(result: Result<Permit, Refused>) -> Option<&'static str> {
        result.err().map(|refused| refused.limit.name())
    }

    #[test]
    fn a_refusal_by_one_bucket_costs_the_other_nothing() {
        let keys = vec![allowance(Some("1/h"), Some(1), None), allowance(None, None, None)];
        let gate = Gate::new(allowance(Some("1/h"), Some(3), None), keys, None);
        let now = Duration::from_secs(5);
        assert_eq!(refused(gate.admit(Some(0), now)), None);
        for _ in 0..5 {
            assert_eq!(refused(gate.admit(Some(0), now)), Some("key.requests"));
        }
        assert_eq!(refused(gate.admit(Some(1), now)), None);
        assert_eq!(refused(gate.admit(Some(1), now)), None);
        assert_eq!(refused(gate.admit(Some(1), now)), Some("gateway.requests"));
    }

    #[test]
    fn a_place_returns_when_its_permit_is_dropped() {
        let gate = Gate::new(allowance(None, None, Some(3)), vec![allowance(None, None, Some(2))], None);
        let now = Duration::ZERO;
        let (one, two) = (gate.admit(Some(0), now), gate.admit(Some(0), now));
        assert!(one.is_ok() && two.is_ok());
        assert_eq!(refused(gate.admit(Some(0), now)), Some("key.concurrent"));
        let three = gate.admit(None, now);
        assert_eq!(refused(gate.admit(None, now)), Some("gateway.concurrent"));
        drop(one);
        assert_eq!(refused(gate.admit(Some(0), now)), None);
        drop((two, three));
    }

    #[test]
    fn threads_that_race_get_exactly_what_the_buckets_hold() {
        let keys = (0..4).map(|_| allowance(Some("1/h"), Some(300), None)).collect();
        let gate = Arc::new(Gate::new(allowance(Some("1/h"), Some(1000), None), keys, None));
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || {
                    (0..2000).filter(|_| gate.admit(Some(thread % 4), Duration::ZERO).is_ok()).count()
                })
            })
            .collect();
        let admitted: usize = threads.into_iter().map(|thread| thread.join().expect("a count")).sum();
        assert_eq!(admitted, 1000);
    }

    #[test]
    fn the_shield_counts_a_subscriber_not_an_address() {
        let gate = Gate::new(Allowance::default(), Vec::new(), Some("3/h".parse().expect("a rate")));
        let admits = |address: &str| gate.admit_address(address.parse().expect("an address")).is_ok();
        assert!(admits("2001:db8::1") && admits("2001:db8::2") && admits("2001:db8::3"));
        assert!(!admits("2001:db8::4"));
        assert!(admits("2001:db8:0:1::1"));
        assert!(admits("192.0.2.1") && admits("::ffff:192.0.2.1") && admits("192.0.2.1"));
        assert!(!admits("192.0.2.1"));
    }
}
