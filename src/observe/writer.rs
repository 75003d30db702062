//! Lines on their way to a file or standard output, off the path of requests.
//!
//! A bounded queue, which takes room as lines wait in it, and one thread: when the reader stalls, lines are dropped and
//! counted, and no request waits. What is queued is written within 20 ms of the thread's being scheduled. A disk that
//! is full for a while costs no line that still fits into the buffer, and leaves no half of one.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use prometheus::IntCounter;

use super::output::Output;

/// Lines that may wait, and their bytes.
const QUEUED_LINES_MAX: usize = 16 << 10;
const QUEUED_BYTES_MAX: usize = 8 << 20;

/// So many lines are written, then what is asked besides is looked at.
const BATCH_LINES_MAX: usize = 1024;

/// After a batch, lines gather for so long: to wake a thread for each would cost a request a quarter of its time.
const PAUSE: Duration = Duration::from_millis(20);

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
    /// There is something to look at.
    Wake,
}

/// What the two sides share besides the queue.
#[derive(Debug)]
struct Shared {
    queued_lines: AtomicUsize,
    queued_bytes: AtomicUsize,
    /// The file is to be opened anew.
    reopen: AtomicBool,
    /// Lines that found no place, and that nobody was told of yet.
    missed: AtomicU64,
    dropped: IntCounter,
}

/// What the writing thread will take along.
type Waiting = (Receiver<Item>, Output);

/// The access log's writer. It begins to write once [`Writer::start`] has been called.
pub struct Writer {
    queue: Option<Sender<Item>>,
    start: Mutex<Option<Waiting>>,
    shared: Arc<Shared>,
    coloured: bool,
}

impl Writer {
    /// Opens the sink. Fails where the file cannot be written to, and says why.
    pub fn open(sink: &Sink, dropped: IntCounter) -> Result<Self, String> {
        let shared = Arc::new(Shared::new(dropped));
        let output = match sink {
            Sink::Nowhere => {
                return Ok(Self { queue: None, start: Mutex::new(None), shared, coloured: false });
            }
            Sink::Stdout => Output::stdout(),
            Sink::File(path) => Output::open(path)?,
        };
        // It knows NO_COLOR, CLICOLOR and TERM.
        let wanted = || AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        let coloured = *sink == Sink::Stdout && io::stdout().is_terminal() && wanted();
        let (queue, lines) = channel();
        Ok(Self { queue: Some(queue), start: Mutex::new(Some((lines, output))), shared, coloured })
    }

    /// Starts the writing thread. A daemon forks after opening its files, and a fork takes no threads along: so this
    /// is called from a service, after the fork.
    pub fn start(&self) -> io::Result<()> {
        let Some((lines, output)) = self.start.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("access log".to_owned());
        thread.spawn(move || write_all(&lines, output, &shared)).map(drop)
    }

    /// Whether anybody will read what is written.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Whether it is a terminal, and whoever sits there wants colours.
    pub fn is_coloured(&self) -> bool {
        self.coloured
    }

    pub fn write(&self, line: Vec<u8>) {
        let Some(queue) = &self.queue else { return };
        let bytes = line.len();
        if self.shared.takes(bytes) {
            if queue.send(Item::Line(line)).is_ok() {
                return;
            }
            self.shared.gone(bytes);
        }
        self.shared.missed.fetch_add(1, Ordering::Relaxed);
        self.shared.dropped.inc();
    }

    /// Opens the file anew, once what was written so far is out: it may have been moved away.
    pub fn reopen(&self) {
        let Some(queue) = &self.queue else { return };
        self.shared.reopen.store(true, Ordering::Release);
        if queue.send(Item::Wake).is_err() {
            log::error!("the access log is not opened anew: its thread has ended");
        }
    }

    /// Waits until what was written so far is out, or for `wait_max`.
    pub fn flush(&self, wait_max: Duration) {
        let Some(queue) = &self.queue else { return };
        let (word, written) = sync_channel(1);
        if queue.send(Item::Flush(word)).is_ok() {
            let _ = written.recv_timeout(wait_max);
        }
    }
}

impl Shared {
    fn new(dropped: IntCounter) -> Self {
        let (queued_lines, queued_bytes, reopen, missed) = Default::default();
        Self { queued_lines, queued_bytes, reopen, missed, dropped }
    }

