//! A successor that is nobody's child: a supervisor such as systemd watches only children of its own, and what has lost
//! its parent is one.
//!
//! So what the running process starts starts the successor, tells its number, and ends. The running process hears of
//! the successor's end by a pipe whose other end only that holds, in the place of its standard input.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A longer number of a process is none.
const NUMBER_BYTES_MAX: u64 = 32;

/// A process that was started and left alone.
#[derive(Debug)]
pub(super) struct Orphan {
    pub(super) process: i32,
    ended: Arc<AtomicBool>,
}

impl Orphan {
    /// Starts `binary` as a successor by this file. Its output goes where this process's goes.
    pub(super) fn start(binary: &Path, file: &Path, folder: &Path) -> Result<Self, String> {
        let wrong = |error: io::Error| format!("cannot start {}: {error}", binary.display());
        let output = io::stdout().as_fd().try_clone_to_owned().map_err(wrong)?;
        let mut parent = Command::new(binary)
            .args(["run", "--upgrade", "--in-place", "--config"])
            .arg(file)
            .current_dir(folder)
            .stdin(output)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(wrong)?;
        let told = parent.stdout.take().ok_or("it has no output")?;
        let mut told = BufReader::new(told);
        let mut number = String::new();
        let heard = (&mut told).take(NUMBER_BYTES_MAX).read_line(&mut number);
        let status = parent.wait().map_err(wrong)?;
        heard.map_err(wrong)?;
        let Ok(process) = number.trim().parse::<i32>() else {
            return Err(format!("it ended at once, {status}; its log says why"));
        };
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let watch = move || {
            // Nothing comes; it closes with the last who holds the other end.
            let _ = io::copy(&mut told, &mut io::sink());
            seen.store(true, Ordering::Release);
        };
        std::thread::Builder::new().name("successor".to_owned()).spawn(watch).map_err(wrong)?;
        Ok(Self { process, ended })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(super) fn end(&self) {
        if !self.has_ended() {
            let _ = kill(Pid::from_raw(self.process), Signal::SIGKILL);
        }
    }
}

/// The process between: starts this binary once more, by the same file, and tells its number.
pub fn start_orphan(file: &Path) -> io::Result<u32> {
    let (output, pipe) =
        (io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?);
    let successor = Command::new(std::env::current_exe()?)
        .args(["run", "--upgrade", "--in-place", "--orphan", "--config"])
        .arg(file)
        .stdin(pipe)
        .stdout(output)
        .spawn()?;
    Ok(successor.id())
}
