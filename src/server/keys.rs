//! The keys file, read again when it changes: taken whole or not at all.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::config::{self, Faults, KeySettings, KeysText, Listener, LoadedKeys, Settings};
use crate::proxy::Gateway;

use super::reload::log_faults;
use super::watch::Watch;

/// The keys file that the main file names, and the keys in force.
pub(super) struct KeysFile {
    watch: Watch,
    /// Those of the main file.
    main: Vec<KeySettings>,
    certificates_asked: bool,
    keys: Vec<KeySettings>,
    /// Whether a text has been read since the main file was: the first may be the one that was read with it.
    begun: bool,
}

impl KeysFile {
    /// `None`: no keys file is named. `folder`: the process's own at start, since a daemon changes it.
    pub(super) fn of(settings: &Settings, folder: &Path) -> Option<Self> {
        let file: PathBuf = folder.join(settings.keys_file.as_deref()?);
        let keys = settings.keys.clone().unwrap_or_default();
        let main = keys.iter().filter(|key| !key.from_keys_file).cloned().collect();
        let certificates_asked = settings.listen.iter().any(Listener::asks_for_certificates);
        let watch = Watch::new(&file, config::read_keys_text, None);
        Some(Self { watch, main, certificates_asked, keys, begun: false })
    }

    /// Takes the file if it has changed.
    pub(super) fn look(&mut self, gateway: &Gateway) {
        let Some(text) = self.watch.look() else { return };
        let first = !std::mem::replace(&mut self.begun, true);
        match text.and_then(|text| self.read(&text)) {
            Ok(loaded) if first && loaded.keys == self.keys => {}
            Ok(loaded) => {
                self.take(gateway, &loaded);
                self.keys = loaded.keys;
            }
            Err(faults) => {
                let file = self.watch.file().display();
                log_faults(&faults, &format!("{file} is not taken"), "the keys in force stay as they were");
                gateway.metrics.reloaded(false);
            }
        }
    }

    fn read(&self, text: &str) -> Result<LoadedKeys, Faults> {
        let environment = &config::process_environment;
        let Self { watch, main, certificates_asked, .. } = self;
        KeysText { text, path: watch.file(), main, certificates_asked: *certificates_asked, environment }
            .read()
    }

    fn take(&self, gateway: &Gateway, loaded: &LoadedKeys) {
        for warning in &loaded.warnings {
            log::warn!("{warning}");
        }
        let (added, removed, changed) = difference(&self.keys, &loaded.keys);
        let (file, count) = (self.watch.file().display(), loaded.keys.len());
        log::info!(
            "{file} is taken: keys in force {count}, added {added}, removed {removed}, changed {changed}"
        );
        if loaded.keys.is_empty() {
            log::warn!("{file} has no key left: nobody may call");
        }
        gateway.replace_keys(&loaded.keys);
        gateway.metrics.reloaded(true);
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