    /// Counts a line, if there is room for it.
    fn takes(&self, bytes: usize) -> bool {
        let lines = self.queued_lines.fetch_add(1, Ordering::Relaxed) + 1;
        let all = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let fits = lines <= QUEUED_LINES_MAX && all <= QUEUED_BYTES_MAX;
        if !fits {
            self.gone(bytes);
        }
        fits
    }

    /// It waits no longer.
    fn gone(&self, bytes: usize) {
        self.queued_lines.fetch_sub(1, Ordering::Relaxed);
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn write_all(lines: &Receiver<Item>, mut output: Output, shared: &Shared) {
    let mut failing = Failing::default();
    // A batch is what has gathered while the last one was written.
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        let mut asked = Vec::new();
        let mut written = Ok(());
        let mut taken = 0;
        while let Some(item) = next {
            match item {
                // A full disk or a reader that went away costs lines, never the gateway. What does not fit into the
                // buffer any more is lost; what is in it is tried again.
                Item::Line(line) => {
                    shared.gone(line.len());
                    if let Err(error) = output.write_all(&line) {
                        shared.dropped.inc();
                        failing.lost += 1;
                        written = Err(error);
                    }
                }
                Item::Flush(word) => asked.push(word),
                Item::Wake => {}
            }
            taken += 1;
            next = if taken < BATCH_LINES_MAX { lines.try_recv().ok() } else { None };
        }
        failing.look(written.and_then(|()| output.flush()));
        if shared.reopen.swap(false, Ordering::Acquire) {
            output.reopen();
        }
        for word in asked {
            let _ = word.send(());
        }
        // Said when it is over, and not with each batch of a long day.
        if taken < BATCH_LINES_MAX {
            let missed = shared.missed.swap(0, Ordering::Relaxed);
            if missed > 0 {
                log::warn!("the access log was not taken in time: {missed} lines were dropped");
            }
            std::thread::sleep(PAUSE);
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
        assert_eq!(writer.shared.missed.load(Ordering::Relaxed), 100, "nobody was told yet");
    }

    #[test]
    fn long_lines_fill_the_queue_too() {
        let dropped = IntCounter::new("dropped", "Of the test.").expect("a counter");
        let writer = Writer::open(&Sink::Stdout, dropped.clone()).expect("it is open");
        for _ in 0..10 {
            writer.write(vec![b'x'; 1 << 20]);
        }
        assert_eq!(dropped.get(), 2);
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let writer = Writer::open(
            &Sink::File(path.clone()),
            IntCounter::new("dropped", "Of the test.").expect("a counter"),
        );
        let writer = writer.expect("it is open");
        writer.start().expect("a thread");
        let write = |numbers: std::ops::Range<u32>| {
            numbers.for_each(|number| writer.write(format!("{number}\n").into_bytes()));
        };
        let read = |path: &PathBuf| std::fs::read_to_string(path).expect("a file");
        write(0..100);
        std::fs::rename(&path, &moved).expect("it is ours");
        write(100..200);
        writer.reopen();
        writer.flush(Duration::from_secs(5));
        write(200..300);
        // Where the new one cannot be opened, what is open is written on.
        std::fs::rename(&path, folder.path().join("access.log.2")).expect("it is ours");
        std::fs::create_dir(&path).expect("it is ours");
        writer.reopen();
        write(300..400);
        writer.flush(Duration::from_secs(5));
        let all = read(&moved) + &read(&folder.path().join("access.log.2"));
        let numbers: Vec<u32> = all.lines().map(|line| line.parse().expect("whole lines")).collect();
        assert_eq!(numbers, (0..400).collect::<Vec<_>>(), "none is lost, none is twice");
        assert!(read(&moved).lines().count() >= 100);
    }

    #[test]
    fn a_full_disk_costs_the_lines_that_fit_nowhere_and_breaks_none() {
        let disk = Disk::default();
        let dropped = IntCounter::new("dropped", "Of the test.").expect("a counter");
        let (queue, lines) = channel();
        let (output, shared) = (Output::to(Box::new(disk.clone())), Shared::new(dropped.clone()));
        let thread = std::thread::spawn(move || write_all(&lines, output, &shared));
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
