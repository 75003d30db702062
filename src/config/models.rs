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
    let models: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
    let upstreams: Vec<&str> = upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
    members.iter().map(|(name, field)| model(name, field, &models, &upstreams)).collect()
}

fn model(name: &str, field: &Field, models: &[&str], upstreams: &[&str]) -> ModelSettings {
    if let Err(message) = value::name(name) {
        field.fault(message);
    }
    // A model that names no upstream goes where one goes that `models` does not name: to the first.
    let upstream = upstreams.first().copied().unwrap_or_default().to_owned();
    let rule = ModelRule { pattern: name.to_owned(), upstream, rename: None };
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
        section.idle("fallback", "the model's own upstream alone is asked", |field| {
            field.values(|text| match text {
                _ if text == name => value::expected("another model than this one", text),
                _ => one_of("a model", text, models),
            })
        });
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
