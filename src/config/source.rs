//! Where a text came from, and reading it within bounds.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::fault::{Fault, Faults, Place, Report};

/// How the environment is asked for a variable.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The main file, or one that it names.
pub(super) struct Source<'a> {
    /// As the operator named it, for faults.
    pub(super) file: String,
    /// What paths in the file are relative to.
    pub(super) folder: PathBuf,
    pub(super) environment: Environment<'a>,
    pub(super) report: &'a Report,
}

impl<'a> Source<'a> {
    pub(super) fn of_file(path: &Path, environment: Environment<'a>, report: &'a Report) -> Self {
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Self { file: path.display().to_string(), folder, environment, report }
    }

    pub(super) fn fault(&self, place: Place, path: &str, message: impl Into<String>) {
        self.report.fault(Fault {
            file: self.file.clone(),
            place: Some(place),
            path: path.to_owned(),
            message: message.into(),
        });
    }
}

/// Why a file gave no text; the place is known where its bytes are not UTF-8.
pub(super) struct Unread {
    pub(super) place: Option<Place>,
    pub(super) message: String,
}

impl Unread {
    pub(super) fn of_file(self, file: &str) -> Faults {
        Faults::from(Fault {
            file: file.to_owned(),
            place: self.place,
            path: String::new(),
            message: self.message,
        })
    }
}

/// Reads a whole file of at most `bytes_max` bytes of UTF-8.
pub(super) fn read_text(path: &Path, bytes_max: usize) -> Result<String, Unread> {
    let failed = |message: String| Unread { place: None, message };
    // Looked at before it is opened: opening a pipe waits for a writer, who may never come.
    if let Ok(it) = path.metadata() {
        if !it.is_file() {
            let found = if it.is_dir() { "a folder" } else { "a pipe, a socket or a device" };
            return Err(failed(format!("expected a file, found {found}")));
        }
        if it.len() > u64::try_from(bytes_max).unwrap_or(u64::MAX) {
            return Err(failed(too_long(bytes_max)));
        }
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| failed(format!("cannot be read: {error}")))?;
    if bytes.len() > bytes_max {
        return Err(failed(too_long(bytes_max)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good =
            String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
        Unread {
            place: Some(end_of(&good)),
            message: "expected UTF-8 text, found a byte that is not".to_owned(),
        }
    })
}

pub(super) fn too_long(bytes_max: usize) -> String {
    format!("expected at most {} KiB, found more", bytes_max >> 10)
}

/// The place behind the last character.
fn end_of(text: &str) -> Place {
    let line_start = text.rfind('\n').map_or(0, |newline| newline + 1);
    Place { line: text.matches('\n').count() + 1, column: text[line_start..].chars().count() + 1 }
}
