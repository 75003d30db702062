//! One gateway: the settings it runs under, the five boxes made from them, and its clock.
//!
//! A file that changes makes another: what is configured is made anew, and what outlives a file is shared by both. A
//! request ends under the gateway that it began under.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use pingora::Error;
use pingora::connectors::ConnectorOptions;
use pingora::server::configuration::ServerConf;

use crate::cache::{Answers, Depot, Flights, Memo, Purges, Store};
use crate::config::{AccessLog, KeySettings, LogFormat, ModelSettings, Settings};
use crate::limit::{Gate, Limit, Shared};
use crate::observe::{ANYBODY, Hour, Labels, Metrics, Recent, Sink, Traces, Writer};
use crate::route::{Exchange, Felled, Fleet, ModelRule, Opening, Server, Sign, Turn, Upstream};
use crate::store::Ledger;
use crate::wire::RequestRules;

use super::bodies::Bodies;
use super::clock::Clock;
use super::conduit::Conduits;
use super::names::Names;
use super::refusal::Refusal;
use super::roster::Roster;
use super::sharing::{Sharing, ledger};
use super::side::Side;
use super::terms::gate;
use super::trust::{Trust, needs_roots};

/// What servers are complained of in: no TLS with them.
pub(super) const TLS: &str = "tls";

pub struct Gateway {
    pub settings: Settings,
    /// `None`: open to everybody.
    roster: Option<ArcSwap<Roster>>,
    pub gate: Gate,
    pub fleet: Fleet,
    pub log_format: LogFormat,
    pub bodies: Bodies,
    /// What of a model's answers is kept, by the rule's place.
    model_answers: Vec<Option<Answers>>,
    /// Bodies that were read under this file.
    pub memo: Memo,
    // What outlives a file.
    pub store: Arc<Store>,
    /// The answers that replicas share. `None`: there are no others.
    pub depot: Option<Arc<Depot>>,
    /// What they tell each other of prompts.
    pub exchange: Option<Arc<Exchange>>,
    pub ledger: Arc<Ledger>,
    /// Limits that other replicas share. `None`: they are this process's own.
    pub shared: Option<Arc<Shared>>,
    pub side: Arc<Side>,
    pub trust: Arc<Trust>,
    pub names: Arc<Names>,
    pub conduits: Arc<Conduits>,
    pub purges: Arc<Purges>,
    pub(super) flights: Arc<Flights<Refusal>>,
    pub(super) felled: Arc<Felled>,
    pub metrics: Arc<Metrics>,
    pub log: Arc<Writer>,
    /// `None`: nobody is told.
    pub traces: Option<Arc<Traces>>,
    pub hour: Arc<Hour>,
    pub recent: Arc<Recent>,
    pub clock: Clock,
    draining: Arc<AtomicBool>,
}

impl Gateway {
    /// Fails where the access log, the usage store or roots that are needed cannot be opened, with the reason. `conf`:
    /// how servers are connected to, and the file of the roots that `https` ones are verified by.
    pub fn new(settings: Settings, conf: &ServerConf) -> Result<Self, String> {
        let clock = Clock::start();
        let connections = ConnectorOptions::from_server_conf(conf);
        let conduits = Arc::new(Conduits::new(connections, settings.server.idle_max));
        check_roots(&settings, &conduits)?;
        let roster = settings.keys.as_deref().map(|keys| roster(&settings, keys, None, &clock));
        let fleet = Fleet::new(settings.upstreams.clone(), rules(&settings));
        let trust = Trust::default();
        trust.learn(fleet.servers.iter());
        let metrics = Metrics::new(&labels(&settings, &fleet))
            .map_err(|error| format!("cannot make the metrics: {error}"))?;
        let sink = match &settings.log.access {
            AccessLog::Stdout => Sink::Stdout,
            AccessLog::None => Sink::Nowhere,
            AccessLog::File(path) => Sink::File(path.clone()),
        };
        let log = Writer::open(&sink, metrics.log_lines_dropped.clone())?;
        let sharing = settings.shared.as_ref().map(Sharing::new);
        let ledger = ledger(sharing.as_ref(), settings.usage.as_deref(), clock.wall())?;
        Ok(Self {
            roster: roster.map(ArcSwap::from_pointee),
            gate: gate(&settings, None, clock.now()),
            ledger: Arc::new(ledger),
            side: Arc::new(Side::new(Arc::clone(&conduits), clock)),
            trust: Arc::new(trust),
            names: Arc::new(Names::new(settings.hosts.clone())),
            conduits,
            store: Arc::new(Store::new(settings.cache)),
            depot: sharing.as_ref().map(|sharing| Arc::new(sharing.depot())),
            exchange: sharing.as_ref().map(|sharing| Arc::new(sharing.exchange())),
            shared: sharing.map(|sharing| Arc::new(sharing.limits())),
            purges: Arc::default(),
            flights: Arc::default(),
            log: Arc::new(log),
            traces: traces(&settings, None, &metrics),
            hour: Arc::default(),
            recent: Arc::default(),
            log_format: settings.log.format,
            clock,
            memo: Memo::default(),
            bodies: Bodies::new(settings.body.bytes_total_max),
            model_answers: settings.models.iter().map(|model| model.answers).collect(),
            draining: Arc::default(),
            fleet,
            felled: Arc::default(),
            metrics: Arc::new(metrics),
            settings,
        })
    }

