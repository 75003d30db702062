//! Models to upstreams, upstreams to servers.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use wildmatch::WildMatchPattern;

use super::server::Server;
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
    rules: Vec<(ModelRule, Pattern)>,
}

impl Fleet {
    /// Every rule names an upstream of `upstreams`, which is not empty: `config` has checked both.
    pub fn new(upstreams: Vec<UpstreamSpec>, rules: Vec<ModelRule>) -> Self {
        let mut servers: Vec<Arc<Server>> = Vec::new();
        let mut known = HashMap::new();
        let upstream = |spec: UpstreamSpec| {
            let server = |server: &ServerSpec| {
                let new = || Arc::new(Server::new(server.clone(), spec.kind, spec.health.clone(), spec.swap));
                let place = *known.entry(server.url.clone()).or_insert_with(|| {
                    servers.push(new());
                    servers.len() - 1
                });
                Arc::clone(&servers[place])
            };
            let of_it = spec.servers.iter().map(server).collect();
            Arc::new(Upstream::new(spec, of_it))
        };
        let upstreams: Vec<_> = upstreams.into_iter().map(upstream).collect();
        for server in &servers {
            let has_it =
                |upstream: &&Arc<Upstream>| upstream.servers.iter().any(|own| Arc::ptr_eq(own, server));
            server.belongs_to(upstreams.iter().filter(has_it).map(Arc::downgrade).collect());
        }
        let rules = rules.into_iter().map(|rule| (rule.clone(), Pattern::new(&rule.pattern))).collect();
        Self { upstreams, servers, rules }
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
            let at = self.rules.iter().position(|(rule, _)| rule.pattern == *name);
            if let Some(at) = at.filter(|at| !order.contains(at)) {
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
        let exact = self.rules.iter().position(|(rule, _)| rule.pattern == model);
        exact.or_else(|| {
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
        self.rules.iter().any(|(rule, _)| rule.pattern == model)
            || self.upstreams.iter().any(|upstream| upstream.reports(model))
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
