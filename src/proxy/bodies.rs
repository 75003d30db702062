//! How much of callers' bodies is held at once: a bound on all of them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The memory of all bodies that are held at once, bounded by `body.total`.
#[derive(Debug)]
pub struct Bodies {
    bytes: Arc<AtomicU64>,
    bytes_max: u64,
}

/// A body's share of that memory; returned on drop.
#[derive(Debug)]
pub struct BodyShare {
    bytes: u64,
    all: Arc<AtomicU64>,
}

impl Bodies {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes: Arc::default(), bytes_max }
    }

    /// The same memory, with another bound.
    pub(super) fn bounded(&self, bytes_max: u64) -> Self {
        Self { bytes: Arc::clone(&self.bytes), bytes_max }
    }

    /// An empty share, to grow as the body arrives.
    pub fn share(&self) -> BodyShare {
        BodyShare { bytes: 0, all: Arc::clone(&self.bytes) }
    }

    /// Whether the share could grow by that many bytes.
    pub fn grow(&self, share: &mut BodyShare, bytes: u64) -> bool {
        let within = |all: u64| all.checked_add(bytes).filter(|all| *all <= self.bytes_max);
        let grown = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, within).is_ok();
        share.bytes += if grown { bytes } else { 0 };
        grown
    }
}

impl BodyShare {
    /// What has arrived of the body.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
