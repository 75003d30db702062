//! The limits that are not a key's own, made from the file.

use std::time::Duration;

use crate::config::{ModelSettings, Settings};
use crate::limit::{Allowance, Gate, ModelShare, Terms};

/// `before`: those whom these succeed, with the place there of each model's rule.
pub(super) fn gate(settings: &Settings, before: Option<(&Gate, &[Option<usize>])>, now: Duration) -> Gate {
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
    let by_model = models.iter().any(|model| model.key_limits.or(limits.key_model) != Allowance::default());
    let key_place = |(own, model): (usize, &ModelSettings)| match place(model) {
        Some(meant) if model.key_limits == Allowance::default() => meant,
        _ => own,
    };
    let key_places: Vec<_> = models.iter().enumerate().filter(|_| by_model).map(key_place).collect();
    let terms = Terms {
        gateway: limits.gateway,
        models: models.iter().map(share).collect(),
        patterns: models.iter().map(|model| model.rule.pattern.clone()).collect(),
        key_places,
        ip: limits.ip,
    };
    match before {
        None => Gate::new(terms),
        Some((old, places)) => old.regranted(terms, places, now),
    }
}