    /// The fleet of a file that comes after. New servers may be asked for their health; nothing else goes to them yet.
    pub fn fleet_after(&self, settings: &Settings) -> Result<Fleet, String> {
        check_roots(settings, &self.conduits)?;
        let fleet = Fleet::after(Some(&self.fleet), settings.upstreams.clone(), rules(settings));
        self.trust.learn(self.fleet.servers.iter().chain(&fleet.servers));
        Ok(fleet)
    }

    /// The gateway of that file: what was used stays used, what was kept is kept, and who waits goes on waiting.
    pub(super) fn succeeded(&self, settings: Settings, fleet: Fleet) -> Self {
        let now = self.clock.now();
        let place = |model: &ModelSettings| {
            self.settings.models.iter().position(|old| old.rule.pattern == model.rule.pattern)
        };
        let places: Vec<Option<usize>> = settings.models.iter().map(place).collect();
        let before = self.roster();
        let before = before.as_ref().map(|before| (before.as_ref(), places.as_slice()));
        let roster = settings.keys.as_deref().map(|keys| roster(&settings, keys, before, &self.clock));
        self.metrics.know(&labels(&settings, &fleet));
        self.store.follow(settings.cache, now);
        self.fleet.hand_over(&fleet);
        Self {
            roster: roster.map(ArcSwap::from_pointee),
            gate: gate(&settings, Some((&self.gate, &places)), now),
            fleet,
            log_format: settings.log.format,
            memo: Memo::default(),
            bodies: self.bodies.bounded(settings.body.bytes_total_max),
            model_answers: settings.models.iter().map(|model| model.answers).collect(),
            store: Arc::clone(&self.store),
            depot: self.depot.clone(),
            exchange: self.exchange.clone(),
            ledger: Arc::clone(&self.ledger),
            shared: self.shared.clone(),
            side: Arc::clone(&self.side),
            trust: Arc::clone(&self.trust),
            names: Arc::clone(&self.names),
            conduits: Arc::clone(&self.conduits),
            purges: Arc::clone(&self.purges),
            flights: Arc::clone(&self.flights),
            felled: Arc::clone(&self.felled),
            metrics: Arc::clone(&self.metrics),
            log: Arc::clone(&self.log),
            traces: traces(&settings, self.traces.as_ref(), &self.metrics).inspect(|traces| traces.start()),
            hour: Arc::clone(&self.hour),
            recent: Arc::clone(&self.recent),
            clock: self.clock,
            draining: Arc::clone(&self.draining),
            settings,
        }
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
            self.metrics.know_keys(keys.iter().map(|key| key.key.name.as_str()));
            let places: Vec<_> = (0..self.settings.models.len()).map(Some).collect();
            let before = Some((before.as_ref(), places.as_slice()));
            current.store(Arc::new(roster(&self.settings, keys, before, &self.clock)));
        }
    }

    /// What callers of a model may not decide.
    pub fn request_rules(&self, rule: Option<usize>) -> Option<&RequestRules> {
        self.settings.models.get(rule?)?.request.as_ref()
    }

    /// Whether a body that was read before need not be read again: a log that quotes it needs all of it.
    pub(super) fn recalls(&self) -> bool {
        self.store.keeps() && !self.settings.log.prompts
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

/// Whether the roots can be read that servers of this file are verified by. Where no server needs any, none are read.
fn check_roots(settings: &Settings, conduits: &Conduits) -> Result<(), String> {
    let Some(server) = needs_roots(&settings.upstreams) else { return Ok(()) };
    match conduits.without_roots() {
        None => Ok(()),
        Some(why) => Err(format!(
            "server `{}` is verified by {why}; name a bundle as its `ca`, or restart the gateway once they are there",
            server.name
        )),
    }
}

fn rules(settings: &Settings) -> Vec<ModelRule> {
    settings.models.iter().map(|model| model.rule.clone()).collect()
}

/// `before`: those whom these succeed, with the place there of each model's rule.
fn roster(
    settings: &Settings,
    keys: &[KeySettings],
    before: Option<(&Roster, &[Option<usize>])>,
    clock: &Clock,
) -> Roster {
    Roster::new(keys, &settings.limits, &settings.models, before, clock.now())
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

/// `before`: those of the file before, which go on where they go to the same collector.
fn traces(settings: &Settings, before: Option<&Arc<Traces>>, metrics: &Metrics) -> Option<Arc<Traces>> {
    let collector = settings.telemetry.as_ref()?;
    let goes_on = before.filter(|traces| traces.collector == *collector);
    let begun = || Arc::new(Traces::new(collector.clone(), metrics));
    Some(goes_on.map_or_else(begun, Arc::clone))
}
