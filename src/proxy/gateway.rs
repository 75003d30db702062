//! One gateway: the settings it runs under, the five boxes made from them, and its clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use pingora::Error;

use crate::cache::{Answers, Flights, Purges, Store};
use crate::config::{AccessLog, KeySettings, LogFormat, ModelSettings, Settings};
use crate::limit::{Allowance, Gate, Limit, ModelShare};
use crate::observe::{ANYBODY, Labels, Metrics, Sink, Writer};
use crate::route::{Felled, Fleet, Opening, Server, Sign, Turn, Upstream};
use crate::store::Ledger;
use crate::wire::RequestRules;

use super::clock::Clock;
use super::names::Names;
use super::refusal::Refusal;
use super::roster::Roster;
use super::side::Side;
use super::trust::Trust;

/// What servers are complained of in: no TLS with them.
pub(super) const TLS: &str = "tls";

pub struct Gateway {
    pub settings: Settings,
    /// `None`: open to everybody.
    roster: Option<ArcSwap<Roster>>,
    pub gate: Gate,
    pub store: Store,
    pub ledger: Ledger,
    pub side: Side,
    pub trust: Trust,
    pub names: Names,
    pub purges: Purges,
    pub(super) flights: Flights<Refusal>,
    pub fleet: Fleet,
    pub(super) felled: Felled,
    pub metrics: Metrics,
    pub log: Writer,
    pub log_format: LogFormat,
    pub clock: Clock,
    pub bodies: Bodies,
    /// What of a model's answers is kept, by the rule's place.
    model_answers: Vec<Option<Answers>>,
    draining: AtomicBool,
}

impl Gateway {
    /// Fails where the access log or the usage store cannot be opened, with the reason. `roots`: the file of those
    /// that `https` servers are verified by; `None`: the system's.
    pub fn new(settings: Settings, roots: Option<String>) -> Result<Self, String> {
        let clock = Clock::start();
        let roster = settings.keys.as_deref().map(|keys| roster(&settings, keys, None, &clock));
        let rules = settings.models.iter().map(|model| model.rule.clone()).collect();
        let fleet = Fleet::new(settings.upstreams.clone(), rules);
        let metrics = Metrics::new(&labels(&settings, &fleet))
            .map_err(|error| format!("cannot make the metrics: {error}"))?;
        let sink = match &settings.log.access {
            AccessLog::Stdout => Sink::Stdout,
            AccessLog::None => Sink::Nowhere,
            AccessLog::File(path) => Sink::File(path.clone()),
        };
        let log = Writer::open(&sink, metrics.log_lines_dropped.clone())
            .map_err(|error| format!("cannot open the access log: {error}"))?;
        let ledger = match &settings.usage {
            None => Ledger::in_memory(),
            Some(path) => Ledger::open(path, clock.wall())?,
        };
        Ok(Self {
            roster: roster.map(ArcSwap::from_pointee),
            gate: gate(&settings),
            ledger,
            side: Side::new(roots),
            trust: Trust::new(&settings.upstreams),
            names: Names::new(settings.hosts.clone()),
            store: Store::new(settings.cache),
            purges: Purges::default(),
            flights: Flights::default(),
            log,
            log_format: settings.log.format,
            clock,
            bodies: Bodies::new(settings.body.bytes_total_max),
            model_answers: settings.models.iter().map(|model| model.answers).collect(),
            draining: AtomicBool::new(false),
            fleet,
            felled: Felled::default(),
            metrics,
            settings,
        })
    }

    /// The keys in force; `None`: open to everybody.
    pub fn roster(&self) -> Option<Arc<Roster>> {
        self.roster.as_ref().map(ArcSwap::load_full)
    }

    /// Puts other keys in force. What those of the same names have used stays used; requests under way end as they
    /// began.
    pub fn replace_keys(&self, keys: &[KeySettings]) {
        if let Some(current) = &self.roster {
            let before = current.load_full();
            keys.iter().for_each(|key| self.metrics.know_key(&key.key.name));
            current.store(Arc::new(roster(&self.settings, keys, Some(&before), &self.clock)));
        }
    }

    /// What callers of a model may not decide.
    pub fn request_rules(&self, rule: Option<usize>) -> Option<&RequestRules> {
        self.settings.models.get(rule?)?.request.as_ref()
    }

