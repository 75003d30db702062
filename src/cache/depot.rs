//! The answers that replicas share, in Valkey: the level behind the one of this process.
//!
//! An answer is written there once, by whoever made it, and nobody waits for that (`outbox`). Who finds none here asks
//! there, in one question that also says who is to make it: a lease (`lease`) is one generation for all replicas. Each
//! answer has the rest of its time as its TTL there, and Valkey's `maxmemory` is the bound. What comes back is checked
//! (`parcel`) and may be anything. Purges reach the other replicas by a table of theirs (`marks`).
//!
//! Where Valkey is away or late, there is no such level, at once.

mod lease;
mod marks;
mod outbox;
mod parcel;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::store::{Link, Script, Unanswered};

use super::entry::Answer;
use super::key::Key;
use super::purge::{Purge, Purges};

use self::lease::Leases;
use self::marks::Marks;
use self::outbox::Outbox;
use self::parcel::Parcel;

pub use self::lease::Lease;

/// A larger parcel is opened beside the threads that serve.
const OPENED_AT_ONCE_BYTES_MAX: usize = 64 << 10;

/// What is kept there is told apart from what other versions keep.
const VERSION: &str = "a1";

/// The level that replicas share.
pub struct Depot {
    link: Arc<Link>,
    claim: Script,
    discard: Script,
    outbox: Arc<Outbox>,
    leases: Arc<Leases>,
    marks: Marks,
    /// Begins every key.
    prefix: Arc<str>,
    found: AtomicU64,
    rejected: AtomicU64,
}

/// What there is of an answer.
pub enum Claim {
    /// It is kept.
    Kept(Found),
    /// Nobody makes it: who asked does, for all replicas.
    Ours(Lease),
    /// Another replica makes it.
    Theirs,
    /// Who asked is alone with it: Valkey is away, or what another replica made is not kept.
    Alone,
}

/// The same, of an answer that another replica makes.
pub enum Look {
    Kept(Found),
    /// It is being made.
    Held,
    /// Nobody makes it any more, or nobody knows.
    Gone,
    /// No answer in time; it may come the next time.
    Late,
}

/// An answer that was kept there.
pub struct Found {
    pub answer: Answer,
    pub age: Duration,
}

/// What the level has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dealings {
    pub found: u64,
    /// Were kept there and could not be used.
    pub rejected: u64,
    pub stored: u64,
    /// Were to be kept there and are not.
    pub dropped: u64,
}

type Said = (i64, i64, Vec<u8>);

impl Depot {
    /// `replica`: no other process's, ever.
    pub fn new(link: Arc<Link>, prefix: &str, replica: String) -> Self {
        let prefix: Arc<str> = prefix.into();
        let outbox = Arc::new(Outbox::new(&link, Arc::clone(&prefix)));
        Self {
            claim: link.script(include_str!("depot/claim.lua")),
            discard: link.script(include_str!("depot/discard.lua")),
            leases: Arc::new(Leases::new(&link, Arc::clone(&prefix), replica, Arc::clone(&outbox))),
            marks: Marks::new(Arc::clone(&link), &prefix),
            outbox,
            link,
            prefix,
            found: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
        }
    }

    pub fn dealings(&self) -> Dealings {
        Dealings {
            found: self.found.load(Ordering::Relaxed),
            rejected: self.rejected.load(Ordering::Relaxed),
            stored: self.outbox.stored(),
            dropped: self.outbox.dropped(),
        }
    }

    /// Whether it is there, and known which answers are not to be found.
    pub fn is_open(&self) -> bool {
        self.link.is_up() && self.marks.are_known()
    }

    /// Asks for an answer, and who is to make it. `anew`: what is kept is not wanted.
    pub async fn claim(&self, key: &Key, anew: bool) -> Claim {
        // Who has waited in vain for another answer of Valkey's does not wait for this one too.
        if !self.is_open() || self.link.is_in_doubt() {
            return Claim::Alone;
        }
        let mut anew = anew;
        loop {
            let lease = Leases::take(&self.leases, *key);
            match self.link.run(&self.claim, &self.keys(key), &arguments(&lease, anew)).await {
                Ok((KEPT, rest, bytes)) => {
                    lease.forget();
                    if let Some(found) = self.open(key, rest, bytes).await {
                        return Claim::Kept(found);
                    }
                    self.reject(key).await;
                    anew = true;
                }
                // Where no answer comes in time, it may be this one's all the same.
                Ok((OURS, ..)) | Err(Unanswered::Late(_)) => return Claim::Ours(lease),
                Ok((THEIRS, ..)) => {
                    lease.forget();
                    return Claim::Theirs;
                }
                Ok(_) | Err(_) => {
                    lease.forget();
                    return Claim::Alone;
                }
            }
        }
    }

