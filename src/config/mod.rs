//! What the operator wrote, checked: file -> settings.
//!
//! A text becomes a tree of nodes with their places (`tree`), sections of it are read by their known keys
//! (`section`, and one module for each part of the file), single values by plain functions (`value`). Every
//! fault is found in one run, each with file, line, column and path. Nothing else in the house sees YAML, and
//! nothing in here changes anything: files and variables are read, and a keys file is edited as text (`edit`), that
//! is all.

mod bundle;
mod edit;
mod environment;
mod fault;
mod file;
mod hint;
mod keys;
mod keys_file;
mod limits;
mod listen;
mod models;
mod process;
mod request;
mod restart;
mod section;
mod shared;
mod settings;
mod source;
mod telemetry;
mod tls;
mod tree;
mod upstreams;
mod value;
mod whereabouts;

use std::path::Path;

pub use edit::NewKey;
pub use environment::{from_environment, process_environment};
pub use fault::{Fault, Faults, Place};
pub use keys_file::{KeysText, LoadedKeys, MainKeys, main_keys, read_keys_text};
pub use settings::*;
pub use tls::{Identity, Tls, TlsFiles, read_pem_text};

use fault::Report;
use section::Field;
use source::{Source, Unread, read_text, too_long};

/// Thousands of keys fit, and a keys file has a bound of its own; what is larger is some other file.
const FILE_BYTES_MAX: usize = 1 << 20;

/// The JSON Schema (draft 7) of the file, for editors. It is kept by hand, and tests/conf/schema.rs holds it to what is
/// read here: the same keys, defaults and values.
pub const SCHEMA: &str = include_str!("../../conf/schema.json");

/// A file that may be run under.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub settings: Settings,
    /// What the operator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// Reads and checks a file, and those it names.
pub fn load(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Faults> {
    from_text(&read_file_text(path)?, &path.display().to_string(), environment)
}

/// Reads a file, within its bound.
pub fn read_file_text(path: &Path) -> Result<String, Faults> {
    read_text(path, FILE_BYTES_MAX).map_err(|unread| unread.of_file(&path.display().to_string()))
}

/// Checks a text that was read from `file_name`; paths in it are relative to that file's folder.
pub fn from_text(
    text: &str,
    file_name: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Faults> {
    if text.len() > FILE_BYTES_MAX {
        return Err(Unread { place: None, message: too_long(FILE_BYTES_MAX) }.of_file(file_name));
    }
    let report = Report::new(file_name);
    let source = Source::of_file(Path::new(file_name), environment, &report);
    let settings = tree::parse(text, &source).and_then(|root| {
        let root = Field::root(&root, &source);
        if root.is_null() {
            root.fault(
                "the file is empty; name at least one server, such as `upstreams: {local: http://127.0.0.1:8080}`",
            );
            return None;
        }
        file::read(&root)
    });
    let warnings = report.close()?;
    // Whoever reads to no settings has noted why.
    settings.map(|settings| Loaded { settings, warnings }).ok_or_else(|| {
        Unread { place: None, message: "gave no settings; this is a bug".to_owned() }.of_file(file_name)
    })
}
