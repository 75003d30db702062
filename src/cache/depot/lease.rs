//! Leases: whoever has one of an answer makes it for all replicas. Renewed while it is held; of a process that was
//! killed, it ends by itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::cache::key::Key;
use crate::store::{Link, Script};

use super::lease_key;
use super::outbox::Outbox;

/// A lease is for three seconds (the scripts say so).
const RENEWED_EVERY: Duration = Duration::from_secs(1);

/// Renewed at once.
const RENEWALS_MAX: usize = 64;

/// For so long everybody makes an answer alone, after one like it was whole and not kept.
const ALONE_TIME: Duration = Duration::from_secs(30);

/// Those that this process holds.
pub(super) struct Leases {
    link: Arc<Link>,
    renew: Script,
    prefix: Arc<str>,
    replica: String,
    next: AtomicU64,
    held: Mutex<HashMap<String, Key>>,
    outbox: Arc<Outbox>,
}

/// The making of one answer for all replicas. Dropped, it is given back, and another may make it.
pub struct Lease {
    leases: Arc<Leases>,
    key: Key,
    token: String,
    barren: bool,
    settles: bool,
}

impl Leases {
    pub(super) fn new(link: &Arc<Link>, prefix: Arc<str>, replica: String, outbox: Arc<Outbox>) -> Self {
        let renew = link.script(include_str!("renew.lua"));
        let (next, held) = Default::default();
        Self { link: Arc::clone(link), renew, prefix, replica, next, held, outbox }
    }

    /// One that this process renews; that it has it, Valkey says.
    pub(super) fn take(leases: &Arc<Self>, key: Key) -> Lease {
        let token = format!("{}:{}", leases.replica, leases.next.fetch_add(1, Ordering::Relaxed));
        leases.held().insert(token.clone(), key);
        Lease { leases: Arc::clone(leases), key, token, barren: false, settles: true }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Key>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews them, as long as it is polled.
    pub(super) async fn keep(&self) {
        let mut ticks = interval(RENEWED_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let held: Vec<_> = self.held().iter().map(|(token, key)| (token.clone(), *key)).collect();
            let mut renewals = JoinSet::new();
            for (token, key) in held {
                if !self.link.is_up() {
                    break;
                }
                if renewals.len() >= RENEWALS_MAX {
                    renewals.join_next().await;
                }
                let (link, renew, key) =
                    (Arc::clone(&self.link), self.renew.clone(), lease_key(&self.prefix, &key));
                renewals.spawn(async move {
                    // A lease that is not renewed ends: the next tick is soon enough to try again.
                    let _: Result<i64, _> = link.run_at_leisure(&renew, &[key], &[token]).await;
                });
            }
            renewals.join_all().await;
        }
    }
}

impl Lease {
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// Whether it is of this answer.
    pub fn is_of(&self, key: &Key) -> bool {
        self.key == *key
    }

    /// The answer is whole, and is not kept: nobody waits for the next of its kind.
    pub(in crate::cache) fn set_barren(&mut self) {
        self.barren = true;
    }

    /// It is another's, or given back.
    pub(super) fn forget(mut self) {
        self.settles = false;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.held().remove(&self.token);
        if self.settles {
            let alone = if self.barren { ALONE_TIME } else { Duration::ZERO };
            self.leases.outbox.settle(self.key, std::mem::take(&mut self.token), alone);
        }
    }
}
