//! Every metric, in one table: its name, labels and help.
//!
//! All families are there from the start, with their known labels at 0. Labels are bounded: a model or key that
//! neither the file nor a server names is `other`.

use std::collections::HashSet;
use std::sync::RwLock;
use std::time::Duration;

use prometheus::{
    Counter, Encoder, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    Registry, TextEncoder,
};

use super::families::Table;
use super::labels::{CacheOutcome, Ended, Labels, Phase, ServerState};

mod begin;
mod tls;
mod totals;

pub use self::tls::Unshaken;
pub use self::totals::Totals;

/// The label of what is not named anywhere.
const OTHER: &str = "other";

/// The label of callers where no key is asked for.
pub const ANYBODY: &str = "anybody";

/// Keys with labels of their own; those beyond are `other`.
const KEYS_MAX: usize = 1000;

/// Keys whose labels are there before they have asked: each with every model makes two series.
const KEYS_AT_ZERO_MAX: usize = 100;

pub struct Metrics {
    registry: Registry,
    models: RwLock<HashSet<String>>,
    keys: RwLock<HashSet<String>>,
    requests: IntCounterVec,
    duration: HistogramVec,
    first_token: HistogramVec,
    per_output_token: HistogramVec,
    pub queue_requests: IntGauge,
    pub queue_duration: Histogram,
    pub in_flight: IntGauge,
    pub flight_followers: IntGauge,
    tokens: IntCounterVec,
    cached_tokens: IntCounterVec,
    pub cache_hits: IntCounter,
    pub cache_misses: IntCounter,
    pub cache_shared: IntCounter,
    pub cache_rendered: IntCounter,
    pub cache_unrendered: IntCounter,
    pub cache_saved_tokens: IntCounter,
    pub cache_saved_seconds: Counter,
    cache_stored: IntCounter,
    cache_evicted: IntCounter,
    cache_bytes: Gauge,
    limit_refusals: IntCounterVec,
    retries: IntCounterVec,
    disconnects: IntCounterVec,
    server_up: GaugeVec,
    server_slots: GaugeVec,
    server_breaker: GaugeVec,
    retries_withheld: IntCounterVec,
    model_swaps: IntCounterVec,
    fallbacks: IntCounterVec,
    pub requests_barred: IntCounter,
    reloads: IntCounterVec,
    last_reload: Gauge,
    pub log_lines_dropped: IntCounter,
    pub spans: IntCounterVec,
    tls: tls::Families,
    /// All requests, whatever became of them.
    pub total: IntCounter,
}

