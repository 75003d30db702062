//! What happened, told to the families that count it.

use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use prometheus::IntCounter;

use super::super::labels::{CacheOutcome, Ended, Phase, ServerState, Unshaken};
use super::{ANYBODY, Metrics};

impl Metrics {
    pub fn ended(&self, ended: &Ended<'_>) {
        let model = self.model_label(ended.model);
        let cache = ended.cache.name();
        let status = StatusCode::from_u16(ended.status);
        let status = status.as_ref().map_or("0", StatusCode::as_str);
        self.total.inc();
        self.requests.to(&[model, ended.upstream.unwrap_or(""), status, cache], IntCounter::inc);
        self.duration.to(&[model, cache], |series| series.observe(ended.duration.as_secs_f64()));
        if let Some(first) = ended.first_token {
            self.first_token.to(&[model, cache], |series| series.observe(first.as_secs_f64()));
        }
        if ended.cache == CacheOutcome::Hit {
            return;
        }
        let key = self.key_label(ended.key.unwrap_or(ANYBODY));
        for (kind, count) in [("input", ended.prompt_tokens), ("output", ended.completion_tokens)] {
            if let Some(count) = count {
                self.tokens.to(&[key, model, kind], |series| series.inc_by(count));
            }
        }
        if let Some(cached) = ended.cached_prompt_tokens {
            self.cached_tokens.to(&[model], |series| series.inc_by(cached));
        }
        if let (Some(rest), Some(tokens)) = (after_the_first(ended), ended.completion_tokens)
            && tokens > 1
        {
            let each = rest.as_secs_f64() / (tokens - 1) as f64;
            self.per_output_token.to(&[model], |series| series.observe(each));
        }
    }

    pub fn refused(&self, limit: &str) {
        self.limit_refusals.with(&[limit]).inc();
    }

    /// Another try after one that failed: `connect` (nothing was sent), `broken` (the connection broke off) or
    /// `unrendered` (asked again in the form that was asked for).
    pub fn retried(&self, reason: &str) {
        self.retries.with(&[reason]).inc();
    }

    /// Another try that would have gone beyond the budget.
    pub fn withheld(&self, upstream: &str) {
        self.retries_withheld.with(&[upstream]).inc();
    }

    /// A request went on to another model than it asked for.
    pub fn fell_back(&self, model: &str, fallback: &str) {
        self.fallbacks.with(&[model, fallback]).inc();
    }

    /// A file was read again, and taken or not.
    pub fn reloaded(&self, taken: bool) {
        self.reloads.with(&[if taken { "success" } else { "failure" }]).inc();
        self.last_reload.set(f64::from(u8::from(taken)));
    }

    /// A router unloaded a model for another.
    pub fn swapped(&self, upstream: &str, server: &str) {
        self.model_swaps.with(&[upstream, server]).inc();
    }

    pub fn disconnected(&self, phase: Phase) {
        self.disconnects.with(&[phase.name()]).inc();
    }

    /// A hit saved the making of an answer.
    pub fn saved(&self, tokens: u64, time: Duration) {
        self.cache_saved_tokens.inc_by(tokens);
        self.cache_saved_seconds.inc_by(time.as_secs_f64());
    }

    pub fn unshaken(&self, why: Unshaken) {
        self.handshake_failures.with(&[why.name()]).inc();
    }

    /// `None`: it has no certificate.
    pub fn certificate_ends(&self, listener: &str, not_after: Option<Timestamp>) {
        let seconds = not_after.map_or(f64::INFINITY, |it| it.as_second() as f64);
        self.certificate_not_after.with(&[listener]).set(seconds);
    }

    pub fn set_cache(&self, bytes: u64, stored: u64, evicted: u64) {
        self.cache_bytes.set(bytes as f64);
        catch_up(&self.cache_stored, stored);
        catch_up(&self.cache_evicted, evicted);
    }

    /// How it stands with Valkey, how often it broke off, and how often it did not answer in time.
    pub fn set_shared(&self, up: bool, breaks: u64, lates: u64) {
        catch_up(&self.shared_late, lates);
        self.shared_up.set(f64::from(u8::from(up)));
        catch_up(&self.shared_breaks, breaks);
    }

    /// What was dealt of answers with other replicas: found, stored, dropped, rejected.
    pub fn set_cache_replicas(&self, [found, stored, dropped, rejected]: [u64; 4]) {
        catch_up(&self.cache_replica_found, found);
        catch_up(&self.cache_replica_stored, stored);
        catch_up(&self.cache_replica_dropped, dropped);
        catch_up(&self.cache_replica_rejected, rejected);
    }

    /// Blocks of prompts that other replicas told of.
    pub fn set_prompts_learned(&self, blocks: u64) {
        catch_up(&self.prompt_blocks_learned, blocks);
    }

    /// How the servers are now. What was measured of one that is there no more goes, since it would be taken for now;
    /// what was counted stays.
    pub fn set_servers(&self, servers: &[ServerState<'_>]) {
        for state in servers {
            let labels = [state.upstream, state.server];
            self.server_up.with(&labels).set(f64::from(u8::from(state.up)));
            self.server_breaker.with(&labels).set(f64::from(state.breaker as u8));
            let idle = state.slots.unwrap_or_default().saturating_sub(state.in_flight);
            for (name, slots) in [("busy", state.in_flight), ("idle", idle)] {
                self.server_slots.with(&[state.upstream, state.server, name]).set(f64::from(slots));
            }
        }
        let there: std::collections::HashSet<_> =
            servers.iter().map(|state| [state.upstream, state.server]).collect();
        for family in [&self.server_up, &self.server_breaker, &self.server_slots] {
            family.retain(|labels| {
                labels.first_chunk().is_some_and(|labels: &[&str; 2]| there.contains(labels))
            });
        }
    }
}

/// The time for all tokens but the first. Of a plain answer its server alone can tell: it comes all at once.
fn after_the_first(ended: &Ended<'_>) -> Option<Duration> {
    match ended.first_token? {
        first if ended.stream => Some(ended.duration.saturating_sub(first)),
        _ => ended.generation,
    }
}

/// Brings a counter up to a total that is counted elsewhere.
fn catch_up(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}
