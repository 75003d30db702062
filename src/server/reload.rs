//! The keys file, read again when it changes: taken whole or not at all.
//!
//! It is looked at, not listened to: a look notices a rewrite, a rename, a link that points elsewhere and a file that
//! is gone alike, on any file system. A change counts once two looks in a row have found the same, since whoever
//! rewrites a file in place is soon done, and a file cut at the end of an item would read as one with fewer keys.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use sha2::{Digest, Sha256};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{self, Faults, KeySettings, KeysText, LoadedKeys};
use crate::proxy::Gateway;

/// Two looks and the reading of a hundred thousand keys fit into a second.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Of a file full of faults, the log gets so many.
const FAULTS_LOGGED_MAX: usize = 100;

/// Keeps the gateway's keys as the keys file has them. It blocks its thread, which nobody else uses.
pub(super) struct KeysReload {
    gateway: Arc<Gateway>,
    file: PathBuf,
}

impl KeysReload {
    /// `None`: no keys file is named.
    pub(super) fn new(gateway: &Arc<Gateway>) -> io::Result<Option<Self>> {
        // A daemon changes its folder.
        let file = gateway.settings.keys_file.as_deref().map(std::path::absolute).transpose()?;
        Ok(file.map(|file| Self { gateway: Arc::clone(gateway), file }))
    }
}

#[async_trait]
impl BackgroundService for KeysReload {
    /// Goes on to the process's end: a key may be revoked while the last streams finish.
    async fn start(&self, _shutdown: ShutdownWatch) {
        let mut keys = self.gateway.settings.keys.clone().unwrap_or_default();
        let main: Vec<KeySettings> = keys.iter().filter(|key| !key.from_keys_file).cloned().collect();
        let mut watch = Watch::new(&self.file);
        // The first text is that of the start, unless it has changed since.
        let mut begun = false;
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let Some(text) = watch.look() else { continue };
            let first = !std::mem::replace(&mut begun, true);
            match text.and_then(|text| self.read(&text, &main)) {
                Ok(loaded) if first && loaded.keys == keys => {}
                Ok(loaded) => {
                    self.take(&keys, &loaded);
                    keys = loaded.keys;
                }
                Err(faults) => self.refuse(&faults),
            }
        }
    }
}

impl KeysReload {
    fn read(&self, text: &str, main: &[KeySettings]) -> Result<LoadedKeys, Faults> {
        let environment = &config::process_environment;
        KeysText { text, path: &self.file, main, environment }.read()
    }

    fn take(&self, before: &[KeySettings], loaded: &LoadedKeys) {
        for warning in &loaded.warnings {
            log::warn!("{warning}");
        }
        let (added, removed, changed) = difference(before, &loaded.keys);
        let (file, count) = (self.file.display(), loaded.keys.len());
        log::info!(
            "{file} is taken: keys in force {count}, added {added}, removed {removed}, changed {changed}"
        );
        if loaded.keys.is_empty() {
            log::warn!("{file} has no key left: nobody may call");
        }
        self.gateway.replace_keys(&loaded.keys);
        self.gateway.metrics.reloaded(true);
    }

    fn refuse(&self, faults: &Faults) {
        for fault in faults.iter().take(FAULTS_LOGGED_MAX) {
            log::warn!("{fault}");
        }
        let more = match faults.iter().count().saturating_sub(FAULTS_LOGGED_MAX) {
            0 => String::new(),
            more => format!(", for these and {more} more faults"),
        };
        let file = self.file.display();
        log::warn!("{file} is not taken{more}: the keys in force stay as they were");
        self.gateway.metrics.reloaded(false);
    }
}

/// How many keys are new, gone, and not what they were, by name.
fn difference(before: &[KeySettings], after: &[KeySettings]) -> (usize, usize, usize) {
    let known: HashMap<&str, &KeySettings> = before.iter().map(|key| (key.key.name.as_str(), key)).collect();
    let old: Vec<_> =
        after.iter().filter_map(|key| Some((*known.get(key.key.name.as_str())?, key))).collect();
    let changed = old.iter().filter(|(before, after)| before != after).count();
    (after.len() - old.len(), before.len() - old.len(), changed)
}

/// What tells one state of a file from another without reading it: device, inode, size, and the times of its content
/// and of its inode, which no program can set back.
type Stamp = Result<[i64; 7], io::ErrorKind>;

fn stamp(file: &Path) -> Stamp {
    let it = std::fs::metadata(file).map_err(|error| error.kind())?;
    let [device, inode, size] = [it.dev(), it.ino(), it.size()].map(u64::cast_signed);
    Ok([device, inode, size, it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()])
}

/// A file that is looked at now and then.
struct Watch {
    file: PathBuf,
    /// What the last look found.
    last: Option<Stamp>,
    /// What was read last.
    read: Option<Stamp>,
    /// Of the text that was given out last, or of why there was none.
    digest: Option<[u8; 32]>,
}

impl Watch {
    fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), last: None, read: None, digest: None }
    }

    /// The text, or why there is none, where it is another than before and has come to rest.
    fn look(&mut self) -> Option<Result<String, Faults>> {
        let now = stamp(&self.file);
        let rests = self.last.replace(now) == Some(now);
        if !rests || self.read == Some(now) {
            return None;
        }
        let text = config::read_keys_text(&self.file);
        if stamp(&self.file) != now {
            return None;
        }
        self.read = Some(now);
        let digest = match &text {
            Ok(text) => Sha256::digest(text),
            Err(faults) => Sha256::digest(faults.to_string()),
        };
        let digest = Some(digest.into());
        let same = std::mem::replace(&mut self.digest, digest) == digest;
        (!same).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_text_is_given_once_it_has_come_to_rest() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys.yaml");
        let write = |text: &str| fs::write(&file, text).expect("the folder is ours");
        let mut watch = Watch::new(&file);
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
