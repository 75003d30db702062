//! Models to upstreams, upstreams to servers.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use foldhash::fast::RandomState;
use serde_json::{Map, Value, json};
use wildmatch::WildMatchPattern;

use super::server::{Belonging, Server};
use super::spec::{ModelRule, ServerSpec, UpstreamSpec};
use super::upstream::Upstream;

/// Where a model's requests go.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub upstream: Arc<Upstream>,
    /// The model as callers name it; `None` where neither the caller nor the file names one.
    pub name: Option<String>,
    /// What the server calls it, where that is different.
    pub rename: Option<String>,
    /// The rule's place in the file; `None` where the file has no models.
    pub rule: Option<usize>,
}

impl Resolved {
    /// What the server calls the model.
    pub fn on_server(&self) -> Option<&str> {
        self.rename.as_deref().or(self.name.as_deref())
    }
}

/// `*` stands for any characters, none among them; nothing else is special.
type Pattern = WildMatchPattern<'*', '\0'>;

/// All servers of one gateway.
#[derive(Debug)]
pub struct Fleet {
    /// At least one.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Each once, in how many upstreams it may stand.
    pub servers: Vec<Arc<Server>>,
    /// Those of files before that are not in this one: they are there until they have finished what they have.
    former: Vec<Weak<Server>>,
    rules: Vec<(ModelRule, Pattern)>,
    /// Where each is by its name, or its pattern as it is written.
    places: HashMap<String, usize, RandomState>,
}

impl Fleet {
    /// Every rule names an upstream of `upstreams`, which is not empty: `config` has checked both.
    pub fn new(upstreams: Vec<UpstreamSpec>, rules: Vec<ModelRule>) -> Self {
        Self::after(None, upstreams, rules)
    }

    /// The fleet of a file that comes after `before`'s. What stays as it was is the same; what is described anew has
    /// what is known of it. Requests go on as before until [`Fleet::hand_over`].
    pub fn after(before: Option<&Self>, upstreams: Vec<UpstreamSpec>, rules: Vec<ModelRule>) -> Self {
        let mut servers: Vec<Arc<Server>> = Vec::new();
        let mut known = HashMap::new();
        let upstream = |spec: UpstreamSpec| {
            let server = |server: &ServerSpec| {
                let place = *known.entry(server.url.clone()).or_insert_with(|| {
                    servers.push(successor(before, server, &spec));
                    servers.len() - 1
                });
                Arc::clone(&servers[place])
            };
            let of_it: Vec<_> = spec.servers.iter().map(server).collect();
            let same = |old: &&Arc<Upstream>| {
                let stay = |(own, old): (&Arc<Server>, &Arc<Server>)| Arc::ptr_eq(own, old);
                old.spec == spec && of_it.iter().zip(&old.servers).all(stay)
            };
            let old = before.and_then(|before| before.upstreams.iter().find(same));
            old.map_or_else(|| Arc::new(Upstream::new(spec.clone(), of_it.clone())), Arc::clone)
        };
        let upstreams: Vec<_> = upstreams.into_iter().map(upstream).collect();
        let former = before.map_or_else(Vec::new, |before| {
            let is_out = |server: &Arc<Server>| !servers.iter().any(|other| other.is(server));
            before.all_servers().filter(is_out).map(|server| Arc::downgrade(&server)).collect()
        });
        let places = rules.iter().enumerate().rev().map(|(at, rule)| (rule.pattern.clone(), at)).collect();
        let rules = rules.into_iter().map(|rule| (rule.clone(), Pattern::new(&rule.pattern))).collect();
        let fleet = Self { upstreams, servers, former, rules, places };
        for server in fleet.servers.iter().filter(|server| server.belonging().current.is_empty()) {
            server.belongs_to(Belonging { current: fleet.having(server), former: Vec::new() });
        }
        fleet
    }

    /// The upstreams that have a server.
    fn having(&self, server: &Server) -> Vec<Weak<Upstream>> {
        let has_it = |upstream: &&Arc<Upstream>| upstream.servers.iter().any(|own| own.is(server));
        self.upstreams.iter().filter(has_it).map(Arc::downgrade).collect()
    }

    /// Its servers, and those that were taken out before and have not finished yet.
    fn all_servers(&self) -> impl Iterator<Item = Arc<Server>> {
        self.servers.iter().cloned().chain(self.former.iter().filter_map(Weak::upgrade))
    }

