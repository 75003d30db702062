//! Labels that are known before anything has happened: at the start, and when a file has others.

use super::{CacheOutcome, KEYS_AT_ZERO_MAX, Labels, Metrics, OTHER, Phase};

impl Metrics {
    /// Takes in what there is from now on, and puts every label of it that is new at 0.
    pub fn know(&self, labels: &Labels) {
        labels.models.iter().for_each(|(model, _)| self.know_model(model));
        labels.keys.iter().for_each(|key| self.know_key(key));
        let unknown = labels.servers.iter().map(|(upstream, _)| (OTHER.to_owned(), upstream.clone()));
        for (model, upstream) in labels.models.iter().cloned().chain(unknown) {
            for cache in CacheOutcome::ALL {
                self.requests.with_label_values(&[model.as_str(), upstream.as_str(), "200", cache.name()]);
                self.duration.with_label_values(&[model.as_str(), cache.name()]);
                self.first_token.with_label_values(&[model.as_str(), cache.name()]);
            }
            self.per_output_token.with_label_values(&[model.as_str()]);
            self.cached_tokens.with_label_values(&[model.as_str()]);
            for key in labels.keys.iter().take(KEYS_AT_ZERO_MAX) {
                for kind in ["input", "output"] {
                    self.tokens.with_label_values(&[key.as_str(), model.as_str(), kind]);
                }
            }
        }
        for limit in &labels.limits {
            self.limit_refusals.with_label_values(&[limit]);
        }
        for phase in Phase::ALL {
            self.disconnects.with_label_values(&[phase.name()]);
        }
        for reason in ["connect", "broken", "unrendered"] {
            self.retries.with_label_values(&[reason]);
        }
        for result in ["success", "failure"] {
            self.reloads.with_label_values(&[result]);
        }
        self.fallbacks.with_label_values(&[OTHER, OTHER]);
        for (model, fallback) in &labels.fallbacks {
            self.fallbacks.with_label_values(&[model, fallback]);
        }
        for (upstream, server) in &labels.servers {
            self.server_up.with_label_values(&[upstream.as_str(), server]);
            self.server_breaker.with_label_values(&[upstream.as_str(), server]);
            self.retries_withheld.with_label_values(&[upstream]);
            self.model_swaps.with_label_values(&[upstream.as_str(), server]);
            for state in ["busy", "idle"] {
                self.server_slots.with_label_values(&[upstream.as_str(), server, state]);
            }
        }
    }

    /// A server is there no more. What was counted stays; what was measured last would be taken for now.
    pub fn forget_server(&self, upstream: &str, server: &str) {
        // One that was never measured has nothing to take out.
        let _ = self.server_up.remove_label_values(&[upstream, server]);
        let _ = self.server_breaker.remove_label_values(&[upstream, server]);
        for state in ["busy", "idle"] {
            let _ = self.server_slots.remove_label_values(&[upstream, server, state]);
        }
    }
}
