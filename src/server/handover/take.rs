//! The successor's side: a service that the listeners wait for.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::{ServiceReadyNotifier, ServiceWithDependents};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::proxy::{Current, Heir};
use crate::server::listen::{self, Addresses};
use crate::server::pid::PidFile;
use crate::server::supervisor;

use super::line::{Line, Message, told};
use super::{Handover, LOOK_EVERY, SILENCE_TIME_MAX, WAIT_TIME_MAX};

/// What stands between the first look at the servers and the listeners.
pub(crate) struct Succession {
    pub(crate) current: Arc<Current>,
    pub(crate) handover: Arc<Handover>,
    pub(crate) addresses: Addresses,
    /// Whom it succeeds is met there; `None`: nobody.
    pub(crate) meeting: Option<Meeting>,
    pub(crate) pid_file: Option<PidFile>,
    /// A file that a daemon made on its way into the background, which nobody needs.
    pub(crate) scratch: Option<PathBuf>,
}

/// The socket where a successor waits; removed when it is dropped.
pub(crate) struct Meeting {
    listener: UnixListener,
    path: PathBuf,
}

impl Meeting {
    /// Binds it. What an earlier try left there is removed.
    pub(crate) fn at(path: &Path) -> Result<Self, String> {
        let wrong =
            |error: io::Error| format!("cannot wait for the running gateway at {}: {error}", path.display());
        if UnixStream::connect(path).is_ok() {
            return Err(format!("another upgrade waits at {}: let it end first", path.display()));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrong(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(wrong)?;
        listener.set_nonblocking(true).map_err(wrong)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// The next who connects.
    pub(super) fn visitor(&self, within: Duration) -> Result<UnixStream, String> {
        let mut waited = Duration::ZERO;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).map_err(|error| error.to_string())?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && waited < within => {
                    std::thread::sleep(LOOK_EVERY);
                    waited += LOOK_EVERY;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(format!(
                        "nobody came to {} within {} s",
                        self.path.display(),
                        within.as_secs()
                    ));
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[async_trait]
impl ServiceWithDependents for Succession {
    async fn start_service(
        &mut self,
        sockets: Option<ListenFds>,
        mut shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
        ready: ServiceReadyNotifier,
    ) {
        let Some(sockets) = sockets else { return };
        let _ = self.handover.sockets.set(Arc::clone(&sockets));
        let line = match self.meeting.take() {
            None => None,
            Some(meeting) => {
                let (current, addresses) = (Arc::clone(&self.current), self.addresses.clone());
                let sockets = Arc::clone(&sockets);
                let taken = spawn_blocking(move || take_over(meeting, &current, &addresses, &sockets)).await;
                match taken.map_err(|error| error.to_string()).flatten() {
                    Ok(taken) => Some(taken),
                    Err(why) => {
                        log::error!("ai-gateway: cannot take over: {why}");
                        std::process::exit(1);
                    }
                }
            }
        };
        // Whoever finds it by its pid file may signal it.
        let _ = self.handover.hears.subscribe().wait_for(|hears| *hears).await;
        let _ = self.scratch.take().map(std::fs::remove_file);
        if let Some(pid_file) = &self.pid_file
            && let Err(error) = pid_file.write()
        {
            log::error!("{error}");
        }
        ready.notify_ready();
        supervisor::serving();
        if let Some((line, heir)) = line {
            self.listens(&sockets).await;
            let followed = std::thread::Builder::new().name("heir".to_owned());
            if let Err(error) = followed.spawn(move || follow(line, heir)) {
                log::error!("what the process before leaves is lost: {error}");
            }
        }
        let _ = shutdown.changed().await;
    }

    fn name(&self) -> &str {
        "succession"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

impl Succession {
    /// Waits until the addresses that are new are listened on too; the others are, by the sockets that came.
    async fn listens(&self, sockets: &ListenFds) {
        let is_bound = |address: SocketAddr| sockets.lock().get(&address.to_string()).is_some();
        let all_are_bound = async {
            while !self.addresses.all().all(is_bound) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        if timeout(SILENCE_TIME_MAX, all_are_bound).await.is_err() {
            log::error!("not every address of the file is listened on");
        }
    }
}

/// Takes over from whom it meets. Until this returns, and `serving` is said, the other serves.
fn take_over(
    meeting: Meeting,
    current: &Arc<Current>,
    addresses: &Addresses,
    sockets: &ListenFds,
) -> Result<(Line, Heir), String> {
    let stream = meeting
        .visitor(WAIT_TIME_MAX)
        .map_err(|why| format!("{why}: send SIGQUIT to the running gateway, or use `ai-gateway upgrade`"))?;
    drop(meeting);
    let mut line = Line::with(stream, None, SILENCE_TIME_MAX).map_err(|error| told(&error))?;
    let process = line.process;
    log::info!("taking over from process {process}");
    let failed = |error: io::Error| format!("process {process}: {}", told(&error));
    line.say(&Message::Hello { version: env!("CARGO_PKG_VERSION").to_owned() }).map_err(failed)?;
    let received = line.receive_sockets().map_err(failed)?;
    let Message::Sockets { addresses: theirs } = line.answer()? else {
        return Err(format!("process {process} names no sockets"));
    };
    if let Err(why) = adopt(addresses, theirs, received, sockets) {
        // Its log says so, and the operator hears it.
        let _ = line.say(&Message::Failed { why: why.clone() });
        return Err(why);
    }
    line.say(&Message::Ready).map_err(failed)?;
    let mut heir = Heir::new(Arc::clone(current));
    loop {
        match line.hear() {
            Ok(Some((Message::Item(item), body))) => heir.take(item, body),
            Ok(Some((Message::End, _))) => break,
            Ok(Some(_)) => {}
            // It has ended: nobody else serves now.
            Ok(None) => break,
            Err(error) => {
                log::error!("not all that process {process} had is taken over: {}", told(&error));
                break;
            }
        }
    }
    let gateway = current.load();
    if let Err(why) = gateway.ledger.flush(gateway.clock.wall()) {
        log::error!("what keys have used is not known yet: {why}");
    }
    Ok((line, heir))
}

/// Takes the sockets that it listens on, tries the addresses that are new, and closes what is not listened on any more.
fn adopt(
    addresses: &Addresses,
    theirs: Vec<String>,
    received: Vec<RawFd>,
    sockets: &ListenFds,
) -> Result<(), String> {
    let ours: HashSet<String> = addresses.all().map(|address| address.to_string()).collect();
    let known: HashSet<String> = theirs.iter().cloned().collect();
    for address in addresses.all().filter(|address| !known.contains(&address.to_string())) {
        listen::check_one(address)?;
    }
    let mut table = sockets.lock();
    for (address, socket) in theirs.into_iter().zip(received) {
        if ours.contains(&address) {
            table.add(address, socket);
        } else if let Err(error) = nix::unistd::close(socket) {
            log::warn!("the socket of {address}, which is not listened on any more, is not closed: {error}");
        }
    }
    Ok(())
}

/// Hears what becomes of what the process before has not finished, to its end.
fn follow(mut line: Line, mut heir: Heir) {
    let process = line.process;
    if line.say(&Message::Serving).is_ok() {
        loop {
            match line.hear() {
                Ok(Some((Message::Item(item), body))) => heir.take(item, body),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    log::warn!("process {process} says nothing more of what it finishes: {}", told(&error));
                    break;
                }
            }
        }
    }
    heir.ended();
    log::info!("process {process} has finished what it had");
}