    /// Lets another fleet, made after this one, succeed it: who waits at an upstream waits at the one of its name there
    /// then, and further tries go there. An upstream that has none goes on until the last of its requests has ended.
    pub fn hand_over(&self, heir: &Self) {
        let is_in = |fleet: &Self, upstream: &Arc<Upstream>| {
            fleet.upstreams.iter().any(|own| Arc::ptr_eq(own, upstream))
        };
        for upstream in self.upstreams.iter().filter(|upstream| !is_in(heir, upstream)) {
            let name = &upstream.spec.name;
            if let Some(heir) = heir.upstreams.iter().find(|heir| heir.spec.name == *name) {
                upstream.hand_over(heir);
            }
        }
        for server in self.all_servers().chain(heir.servers.iter().cloned()) {
            let before = server.belonging();
            let former = before.former.iter().chain(&before.current);
            let goes_on = |upstream: &&Weak<Upstream>| {
                upstream
                    .upgrade()
                    .is_some_and(|upstream| upstream.successor().is_none() && !is_in(heir, &upstream))
            };
            let former = former.filter(goes_on).cloned().collect();
            server.belongs_to(Belonging { current: heir.having(&server), former });
        }
        heir.upstreams.iter().for_each(|upstream| upstream.dispatch());
    }

    /// The servers of this fleet that another has not.
    pub fn servers_not_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Arc<Server>> {
        self.servers.iter().filter(|server| !other.servers.iter().any(|there| there.is(server)))
    }

    /// Every server of every upstream: one that stands in two comes twice.
    pub fn places(&self) -> impl Iterator<Item = (&Arc<Upstream>, &Arc<Server>)> {
        self.upstreams
            .iter()
            .flat_map(|upstream| upstream.servers.iter().map(move |server| (upstream, server)))
    }

    pub fn some_server_is_well(&self) -> bool {
        self.servers.iter().any(|server| server.is_well())
    }

    /// Finds a model's upstream: the rule of that name, else the longest pattern that matches. `None`: unknown.
    pub fn resolve(&self, model: Option<&str>) -> Option<Resolved> {
        if self.rules.is_empty() {
            let reporting =
                model.and_then(|model| self.upstreams.iter().find(|upstream| upstream.reports(model)));
            let upstream = Arc::clone(reporting.or(self.upstreams.first())?);
            return Some(Resolved { upstream, name: model.map(str::to_owned), rename: None, rule: None });
        }
        let at = match model {
            None => 0,
            Some(model) => self.rule_of(model)?,
        };
        let rule = &self.rules[at].0;
        let named = model.or((!rule.pattern.contains('*')).then_some(rule.pattern.as_str()));
        let upstream = self.upstreams.iter().find(|upstream| upstream.spec.name == rule.upstream)?;
        Some(Resolved {
            upstream: Arc::clone(upstream),
            name: named.map(str::to_owned),
            rename: rule.rename.clone(),
            rule: Some(at),
        })
    }

    /// The models that a request goes to where its own cannot serve, in their order: each has its own after it, and
    /// none comes twice.
    pub fn fallbacks(&self, resolved: &Resolved) -> Vec<Resolved> {
        let Some(own) = resolved.rule else { return Vec::new() };
        let mut order = vec![own];
        self.visit(own, &mut order);
        let fallback = |at: &usize| {
            let found = self.resolve(Some(&self.rules[*at].0.pattern))?;
            // The body names another model, so the name is always written.
            Some(Resolved { rename: found.rename.or_else(|| found.name.clone()), ..found })
        };
        order[1..].iter().filter_map(fallback).collect()
    }

    fn visit(&self, from: usize, order: &mut Vec<usize>) {
        for name in &self.rules[from].0.fallback {
            if let Some(at) = self.places.get(name).copied().filter(|at| !order.contains(at)) {
                order.push(at);
                self.visit(at, order);
            }
        }
    }

    /// What the file calls a model: a name, or the pattern that it matches.
    pub fn rule_name(&self, resolved: &Resolved) -> Option<&str> {
        resolved.rule.map(|at| self.rules[at].0.pattern.as_str())
    }

