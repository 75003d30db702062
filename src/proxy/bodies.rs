//! How much of callers' bodies is held at once: a bound on all of them together, one on those that arrive, and one on
//! those that are being read.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Of large bodies so much is read at once for each processor, and held as it was read: a chat of short messages takes
/// up to twice its bytes more then. More would only wait for a processor.
const READ_KIB_EACH: usize = 512;
const READ_KIB_MAX: usize = 64 << 10;

/// Of large bodies so much may arrive at once, and wait to be read. The others stay with their callers: beside its own
/// bytes, each that arrives takes 64 KiB that Pingora reads it into.
const ARRIVING_KIB_MAX: usize = 32 << 10;

/// A larger body is a large one: it arrives in turns, and is not read at once.
pub(super) const LARGE_BYTES: u64 = 64 << 10;

/// One takes no more of that, however large it is.
const ARRIVING_KIB_EACH: u64 = 4 << 10;

/// Who sends slower does so beside the others: nobody waits for a caller that is far away, or does not go on.
const ARRIVING_TIME_MAX: Duration = Duration::from_millis(200);

/// The memory of all bodies that are held at once, bounded by `body.total`.
#[derive(Debug)]
pub struct Bodies {
    bytes: Arc<AtomicU64>,
    bytes_max: u64,
    /// A permit for each KiB that may arrive now.
    places: Arc<Semaphore>,
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
        let places = Arc::new(Semaphore::new(ARRIVING_KIB_MAX));
        Self { bytes: Arc::default(), bytes_max, places, turns: Arc::new(Semaphore::new(kib)) }
    }

    /// The same memory, with another bound.
    pub(super) fn bounded(&self, bytes_max: u64) -> Self {
        let (places, turns) = (Arc::clone(&self.places), Arc::clone(&self.turns));
        Self { bytes: Arc::clone(&self.bytes), bytes_max, places, turns }
    }

    /// An empty share, to grow as the body arrives.
    pub fn share(&self) -> BodyShare {
        BodyShare { bytes: 0, all: Arc::clone(&self.bytes) }
    }

    /// Waits until a large body may arrive. `announced`: its bytes, as far as that is known. `None`: it needs no place.
    pub(super) async fn place(&self, announced: Option<u64>) -> Option<OwnedSemaphorePermit> {
        let bytes = announced.filter(|bytes| *bytes > LARGE_BYTES)?;
        let kib = u32::try_from(bytes.div_ceil(1024).min(ARRIVING_KIB_EACH)).ok()?;
        Arc::clone(&self.places).acquire_many_owned(kib).await.ok()
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

/// Takes in a body at its place. One that does not come soon gives it back.
pub(super) async fn arrived<T>(
    arriving: impl Future<Output = T>,
    place: &mut Option<OwnedSemaphorePermit>,
) -> T {
    let mut arriving = pin!(arriving);
    if place.is_some() {
        if let Ok(arrived) = timeout(ARRIVING_TIME_MAX, arriving.as_mut()).await {
            return arrived;
        }
        *place = None;
    }
    arriving.await
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

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const LARGE: Option<u64> = Some(4 << 20);

    async fn all(bodies: &Bodies) -> Vec<Option<OwnedSemaphorePermit>> {
        let mut places = Vec::new();
        for _ in 0..ARRIVING_KIB_MAX / (4 << 10) {
            places.push(bodies.place(LARGE).await);
        }
        places
    }

    #[tokio::test]
    async fn large_bodies_arrive_in_turns_and_small_ones_do_not_wait() {
        let bodies = Bodies::new(u64::MAX);
        let mut places = all(&bodies).await;
        assert!(bodies.place(Some(LARGE_BYTES)).await.is_none());
        assert!(bodies.place(None).await.is_none());
        tokio::select! {
            biased;
            _ = bodies.place(LARGE) => panic!("there is no place"),
            () = ready(()) => {}
        }
        places.pop();
        assert!(bodies.place(LARGE).await.is_some());
    }

    #[tokio::test]
    async fn one_that_does_not_come_is_in_nobodys_way() {
        let bodies = Bodies::new(u64::MAX);
        let mut place = bodies.place(LARGE).await;
        arrived(ready(()), &mut place).await;
        assert!(place.is_some(), "what has come keeps its place until it has been read");
        tokio::select! {
            () = arrived(pending(), &mut place) => panic!("it comes"),
            places = all(&bodies) => assert!(places.iter().all(Option::is_some)),
        }
    }
}