impl Metrics {
    /// Registers every family. Fails only where the table below names one twice.
    pub fn new(labels: &Labels) -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some("ai_gateway".to_owned()), None)?;
        let table = Table(&registry);
        let metrics = Self {
            requests: table.counters(
                "requests_total",
                "Requests, by what became of them.",
                &["model", "upstream", "status", "cache"],
            )?,
            duration: table.histograms(
                "request_duration_seconds",
                "From the request's first byte to the answer's last.",
                &["model", "cache"],
            )?,
            first_token: table.histograms(
                "time_to_first_token_seconds",
                "From the request's first byte to the answer's first.",
                &["model", "cache"],
            )?,
            per_output_token: table.histograms(
                "time_per_output_token_seconds",
                "What follows the first token, over the tokens less one; once a request.",
                &["model"],
            )?,
            queue_requests: table.gauge("queue_requests", "Requests waiting here for a slot.")?,
            queue_duration: table
                .histogram("queue_duration_seconds", "Time that requests waited here for a slot.")?,
            in_flight: table.gauge("requests_in_flight", "Requests that have begun and not ended.")?,
            flight_followers: table
                .gauge("flight_followers", "Requests that follow an answer in the making.")?,
            tokens: table.counters(
                "tokens_total",
                "Tokens of answers that servers made: input (prompt) and output (completion).",
                &["key", "model", "type"],
            )?,
            cached_tokens: table.counters(
                "cached_tokens_total",
                "Prompt tokens that servers found in their KV cache.",
                &["model"],
            )?,
            cache_hits: table.counter("cache_hits_total", "Requests answered from the cache.")?,
            cache_misses: table.counter(
                "cache_misses_total",
                "Requests that could have been answered from the cache and were not.",
            )?,
            cache_shared: table
                .counter("cache_shared_total", "Requests answered by the generation of another.")?,
            cache_rendered: table.counter(
                "cache_rendered_total",
                "Answers given in another form (stream, plain) than they were made in.",
            )?,
            cache_unrendered: table.counter(
                "cache_unrendered_total",
                "Answers that could not be given in another form: it was made anew.",
            )?,
            cache_saved_tokens: table.counter(
                "cache_saved_tokens_total",
                "Completion tokens of hits, which no server had to make.",
            )?,
            cache_saved_seconds: table.seconds(
                "cache_saved_seconds_total",
                "Time that servers had taken for the answers of hits, prompt and generation.",
            )?,
            // Counted by the store itself; these catch up when the page is asked for.
            cache_stored: table.counter("cache_stored_total", "Answers kept.")?,
            cache_evicted: table.counter("cache_evicted_total", "Answers that made room for others.")?,
            cache_bytes: table.float("cache_bytes", "Bytes that the cache holds, all overhead counted.")?,
            limit_refusals: table.counters(
                "limit_refusals_total",
                "Requests refused, by the limit that refused.",
                &["limit"],
            )?,
            retries: table.counters(
                "retries_total",
                "Further tries at a server, by why the one before failed.",
                &["reason"],
            )?,
            disconnects: table.counters(
                "client_disconnects_total",
                "Callers that left, by where their request was.",
                &["phase"],
            )?,
            server_up: table.floats(
                "server_up",
                "1 while the server counts as up.",
                &["upstream", "server"],
            )?,
            server_slots: table.floats(
                "server_slots",
                "Slots of a server, by state.",
                &["upstream", "server", "state"],
            )?,
            server_breaker: table.floats(
                "server_breaker",
                "A server's breaker: 0 closed, 1 half open (one request tries it), 2 open.",
                &["upstream", "server"],
            )?,
            model_swaps: table.counters(
                "model_swaps_total",
                "Models that a router unloaded for another.",
                &["upstream", "server"],
            )?,
            retries_withheld: table.counters(
                "retries_withheld_total",
                "Further tries that were not made, since the upstream's budget of them was spent.",
                &["upstream"],
            )?,
            fallbacks: table.counters(
                "fallbacks_total",
                "Requests that went on to a fallback, by the model that was asked for.",
                &["model", "fallback"],
            )?,
            requests_barred: table.counter(
                "requests_barred_total",
                "Requests refused because they had broken off on two servers.",
            )?,
            reloads: table.counters(
                "config_reloads_total",
                "Reloads of the file or of the keys file, by result.",
                &["result"],
            )?,
            last_reload: table
                .float("config_last_reload_successful", "1 if the last reload was taken, of either file.")?,
            log_lines_dropped: table
                .counter("log_lines_dropped_total", "Access log lines that could not be written in time.")?,
            spans: table.counters(
                "trace_spans_total",
                "Spans of traces: sent to the collector, failed on the way, or dropped for want of room.",
                &["result"],
            )?,
            tls: tls::Families::new(&table)?,
            total: IntCounter::new("all", "Not exported: the sum for /stats.")?,
            models: RwLock::default(),
            keys: RwLock::default(),
            registry: registry.clone(),
        };
        let build = table.floats("build_info", "1; the version stands in the label.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        metrics.last_reload.set(1.0);
        metrics.know(labels);
        Ok(metrics)
    }

    /// Admits a model as a label, after a server reported it.
    pub fn know_model(&self, model: &str) {
        if !self.is_known(model) {
            self.models.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(model.to_owned());
        }
    }

    fn is_known(&self, model: &str) -> bool {
        self.models.read().unwrap_or_else(std::sync::PoisonError::into_inner).contains(model)
    }

    /// Admits a key as a label, while there are not too many.
    pub fn know_key(&self, key: &str) {
        let mut keys = self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if keys.len() < KEYS_MAX {
            keys.insert(key.to_owned());
        }
    }

    fn key_label<'a>(&self, key: &'a str) -> &'a str {
        let keys = self.keys.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if keys.contains(key) { key } else { OTHER }
    }

    /// The label of a model: its name, if the file or a server names it.
    pub fn model_label<'a>(&self, model: Option<&'a str>) -> &'a str {
        model.filter(|model| self.is_known(model)).unwrap_or(OTHER)
    }

    pub fn ended(&self, ended: &Ended<'_>) {
        let model = self.model_label(ended.model);
        let cache = ended.cache.name();
        let status = ended.status.to_string();
        self.total.inc();
        self.requests.with_label_values(&[model, ended.upstream.unwrap_or(""), status.as_str(), cache]).inc();
        self.duration.with_label_values(&[model, cache]).observe(ended.duration.as_secs_f64());
        if let Some(first) = ended.first_token {
            self.first_token.with_label_values(&[model, cache]).observe(first.as_secs_f64());
        }
        if ended.cache == CacheOutcome::Hit {
            return;
        }
        let key = self.key_label(ended.key.unwrap_or(ANYBODY));
        for (kind, count) in [("input", ended.prompt_tokens), ("output", ended.completion_tokens)] {
            if let Some(count) = count {
                self.tokens.with_label_values(&[key, model, kind]).inc_by(count);
            }
        }
        if let Some(cached) = ended.cached_prompt_tokens {
            self.cached_tokens.with_label_values(&[model]).inc_by(cached);
        }
        if let (Some(first), Some(tokens)) =
            (ended.first_token, ended.completion_tokens.filter(|&tokens| tokens > 1))
        {
            let rest = ended.duration.saturating_sub(first).as_secs_f64();
            self.per_output_token.with_label_values(&[model]).observe(rest / (tokens - 1) as f64);
        }
    }

    pub fn refused(&self, limit: &str) {
        self.limit_refusals.with_label_values(&[limit]).inc();
    }

    /// Another try after one that failed: `connect` (nothing was sent) or `broken` (the connection broke off).
    pub fn retried(&self, reason: &str) {
        self.retries.with_label_values(&[reason]).inc();
    }

    /// Another try that would have gone beyond the budget.
    pub fn withheld(&self, upstream: &str) {
        self.retries_withheld.with_label_values(&[upstream]).inc();
    }

    /// A request went on to another model than it asked for.
    pub fn fell_back(&self, model: &str, fallback: &str) {
        self.fallbacks.with_label_values(&[model, fallback]).inc();
    }

    /// A file was read again, and taken or not.
    pub fn reloaded(&self, taken: bool) {
        self.reloads.with_label_values(&[if taken { "success" } else { "failure" }]).inc();
        self.last_reload.set(f64::from(u8::from(taken)));
    }

    /// A router unloaded a model for another.
    pub fn swapped(&self, upstream: &str, server: &str) {
        self.model_swaps.with_label_values(&[upstream, server]).inc();
    }

    pub fn disconnected(&self, phase: Phase) {
        self.disconnects.with_label_values(&[phase.name()]).inc();
    }

    /// A hit saved the making of an answer.
    pub fn saved(&self, tokens: u64, time: Duration) {
        self.cache_saved_tokens.inc_by(tokens);
        self.cache_saved_seconds.inc_by(time.as_secs_f64());
    }

    pub fn set_cache(&self, bytes: u64, stored: u64, evicted: u64) {
        self.cache_bytes.set(bytes as f64);
        catch_up(&self.cache_stored, stored);
        catch_up(&self.cache_evicted, evicted);
    }

    pub fn set_server(&self, state: &ServerState<'_>) {
        let labels = [state.upstream, state.server];
        self.server_up.with_label_values(&labels).set(f64::from(u8::from(state.up)));
        self.server_breaker.with_label_values(&labels).set(f64::from(state.breaker as u8));
        let idle = state.slots.unwrap_or_default().saturating_sub(state.in_flight);
        for (name, slots) in [("busy", state.in_flight), ("idle", idle)] {
            self.server_slots.with_label_values(&[state.upstream, state.server, name]).set(f64::from(slots));
        }
    }

    /// The page that Prometheus reads (text format 0.0.4), and its content type.
    pub fn page(&self) -> (Vec<u8>, &'static str) {
        let mut page = Vec::new();
        // Writing to a vector cannot fail; an empty family is left out by the encoder.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut page);
        (page, "text/plain; version=0.0.4; charset=utf-8")
    }
}

/// Brings a counter up to a total that is counted elsewhere.
fn catch_up(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}
