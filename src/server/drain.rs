//! The way out: no new work, what has begun ends, and the process leaves as soon as the last has.
//!
//! Pingora alone would wait out its whole grace period, even with nothing left to do.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{interval, sleep};

use crate::proxy::{Current, Gateway};

/// The last lines of the access log may take this long.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);

/// How often the last requests are counted.
const COUNT_EVERY: Duration = Duration::from_millis(20);

/// Which signal means what. SIGTERM first turns `/ready` 503 for `server.pre_stop`, so that balancers look away
/// before the listeners close.
pub(super) struct Signals(pub(super) Arc<Current>);

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let listen = |kind| signal(kind).expect("the process can listen for signals");
        let mut terminate = listen(SignalKind::terminate());
        let mut interrupt = listen(SignalKind::interrupt());
        let mut quit = listen(SignalKind::quit());
        tokio::select! {
            _ = terminate.recv() => {
                self.0.load().drain();
                tokio::select! {
                    () = sleep(self.0.load().settings.server.pre_stop) => ShutdownSignal::GracefulTerminate,
                    _ = terminate.recv() => ShutdownSignal::FastShutdown,
                    _ = interrupt.recv() => ShutdownSignal::FastShutdown,
                }
            }
            _ = interrupt.recv() => ShutdownSignal::FastShutdown,
            _ = quit.recv() => ShutdownSignal::GracefulUpgrade,
        }
    }
}

/// Starts what must start after a daemon's fork, and ends the process when the last request has ended.
pub(super) struct Drain(pub(super) Arc<Current>);

#[async_trait]
impl BackgroundService for Drain {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        if let Err(error) = self.0.load().log.start() {
            log::error!("no access log: its thread did not start: {error}");
        }
        if shutdown.changed().await.is_err() {
            return;
        }
        self.0.load().drain();
        let mut again = signal(SignalKind::terminate()).expect("the process can listen for signals");
        tokio::select! {
            () = self.all_have_ended() => self.leave(0),
            _ = again.recv() => self.leave(1),
        }
    }
}

impl Drain {
    /// Two counts in a row, so that a connection accepted at the last moment has begun its request.
    async fn all_have_ended(&self) {
        let mut count = interval(COUNT_EVERY);
        let mut idle = 0;
        while idle < 2 {
            count.tick().await;
            idle = if self.0.load().metrics.in_flight.get() == 0 { idle + 1 } else { 0 };
        }
    }

    fn leave(&self, code: i32) {
        leave_nothing_behind(&self.0.load());
        log::info!("stopped");
        std::process::exit(code);
    }
}

/// What the process has in memory and others are to find. The requests that are counted have ended before.
pub(super) fn leave_nothing_behind(gateway: &Gateway) {
    gateway.log.flush(FLUSH_TIME_MAX);
    if let Err(why) = gateway.ledger.close(gateway.clock.wall()) {
        log::error!("what keys used of late is lost: {why}");
    }
}
