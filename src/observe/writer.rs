//! Lines on their way to a file or standard output, off the path of requests.
//!
//! A bounded queue and one thread: when the reader stalls, lines are dropped and counted, and no request waits. What
//! is queued is written within a fraction of a millisecond of the thread's being scheduled. A disk that is full for a
//! while costs no line that still fits into the buffer, and leaves no half of one.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;

/// Lines that may wait; about 8 MiB of them.
const QUEUED_LINES_MAX: usize = 16 << 10;

/// Lines are written in pieces of this size, and so much is held while they cannot be.
const BUFFER_BYTES: usize = 64 << 10;

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
    /// Opens the sink. Fails where the file cannot be written to, and says why.
    pub fn open(sink: &Sink, dropped: IntCounter) -> Result<Self, String> {
        let output: Box<dyn Write + Send> = match sink {
            Sink::Nowhere => return Ok(Self { queue: None, start: Mutex::new(None), dropped }),
            Sink::Stdout => Box::new(io::stdout()),
            Sink::File(path) => Box::new(append(path).map_err(|error| explain(path, &error))?),
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

/// A pipe is opened for both ways: it then waits for no reader, who may come and go.
fn append(path: &Path) -> io::Result<File> {
    let is_pipe = path.metadata().is_ok_and(|it| it.file_type().is_fifo());
    OpenOptions::new().create(!is_pipe).append(true).read(is_pipe).open(path)
}

fn explain(path: &Path, error: &io::Error) -> String {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let path = path.display();
    match folder.filter(|folder| error.kind() == io::ErrorKind::NotFound && !folder.exists()) {
        Some(folder) => {
            format!("the access log {path} needs the folder {}: make it, or name another", folder.display())
        }
        None => format!("the access log {path} cannot be opened: {error}"),
    }
}

fn write_all(lines: &Receiver<Item>, output: Box<dyn Write + Send>, dropped: &IntCounter) {
    let mut output = BufWriter::with_capacity(BUFFER_BYTES, output);
    let mut failing = Failing::default();
    // A batch is what has gathered while the last one was written.
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        let mut asked = Vec::new();
        let mut written = Ok(());
        while let Some(item) = next {
            match item {
                // A full disk or a reader that went away costs lines, never the gateway. What does not fit into the
                // buffer any more is lost; what is in it is tried again.
                Item::Line(line) => {
                    if let Err(error) = output.write_all(&line) {
                        dropped.inc();
                        failing.lost += 1;
                        written = Err(error);
                    }
                }
                Item::Flush(word) => asked.push(word),
            }
            next = lines.try_recv().ok();
        }
        failing.look(written.and_then(|()| output.flush()));
        for word in asked {
            let _ = word.send(());
        }
    }
}

/// Whether lines could not be written of late: said once when it begins and once when it is over.
#[derive(Default)]
struct Failing {
    failing: bool,
    lost: u64,
}

impl Failing {
    fn look(&mut self, written: io::Result<()>) {
        match written {
            Err(error) if !std::mem::replace(&mut self.failing, true) => {
                log::error!(
                    "the access log cannot be written ({error}): requests go on, lines are dropped and counted"
                );
            }
            Ok(()) if std::mem::take(&mut self.failing) => {
                log::info!("the access log is written again; lines lost: {}", std::mem::take(&mut self.lost));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A disk of which the room is what is left of `room`; on a full one a write takes what still fits.
    #[derive(Clone, Default)]
    struct Disk {
        written: Arc<Mutex<Vec<u8>>>,
        room: Arc<Mutex<usize>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut room = self.room.lock().expect("not poisoned");
            let fits = bytes.len().min(*room);
            *room -= fits;
            self.written.lock().expect("not poisoned").extend(&bytes[..fits]);
            if fits == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(fits) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_no_time() {
        let dropped = IntCounter::new("dropped", "Of the test.").expect("a counter");
        // It is not started: nobody takes a line out of the queue.
        let writer = Writer::open(&Sink::Stdout, dropped.clone()).expect("it is open");
        for _ in 0..QUEUED_LINES_MAX + 100 {
            writer.write(b"line\n".to_vec());
        }
        assert_eq!(dropped.get(), 100);
    }

    #[test]
    fn a_full_disk_costs_the_lines_that_fit_nowhere_and_breaks_none() {
        let disk = Disk::default();
        let dropped = IntCounter::new("dropped", "Of the test.").expect("a counter");
        let (queue, lines) = sync_channel(QUEUED_LINES_MAX);
        let (output, counter) = (Box::new(disk.clone()), dropped.clone());
        let thread = std::thread::spawn(move || write_all(&lines, output, &counter));
        let write = |from: usize, to: usize| {
            for number in from..to {
                queue.send(Item::Line(format!("line {number:05}\n").into_bytes())).expect("it is read");
            }
            let (word, written) = sync_channel(1);
            queue.send(Item::Flush(word)).expect("it is read");
            written.recv().expect("it says so");
        };
        // The disk is full in the middle of the eleventh line; the buffer holds on to some six thousand.
        *disk.room.lock().expect("not poisoned") = 116;
        write(0, 10_000);
        let lost = usize::try_from(dropped.get()).expect("few");
        assert!((3000..5000).contains(&lost), "{lost} lines were dropped");
        *disk.room.lock().expect("not poisoned") = usize::MAX;
        write(10_000, 10_001);
        drop(queue);
        thread.join().expect("it does not panic");
        let text = String::from_utf8(disk.written.lock().expect("not poisoned").clone()).expect("UTF-8");
        assert_eq!(text.lines().count() + lost, 10_001);
        assert!(text.lines().all(|line| line.len() == 10 && line.starts_with("line ")), "a line was broken");
        assert!(text.ends_with("line 10000\n"));
    }
}
