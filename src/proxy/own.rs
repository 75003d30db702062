//! What the gateway knows by itself: whether it is well, what it has done, which models it has.

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::cache::Dealings;
use crate::limit::{Budget, Goods, Kind, Quota};
use crate::observe::{ANYBODY, BreakerState, ServerState};
use crate::route::{Breaker, Row, Server};
use crate::store::Period;
use crate::wire::MODEL_PREFIX;

use super::context::Caller;
use super::cost;
use super::gateway::Gateway;
use super::refusal::Refusal;
use super::roster::Member;

/// A status and its JSON.
pub(crate) type Report = (StatusCode, String);

/// `{"status":"ok"}` while the gateway serves and some server is up.
pub(crate) fn health(gateway: &Gateway) -> Report {
    if gateway.is_ready() && gateway.fleet.some_server_is_well() {
        status(StatusCode::OK, "ok")
    } else {
        status(StatusCode::SERVICE_UNAVAILABLE, "no upstream")
    }
}

/// Alive: it answers.
pub(crate) fn live(_: &Gateway) -> Report {
    status(StatusCode::OK, "ok")
}

/// Ready for more: until it drains.
pub(crate) fn ready(gateway: &Gateway) -> Report {
    if gateway.is_ready() {
        status(StatusCode::OK, "ok")
    } else {
        status(StatusCode::SERVICE_UNAVAILABLE, "draining")
    }
}

fn status(status: StatusCode, word: &str) -> Report {
    (status, json!({"status": word}).to_string())
}

/// Totals.
pub(crate) fn stats(gateway: &Gateway) -> Report {
    (StatusCode::OK, Value::Object(totals(gateway)).to_string())
}

/// Totals, and every server: for the operator.
pub(crate) fn detailed_stats(gateway: &Gateway) -> Report {
    let mut stats = totals(gateway);
    stats.insert("servers".to_owned(), servers(gateway));
    let members = gateway.roster().map(|roster| roster.members().to_vec()).unwrap_or_default();
    let keys = members.iter().map(|member| {
        json!({"name": member.name, "in_flight": member.account.own().at_once(), "used": used(gateway, &member.name)})
    });
    stats.insert("keys".to_owned(), keys.collect());
    (StatusCode::OK, Value::Object(stats).to_string())
}

/// Every server in each of its upstreams.
pub(super) fn servers(gateway: &Gateway) -> Value {
    let told = gateway.fleet.places().map(|(upstream, server)| {
        json!({
            "upstream": upstream.spec.name,
            "server": server.spec.name,
            "url": server.spec.url.to_string(),
            "up": server.is_well(),
            "breaker": breaker(server).name(),
            "draining": server.is_draining(),
            "in_flight": server.in_flight(),
            "slots": server.slots(),
            "waiting": upstream.waiting(),
            "models": server.report().map(|report| report.model_ids().map(str::to_owned).collect::<Vec<_>>()),
            "router": router(server),
        })
    });
    told.collect()
}

fn breaker(server: &Server) -> BreakerState {
    match server.breaker() {
        Breaker::Closed => BreakerState::Closed,
        Breaker::HalfOpen { .. } => BreakerState::HalfOpen,
        Breaker::Open => BreakerState::Open,
    }
}

/// Each model of a router.
fn router(server: &Server) -> Option<Vec<Value>> {
    let told = |row: &Row| {
        json!({
            "model": &*row.model,
            "state": row.state,
            "in_flight": row.in_flight,
            "slots": row.slots,
            "waiting": server.waiting_for(&row.model),
        })
    };
    Some(server.rows()?.iter().map(told).collect())
}

