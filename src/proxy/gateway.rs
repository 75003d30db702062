//! One gateway: the settings it runs under, the five boxes made from them, and its clock.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::auth::Keyring;
use crate::cache::{Answers, Flights, Purges, Store};
use crate::config::{AccessLog, LogFormat, Settings};
use crate::limit::{Gate, Limit};
use crate::observe::{ANYBODY, Labels, Metrics, Sink, Writer};
use crate::route::{Fleet, Server, Sign, Turn, Upstream};

use super::clock::Clock;
use super::refusal::Refusal;

pub struct Gateway {
    pub settings: Settings,
    /// `None`: open to everybody.
    pub keyring: Option<Keyring>,
    pub gate: Gate,
    pub store: Store,
    pub purges: Purges,
    pub(super) flights: Flights<Refusal>,
    pub fleet: Fleet,
    pub metrics: Metrics,
    pub log: Writer,
    pub log_format: LogFormat,
    pub clock: Clock,
    pub bodies: Bodies,
    /// What of a key's answers is kept, by the key's place.
    key_answers: Vec<Option<Answers>>,
    /// What of a model's answers is kept, by the rule's place.
    model_answers: Vec<Option<Answers>>,
    draining: AtomicBool,
}

impl Gateway {
    /// Fails where the access log cannot be opened.
    pub fn new(settings: Settings) -> io::Result<Self> {
        let keys = settings.keys.as_deref().unwrap_or_default();
        let rules = settings.models.iter().map(|model| model.rule.clone()).collect();
        let fleet = Fleet::new(settings.upstreams.clone(), rules);
        let metrics = Metrics::new(&labels(&settings, &fleet)).map_err(io::Error::other)?;
        let sink = match &settings.log.access {
            AccessLog::Stdout => Sink::Stdout,
            AccessLog::None => Sink::Nowhere,
            AccessLog::File(path) => Sink::File(path.clone()),
        };
        Ok(Self {
            keyring: settings
                .keys
                .as_ref()
                .map(|keys| Keyring::new(keys.iter().map(|key| key.key.clone()).collect())),
            gate: Gate::new(
                settings.limits.gateway,
                keys.iter().map(|key| key.limits.or(settings.limits.key)).collect(),
                settings.limits.ip,
            ),
            store: Store::new(settings.cache),
            purges: Purges::default(),
            flights: Flights::default(),
            log: Writer::open(&sink, metrics.log_lines_dropped.clone())?,
            log_format: settings.log.format,
            clock: Clock::start(),
            bodies: Bodies::new(settings.body.bytes_total_max),
            key_answers: keys.iter().map(|key| key.answers).collect(),
            model_answers: settings.models.iter().map(|model| model.answers).collect(),
            draining: AtomicBool::new(false),
            fleet,
            metrics,
            settings,
        })
    }

    /// What of the answers to a key and a model is kept: the least of what the file says.
    pub fn answers(&self, key: Option<usize>, rule: Option<usize>) -> Answers {
        let narrowed =
            |list: &[Option<Answers>], at: Option<usize>| at.and_then(|at| list.get(at).copied().flatten());
        let all = [
            Some(self.settings.cache.answers),
            narrowed(&self.key_answers, key),
            narrowed(&self.model_answers, rule),
        ];
        all.into_iter()
            .flatten()
            .max_by_key(|answers| match answers {
                Answers::All => 0,
                Answers::Deterministic => 1,
                Answers::None => 2,
            })
            .unwrap_or_default()
    }

    /// Takes in that a request met a fault of a server. The last one that is up is not taken out by requests: a
    /// request that a server cannot bear would take it from everybody, and there is no other to send them to. Probes
    /// do that.
    pub fn note_fault(&self, upstream: &Upstream, server: &Server, why: &str) {
        let is_other = |other: &Server| !std::ptr::eq(other, server) && other.is_up();
        if upstream.servers.iter().any(|other| is_other(other)) {
            self.note(&upstream.spec.name, server, Sign::Fault, why);
        } else {
            server.forget_report();
        }
    }

    /// Takes in what a probe or a request met of a server, and says so where it changes something.
    pub fn note(&self, upstream: &str, server: &Server, sign: Sign, why: &str) {
        let name = &server.spec.name;
        match server.note(sign) {
            Some(Turn::Down) => log::warn!("server `{name}` of upstream `{upstream}` is down: {why}"),
            Some(Turn::Up) => log::info!("server `{name}` of upstream `{upstream}` is up"),
            None => {}
        }
    }

    /// Says that this process takes no more than it has: `/ready` turns 503.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn is_ready(&self) -> bool {
        !self.draining.load(Ordering::Acquire)
    }
}

fn labels(settings: &Settings, fleet: &Fleet) -> Labels {
    let keys = settings.keys.as_ref().map(|keys| keys.iter().map(|key| key.key.name.clone()).collect());
    Labels {
        models: fleet
            .named_models()
            .map(|rule| (rule.on_server().to_owned(), rule.upstream.clone()))
            .collect(),
        keys: keys.unwrap_or_else(|| vec![ANYBODY.to_owned()]),
        limits: Limit::ALL.iter().map(|limit| limit.name()).collect(),
        servers: fleet
            .servers()
            .map(|(upstream, server)| (upstream.spec.name.clone(), server.spec.name.clone()))
            .collect(),
    }
}

/// The memory of all bodies that are held at once, bounded by `body.total`.
#[derive(Debug)]
pub struct Bodies {
    bytes: Arc<AtomicU64>,
    bytes_max: u64,
}

/// A body's share of that memory; returned on drop.
#[derive(Debug)]
pub struct BodyShare {
    bytes: u64,
    all: Arc<AtomicU64>,
}

impl Bodies {
    fn new(bytes_max: u64) -> Self {
        Self { bytes: Arc::default(), bytes_max }
    }

    /// An empty share, to grow as the body arrives.
    pub fn share(&self) -> BodyShare {
        BodyShare { bytes: 0, all: Arc::clone(&self.bytes) }
    }

    /// Whether the share could grow by that many bytes.
    pub fn grow(&self, share: &mut BodyShare, bytes: u64) -> bool {
        let within = |all: u64| all.checked_add(bytes).filter(|all| *all <= self.bytes_max);
        let grown = self.bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, within).is_ok();
        share.bytes += if grown { bytes } else { 0 };
        grown
    }
}

impl BodyShare {
    /// What has arrived of the body.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