    /// Every model, by what the file calls it, with every fallback that it may come to.
    pub fn all_fallbacks(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rules.iter().enumerate().flat_map(|(own, (rule, _))| {
            let mut order = vec![own];
            self.visit(own, &mut order);
            order.into_iter().skip(1).map(|at| (rule.pattern.as_str(), self.rules[at].0.pattern.as_str()))
        })
    }

    fn rule_of(&self, model: &str) -> Option<usize> {
        self.places.get(model).copied().or_else(|| {
            let patterns = self.rules.iter().enumerate().filter(|(_, (rule, _))| rule.pattern.contains('*'));
            let matching = patterns.filter(|(_, (_, pattern))| pattern.matches(model));
            // Of two patterns as long as each other, the first in the file.
            matching.rev().max_by_key(|(_, (rule, _))| rule.pattern.len()).map(|(at, _)| at)
        })
    }

    /// The models that callers can name, as `/v1/models` lists them.
    pub fn models(&self) -> Vec<Map<String, Value>> {
        let mut models: Vec<Map<String, Value>> = Vec::new();
        let mut add = |id: &str, told: Option<Map<String, Value>>| {
            if models.iter().all(|model| model["id"] != id) {
                let mut model = told.unwrap_or_else(unreported);
                model.insert("id".to_owned(), id.into());
                models.push(model);
            }
        };
        for (rule, _) in self.rules.iter().filter(|(rule, _)| !rule.pattern.contains('*')) {
            let upstream = self.upstreams.iter().find(|upstream| upstream.spec.name == rule.upstream);
            add(&rule.pattern, upstream.and_then(|upstream| reported(upstream, rule.on_server())));
        }
        for upstream in &self.upstreams {
            for report in upstream.servers.iter().filter_map(|server| server.report()) {
                for id in report.model_ids() {
                    let leads_here =
                        self.resolve(Some(id)).is_some_and(|found| Arc::ptr_eq(&found.upstream, upstream));
                    if leads_here {
                        add(id, reported(upstream, id));
                    }
                }
            }
        }
        models
    }

    /// Whether the file or a server knows the model: what a metric may be labelled with.
    pub fn knows(&self, model: &str) -> bool {
        self.places.contains_key(model) || self.upstreams.iter().any(|upstream| upstream.reports(model))
    }

    /// What the upstream calls the model that a request goes to, where the file or a server names it. A server of one
    /// model answers to any other name too.
    pub fn known_model<'a>(&self, resolved: &'a Resolved) -> Option<&'a str> {
        let name = resolved.name.as_deref();
        let is_known = |name: &&str| !name.contains('*') && self.knows(name);
        resolved.rename.as_deref().or_else(|| name.filter(is_known))
    }

    /// The models that the file names.
    pub fn named_models(&self) -> impl Iterator<Item = &ModelRule> {
        self.rules.iter().map(|(rule, _)| rule).filter(|rule| !rule.pattern.contains('*'))
    }
}

/// A server of an upstream as a file describes it: the one of its URL that was there before, where it is of that kind.
fn successor(before: Option<&Fleet>, spec: &ServerSpec, of: &UpstreamSpec) -> Arc<Server> {
    let is_it = |server: &Arc<Server>| server.spec.url == spec.url && server.kind == of.kind;
    let Some(old) = before.and_then(|before| before.all_servers().find(is_it)) else {
        return Arc::new(Server::new(spec.clone(), of.kind, of.health.clone(), of.swap));
    };
    if before.is_some_and(|before| !before.servers.iter().any(|server| server.is(&old))) {
        // Nobody has looked at it since it was taken out, and whoever drained it then has put it back now.
        old.forget_report();
        old.set_draining(false);
    }
    if old.is_described_by(spec, &of.health, of.swap) {
        return old;
    }
    Arc::new(old.described_anew(spec.clone(), of.health.clone(), of.swap))
}

fn reported(upstream: &Upstream, id: &str) -> Option<Map<String, Value>> {
    let reports = upstream.servers.iter().filter_map(|server| server.report());
    reports.flat_map(|report| report.models.clone()).find(|model| model["id"] == id)
}

fn unreported() -> Map<String, Value> {
    let Value::Object(model) = json!({"id": "", "object": "model", "created": 0, "owned_by": "ai-gateway"})
    else {
        unreachable!("an object literal")
    };
    model
}

#[cfg(test)]
mod tests;
