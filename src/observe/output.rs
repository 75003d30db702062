//! What the access log is written to: a buffer before standard output, a file or a named pipe.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Lines are written in pieces of this size, and so much is held while they cannot be.
const BUFFER_BYTES: usize = 64 << 10;

type Buffered = BufWriter<Box<dyn Write + Send>>;

pub(super) struct Output {
    buffered: Buffered,
    /// `None`: no file.
    path: Option<PathBuf>,
}

impl Output {
    pub(super) fn stdout() -> Self {
        Self::to(Box::new(io::stdout()))
    }

    pub(super) fn to(output: Box<dyn Write + Send>) -> Self {
        Self { buffered: BufWriter::with_capacity(BUFFER_BYTES, output), path: None }
    }

    /// Fails where it cannot be written to, and says why.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let file = append(path).map_err(|error| explain(path, &error))?;
        Ok(Self { path: Some(path.to_owned()), ..Self::to(Box::new(file)) })
    }

    /// Goes on in the file that has the name now. Where that cannot be opened, it goes on where it was, and says so.
    pub(super) fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match append(path) {
            Ok(file) => {
                let fresh = BufWriter::with_capacity(BUFFER_BYTES, Box::new(file) as Box<dyn Write + Send>);
                // What the old one could not take, a full disk's, goes into the new one.
                if let (_, Ok(held)) = std::mem::replace(&mut self.buffered, fresh).into_parts() {
                    let _ = self.buffered.write_all(&held);
                }
                log::info!("the access log {} is opened anew", path.display());
            }
            Err(error) => log::error!("{}; what was open is written on", explain(path, &error)),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffered.write(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffered.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.buffered.flush()
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
