//! Every metric, in one table: its name, labels, help, and what to look at it for.
//!
//! The table is all there is to a family: it makes the field, the line that Prometheus reads and the row of
//! docs/METRICS.md. All families are there from the start, with their known labels at 0. Labels are bounded: a model
//! or key that neither the file nor a server names is `other`.

use std::ops::Deref;

use prometheus::{Counter, Encoder, Gauge, Histogram, IntCounter, IntGauge, Registry, TextEncoder};

use super::families::{Family, Label, Made, Row, Values};
use super::labels::Labels;

mod begin;
mod events;
mod names;
mod reference;
mod totals;

pub use self::reference::reference;
pub use self::totals::Totals;

use self::names::Names;
use Values::{These, Told};

/// The label of callers where no key is asked for.
pub const ANYBODY: &str = "anybody";

/// OpenTelemetry's GenAI buckets for whole answers (10 ms to 82 s), from 1 ms to 20 minutes; seconds.
const DURATION: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
    163.84, 327.68, 655.36, 1200.0,
];

/// The same for first tokens (1 ms to 10 s), to 20 minutes.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 320.0, 640.0, 1200.0,
];

/// The same for the tokens after it (10 ms to 2.5 s), from 1 ms to 20 minutes.
const PER_TOKEN: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 10.0,
    60.0, 600.0, 1200.0,
];

const MODEL: Label =
    label("model", Told("as its server calls it; `other`: named by neither file nor server"));
const UPSTREAM: Label = label("upstream", Told("as the file names it; empty: none was asked"));
const SERVER: Label = label("server", Told("as the file names it, or its URL"));
const STATUS: Label =
    label("status", Told("as the caller got it; `499`: it left before its answer was whole"));
const CACHE: Label = label("cache", These(&["hit", "miss", "shared", "bypass"]));
const KEY: Label =
    label("key", Told("its name; `anybody`: none is asked for; `other`: beyond the first 1000"));
const TYPE: Label = label("type", These(&["input", "output"]));
const LIMIT: Label = label("limit", Told("`SCOPE.KIND`, as `key.requests` ([LIMITS.md](LIMITS.md))"));
const RETRY: Label = label("reason", These(&["connect", "broken", "unrendered"]));
const PHASE: Label = label("phase", These(&["waiting", "answering", "sending"]));
const STATE: Label = label("state", These(&["busy", "idle"]));
const FALLBACK: Label = label("fallback", Told("the model that is asked instead, as the file calls it"));
const RESULT: Label = label("result", These(&["success", "failure"]));
const SPAN: Label = label("result", These(&["sent", "failed", "dropped"]));
const HANDSHAKE: Label = label("reason", These(&["failed", "late"]));
const LISTENER: Label = label("listener", Told("`listen[0]`, `listen[1]` …, `admin`, `metrics`"));
const VERSION: Label = label("version", Told("as `ai-gateway --version` says"));

const fn label(name: &'static str, values: Values) -> Label {
    Label { name, values }
}

