//! The file, read again when it changes or on SIGHUP: taken whole or not at all.
//!
//! What has changed is a new gateway, made beside the one in force and put in its place at once. Requests under way end
//! under the one that they began under.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Sender, channel};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::{self, Faults, Loaded, Settings};
use crate::proxy::{Current, Gateway};

use super::certificates::CertificateFiles;
use super::journal;
use super::keys::KeysFile;
use super::probe::{FIRST_LOOK_TIME_MAX, Round};
use super::tls::Listeners;
use super::watch::Watch;

/// Two looks and the reading of a hundred thousand keys fit into a second.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Of a file full of faults, the log gets so many.
const FAULTS_LOGGED_MAX: usize = 100;

/// The file that a process was started with, as it was then.
#[derive(Debug, Clone)]
pub struct Origin {
    /// From the root on: a daemon changes its folder.
    pub file: PathBuf,
    pub text: String,
}

/// Keeps the gateway as its file has it, its keys as the keys file has them, and what its listeners show as the files
/// of certificates have it. It blocks its thread, which nobody else uses.
pub(super) struct Reload {
    pub(super) current: Arc<Current>,
    pub(super) rounds: Sender<Round>,
    /// `None`: the gateway was started without a file.
    pub(super) origin: Option<Origin>,
    /// The process's own at start.
    pub(super) folder: PathBuf,
    pub(super) listeners: Arc<Listeners>,
}

#[async_trait]
impl BackgroundService for Reload {
    /// Goes on to the process's end: a key may be revoked while the last streams finish.
    async fn start(&self, _shutdown: ShutdownWatch) {
        // Unheard, SIGHUP would end the process.
        let mut hangup = signal(SignalKind::hangup()).expect("the process can listen for signals");
        let watch = |origin: &Origin| Watch::new(&origin.file, config::read_file_text, Some(&origin.text));
        let mut file = self.origin.as_ref().map(watch);
        let mut keys = KeysFile::of(&self.current.load().settings, &self.folder);
        let mut certificates = CertificateFiles::of(&self.current.load().settings, &self.folder);
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                _ = looks.tick() => false,
                _ = hangup.recv() => true,
            };
            let text = match &mut file {
                Some(watch) if asked => Some(watch.read()),
                Some(watch) => watch.look(),
                None => {
                    if asked {
                        log::warn!("SIGHUP: the gateway runs without a file; there is none to read again");
                    }
                    None
                }
            };
            if let (Some(text), Some(watch)) = (text, &file)
                && self.take(watch.file(), text).await
            {
                let now = self.current.load();
                self.listeners.take(&now);
                keys = KeysFile::of(&now.settings, &self.folder);
                certificates = CertificateFiles::of(&now.settings, &self.folder);
            }
            if let Some(keys) = &mut keys {
                keys.look(&self.current.load());
            }
            for files in &mut certificates {
                files.look(&self.listeners, &self.current.load());
            }
        }
    }
}

impl Reload {
    /// Whether the text is in force now.
    async fn take(&self, path: &Path, text: Result<String, Faults>) -> bool {
        let file = path.display();
        let before = self.current.load();
        let load = |text: String| config::from_text(&text, &file.to_string(), &config::process_environment);
        let taken = match text.and_then(load) {
            Ok(loaded) => match self.put_in_force(&before, loaded).await {
                Ok(now) => {
                    log::info!("{file} is taken: {}", told(&before, &now));
                    if now.settings.keys.is_none() && before.settings.keys.is_some() {
                        log::warn!("the gateway is open: no key is asked for any more");
                    }
                    true
                }
                Err(why) => {
                    log::warn!("{why}");
                    log::warn!("{file} is not taken: all stays as it was");
                    false
                }
            },
            Err(faults) => {
                log_faults(&faults, &format!("{file} is not taken"), "all stays as it was");
                false
            }
        };
        before.metrics.reloaded(taken);
        taken
    }

    async fn put_in_force(&self, before: &Gateway, loaded: Loaded) -> Result<Arc<Gateway>, String> {
        let Loaded { mut settings, warnings } = loaded;
        let later = settings.keep_what_needs_a_restart(&before.settings);
        let fleet = before.fleet_after(&settings)?;
        for warning in &warnings {
            log::warn!("{warning}");
        }
        for key in later {
            log::warn!("`{key}` has changed and stays as it was: it needs a restart");
        }
        // The first request that comes to a new server is to find it known.
        let (looked, mut first_looks) = channel::<()>(1);
        let all = before.fleet.servers.iter().chain(&fleet.servers).cloned().collect();
        self.look_at(all, Some(looked)).await;
        let _ = timeout(FIRST_LOOK_TIME_MAX, first_looks.recv()).await;
        let servers = fleet.servers.clone();
        let now = self.current.replace(settings, fleet);
        journal::set_level(now.settings.log.level);
        self.look_at(servers, None).await;
        Ok(now)
    }

    async fn look_at(&self, servers: Vec<Arc<crate::route::Server>>, looked: Option<Sender<()>>) {
        // The prober lives as long as the process.
        let _ = self.rounds.send(Round { servers, looked }).await;
    }
}

/// What is in force now, for the log.
fn told(before: &Gateway, now: &Gateway) -> String {
    let count = |settings: &Settings| settings.keys.as_ref().map_or(0, Vec::len);
    format!(
        "servers in force {}, added {}, removed {}; models {}; keys {}",
        now.fleet.servers.len(),
        now.fleet.servers_not_in(&before.fleet).count(),
        before.fleet.servers_not_in(&now.fleet).count(),
        now.settings.models.len(),
        count(&now.settings),
    )
}

/// Says what is wrong with a file, and what follows of it.
pub(super) fn log_faults(faults: &Faults, refused: &str, stays: &str) {
    for fault in faults.iter().take(FAULTS_LOGGED_MAX) {
        log::warn!("{fault}");
    }
    let more = match faults.iter().count().saturating_sub(FAULTS_LOGGED_MAX) {
        0 => String::new(),
        more => format!(", for these and {more} more faults"),
    };
    log::warn!("{refused}{more}: {stays}");
}
