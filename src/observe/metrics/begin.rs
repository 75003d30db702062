//! Labels that are known before anything has happened: at the start, and when a file has others.

use super::super::families::{Family, OTHER, Series, Values};
use super::{CACHE, HANDSHAKE, Label, Labels, Metrics, PHASE, RESULT, RETRY, SPAN, STATE, TYPE};

/// Keys with models whose tokens are there before anybody has asked; each is two series.
const TOKENS_AT_ZERO_MAX: usize = 2000;

/// Keys of which that is so.
const KEYS_AT_ZERO_MAX: usize = 100;

impl Metrics {
    /// What is so in every gateway.
    pub(super) fn begin(&self) {
        self.build_info.with(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        self.last_reload.set(1.0);
        all_of(&self.disconnects, &PHASE);
        all_of(&self.retries, &RETRY);
        all_of(&self.reloads, &RESULT);
        all_of(&self.handshake_failures, &HANDSHAKE);
        all_of(&self.spans, &SPAN);
        self.fallbacks.with(&[OTHER, OTHER]);
    }

    /// Takes in what there is from now on, and puts every label of it that is new at 0.
    pub fn know(&self, labels: &Labels) {
        self.name_models(labels.models.iter().map(|(model, _)| model.as_str()));
        self.know_keys(labels.keys.iter().map(String::as_str));
        let known = labels.models.iter().map(|(model, upstream)| (model.as_str(), upstream.as_str()));
        let unknown = labels.servers.iter().map(|(upstream, _)| (OTHER, upstream.as_str()));
        let keys = KEYS_AT_ZERO_MAX.min(TOKENS_AT_ZERO_MAX / (labels.models.len() + 1));
        for (model, upstream) in known.chain(unknown) {
            for cache in these(&CACHE) {
                self.requests.with(&[model, upstream, "200", cache]);
                self.duration.with(&[model, cache]);
                self.first_token.with(&[model, cache]);
            }
            self.per_output_token.with(&[model]);
            self.cached_tokens.with(&[model]);
            for key in labels.keys.iter().take(keys) {
                for kind in these(&TYPE) {
                    self.tokens.with(&[key, model, kind]);
                }
            }
        }
        for limit in &labels.limits {
            self.limit_refusals.with(&[limit]);
        }
        for (model, fallback) in &labels.fallbacks {
            self.fallbacks.with(&[model, fallback]);
        }
        for (upstream, server) in &labels.servers {
            self.server_up.with(&[upstream, server]);
            self.server_breaker.with(&[upstream, server]);
            self.retries_withheld.with(&[upstream]);
            self.model_swaps.with(&[upstream, server]);
            for state in these(&STATE) {
                self.server_slots.with(&[upstream, server, state]);
            }
        }
    }
}

/// What a label may be, where that is in the table.
fn these(label: &Label) -> &'static [&'static str] {
    match label.values {
        Values::These(values) => values,
        Values::Told(_) => &[],
    }
}

/// Puts a family of one label at 0.
fn all_of<S: Series>(family: &Family<S>, label: &Label) {
    for value in these(label) {
        family.with(&[value]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::labels::{CacheOutcome, Phase, Unshaken};
    use super::*;

    #[test]
    fn the_table_names_all_that_is_told() {
        assert_eq!(these(&CACHE), CacheOutcome::ALL.map(CacheOutcome::name));
        assert_eq!(these(&PHASE), Phase::ALL.map(Phase::name));
        assert_eq!(these(&HANDSHAKE), Unshaken::ALL.map(Unshaken::name));
    }

    #[test]
    fn a_large_file_does_not_make_a_large_page() {
        let names = |of: &str, count: usize| (0..count).map(|number| format!("{of}-{number}")).collect();
        let models: Vec<String> = names("model", 200);
        let labels = Labels {
            models: models.into_iter().map(|model| (model, "local".to_owned())).collect(),
            keys: names("key", 5000),
            ..Labels::default()
        };
        let metrics = Metrics::new(&labels).expect("the table names nothing twice");
        let mut tokens = 0;
        metrics.tokens.each(|_, _| tokens += 1);
        assert!(tokens <= 2 * TOKENS_AT_ZERO_MAX, "{tokens}");
    }
}