/// Makes the fields and the table of what is written once: help, field, type, name, labels, buckets, use.
macro_rules! families {
    ($(
        $(#[doc = $help:literal])+
        $seen:vis $field:ident: $kind:ty = $name:literal [$($label:ident),*] $(in $buckets:ident)?, $use_for:literal;
    )*) => {
        /// All families.
        pub struct Families {
            $($(#[doc = $help])+ $seen $field: $kind,)*
        }

        static TABLE: &[Row] = &[$(Row {
            name: $name,
            kind: <$kind as Made>::KIND,
            labels: &[$($label),*],
            help: concat!($($help),+).trim_ascii_start(),
            use_for: $use_for,
            buckets: families!(@ $($buckets)?),
        }),*];

        impl Families {
            fn new(registry: &Registry) -> prometheus::Result<Self> {
                let mut rows = TABLE.iter();
                Ok(Self {
                    $($field: Made::made(rows.next().expect("each field has a row"), registry)?,)*
                })
            }
        }
    };
    (@ $buckets:ident) => { $buckets };
    (@) => { &[] };
}

families! {
    /// Requests, by what became of them.
    requests: Family<IntCounter> = "requests_total" [MODEL, UPSTREAM, STATUS, CACHE],
        "how much is asked, and the share that fails";
    /// From the request's first byte to the answer's last.
    duration: Family<Histogram> = "request_duration_seconds" [MODEL, CACHE] in DURATION,
        "how long callers wait for the whole";
    /// From the request's first byte to the answer's first; of a plain answer, that is all of it.
    first_token: Family<Histogram> = "time_to_first_token_seconds" [MODEL, CACHE] in FIRST_TOKEN,
        "how long callers look at nothing: a long queue, or long prompts";
    /// What follows the first token, over the tokens less one; once a request. Of a plain answer, by its server's word.
    per_output_token: Family<Histogram> = "time_per_output_token_seconds" [MODEL] in PER_TOKEN,
        "how fast an answer is written: too many slots for a server, or a slow model";
    /// Requests waiting here for a slot.
    pub queue_requests: IntGauge = "queue_requests" [],
        "more work than slots, now";
    /// Time that requests waited here for a slot.
    pub queue_duration: Histogram = "queue_duration_seconds" [] in DURATION,
        "what more slots or servers would save callers";
    /// Requests that have begun and not ended.
    pub in_flight: IntGauge = "requests_in_flight" [],
        "how busy it is; whether it has drained";
    /// Requests that follow an answer in the making.
    pub flight_followers: IntGauge = "flight_followers" [],
        "how many get one generation at once";
    /// Tokens of answers that servers made: input (prompt) and output (completion).
    tokens: Family<IntCounter> = "tokens_total" [KEY, MODEL, TYPE],
        "who uses what; tokens a second";
    /// Prompt tokens that servers found in their KV cache.
    cached_tokens: Family<IntCounter> = "cached_tokens_total" [MODEL],
        "whether prompts find their server again: its share of the input tokens";
    /// Requests answered from the cache.
    pub cache_hits: IntCounter = "cache_hits_total" [],
        "with the misses: the hit ratio";
    /// Requests that could have been answered from the cache and were not.
    pub cache_misses: IntCounter = "cache_misses_total" [],
        "with the hits: the hit ratio";
    /// Requests answered by the generation of another.
    pub cache_shared: IntCounter = "cache_shared_total" [],
        "what single flight saves";
    /// Answers given in another form (stream, plain) than they were made in.
    pub cache_rendered: IntCounter = "cache_rendered_total" [],
        "that one entry serves both forms";
    /// Answers that could not be given in another form: it was made anew.
    pub cache_unrendered: IntCounter = "cache_unrendered_total" [],
        "what the cache misses for its form alone";
    /// Completion tokens of hits, which no server had to make.
    pub cache_saved_tokens: IntCounter = "cache_saved_tokens_total" [],
        "what the cache is worth, in tokens";
    /// Time that servers had taken for the answers of hits, prompt and generation.
    pub cache_saved_seconds: Counter = "cache_saved_seconds_total" [],
        "what the cache is worth, in time of servers";
    /// Answers kept.
    cache_stored: IntCounter = "cache_stored_total" [],
        "with the evicted: how fast the cache turns over";
    /// Answers that made room for others.
    cache_evicted: IntCounter = "cache_evicted_total" [],
        "a cache that is too small";
    /// Bytes that the cache holds, all overhead counted.
    cache_bytes: Gauge = "cache_bytes" [],
        "how full it is, beside `cache.bytes`";
    /// Answers that another replica had made, found in Valkey; each counts as a hit or as shared too.
    cache_replica_found: IntCounter = "cache_replica_found_total" [],
        "what sharing the cache saves";
    /// Answers written to Valkey.
    cache_replica_stored: IntCounter = "cache_replica_stored_total" [],
        "with the found: whether replicas get what others made";
    /// Answers that were to be written to Valkey and are not: it is slow, full or away.
    cache_replica_dropped: IntCounter = "cache_replica_dropped_total" [],
        "a Valkey that does not keep up, or is full";
    /// What was found in Valkey and is no answer.
    cache_replica_rejected: IntCounter = "cache_replica_rejected_total" [],
        "somebody else who writes there";
    /// Blocks of prompts that other replicas told which server holds them.
    prompt_blocks_learned: IntCounter = "prompt_blocks_learned_total" [],
        "whether replicas know of each other's conversations";
    /// Requests refused, by the limit that refused.
    limit_refusals: Family<IntCounter> = "limit_refusals_total" [LIMIT],
        "which limit is too tight, or does its work";
    /// Further tries at a server, by why the one before failed.
    retries: Family<IntCounter> = "retries_total" [RETRY],
        "servers that fail before callers notice";
    /// Further tries that were not made, since the upstream's budget of them was spent.
    retries_withheld: Family<IntCounter> = "retries_withheld_total" [UPSTREAM],
        "servers that fail in numbers";
    /// Requests refused because they had broken off on two servers.
    pub requests_barred: IntCounter = "requests_barred_total" [],
        "a request that crashes llama-server";
    /// Requests that went on to a fallback, by the model that was asked for.
    fallbacks: Family<IntCounter> = "fallbacks_total" [MODEL, FALLBACK],
        "models that do not answer themselves";
    /// Callers that left, by where their request was.
    disconnects: Family<IntCounter> = "client_disconnects_total" [PHASE],
        "callers that lose patience (`waiting`)";
    /// 1 while the server counts as up.
    server_up: Family<Gauge> = "server_up" [UPSTREAM, SERVER],
        "a server that is away";
    /// Slots of a server, by state.
    server_slots: Family<Gauge> = "server_slots" [UPSTREAM, SERVER, STATE],
        "how busy each server is";
    /// A server's breaker: 0 closed, 1 half open (one request tries it), 2 open.
    server_breaker: Family<Gauge> = "server_breaker" [UPSTREAM, SERVER],
        "a server that is there and fails its requests";
    /// Models that a router unloaded for another.
    model_swaps: Family<IntCounter> = "model_swaps_total" [UPSTREAM, SERVER],
        "models that take turns on too little memory";
    /// 1 while Valkey answers; 0 too where replicas share nothing.
    shared_up: Gauge = "shared_up" [],
        "replicas that go on by themselves";
    /// Times that Valkey went away, was too slow or refused to write.
    shared_breaks: IntCounter = "shared_breaks_total" [],
        "a Valkey or a network that is not well";
    /// Times that Valkey did not answer in time, and a replica went on by itself.
    shared_late: IntCounter = "shared_late_total" [],
        "limits that let through more than one bucket holds";
    /// Access log lines that could not be written in time.
    pub log_lines_dropped: IntCounter = "log_lines_dropped_total" [],
        "holes in the access log";
    /// Spans of traces: sent to the collector, failed on the way, or dropped for want of room.
    pub(super) spans: Family<IntCounter> = "trace_spans_total" [SPAN],
        "holes in traces: a collector that is away";
    /// Connections that did not get past their TLS handshake, by why.
    handshake_failures: Family<IntCounter> = "tls_handshake_failures_total" [HANDSHAKE],
        "a certificate that callers do not trust, or scanners";
    /// When a listener's certificate ends, in seconds since 1970; +Inf where it has none.
    certificate_not_after: Family<Gauge> = "tls_certificate_not_after_seconds" [LISTENER],
        "a certificate that nobody has renewed";
    /// Reloads of the file or of the keys file, by result.
    reloads: Family<IntCounter> = "config_reloads_total" [RESULT],
        "when a change came into force";
    /// 1 if the last reload was taken, of either file.
    last_reload: Gauge = "config_last_reload_successful" [],
        "a change that somebody believes in and that is not in force";
    /// 1; the version stands in the label.
    build_info: Family<Gauge> = "build_info" [VERSION],
        "what runs where";
}

/// The families, what may be a label of theirs, and their page.
pub struct Metrics {
    families: Families,
    registry: Registry,
    names: Names,
    /// All requests, whatever became of them.
    pub total: IntCounter,
}

impl Deref for Metrics {
    type Target = Families;

    fn deref(&self) -> &Families {
        &self.families
    }
}

impl Metrics {
    /// Registers every family. Fails only where the table above names one twice.
    pub fn new(labels: &Labels) -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some("ai_gateway".to_owned()), None)?;
        let metrics = Self {
            families: Families::new(&registry)?,
            names: Names::default(),
            total: IntCounter::new("all", "Not exported: the sum for /stats.")?,
            registry,
        };
        metrics.begin();
        metrics.know(labels);
        Ok(metrics)
    }

    /// The page that Prometheus reads (text format 0.0.4), and its content type.
    pub fn page(&self) -> (Vec<u8>, &'static str) {
        let mut page = Vec::new();
        // Writing to a vector cannot fail; an empty family is left out by the encoder.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut page);
        (page, "text/plain; version=0.0.4; charset=utf-8")
    }
}
