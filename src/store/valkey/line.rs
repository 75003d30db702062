//! One connection to Valkey, and how long a question waits on it: as long as others are answered.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::RedisError;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::dial::Wire;

/// It is looked so often whether anybody is answered, on the thread that reads the answers: by the timer's rounding,
/// a millisecond. A look that comes late counts as one: what a busy machine takes from this process is not Valkey's
/// silence.
const TICK: Duration = Duration::from_micros(1);

/// The longest that a question waits while others are answered.
pub(super) const WAIT_MAX: Duration = Duration::from_millis(100);

pub(super) const NEVER: u64 = u64::MAX;

pub(super) type Answer<T> = Pin<Box<dyn Future<Output = Result<T, RedisError>> + Send>>;

/// One connection, until it breaks.
pub(super) struct Line {
    pub(super) wire: Wire,
    pub(super) begun: Instant,
    /// Microseconds from then to the first question that was late since one was answered in time, or [`NEVER`].
    pub(super) late_since: AtomicU64,
    /// How many questions were answered.
    pub(super) answers: Arc<AtomicU64>,
    /// How many wait, and the ticks meanwhile.
    asking: AtomicU64,
    begins: Notify,
    ticks: watch::Sender<u64>,
    pub(super) broken: watch::Sender<bool>,
}

impl Line {
    pub(super) fn new(wire: Wire) -> Self {
        Self {
            wire,
            begun: Instant::now(),
            late_since: AtomicU64::new(NEVER),
            answers: Arc::default(),
            asking: AtomicU64::new(0),
            begins: Notify::new(),
            ticks: watch::Sender::new(0),
            broken: watch::Sender::new(false),
        }
    }

    /// The answer, unless there is none to any question for as long as patience lasts, or it takes too long.
    pub(super) async fn within<T>(
        &self,
        patience: Duration,
        answer: &mut Answer<T>,
    ) -> Option<Result<T, RedisError>> {
        let _asking = Asking::begin(self);
        let mut ticks = self.ticks.subscribe();
        let most = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let (mut seen, mut since) = (self.answers.load(Ordering::Relaxed), *ticks.borrow_and_update());
        let silence = async {
            while ticks.changed().await.is_ok() {
                let (answers, now) = (self.answers.load(Ordering::Relaxed), *ticks.borrow_and_update());
                if std::mem::replace(&mut seen, answers) != answers {
                    since = now;
                } else if now - since >= most {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            answer = &mut *answer => Some(answer),
            () = silence => None,
            () = sleep(patience.max(WAIT_MAX)) => None,
        }
    }

    /// Ticks while somebody waits.
    pub(super) async fn tick(&self) {
        loop {
            if self.asking.load(Ordering::Acquire) == 0 {
                self.begins.notified().await;
            }
            sleep(TICK).await;
            self.ticks.send_modify(|ticks| *ticks += 1);
        }
    }
}

/// A question that somebody waits for.
struct Asking<'a>(&'a Line);

impl<'a> Asking<'a> {
    fn begin(line: &'a Line) -> Self {
        if line.asking.fetch_add(1, Ordering::AcqRel) == 0 {
            line.begins.notify_one();
        }
        Self(line)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Ordering::AcqRel);
    }
}
