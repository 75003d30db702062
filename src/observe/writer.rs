//! Lines on their way to a file or standard output, off the path of requests.
//!
//! A bounded queue and one thread: when the reader stalls, lines are dropped and counted, and no request waits. What
//! is queued is written within a fraction of a millisecond of the thread's being scheduled.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;

/// Lines that may wait; about 8 MiB of them.
const QUEUED_LINES_MAX: usize = 16 << 10;

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    Stdout,
    File(PathBuf),
    Nowhere,
}

enum Item {
    Line(Vec<u8>),
    /// Asks for word once all lines before it are written.
    Flush(SyncSender<()>),
}

/// What the writing thread will take along.
type Waiting = (Receiver<Item>, Box<dyn Write + Send>);

/// The access log's writer. It begins to write once [`Writer::start`] has been called.
pub struct Writer {
    queue: Option<SyncSender<Item>>,
    start: Mutex<Option<Waiting>>,
    dropped: IntCounter,
}

impl Writer {
    /// Opens the sink. Fails where the file cannot be written to.
    pub fn open(sink: &Sink, dropped: IntCounter) -> io::Result<Self> {
        let output: Box<dyn Write + Send> = match sink {
            Sink::Nowhere => return Ok(Self { queue: None, start: Mutex::new(None), dropped }),
            Sink::Stdout => Box::new(io::stdout()),
            Sink::File(path) => Box::new(append(path)?),
        };
        let (queue, lines) = sync_channel(QUEUED_LINES_MAX);
        Ok(Self { queue: Some(queue), start: Mutex::new(Some((lines, output))), dropped })
    }

    /// Starts the writing thread. A daemon forks after opening its files, and a fork takes no threads along: so this
    /// is called from a service, after the fork.
    pub fn start(&self) -> io::Result<()> {
        let Some((lines, output)) = self.start.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        let dropped = self.dropped.clone();
        let thread = std::thread::Builder::new().name("access log".to_owned());
        thread.spawn(move || write_all(&lines, output, &dropped)).map(drop)
    }

    /// Whether anybody will read what is written.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    pub fn write(&self, line: Vec<u8>) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(Item::Line(line)) {
            self.dropped.inc();
        }
    }

    /// Waits until what was written so far is out, or for `wait_max`.
    pub fn flush(&self, wait_max: Duration) {
        let Some(queue) = &self.queue else { return };
        let (word, written) = sync_channel(1);
        if queue.try_send(Item::Flush(word)).is_ok() {
            let _ = written.recv_timeout(wait_max);
        }
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn write_all(lines: &Receiver<Item>, output: Box<dyn Write + Send>, dropped: &IntCounter) {
    let mut output = BufWriter::with_capacity(64 << 10, output);
    // A batch is what has gathered while the last one was written.
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        let mut asked = Vec::new();
        while let Some(item) = next {
            match item {
                // A full disk or a reader that went away costs lines, never the gateway.
                Item::Line(line) => {
                    if output.write_all(&line).is_err() {
                        dropped.inc();
                    }
                }
                Item::Flush(word) => asked.push(word),
            }
            next = lines.try_recv().ok();
        }
        if output.flush().is_err() {
            dropped.inc();
        }
        for word in asked {
            let _ = word.send(());
        }
    }
}
