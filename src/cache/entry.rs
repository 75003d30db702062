//! An answer that is kept.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;

use super::form::Form;
use super::key::Key;

/// What an answer weighs beyond its bytes: itself and its husk, the store's node, its places in a queue and the index.
const OVERHEAD_BYTES: usize = 384;

/// A whole answer, as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// As it was asked for.
    pub form: Form,
    pub content_type: Bytes,
    pub body: Bytes,
    pub worth: Worth,
}

/// What it took to make an answer, and what a hit saves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Worth {
    pub completion_tokens: u64,
    /// Of the server: prompt and generation.
    pub time: Duration,
}

/// An answer that is kept.
#[derive(Debug)]
pub struct Entry {
    /// In which it was recorded.
    pub form: Form,
    pub content_type: Bytes,
    pub body: Bytes,
    pub worth: Worth,
    /// Since the process began.
    pub made_at: Duration,
    pub expires_at: Duration,
    /// The forms that it cannot be given in, a bit each.
    lacking: AtomicU8,
}

impl Entry {
    pub(super) fn new(answer: Answer, made_at: Duration, ttl: Duration) -> Self {
        let Answer { form, content_type, body, worth } = answer;
        let (expires_at, lacking) = (made_at + ttl, AtomicU8::new(0));
        Self { form, content_type, body, worth, made_at, expires_at, lacking }
    }

    /// The same, kept for another time than it was.
    pub(super) fn kept_for(&self, ttl: Duration) -> Self {
        let Self { form, made_at, worth, .. } = *self;
        let lacking = AtomicU8::new(self.lacking.load(Ordering::Relaxed));
        let (content_type, body) = (self.content_type.clone(), self.body.clone());
        Self { form, content_type, body, worth, made_at, expires_at: made_at + ttl, lacking }
    }

    /// All overhead counted.
    pub(super) fn bytes(&self) -> u64 {
        (self.body.len() + self.content_type.len() + OVERHEAD_BYTES) as u64
    }

    /// Whether it was found to have no rendering in a form.
    pub fn lacks(&self, form: Form) -> bool {
        self.lacking.load(Ordering::Relaxed) & 1 << form.index() != 0
    }

    /// Takes in that it has none.
    pub fn note_lacking(&self, form: Form) {
        self.lacking.fetch_or(1 << form.index(), Ordering::Relaxed);
    }

    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.made_at)
    }
}

/// What TinyUFO holds. Its map gives memory back some time after an eviction, so the answer is taken out of its husk
/// at once, and the bound on bytes is one on memory too.
#[derive(Debug)]
pub(super) struct Husk {
    /// All 256 bits; TinyUFO keeps 64.
    pub(super) key: Key,
    /// Behind a lock of its own, held to take a pointer: `arc_swap` reads sooner and writes at twenty times the price.
    entry: RwLock<Option<Arc<Entry>>>,
    /// As TinyUFO counts them, which does not tell.
    uses: AtomicU8,
}

/// TinyUFO counts no further.
const USES_MAX: u8 = 3;

impl Husk {
    pub(super) fn new(key: Key, entry: Option<Arc<Entry>>) -> Self {
        Self { key, entry: RwLock::new(entry), uses: AtomicU8::new(0) }
    }

    pub(super) fn entry(&self) -> Option<Arc<Entry>> {
        self.entry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entry.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Puts an answer in, or none, and gives the one that was there.
    pub(super) fn replace(&self, entry: Option<Arc<Entry>>) -> Option<Arc<Entry>> {
        std::mem::replace(&mut *self.entry.write().unwrap_or_else(PoisonError::into_inner), entry)
    }

    pub(super) fn used(&self) {
        let uses = self.uses();
        if uses < USES_MAX {
            self.uses.store(uses + 1, Ordering::Relaxed);
        }
    }

    pub(super) fn uses(&self) -> u8 {
        self.uses.load(Ordering::Relaxed)
    }
}
