//! Which models and keys are labels: those that the file names and some that servers name; all others are `other`.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use foldhash::fast::RandomState;

use super::super::families::OTHER;
use super::Metrics;

/// Models that servers report and the file does not name; those beyond are `other`.
const MODELS_REPORTED_MAX: usize = 500;

/// Keys with labels of their own; those beyond are `other`.
const KEYS_MAX: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Names(RwLock<Known>);

#[derive(Debug, Default)]
struct Known {
    models: HashSet<String, RandomState>,
    reported: HashSet<String, RandomState>,
    keys: HashSet<String, RandomState>,
}

impl Names {
    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn has_model(&self, model: &str) -> bool {
        self.models.contains(model) || self.reported.contains(model)
    }
}

impl Metrics {
    /// The models that the file names, from now on.
    pub(super) fn name_models<'a>(&self, models: impl Iterator<Item = &'a str>) {
        self.names.write().models = models.map(str::to_owned).collect();
    }

    /// Admits a model as a label that a server reported, while there are not too many.
    pub fn know_model(&self, model: &str) {
        if self.names.read().has_model(model) {
            return;
        }
        let mut known = self.names.write();
        if known.reported.len() < MODELS_REPORTED_MAX {
            known.reported.insert(model.to_owned());
        }
    }

    /// The keys that there are, from now on. One that had a label keeps it; one that is gone leaves its room to
    /// another, and what it has used stays told.
    pub fn know_keys<'a>(&self, keys: impl Iterator<Item = &'a str>) {
        let mut known = self.names.write();
        let (mut kept, fresh): (Vec<_>, Vec<_>) = keys.partition(|key| known.keys.contains(*key));
        kept.extend(fresh);
        known.keys = kept.into_iter().take(KEYS_MAX).map(str::to_owned).collect();
    }

    pub(super) fn key_label<'a>(&self, key: &'a str) -> &'a str {
        if self.names.read().keys.contains(key) { key } else { OTHER }
    }

    /// The label of a model: its name, if the file or a server names it.
    pub fn model_label<'a>(&self, model: Option<&'a str>) -> &'a str {
        model.filter(|model| self.names.read().has_model(model)).unwrap_or(OTHER)
    }
}

#[cfg(test)]
mod tests {
    use crate::observe::{Labels, Metrics};

    #[test]
    fn a_server_cannot_make_labels_without_end() {
        let metrics = Metrics::new(&Labels::default()).expect("the table names nothing twice");
        let names: Vec<String> = (0..100_000).map(|number| format!("model-{number}")).collect();
        names.iter().for_each(|name| metrics.know_model(name));
        let own = names.iter().filter(|name| metrics.model_label(Some(name)) == *name).count();
        assert_eq!(own, super::MODELS_REPORTED_MAX);
        metrics.know(&Labels { models: vec![("named".into(), "local".into())], ..Labels::default() });
        assert_eq!(
            metrics.model_label(Some("named")),
            "named",
            "a server's models take no room of the file's"
        );
    }

    #[test]
    fn a_key_that_is_gone_leaves_its_room() {
        let metrics = Metrics::new(&Labels::default()).expect("the table names nothing twice");
        let keys: Vec<String> = (0..2000).map(|number| format!("key-{number}")).collect();
        let own = || keys.iter().filter(|key| metrics.key_label(key) == *key).count();
        metrics.know_keys(keys.iter().map(String::as_str));
        assert_eq!(
            (own(), metrics.key_label("key-0"), metrics.key_label("key-1999")),
            (1000, "key-0", "other")
        );
        // In another order: those that have a label keep it.
        metrics.know_keys(keys.iter().rev().map(String::as_str));
        assert_eq!(
            (own(), metrics.key_label("key-0"), metrics.key_label("key-1999")),
            (1000, "key-0", "other")
        );
        metrics.know_keys(keys.iter().skip(1).map(String::as_str));
        assert_eq!(
            (own(), metrics.key_label("key-0"), metrics.key_label("key-1000")),
            (1000, "other", "key-1000")
        );
    }
}