pub(super) fn totals(gateway: &Gateway) -> Map<String, Value> {
    let holding = gateway.store.holding();
    let metrics = &gateway.metrics;
    let totals = [
        ("version", Value::from(env!("CARGO_PKG_VERSION"))),
        ("uptime_seconds", gateway.clock.uptime().as_secs().into()),
        ("requests", metrics.total.get().into()),
        ("in_flight", metrics.in_flight.get().into()),
        ("queue", metrics.queue_requests.get().into()),
        ("hits", metrics.cache_hits.get().into()),
        ("misses", metrics.cache_misses.get().into()),
        ("shared", metrics.cache_shared.get().into()),
        ("saved_tokens", metrics.cache_saved_tokens.get().into()),
        ("saved_seconds", round(metrics.cache_saved_seconds.get()).into()),
        ("cache_size", holding.bytes.into()),
        ("cache_capacity", holding.bytes_max.into()),
        ("cache_entries", holding.entries.into()),
    ];
    totals.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// To milliseconds.
fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// The models that a key may use (`None`: an open gateway).
fn models(gateway: &Gateway, key: Option<&Member>) -> Vec<Map<String, Value>> {
    let may_use = |model: &Map<String, Value>| {
        key.is_none_or(|key| key.may_use(model["id"].as_str().unwrap_or_default()))
    };
    gateway.fleet.models().into_iter().filter(may_use).collect()
}

pub(super) fn model_list(gateway: &Gateway, key: Option<&Member>) -> Report {
    (StatusCode::OK, json!({"object": "list", "data": models(gateway, key)}).to_string())
}

/// One model, by the end of its path, percent-decoded.
pub(super) fn model(gateway: &Gateway, key: Option<&Member>, path: &str) -> Result<Report, Refusal> {
    let encoded = path.strip_prefix(MODEL_PREFIX).unwrap_or_default();
    let id = percent_encoding::percent_decode_str(encoded).decode_utf8_lossy().into_owned();
    let found = models(gateway, key).into_iter().find(|model| model["id"] == id.as_str());
    found.map(|model| (StatusCode::OK, Value::Object(model).to_string())).ok_or(Refusal::ModelNotFound(id))
}

/// What a key has used today and this month, UTC.
pub(super) fn used(gateway: &Gateway, key: &str) -> Value {
    let now = gateway.clock.wall();
    let told = |period| gateway.ledger.spent(key, period, now);
    json!({"day": told(Period::Day), "month": told(Period::Month)})
}

/// What the caller's own key has used and may still use.
pub(super) fn usage(gateway: &Gateway, caller: Option<&Caller>) -> Report {
    let name = caller.map_or(ANYBODY, |caller| caller.member.name.as_str());
    let mut told =
        Map::from_iter([("key".to_owned(), name.into()), ("used".to_owned(), used(gateway, name))]);
    if let Some(caller) = caller {
        told.insert("limits".to_owned(), limits(gateway, caller.member.account.own()));
        told.insert("budgets".to_owned(), budgets(gateway, &caller.member));
    }
    (StatusCode::OK, Value::Object(told).to_string())
}

/// What a subject may still ask, of each limit that it has.
pub(super) fn limits(gateway: &Gateway, quota: &Quota) -> Value {
    let now = gateway.clock.now();
    let mut limits = Map::new();
    for (kind, word) in [(Kind::Requests, "requests"), (Kind::Tokens, "tokens")] {
        if let Some(level) = quota.level(kind, now) {
            let reset = round(level.reset.as_secs_f64());
            let level = json!({"limit": level.limit, "remaining": level.remaining, "reset_seconds": reset});
            limits.insert(word.to_owned(), level);
        }
    }
    if let Some(most) = quota.allowance().concurrent {
        limits.insert("concurrent".to_owned(), json!({"limit": most, "now": quota.at_once()}));
    }
    limits.into()
}

/// What a key may still spend, of each budget that it has.
pub(super) fn budgets(gateway: &Gateway, key: &Member) -> Value {
    let told = |budget: &Budget| {
        let spent = cost::spent(gateway, &key.name, budget);
        let used = match budget.goods {
            Goods::Requests => spent.requests,
            Goods::Tokens => spent.tokens,
        };
        json!({
            "of": budget.goods.name(),
            "per": budget.per.name(),
            "amount": budget.amount,
            "used": used,
            "remaining": budget.amount.saturating_sub(used),
            "reset_seconds": spent.ends_in.as_secs(),
        })
    };
    key.account.grant().budgets.iter().map(told).collect()
}

/// `/metrics`, with what is counted elsewhere brought up to date.
pub(crate) fn metrics(gateway: &Gateway) -> (Vec<u8>, &'static str) {
    let holding = gateway.store.holding();
    gateway.metrics.set_cache(holding.bytes, holding.stored, holding.evicted);
    if let Some(shared) = &gateway.shared {
        let link = shared.link();
        gateway.metrics.set_shared(link.is_up(), link.breaks(), link.lates());
    }
    if let Some(depot) = &gateway.depot {
        let Dealings { found, stored, dropped, rejected } = depot.dealings();
        gateway.metrics.set_cache_replicas([found, stored, dropped, rejected]);
    }
    if let Some(exchange) = &gateway.exchange {
        gateway.metrics.set_prompts_learned(exchange.learned());
    }
    let places = gateway.fleet.places().map(|(upstream, server)| ServerState {
        upstream: &upstream.spec.name,
        server: &server.spec.name,
        up: server.is_well(),
        breaker: breaker(server),
        in_flight: server.in_flight(),
        slots: server.slots(),
    });
    let servers: Vec<_> = places.collect();
    gateway.metrics.set_servers(&servers);
    gateway.metrics.page()
}
