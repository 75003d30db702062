//! A file that is looked at now and then.
//!
//! It is looked at, not listened to: a look notices a rewrite, a rename, a link that points elsewhere and a file that
//! is gone alike, on any file system. A change counts once two looks in a row have found the same, since whoever
//! rewrites a file in place is soon done, and a file cut at the end of an item would read as a shorter one.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::config::Faults;

/// What tells one state of a file from another without reading it: device, inode, size, and the times of its content
/// and of its inode, which no program can set back.
type Stamp = Result<[i64; 7], io::ErrorKind>;

fn stamp(file: &Path) -> Stamp {
    let it = std::fs::metadata(file).map_err(|error| error.kind())?;
    let [device, inode, size] = [it.dev(), it.ino(), it.size()].map(u64::cast_signed);
    Ok([device, inode, size, it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()])
}

type Text = Result<String, Faults>;

/// One file.
pub(super) struct Watch {
    file: PathBuf,
    /// Reads it, within its bound.
    reader: fn(&Path) -> Text,
    /// What the last look found.
    last: Option<Stamp>,
    /// What was read last.
    read: Option<Stamp>,
    /// Of the text that was given out last, or of why there was none.
    digest: Option<[u8; 32]>,
}

impl Watch {
    /// `known`: the text that has been taken already.
    pub(super) fn new(file: &Path, reader: fn(&Path) -> Text, known: Option<&str>) -> Self {
        let digest = known.map(|text| Sha256::digest(text).into());
        Self { file: file.to_owned(), reader, last: None, read: None, digest }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The text as it is now, at rest or not, or why there is none. It is known from now on.
    pub(super) fn read(&mut self) -> Text {
        let text = (self.reader)(&self.file);
        self.digest = Some(digest(&text));
        text
    }

    /// The text, or why there is none, where it is another than before and has come to rest.
    pub(super) fn look(&mut self) -> Option<Text> {
        let now = stamp(&self.file);
        let rests = self.last.replace(now) == Some(now);
        if !rests || self.read == Some(now) {
            return None;
        }
        let text = (self.reader)(&self.file);
        if stamp(&self.file) != now {
            return None;
        }
        // A file that could not be read as a whole, for want of descriptors say, is tried again.
        if text.as_ref().err().is_none_or(|faults| faults.iter().any(|fault| fault.place.is_some())) {
            self.read = Some(now);
        }
        let digest = Some(digest(&text));
        let same = std::mem::replace(&mut self.digest, digest) == digest;
        (!same).then_some(text)
    }
}

fn digest(text: &Text) -> [u8; 32] {
    match text {
        Ok(text) => Sha256::digest(text).into(),
        Err(faults) => Sha256::digest(faults.to_string()).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::config::read_keys_text;

    static CANNOT_READ: AtomicBool = AtomicBool::new(false);

    #[test]
    fn a_file_that_could_not_be_read_is_tried_again_though_it_stays_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys.yaml");
        fs::write(&file, "one").expect("the folder is ours");
        // A folder cannot be read as a file.
        let reader: fn(&Path) -> Text = |file| match CANNOT_READ.load(Ordering::Relaxed) {
            true => read_keys_text(file.parent().expect("it has one")),
            false => read_keys_text(file),
        };
        let mut watch = Watch::new(&file, reader, None);
        let mut look = || watch.look().map(|text| text.unwrap_or_else(|_| "none".to_owned()));
        CANNOT_READ.store(true, Ordering::Relaxed);
        assert_eq!([look(), look(), look()], [None, Some("none".to_owned()), None], "and it is said once");
        CANNOT_READ.store(false, Ordering::Relaxed);
        assert_eq!([look(), look()], [Some("one".to_owned()), None]);
    }

    #[test]
    fn a_text_is_given_once_it_has_come_to_rest() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys.yaml");
        let write = |text: &str| fs::write(&file, text).expect("the folder is ours");
        let mut watch = Watch::new(&file, read_keys_text, None);
        let mut look = || watch.look().map(|text| text.unwrap_or_else(|_| "none".to_owned()));
        write("one");
        assert_eq!([look(), look(), look()], [None, Some("one".to_owned()), None]);
        write("t");
        assert_eq!(look(), None);
        write("two");
        assert_eq!([look(), look(), look()], [None, Some("two".to_owned()), None], "half of it is not read");
        write("two");
        assert_eq!([look(), look()], [None, None], "written again, and the same");
        fs::remove_file(&file).expect("it is there");
        assert_eq!([look(), look(), look()], [None, Some("none".to_owned()), None]);
        write("two");
        assert_eq!([look(), look(), look()], [None, Some("two".to_owned()), None], "back again");
        fs::write(folder.path().join("new"), "owt").expect("the folder is ours");
        fs::rename(folder.path().join("new"), &file).expect("the folder is ours");
        assert_eq!([look(), look(), look()], [None, Some("owt".to_owned()), None], "of the same size");
    }
}
