//! What is on its way to Valkey: answers, and leases that are given back. Bounded; what finds no room is dropped and
//! counted, and so is what Valkey does not take.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use crate::cache::entry::Answer;
use crate::cache::key::Key;
use crate::store::{Link, Script};

use super::lease::Lease;
use super::parcel::Parcel;
use super::{answer_key, lease_key};

/// Answers that wait, and their bytes.
const ANSWERS_MAX: usize = 1024;
const BYTES_MAX: usize = 64 << 20;

/// Leases that wait to be given back: those beyond end by themselves.
const LEASES_MAX: usize = 16 << 10;

/// A larger answer is compressed beside the threads that serve.
const SEALED_AT_ONCE_BYTES_MAX: usize = 64 << 10;

pub(super) struct Outbox {
    link: Arc<Link>,
    put: Script,
    settle: Script,
    prefix: Arc<str>,
    waiting: Mutex<Waiting>,
    /// Something waits.
    bell: Notify,
    /// Nothing waits any more, and nothing is being written.
    idle: Notify,
    stored: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    answers: VecDeque<Parcelled>,
    bytes: usize,
    leases: VecDeque<(Key, String, Duration)>,
    /// Being written.
    writing: usize,
}

/// An answer that is to be kept.
pub(super) struct Parcelled {
    pub(super) key: Key,
    pub(super) answer: Answer,
    /// By the gateway's clock.
    pub(super) made_at: Duration,
    pub(super) ttl: Duration,
    /// Of its making: renewed until it is there.
    pub(super) lease: Option<Lease>,
}

enum Next {
    Answer(Box<Parcelled>),
    Lease(Key, String, Duration),
}

impl Outbox {
    pub(super) fn new(link: &Arc<Link>, prefix: Arc<str>) -> Self {
        let (put, settle) = (link.script(include_str!("put.lua")), link.script(include_str!("settle.lua")));
        let (waiting, bell, idle, stored, dropped) = Default::default();
        Self { link: Arc::clone(link), put, settle, prefix, waiting, bell, idle, stored, dropped }
    }

    pub(super) fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, mut parcelled: Parcelled) {
        let bytes = parcelled.answer.body.len();
        let mut waiting = self.waiting();
        if waiting.answers.len() < ANSWERS_MAX && waiting.bytes + bytes <= BYTES_MAX {
            waiting.bytes += bytes;
            waiting.answers.push_back(parcelled);
            drop(waiting);
            self.bell.notify_one();
            return;
        }
        drop(waiting);
        self.dropped.fetch_add(1, Ordering::Relaxed);
        if let Some(lease) = &mut parcelled.lease {
            lease.set_barren();
        }
    }

    pub(super) fn settle(&self, key: Key, token: String, alone: Duration) {
        let mut waiting = self.waiting();
        if waiting.leases.len() < LEASES_MAX {
            waiting.leases.push_back((key, token, alone));
            drop(waiting);
            self.bell.notify_one();
        }
    }

    /// Writes, four at once, as long as it is polled. `now`: the clock of the gateway.
    pub(super) async fn keep(&self, now: impl Fn() -> Duration) {
        let writer = || async {
            loop {
                match self.next() {
                    Some(next) => {
                        self.write(next, &now).await;
                        self.wrote();
                    }
                    None => self.bell.notified().await,
                }
            }
        };
        tokio::join!(writer(), writer(), writer(), writer());
    }

    fn next(&self) -> Option<Next> {
        let mut waiting = self.waiting();
        let lease = waiting.leases.pop_front().map(|(key, token, alone)| Next::Lease(key, token, alone));
        let next = lease.or_else(|| waiting.answers.pop_front().map(|it| Next::Answer(Box::new(it))))?;
        if let Next::Answer(parcelled) = &next {
            waiting.bytes -= parcelled.answer.body.len();
        }
        waiting.writing += 1;
        if !waiting.is_empty() {
            // For the next writer.
            self.bell.notify_one();
        }
        Some(next)
    }

    fn wrote(&self) {
        let mut waiting = self.waiting();
        waiting.writing -= 1;
        if waiting.is_empty() && waiting.writing == 0 {
            self.idle.notify_waiters();
        }
    }

    /// Waits until all is written.
    pub(super) async fn is_empty(&self) {
        let idle = self.idle.notified();
        tokio::pin!(idle);
        idle.as_mut().enable();
        let is_idle = {
            let waiting = self.waiting();
            waiting.is_empty() && waiting.writing == 0
        };
        if !is_idle {
            idle.await;
        }
    }

    async fn write(&self, next: Next, now: &impl Fn() -> Duration) {
        let mut parcelled = match next {
            Next::Lease(key, token, alone) => {
                let arguments = [token, alone.as_millis().to_string()];
                // Where that does not come about, it ends by itself.
                let keys = [lease_key(&self.prefix, &key)];
                let _: Result<i64, _> = self.link.run_at_leisure(&self.settle, &keys, &arguments).await;
                return;
            }
            Next::Answer(parcelled) => parcelled,
        };
        let lease = parcelled.lease.take();
        let written = self.write_answer(*parcelled, lease.as_ref().map_or("", Lease::token), now).await;
        let count = if written { &self.stored } else { &self.dropped };
        count.fetch_add(1, Ordering::Relaxed);
        if let Some(mut lease) = lease {
            match written {
                true => lease.forget(),
                false => lease.set_barren(),
            }
        }
    }

    async fn write_answer(&self, parcelled: Parcelled, token: &str, now: &impl Fn() -> Duration) -> bool {
        let Parcelled { key, answer, made_at, ttl, .. } = parcelled;
        let age = now().saturating_sub(made_at);
        let Some(rest) = ttl.checked_sub(age).filter(|rest| rest.as_millis() > 0) else { return false };
        let parcel = Parcel { answer, age, ttl: rest };
        let sealed = if parcel.answer.body.len() <= SEALED_AT_ONCE_BYTES_MAX {
            parcel.seal(&key)
        } else {
            let Ok(sealed) = spawn_blocking(move || parcel.seal(&key)).await else { return false };
            sealed
        };
        let Some(sealed) = sealed else { return false };
        let keys = [answer_key(&self.prefix, &key), lease_key(&self.prefix, &key)];
        let rest = rest.as_millis().to_string();
        let arguments = [sealed.as_slice(), rest.as_bytes(), token.as_bytes()];
        let written: Result<i64, _> = self.link.run_at_leisure(&self.put, &keys, &arguments).await;
        written.is_ok()
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.leases.is_empty()
    }
}
