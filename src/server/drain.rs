//! The way out: no new work, what has begun ends, and the process leaves as soon as the last has.
//!
//! Pingora alone would wait out its whole grace period, even with nothing left to do, and would end on SIGQUIT whether
//! a successor serves or not.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval, sleep};

use crate::proxy::{Current, Gateway};

use super::front::Connections;
use super::handover::Handover;
use super::journal;
use super::pid::PidFile;
use super::sharing;
use super::supervisor;

/// The last lines of the access log may take this long.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);

/// How often the last requests are counted.
const COUNT_EVERY: Duration = Duration::from_millis(20);

/// Where a successor serves, callers find it with their next connection. One that is open and idle is closed by the
/// answer to its next request; one that has none for so long is closed without.
const LINGER_TIME_MAX: Duration = Duration::from_secs(10);

/// Of a process that is to end at once, Pingora may take so long; some milliseconds are what it takes.
const FAST_TIME_MAX: Duration = Duration::from_secs(1);

/// Which signal means what. SIGTERM first turns `/ready` 503 for `server.pre_stop`, so that balancers look away
/// before the listeners close. SIGQUIT hands over to a successor; without one nothing changes.
pub(super) struct Signals {
    pub(super) current: Arc<Current>,
    pub(super) handover: Arc<Handover>,
    pub(super) pid_file: Option<PidFile>,
    pub(super) impatience: Impatience,
}

/// SIGTERM while the process is ending already. One listener hears all of them, from the first: none falls between
/// two.
#[derive(Clone)]
pub(super) struct Impatience(Arc<Semaphore>);

impl Impatience {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Hears on.
    fn listen(&self, mut terminate: Signal) {
        let heard = Arc::clone(&self.0);
        tokio::spawn(async move {
            while terminate.recv().await.is_some() {
                heard.add_permits(1);
            }
        });
    }

    /// The next of them; what was heard before anybody asked counts too.
    async fn heard(&self) {
        if let Ok(one) = self.0.acquire().await {
            one.forget();
        }
    }
}

fn listen(kind: SignalKind) -> Signal {
    signal(kind).expect("the process can listen for signals")
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let signal = self.hear().await;
        if matches!(signal, ShutdownSignal::FastShutdown) {
            self.end_in_time();
        }
        signal
    }
}

impl Signals {
    async fn hear(&self) -> ShutdownSignal {
        let mut terminate = listen(SignalKind::terminate());
        let mut interrupt = listen(SignalKind::interrupt());
        let mut quit = listen(SignalKind::quit());
        // Unheard, it would end the process; `Drain` does what it asks for.
        let _heard = listen(SignalKind::user_defined1());
        self.handover.hears_signals();
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
                _ = quit.recv() => {}
            }
            let handover = Arc::clone(&self.handover);
            tokio::select! {
                done = spawn_blocking(move || handover.attempt()) => {
                    if done.unwrap_or(false) {
                        self.impatience.listen(terminate);
                        return ShutdownSignal::GracefulTerminate;
                    }
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
            }
        }
        supervisor::stopping();
        self.current.load().drain();
        tokio::select! {
            () = sleep(self.current.load().settings.server.pre_stop) => {}
            _ = terminate.recv() => return ShutdownSignal::FastShutdown,
            _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
        }
        self.impatience.listen(terminate);
        ShutdownSignal::GracefulTerminate
    }

    /// Pingora drops what is under way, each request with its line, and ends its threads one by one; but it waits for
    /// ever for one that accepts on the socket of a thread that has ended (seen with `work_stealing: false`).
    fn end_in_time(&self) {
        let (current, pid_file) = (Arc::clone(&self.current), self.pid_file.clone());
        let watch = move || {
            std::thread::sleep(FAST_TIME_MAX);
            leave_nothing_behind(&current.load(), pid_file.as_ref());
            std::process::exit(0);
        };
        if let Err(error) = std::thread::Builder::new().name("watchdog".to_owned()).spawn(watch) {
            log::error!("nobody watches over the end of the process: {error}");
        }
    }
}

/// Starts what must start after a daemon's fork, and ends the process when the last request has ended.
pub(super) struct Drain {
    pub(super) current: Arc<Current>,
    pub(super) handover: Arc<Handover>,
    pub(super) connections: Connections,
    pub(super) pid_file: Option<PidFile>,
    pub(super) impatience: Impatience,
    /// A daemon's.
    pub(super) error_log: Option<PathBuf>,
}

#[async_trait]
impl BackgroundService for Drain {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        if let Err(error) = self.current.load().log.start() {
            log::error!("no access log: its thread did not start: {error}");
        }
        if let Some(traces) = &self.current.load().traces {
            traces.start();
        }
        tokio::spawn(reopen_logs(Arc::clone(&self.current), self.error_log.clone()));
        if shutdown.changed().await.is_err() {
            return;
        }
        if self.handover.is_done() {
            let handover = Arc::clone(&self.handover);
            let telling = std::thread::Builder::new().name("legacy".to_owned());
            if let Err(error) = telling.spawn(move || handover.tell_on()) {
                log::error!("the successor is not told what becomes of the last requests: {error}");
            }
            tokio::select! {
                () = self.callers_have_left() => {}
                () = self.impatience.heard() => {}
            }
        } else {
            self.current.load().drain();
        }
        let code = tokio::select! {
            () = self.all_have_ended() => 0,
            () = self.impatience.heard() => 1,
        };
        self.leave(code)
    }
}

/// SIGUSR1: the files of both logs may have been moved away. To the process's end, as its last streams do.
async fn reopen_logs(current: Arc<Current>, error_log: Option<PathBuf>) {
    let mut moved = listen(SignalKind::user_defined1());
    while moved.recv().await.is_some() {
        if let Some(path) = &error_log {
            journal::reopen(path);
        }
        current.load().log.reopen();
    }
}

impl Drain {
    /// Two counts in a row, so that a connection accepted at the last moment has begun its request.
    async fn all_have_ended(&self) {
        let mut count = interval(COUNT_EVERY);
        let mut idle = 0;
        while idle < 2 {
            count.tick().await;
            idle = if self.current.load().metrics.in_flight.get() == 0 { idle + 1 } else { 0 };
        }
    }

    /// Nobody is connected, or all that are have been idle for long.
    async fn callers_have_left(&self) {
        let mut count = interval(COUNT_EVERY);
        let mut busy = Instant::now();
        while busy.elapsed() < LINGER_TIME_MAX && self.connections.count() > 0 {
            count.tick().await;
            if self.current.load().metrics.in_flight.get() > 0 {
                busy = Instant::now();
            }
        }
    }

    fn leave(&self, code: i32) {
        self.handover.tell_changes();
        leave_nothing_behind(&self.current.load(), self.pid_file.as_ref());
        log::info!("stopped");
        std::process::exit(code);
    }
}

/// What the process has in memory and others are to find. The requests that are counted have ended before.
pub(super) fn leave_nothing_behind(gateway: &Gateway, pid_file: Option<&PidFile>) {
    gateway.log.flush(FLUSH_TIME_MAX);
    if let Some(traces) = &gateway.traces {
        traces.close(FLUSH_TIME_MAX);
    }
    sharing::tell_all(gateway);
    if let Err(why) = gateway.ledger.close(gateway.clock.wall()) {
        log::error!("what keys used of late is lost: {why}");
    }
    if let Some(pid_file) = pid_file {
        pid_file.remove();
    }
}
