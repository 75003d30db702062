//! What the operator's page shows: how things stand, the last hour, the last requests. Told whole once, and then only
//! what is new.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::config::Settings;
use crate::observe::{ANYBODY, Gauges, Hour, STEP, Step, Totals};

use super::gateway::Gateway;
use super::own;

/// Keys that are told of: those that have requests under way or have used most today. A page of more is read by nobody.
const KEYS_TOLD_MAX: usize = 200;

/// What a page has been told already: the numbers that come next.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Told {
    steps: u64,
    requests: u64,
}

/// Ends a step of the last hour, where one is due.
pub(crate) fn tick(gateway: &Gateway) {
    gateway.hour.tick(gateway.clock.now(), gauges(gateway), || gateway.metrics.totals());
}

/// How things stand, and what the page has not been told. `with_keys`: they too, which costs more.
pub(crate) fn news(gateway: &Gateway, told: &mut Told, with_keys: bool) -> String {
    let steps = gateway.hour.steps(told.steps);
    let requests = gateway.recent.since(told.requests);
    told.steps = steps.last().map_or(told.steps, |step| step.number + 1);
    told.requests = requests.last().map_or(told.requests, |passed| passed.number + 1);
    let mut news = Map::from_iter([
        ("at".to_owned(), gateway.clock.wall().as_millisecond().into()),
        ("ready".to_owned(), gateway.is_ready().into()),
        ("well".to_owned(), gateway.fleet.some_server_is_well().into()),
        ("totals".to_owned(), own::totals(gateway).into()),
        ("minute".to_owned(), minute(gateway, &gateway.hour)),
        ("servers".to_owned(), own::servers(gateway)),
        ("steps".to_owned(), steps.iter().map(|step| row(gateway, step)).collect()),
        ("requests".to_owned(), json!(requests)),
    ]);
    if with_keys {
        news.insert("access".to_owned(), access(gateway));
    }
    Value::Object(news).to_string()
}

fn gauges(gateway: &Gateway) -> Gauges {
    let count = |gauge: i64| u64::try_from(gauge).unwrap_or_default();
    Gauges {
        queue: count(gateway.metrics.queue_requests.get()),
        in_flight: count(gateway.metrics.in_flight.get()),
    }
}

fn minute(gateway: &Gateway, hour: &Hour) -> Value {
    let (counted, took) = hour.minute(gateway.clock.now(), &gateway.metrics.totals());
    let mut told = counts(&counted);
    told.insert("seconds".to_owned(), seconds(took).into());
    told.into()
}

/// A step of the hour, with the time that it ended at on the wall.
fn row(gateway: &Gateway, step: &Step) -> Value {
    let age = gateway.clock.now().saturating_sub(step.end);
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    let mut told = counts(&step.counted);
    told.insert("at".to_owned(), gateway.clock.wall().as_millisecond().saturating_sub(age).into());
    told.insert("seconds".to_owned(), seconds(step.took.max(STEP)).into());
    told.insert("queue".to_owned(), step.most.queue.into());
    told.insert("in_flight".to_owned(), step.most.in_flight.into());
    told.into()
}

fn counts(counted: &Totals) -> Map<String, Value> {
    let first = |part| counted.first_token.quantile(part).map(|time| (time * 1000.0).round());
    let counts = [
        ("requests", json!(counted.requests)),
        ("refused", json!(counted.refused)),
        ("failed", json!(counted.failed)),
        ("left", json!(counted.left)),
        ("hits", json!(counted.hits)),
        ("misses", json!(counted.misses)),
        ("shared", json!(counted.shared)),
        ("tokens_in", json!(counted.tokens_in)),
        ("tokens_out", json!(counted.tokens_out)),
        ("ttft_p50_ms", json!(first(0.5))),
        ("ttft_p95_ms", json!(first(0.95))),
    ];
    counts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn seconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 10.0).round() / 10.0
}

/// Who may ask, how much, and which models there are.
fn access(gateway: &Gateway) -> Value {
    let roster = gateway.roster();
    let members = roster.as_ref().map(|roster| roster.members().to_vec()).unwrap_or_default();
    let mut keys: Vec<Value> = members
        .iter()
        .map(|member| {
            json!({
                "name": member.name,
                "in_flight": member.account.own().at_once(),
                "used": own::used(gateway, &member.name),
                "limits": own::limits(gateway, member.account.own()),
                "budgets": own::budgets(gateway, member),
            })
        })
        .collect();
    if roster.is_none() {
        keys.push(json!({"name": ANYBODY, "in_flight": gateway.metrics.in_flight.get(),
            "used": own::used(gateway, ANYBODY), "limits": {}, "budgets": []}));
    }
    let count = keys.len();
    keys.sort_by_key(|key| {
        let today = &key["used"]["day"];
        let count = |name: &str| today[name].as_u64().unwrap_or_default();
        let tokens = count("prompt_tokens").saturating_add(count("completion_tokens"));
        std::cmp::Reverse((key["in_flight"].as_i64(), tokens, count("requests")))
    });
    keys.truncate(KEYS_TOLD_MAX);
    let models = gateway.fleet.models();
    json!({
        "asks_for_key": roster.is_some(),
        "keys": keys,
        "keys_count": count,
        "limits": own::limits(gateway, gateway.gate.own()),
        "models": models.iter().filter_map(|model| model.get("id")).collect::<Vec<_>>(),
    })
}

/// Where callers ask, as a page that was opened at `host` reaches it. By TLS a name counts, and only that one is known.
pub(crate) fn callers_origin(settings: &Settings, host: &str) -> Option<String> {
    let listener = settings.listen.first()?;
    let (address, port) = (listener.address, listener.address.port());
    Some(match &listener.tls {
        Some(_) => format!("https://{host}:{port}"),
        None if address.ip().is_unspecified() => format!("http://{host}:{port}"),
        None => format!("http://{address}"),
    })
}
