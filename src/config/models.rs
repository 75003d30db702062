//! `models`: what callers may name, and which upstream answers to it.

use super::limits::allowance;
use super::request;
use super::section::{Field, Section, suggest};
use super::settings::ModelSettings;
use super::value::{self, Read};
use crate::limit::Allowance;
use crate::route::{ModelRule, UpstreamSpec};

/// The models, in the file's order.
pub(super) fn read(file: &mut Section, upstreams: &[UpstreamSpec]) -> Vec<ModelSettings> {
    let members = file.take("models").map(|field| field.members()).unwrap_or_default();
    // A request cannot name a pattern, so nothing can fall back to one.
    let models: Vec<&str> =
        members.iter().map(|(name, _)| *name).filter(|name| !name.contains('*')).collect();
    let upstreams: Vec<&str> = upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
    let mut falls = Falls::default();
    members.iter().map(|(name, field)| model(name, field, &models, &upstreams, &mut falls)).collect()
}

/// Which models fall back to which, as far as the file has been read.
#[derive(Default)]
struct Falls(Vec<(String, String)>);

impl Falls {
    /// Takes in that one falls back to another, unless that one leads back to it.
    fn add(&mut self, from: &str, to: &str) -> Read<String> {
        let mut reached = vec![to];
        let mut at = 0;
        while let Some(model) = reached.get(at).copied() {
            for (_, next) in self.0.iter().filter(|(one, _)| one == model) {
                if !reached.contains(&next.as_str()) {
                    reached.push(next);
                }
            }
            at += 1;
        }
        if reached.contains(&from) {
            return value::expected("a model that does not fall back to this one itself", to);
        }
        self.0.push((from.to_owned(), to.to_owned()));
        Ok(to.to_owned())
    }
}

fn model(name: &str, field: &Field, models: &[&str], upstreams: &[&str], falls: &mut Falls) -> ModelSettings {
    if let Err(message) = value::name(name) {
        field.fault(message);
    }
    // A model that names no upstream goes where one goes that `models` does not name: to the first.
    let upstream = upstreams.first().copied().unwrap_or_default().to_owned();
    let rule = ModelRule { pattern: name.to_owned(), upstream, rename: None, fallback: Vec::new() };
    let (limits, key_limits) = (Allowance::default(), Allowance::default());
    let mut model = ModelSettings { rule, limits, key_limits, request: None, answers: None };

    let upstream = |text: &str| one_of("an upstream", text, upstreams);
    if field.is_scalar() {
        model.rule.upstream = field.value(upstream).unwrap_or_default();
        return model;
    }
    field.section(|section| {
        if let Some(upstream) = section.value("upstream", upstream) {
            model.rule.upstream = upstream;
        }
        model.rule.rename = section.value("as", value::name);
        let fallback = section.take("fallback").map(|field| field.items()).unwrap_or_default();
        let mut read = |text: &str| match text {
            _ if text == name => value::expected("another model than this one", text),
            _ => one_of("a model", text, models).and_then(|text| falls.add(name, &text)),
        };
        model.rule.fallback = fallback.iter().filter_map(|item| item.value(&mut read)).collect();
        model.request = section.take("request").and_then(|field| field.section(request::read));
        model.limits = section.section("limits", allowance);
        model.key_limits = section.section("key_limits", allowance);
        model.answers = section.value("cache", value::answers);
    });
    model
}

/// The name of a thing the file knows.
fn one_of(what: &str, text: &str, known: &[&str]) -> Read<String> {
    if known.contains(&text) {
        return Ok(text.to_owned());
    }
    value::expected(what, text).map_err(|message| message + &suggest(text, known))
}
