//! The operator's side: `ai-gateway upgrade`.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::line::{Line, Message, told};
use super::take::Meeting;
use super::{CONNECT_TIME_MAX, SILENCE_TIME_MAX};

/// Which process serves now, and what the one before has yet to finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upgraded {
    pub process: i32,
    pub requests: i64,
}

/// Has the running process start its successor, and waits until that serves. Fails with why it does not; then the
/// running one serves as before.
pub fn upgrade(process: i32, socket: &Path, binary: &Path, file: &Path) -> Result<Upgraded, String> {
    let meeting = Meeting::at(socket)?;
    // Whoever runs this may be root, and the gateway is not.
    let owner = std::fs::metadata(format!("/proc/{process}"));
    let given = owner.and_then(|owner| chown(socket, Some(owner.uid()), Some(owner.gid())));
    given.map_err(|error| format!("process {process} cannot be let at {}: {error}", socket.display()))?;
    kill(Pid::from_raw(process), Signal::SIGQUIT)
        .map_err(|error| format!("cannot signal process {process}: {error}"))?;
    let stream = meeting.visitor(2 * CONNECT_TIME_MAX).map_err(|why| {
        format!("process {process} does not answer: {why}; is it a gateway with this `upgrade_sock`?")
    })?;
    // The successor waits in the same place.
    drop(meeting);
    let mut line = Line::with(stream, Some(process), 5 * SILENCE_TIME_MAX).map_err(|error| told(&error))?;
    line.say(&Message::Upgrade { binary: binary.to_owned(), file: file.to_owned() })
        .map_err(|error| told(&error))?;
    match line.answer()? {
        Message::Done { process, requests } => Ok(Upgraded { process, requests }),
        other => Err(format!("process {process} said what makes no sense here: {other:?}")),
    }
}
