//! An answer that is kept, and how it is recorded while it passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;

use super::key::Key;

/// What an answer weighs beyond its bytes: itself and its husk, the store's node and its place in a queue.
const OVERHEAD_BYTES: usize = 320;

/// One whole answer, as it was sent.
#[derive(Debug)]
pub struct Entry {
    pub content_type: Bytes,
    pub body: Bytes,
    /// Since the process began.
    pub made_at: Duration,
    pub expires_at: Duration,
    held: Held,
}

impl Entry {
    pub(super) fn new(
        content_type: Bytes,
        body: Bytes,
        made_at: Duration,
        ttl: Duration,
        holdings: &Arc<Holdings>,
    ) -> Self {
        let bytes = (body.len() + content_type.len() + OVERHEAD_BYTES) as u64;
        Self { content_type, body, made_at, expires_at: made_at + ttl, held: Held::new(bytes, holdings) }
    }

    /// Bytes, all overhead counted.
    pub(super) fn weight(&self) -> u64 {
        self.held.bytes
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
    pub(super) entry: ArcSwapOption<Entry>,
}

/// What the store holds now.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    pub(super) bytes: AtomicU64,
    pub(super) entries: AtomicU64,
}

/// An entry's share of the holdings; returned on drop.
#[derive(Debug)]
struct Held {
    bytes: u64,
    holdings: Arc<Holdings>,
}

impl Held {
    fn new(bytes: u64, holdings: &Arc<Holdings>) -> Self {
        holdings.bytes.fetch_add(bytes, Ordering::Relaxed);
        holdings.entries.fetch_add(1, Ordering::Relaxed);
        Self { bytes, holdings: Arc::clone(holdings) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.holdings.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.holdings.entries.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Gathers the chunks of an answer, up to a bound. A chunk is shared with the answer on its way, not copied.
#[derive(Debug)]
pub struct Recording {
    chunks: Vec<Bytes>,
    bytes: usize,
    bytes_max: usize,
}

impl Recording {
    pub fn new(bytes_max: usize) -> Self {
        Self { chunks: Vec::new(), bytes: 0, bytes_max }
    }

    /// Takes in a chunk; false once the answer is larger than the bound.
    pub fn push(&mut self, chunk: &Bytes) -> bool {
        self.bytes += chunk.len();
        if self.bytes > self.bytes_max {
            self.chunks = Vec::new();
            return false;
        }
        self.chunks.push(chunk.clone());
        true
    }

    /// The answer in one piece: copied once, so that it does not hold on to the larger buffers that its chunks were
    /// cut from.
    pub fn into_body(self) -> Bytes {
        Bytes::from(self.chunks.concat())
    }
}