    /// Looks how it stands with an answer, and makes no claim.
    pub async fn look(&self, key: &Key) -> Look {
        if !self.is_open() {
            return Look::Gone;
        }
        let none: [String; 2] = Default::default();
        match self.link.run::<Said>(&self.claim, &self.keys(key), &none).await {
            Ok((KEPT, rest, bytes)) => match self.open(key, rest, bytes).await {
                Some(found) => Look::Kept(found),
                None => {
                    self.reject(key).await;
                    Look::Gone
                }
            },
            Ok((THEIRS, ..)) => Look::Held,
            Err(Unanswered::Late(_)) if self.link.is_up() => Look::Late,
            Ok(_) | Err(_) => Look::Gone,
        }
    }

    /// Whether an answer is being made, whatever is kept; also where that is not known in time.
    pub async fn is_being_made(&self, key: &Key) -> bool {
        let anew = [String::new(), ANEW.to_owned()];
        match self.link.run::<Said>(&self.claim, &self.keys(key), &anew).await {
            Ok((verdict, ..)) => verdict == THEIRS,
            Err(unanswered) => matches!(unanswered, Unanswered::Late(_)) && self.link.is_up(),
        }
    }

    /// Keeps a whole answer there, soon: `ttl` from `now` on. Who has a lease of its key gives it back with that.
    pub fn put(&self, key: Key, answer: Answer, now: Duration, ttl: Duration, lease: Option<Lease>) {
        if self.is_open() {
            self.outbox.push(outbox::Parcelled { key, answer, made_at: now, ttl, lease });
        }
    }

    /// Has a purge reach the other replicas. It is in force here already, by this number.
    pub fn purge(&self, purge: Purge, number: u64) {
        self.marks.tell(purge, number);
    }

    /// Waits until all replicas that reach Valkey know of the purges so far, for a second at most. False: Valkey does
    /// not know yet.
    pub async fn purges_are_known(&self) -> bool {
        self.marks.told().await
    }

    /// Writes what is to be written, renews what is held and learns of purges, as long as it is polled. `now`: the
    /// clock of the gateway. `all_purged`: another replica purged everything.
    pub async fn keep(&self, purges: &Purges, now: impl Fn() -> Duration, all_purged: impl Fn()) {
        tokio::join!(self.outbox.keep(now), self.leases.keep(), self.marks.keep(purges, all_purged));
    }

    /// Waits until all is written, as long as Valkey is there.
    pub async fn is_written(&self) {
        self.outbox.is_empty().await;
    }

    fn keys(&self, key: &Key) -> [String; 2] {
        [answer_key(&self.prefix, key), lease_key(&self.prefix, key)]
    }

    async fn open(&self, key: &Key, rest_ms: i64, bytes: Vec<u8>) -> Option<Found> {
        let rest = Duration::from_millis(u64::try_from(rest_ms).ok()?);
        let found = if bytes.len() <= OPENED_AT_ONCE_BYTES_MAX {
            Parcel::open(key, &bytes)
        } else {
            let key = *key;
            spawn_blocking(move || Parcel::open(&key, &bytes)).await.ok()?
        };
        let Parcel { answer, age, ttl } = found?;
        self.found.fetch_add(1, Ordering::Relaxed);
        Some(Found { answer, age: age + ttl.saturating_sub(rest) })
    }

    /// What cannot be read is in the way.
    async fn reject(&self, key: &Key) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        let none: [String; 0] = [];
        let _: Result<i64, _> = self.link.run(&self.discard, &self.keys(key)[..1], &none).await;
    }
}

/// What is kept is not wanted.
const ANEW: &str = "anew";

const KEPT: i64 = 1;
const OURS: i64 = 2;
const THEIRS: i64 = 3;

fn arguments(lease: &Lease, anew: bool) -> [String; 2] {
    [lease.token().to_owned(), if anew { ANEW } else { "" }.to_owned()]
}

/// Both are of one slot of a Cluster, and those of other answers of others.
fn answer_key(prefix: &str, key: &Key) -> String {
    format!("{{{prefix}:{VERSION}:{}}}:answer", hex::encode(key))
}

fn lease_key(prefix: &str, key: &Key) -> String {
    format!("{{{prefix}:{VERSION}:{}}}:lease", hex::encode(key))
}
