//! The log of the process itself, on standard error. Its level may change while it is written.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::OnceLock;

use arc_swap::ArcSwap;
use env_logger::Logger;
use log::{LevelFilter, Log, Metadata, Record};

static JOURNAL: OnceLock<Journal> = OnceLock::new();

struct Journal(ArcSwap<Logger>);

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.load().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.0.load().log(record);
    }

    fn flush(&self) {
        self.0.load().flush();
    }
}

/// Begins the log. A second start in one process, as in a test, keeps the first and takes its level.
pub(super) fn start(level: LevelFilter) {
    let journal = JOURNAL.get_or_init(|| Journal(ArcSwap::from_pointee(logger(level))));
    let _ = log::set_logger(journal);
    set_level(level);
}

pub(super) fn set_level(level: LevelFilter) {
    if let Some(journal) = JOURNAL.get() {
        let logger = logger(level);
        log::set_max_level(logger.filter());
        journal.0.store(logger.into());
    }
}

/// Goes on in the file that has the name now: standard error of a daemon. Where that cannot be opened, it goes on where
/// it was.
pub(super) fn reopen(path: &Path) {
    let opened = OpenOptions::new().create(true).append(true).open(path).map_err(|error| error.to_string());
    let taken = opened.and_then(|file| nix::unistd::dup2_stderr(file).map_err(|error| error.to_string()));
    match taken {
        Ok(()) => log::info!("`server.error_log` {} is opened anew", path.display()),
        Err(error) => {
            log::error!("`server.error_log` {}: {error}; what was open is written on", path.display());
        }
    }
}

/// Pingora's own share is held at what cannot hold a key: beyond `info` it prints whole requests, their headers
/// included.
fn logger(level: LevelFilter) -> Logger {
    let pingora = if level >= LevelFilter::Debug { LevelFilter::Info } else { level.min(LevelFilter::Warn) };
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level).format_target(false);
    for module in ["pingora", "pingora_core", "pingora_proxy", "pingora_pool", "pingora_runtime"] {
        builder.filter_module(module, pingora);
    }
    builder.build()
}
