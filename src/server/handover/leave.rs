//! The running process's side: it serves until its successor does.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pingora::server::ListenFds;
use tokio::sync::watch;

use crate::proxy::{Current, Item, Testament};
use crate::server::supervisor;

use super::line::{Line, Message, told};
use super::orphan::Orphan;
use super::{CONNECT_TIME_MAX, LOOK_EVERY, SILENCE_TIME_MAX};

/// How often what has changed is told while the last requests finish.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What this process needs to hand itself over.
pub(crate) struct Handover {
    current: Arc<Current>,
    /// Where the successor is found.
    socket: PathBuf,
    /// Where this process was started: a daemon is somewhere else by now.
    folder: PathBuf,
    /// Known once the listeners' services have started.
    pub(super) sockets: OnceLock<ListenFds>,
    /// The successor, once it serves, and what it has been told.
    legacy: Mutex<Option<(Testament, Line)>>,
    done: AtomicBool,
    /// Whether signals are heard: before, they would end the process.
    pub(super) hears: watch::Sender<bool>,
}

impl Handover {
    pub(crate) fn new(current: Arc<Current>, socket: PathBuf, folder: PathBuf) -> Self {
        let (sockets, legacy, done, hears) = Default::default();
        Self { current, socket, folder, sockets, legacy, done, hears }
    }

    /// Signals are heard from now on.
    pub(crate) fn hears_signals(&self) {
        self.hears.send_replace(true);
    }

    /// Whether a successor serves.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Hands over to whoever waits at the socket. Blocks, for some minutes at most. False: nothing has changed.
    pub(crate) fn attempt(&self) -> bool {
        match self.meet() {
            Ok(()) => true,
            Err(why) => {
                log::error!("no handover, this process goes on as before: {why}");
                false
            }
        }
    }

    fn meet(&self) -> Result<(), String> {
        let mut line = self.connect(CONNECT_TIME_MAX, || Ok(()))?;
        match line.answer()? {
            Message::Hello { version } => self.hand_over(line, &version),
            Message::Upgrade { binary, file } => {
                let done = self.replace_by(&binary, &file);
                let said = match &done {
                    Ok(process) => {
                        let requests = self.current.load().metrics.in_flight.get();
                        Message::Done { process: *process, requests }
                    }
                    Err(why) => Message::Failed { why: why.clone() },
                };
                // The operator may have left.
                let _ = line.say(&said);
                done.map(drop)
            }
            other => Err(format!("process {} said what makes no sense here: {other:?}", line.process)),
        }
    }

    /// Connects to the socket, while nothing speaks against it.
    fn connect(&self, within: Duration, goes_on: impl Fn() -> Result<(), String>) -> Result<Line, String> {
        let mut waited = Duration::ZERO;
        loop {
            goes_on()?;
            match UnixStream::connect(&self.socket) {
                Ok(stream) => {
                    return Line::with(stream, None, SILENCE_TIME_MAX)
                        .map_err(|error| format!("{}: {}", self.socket.display(), told(&error)));
                }
                Err(_) if waited < within => {
                    std::thread::sleep(LOOK_EVERY);
                    waited += LOOK_EVERY;
                }
                Err(error) => {
                    return Err(format!("no successor is found at {}: {error}", self.socket.display()));
                }
            }
        }
    }

    /// Starts a successor and hands over to it; gives its process.
    fn replace_by(&self, binary: &Path, file: &Path) -> Result<i32, String> {
        let successor = Orphan::start(binary, file, &self.folder)?;
        log::info!("started {} as process {}, to take over", binary.display(), successor.process);
        let handed_over = self.hand_over_to(&successor);
        if handed_over.is_err() {
            // It must not take over later on, when nobody waits for it.
            successor.end();
        }
        handed_over.map(|()| successor.process)
    }

    fn hand_over_to(&self, successor: &Orphan) -> Result<(), String> {
        let runs = || match successor.has_ended() {
            true => Err("it ended at once; its log says why".to_owned()),
            false => Ok(()),
        };
        let mut line = self.connect(SILENCE_TIME_MAX, runs)?;
        match line.answer()? {
            Message::Hello { version } => self.hand_over(line, &version),
            other => Err(format!("process {} said what makes no sense here: {other:?}", line.process)),
        }
    }

    fn hand_over(&self, mut line: Line, version: &str) -> Result<(), String> {
        let process = line.process;
        log::info!("handing over to process {process}, ai-gateway {version}");
        let failed = |error: io::Error| format!("process {process}: {}", told(&error));
        let sockets = self.sockets.get().ok_or("this process has not started yet")?;
        let (addresses, sockets) = sockets.lock().serialize();
        line.send_sockets(&sockets).map_err(failed)?;
        line.say(&Message::Sockets { addresses }).map_err(failed)?;
        let Message::Ready = line.answer()? else {
            return Err(format!("process {process} is not ready"));
        };
        let mut testament = Testament::new(Arc::clone(&self.current));
        testament.all(&mut |item, body| tell(&mut line, item, &body)).map_err(failed)?;
        line.say(&Message::End).map_err(failed)?;
        let Message::Serving = line.answer()? else {
            return Err(format!("process {process} does not serve"));
        };
        log::info!("process {process} serves; this one finishes what it has");
        supervisor::serving_process(process);
        *self.legacy() = Some((testament, line));
        self.done.store(true, Ordering::Release);
        Ok(())
    }

    /// Tells the successor what has changed, again and again, until it ends or this process does.
    pub(crate) fn tell_on(&self) {
        while self.tell_changes() {
            std::thread::sleep(TELL_EVERY);
        }
    }

    /// Tells it once. False: there is nobody to tell.
    pub(crate) fn tell_changes(&self) -> bool {
        let mut legacy = self.legacy();
        let Some((testament, line)) = legacy.as_mut() else { return false };
        let told = testament.changes(&mut |item, body| tell(line, item, &body)).and_then(|()| line.flush());
        if let Err(error) = &told {
            log::warn!("process {} is told nothing more: {}", line.process, self::told(error));
            *legacy = None;
        }
        told.is_ok()
    }

    fn legacy(&self) -> std::sync::MutexGuard<'_, Option<(Testament, Line)>> {
        self.legacy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(line: &mut Line, item: Item, body: &Bytes) -> io::Result<()> {
    line.write(&Message::Item(item), body)
}