    /// What of the answers to a key that keeps no more than `key`, and to a model, is kept: the least of what the file
    /// says.
    pub fn answers(&self, key: Option<Answers>, rule: Option<usize>) -> Answers {
        let model = rule.and_then(|rule| self.model_answers.get(rule).copied().flatten());
        let all = [Some(self.settings.cache.answers), key, model];
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
    pub fn note_fault(self: &Arc<Self>, server: &Arc<Server>, why: &str) {
        if server.upstreams().all(|upstream| upstream.has_another(server)) {
            self.note(server, Sign::Fault, why);
        }
    }

    /// Says, once, that no TLS came about with a server.
    pub fn note_distrust(&self, server: &Server, error: &Error) {
        // What follows names the port of this one connection.
        let why = error.context.as_ref().map_or_else(|| error.to_string(), |why| why.as_str().to_owned());
        if server.is_news(TLS, &why) {
            log::warn!("server `{}` cannot be reached by TLS: {why}", server.spec.name);
        }
    }

    /// Takes in what a probe or a request met of a server, and says so where it changes something.
    pub fn note(self: &Arc<Self>, server: &Arc<Server>, sign: Sign, why: &str) {
        self.turned(server, server.note(sign, fastrand::f64()), why);
    }

    fn turned(self: &Arc<Self>, server: &Arc<Server>, turn: Option<Turn>, why: &str) {
        let Some(turn) = turn else { return };
        let mut groups: Vec<_> =
            server.upstreams().map(|upstream| format!("`{}`", upstream.spec.name)).collect();
        groups.sort();
        let (name, groups) = (&server.spec.name, groups.join(", "));
        match turn {
            Turn::Up => log::info!("server `{name}` of upstream {groups} is up"),
            Turn::Trial => {
                log::info!(
                    "server `{name}` of upstream {groups} is tried with one request (breaker half open)"
                );
            }
            Turn::Down => log::warn!("server `{name}` of upstream {groups} is down: {why}"),
            Turn::Open(opening) => {
                log::warn!(
                    "server `{name}` of upstream {groups} is down: {why} (breaker open for {:.1} s)",
                    opening.pause.as_secs_f64()
                );
                self.await_pause(server, opening);
            }
        }
        if matches!(turn, Turn::Down | Turn::Open(_)) {
            for upstream in server.upstreams() {
                upstream.forget_prompts(server);
                self.keep_one(&upstream);
            }
        }
        // Who waits may go there now, or has nobody left to wait for.
        server.dispatch();
    }

    fn await_pause(self: &Arc<Self>, server: &Arc<Server>, opening: Opening) {
        let (gateway, server) = (Arc::clone(self), Arc::clone(server));
        tokio::spawn(async move {
            tokio::time::sleep(opening.pause).await;
            gateway.turned(&server, server.pause_ends(opening), "");
        });
    }

    /// Where requests have taken out all that its probes and its operator left, they get it back.
    pub fn keep_one(&self, upstream: &Upstream) {
        for server in upstream.keep_one() {
            let (name, group) = (&server.spec.name, &upstream.spec.name);
            log::info!("server `{name}` of upstream `{group}` is up: there is no other (breaker closed)");
            server.dispatch();
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

fn roster(settings: &Settings, keys: &[KeySettings], before: Option<&Roster>, clock: &Clock) -> Roster {
    Roster::new(keys, &settings.limits, &settings.models, before, clock.now())
}

fn gate(settings: &Settings) -> Gate {
    let (limits, models) = (&settings.limits, &settings.models);
    let place = |alias: &ModelSettings| {
        let meant = alias.rule.rename.as_deref()?;
        let is_meant = |other: &ModelSettings| {
            other.rule.pattern == meant
                && other.rule.upstream == alias.rule.upstream
                && other.rule.rename.is_none()
        };
        models.iter().position(is_meant)
    };
    let share = |model: &ModelSettings| match place(model) {
        // An alias without limits of its own is no way around those of its model.
        Some(meant) if model.limits == Allowance::default() => ModelShare::Of(meant),
        _ => ModelShare::Own(model.limits.or(limits.model)),
    };
    let shares: Vec<_> = models.iter().map(share).collect();
    let by_model = models.iter().any(|model| model.key_limits.or(limits.key_model) != Allowance::default());
    let key_place = |(own, model): (usize, &ModelSettings)| match place(model) {
        Some(meant) if model.key_limits == Allowance::default() => meant,
        _ => own,
    };
    let key_places = models.iter().enumerate().filter(|_| by_model).map(key_place).collect();
    Gate::new(limits.gateway, &shares, key_places, limits.ip)
}

fn labels(settings: &Settings, fleet: &Fleet) -> Labels {
    let keys = settings.keys.as_ref().map(|keys| keys.iter().map(|key| key.key.name.clone()).collect());
    Labels {
        models: fleet
            .named_models()
            .map(|rule| (rule.on_server().to_owned(), rule.upstream.clone()))
            .collect(),
        keys: keys.unwrap_or_else(|| vec![ANYBODY.to_owned()]),
        limits: Limit::all().map(Limit::name).collect(),
        servers: fleet
            .places()
            .map(|(upstream, server)| (upstream.spec.name.clone(), server.spec.name.clone()))
            .collect(),
        fallbacks: fleet
            .all_fallbacks()
            .map(|(model, fallback)| (model.to_owned(), fallback.to_owned()))
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
