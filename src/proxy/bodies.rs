//! How much of callers' bodies is held at once: a bound on all of them together, and one on those that are being read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of large bodies so much is read at once for each processor, and held as it was read: a chat of short messages takes
/// up to twice its bytes more then. More would only wait for a processor.
const READ_KIB_EACH: usize = 512;
const READ_KIB_MAX: usize = 64 << 10;

/// The memory of all bodies that are held at once, bounded by `body.total`.
#[derive(Debug)]
pub struct Bodies {
    bytes: Arc<AtomicU64>,
    bytes_max: u64,
    /// A permit for each KiB that may be read now.
    turns: Arc<Semaphore>,
}

/// A body's share of that memory; returned on drop.
#[derive(Debug)]
pub struct BodyShare {
    bytes: u64,
    all: Arc<AtomicU64>,
}

impl Bodies {
    pub(super) fn new(bytes_max: u64) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let kib = (processors * READ_KIB_EACH).min(READ_KIB_MAX);
        Self { bytes: Arc::default(), bytes_max, turns: Arc::new(Semaphore::new(kib)) }
    }

    /// The same memory, with another bound.
    pub(super) fn bounded(&self, bytes_max: u64) -> Self {
        Self { bytes: Arc::clone(&self.bytes), bytes_max, turns: Arc::clone(&self.turns) }
    }

    /// An empty share, to grow as the body arrives.
    pub fn share(&self) -> BodyShare {
        BodyShare { bytes: 0, all: Arc::clone(&self.bytes) }
    }

    /// Waits until a large body may be read. What is returned goes with what was read; `None`: never.
    pub(super) async fn turn(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        // A larger one takes a processor's part, so that there is always one for each.
        let kib = u32::try_from(bytes.div_ceil(1024).min(READ_KIB_EACH)).ok()?;
        Arc::clone(&self.turns).acquire_many_owned(kib).await.ok()
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
