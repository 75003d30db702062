//! `auth.keys_file` by itself: read again when it changes, and by the commands that edit it. At start it is read with
//! the file that names it (`keys`), and what is said of it is the same.

use std::path::{Path, PathBuf};

use super::fault::{Faults, Report};
use super::keys::{self, Auth, Register};
use super::section::Field;
use super::settings::KeySettings;
use super::source::{Environment, Source, read_text};
use super::{FILE_BYTES_MAX, tree};

/// The text of a keys file, and what it is read with.
pub struct KeysText<'a> {
    pub text: &'a str,
    /// As the operator named it, for faults; files that it names are relative to its folder.
    pub path: &'a Path,
    /// The keys of the main file: names and hashes are unique in both.
    pub main: &'a [KeySettings],
    /// Whether some listener asks callers for a certificate; a command that only edits keys need not know.
    pub certificates_asked: bool,
    pub environment: &'a dyn Fn(&str) -> Option<String>,
}

/// Keys that may be used.
#[derive(Debug)]
pub struct LoadedKeys {
    /// Those of the main file first.
    pub keys: Vec<KeySettings>,
    /// What the operator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// What a main file says of keys.
#[derive(Debug)]
pub struct MainKeys {
    pub keys: Vec<KeySettings>,
    pub keys_file: Option<PathBuf>,
}

/// Reads a keys file, within its bound.
pub fn read_keys_text(path: &Path) -> Result<String, Faults> {
    keys::read_keys_text(path).map_err(|unread| unread.of_file(&path.display().to_string()))
}

impl KeysText<'_> {
    /// All keys, or every fault; a list without a key is one.
    pub fn read(&self) -> Result<LoadedKeys, Faults> {
        let report = Report::new("");
        let source = Source::of_file(self.path, self.environment, &report);
        let mut register = Register::of_keys_file(self.main, self.certificates_asked);
        // What is not YAML has noted so.
        let _ = register.read_keys_file(self.text, &source);
        let warnings = report.close()?;
        Ok(LoadedKeys { keys: register.into_keys(), warnings })
    }
}

/// Reads `auth` of a main file and nothing else of it; its keys file need not be there yet.
pub fn main_keys(path: &Path, environment: Environment) -> Result<MainKeys, Faults> {
    let file = path.display().to_string();
    let text = read_text(path, FILE_BYTES_MAX).map_err(|unread| unread.of_file(&file))?;
    let report = Report::new(&file);
    let source = Source::of_file(path, environment, &report);
    let auth = tree::parse(&text, &source).map_or(Auth::default(), |root| {
        let sections = Field::root(&root, &source).members();
        sections
            .iter()
            .find(|(name, _)| *name == "auth")
            .map_or(Auth::default(), |(_, it)| keys::read_main(it))
    });
    report.close()?;
    Ok(MainKeys { keys: auth.keys, keys_file: auth.keys_file })
}
