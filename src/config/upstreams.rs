//! `upstreams`: named groups of servers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::fault::Place;
use super::section::{Field, Section};
use super::{bundle, value};
use crate::route::{
    Balance, CaBundle, HealthCheck, Kind, QueueBounds, Secret, ServerSpec, ServerUrl, Slots, SwapBounds,
    Timeouts, UpstreamSpec,
};

const EXAMPLE: &str = "name at least one server, such as `upstreams: {local: http://127.0.0.1:8080}`";
const EXAMPLE_SERVER: &str = "name at least one server, such as `- url: http://127.0.0.1:8080`";
const RETRIES: u32 = 2;
/// Pingora's own bound.
const RETRIES_MAX: u32 = 16;

/// Each that waits holds a connection and its body.
const QUEUED_MAX: u32 = 100_000;

/// The upstreams, in the file's order.
pub(super) fn read(file: &mut Section) -> Vec<UpstreamSpec> {
    let Some(field) = file.take("upstreams") else {
        file.missing("upstreams", EXAMPLE);
        return Vec::new();
    };
    let members = field.some_members(EXAMPLE);
    let mut known = HashMap::new();
    members
        .iter()
        .map(|(name, field)| {
            let (upstream, places) = upstream(name, field);
            for (server, place) in upstream.servers.iter().zip(&places) {
                one_server(&mut known, &upstream, server, place);
            }
            upstream
        })
        .collect()
}

/// A server as it was written first.
struct Known {
    upstream: String,
    place: Place,
    server: ServerSpec,
    kind: Kind,
    health: HealthCheck,
    swap: SwapBounds,
    isolated: bool,
}

/// One URL is one server, wherever it is written: what is said of it must be the same.
fn one_server(
    known: &mut HashMap<ServerUrl, Known>,
    upstream: &UpstreamSpec,
    server: &ServerSpec,
    field: &Field,
) {
    let Some(first) = known.get(&server.url) else {
        let (place, kind, health) = (field.place(), upstream.kind, upstream.health.clone());
        let (swap, isolated) = (upstream.swap, upstream.isolated);
        let (upstream, server) = (upstream.name.clone(), server.clone());
        known.insert(server.url.clone(), Known { upstream, place, server, kind, health, swap, isolated });
        return;
    };
    let line = first.place.line;
    if first.upstream == upstream.name {
        // Two of one name have their fault already.
        if first.server.name != server.name {
            field.fault(format!(
                "this server stands in line {line} already; keep one, with a larger `weight`"
            ));
        }
        return;
    }
    let differs = [
        ("name", first.server.name != server.name),
        ("api_key", first.server.api_key != server.api_key),
        ("ca", first.server.ca != server.ca),
        ("slots", first.server.slots != server.slots),
        ("kind", first.kind != upstream.kind),
        ("health", first.health != upstream.health),
        ("swap", first.swap != upstream.swap),
        // By the one that does not keep keys apart, they would meet in the other.
        ("isolation", first.isolated != upstream.isolated),
    ];
    let differs: Vec<_> =
        differs.iter().filter(|(_, differs)| *differs).map(|(key, _)| format!("`{key}`")).collect();
    if !differs.is_empty() {
        field.fault(format!(
            "this URL stands in line {line} (`{}`) too, and is one server: the same must be said of its {} in both",
            first.upstream,
            differs.join(", ")
        ));
    }
}

/// One upstream. It stands even where it is faulty, so that the models that name it do not seem wrong too.
/// Beside it, where each of its servers stands.
fn upstream<'a>(name: &str, field: &Field<'a>) -> (UpstreamSpec, Vec<Field<'a>>) {
    if let Err(message) = value::name(name) {
        field.fault(message);
    }
    let mut upstream = UpstreamSpec {
        name: name.to_owned(),
        servers: Vec::new(),
        kind: Kind::default(),
        balance: Balance::default(),
        health: HealthCheck::default(),
        timeouts: Timeouts::default(),
        retries: RETRIES,
        queue: QueueBounds::default(),
        swap: SwapBounds::default(),
        streamed: false,
        isolated: false,
    };
    if field.is_scalar() {
        upstream.servers.extend(field.value(|url| url.parse()).map(plain_server));
        return (upstream, vec![field.clone()]);
    }
    if field.is_list() {
        field.fault(
            "expected the URL of a server or a mapping, found a list: the list stands under `servers:`",
        );
        return (upstream, Vec::new());
    }
    let mut places = Vec::new();
    field.section(|section| {
        let list = section.take("servers");
        let kinds = [("llama", Kind::Llama), ("openai", Kind::OpenAi)];
        upstream.kind = section.value("kind", value::choice(&kinds)).unwrap_or_default();
        (upstream.servers, places) = servers(section, list, upstream.kind).into_iter().unzip();
        upstream.balance = balance(section).unwrap_or_default();
        let kind = upstream.kind;
        upstream.health = section.section("health", |section| health(section, kind));
        upstream.timeouts = section.section("timeouts", timeouts);
        upstream.retries = section.value("retries", value::number(0..=RETRIES_MAX)).unwrap_or(RETRIES);
        upstream.queue = section.section("queue", queue);
        let queue_wait_max = upstream.queue.wait_max;
        upstream.swap = section.section("swap", |section| swap(section, queue_wait_max));
        upstream.streamed = section.value("streamed", value::choice(&[("always", true)])).unwrap_or_default();
        upstream.isolated = isolation(section, upstream.kind);
    });
    (upstream, places)
}

fn isolation(section: &mut Section, kind: Kind) -> bool {
    let Some(field) = section.take("isolation") else { return false };
    let isolated = field.value(value::choice(&[("key", true)])).unwrap_or_default();
    if isolated && kind != Kind::Llama {
        field.fault(
            "keys are kept apart by what llama-server alone reads (`cache_prompt`); leave it out here",
        );
    }
    isolated
}

fn balance(section: &mut Section) -> Option<Balance> {
    let balances = [
        ("round_robin", Balance::RoundRobin),
        ("least_busy", Balance::LeastBusy),
        ("prefix", Balance::Prefix),
    ];
    section.value("balance", value::choice(&balances))
}

fn servers<'a>(section: &Section<'a>, list: Option<Field<'a>>, kind: Kind) -> Vec<(ServerSpec, Field<'a>)> {
    let Some(list) = list else {
        section.missing("servers", EXAMPLE_SERVER);
        return Vec::new();
    };
    let mut names = HashSet::new();
    let mut servers = Vec::new();
    for item in list.some_items(EXAMPLE_SERVER) {
        if item.is_scalar() {
            item.fault("expected a mapping: write `url:` before it, as `- url: http://127.0.0.1:8080`");
            continue;
        }
        let Some(server) = item.section(|section| server(section, kind)).flatten() else { continue };
        if !names.insert(server.name.clone()) {
            item.fault(format!(
                "two servers of this upstream are called `{}`; give each its own `name`, or keep one",
                server.name
            ));
        }
        servers.push((server, item));
    }
    servers
}

fn server(section: &mut Section, kind: Kind) -> Option<ServerSpec> {
    let example = "name the server, such as `http://127.0.0.1:8080`";
    let url = section.required("url", example, |url| ServerUrl::read(url, kind));
    let api_key = section.value("api_key", |key| Ok(key.to_owned())).filter(|key| !key.is_empty());
    let slots = section.value("slots", slots);
    let name = section.value("name", value::name);
    let weight = section.value("weight", value::small_count);
    let ca = section.take("ca");
    let url = url?;
    let ca = ca.and_then(|field| ca_bundle(&field, &url));
    let mut server = plain_server(url);
    server.ca = ca;
    server.name = name.unwrap_or(server.name);
    server.api_key = api_key.map(Secret);
    server.slots = slots.unwrap_or(server.slots);
    server.weight = weight.unwrap_or(server.weight);
    Some(server)
}

/// A server of which only the URL is written.
fn plain_server(url: ServerUrl) -> ServerSpec {
    ServerSpec { name: url.authority(), url, api_key: None, ca: None, slots: Slots::Auto, weight: 1 }
}

/// Whom an `https` server's certificate must come from.
fn ca_bundle(field: &Field, url: &ServerUrl) -> Option<Arc<CaBundle>> {
    if url.tls {
        return bundle::read(field);
    }
    field.warn("is not used: the server is reached by plain http");
    field.value(value::text);
    None
}

fn slots(text: &str) -> value::Read<Slots> {
    match text {
        "auto" => Ok(Slots::Auto),
        _ => value::small_count(text)
            .map(Slots::Fixed)
            .or_else(|_| value::expected("`auto` or a count of at least 1", text)),
    }
}

fn queue(section: &mut Section) -> QueueBounds {
    let default = QueueBounds::default();
    QueueBounds {
        waiting_max: section.value("waiting", value::number(0..=QUEUED_MAX)).unwrap_or(default.waiting_max),
        wait_max: section.value("wait", value::duration).unwrap_or(default.wait_max),
    }
}

/// When a router gives up a model for another. Nobody waits longer than in the queue.
fn swap(section: &mut Section, queue_wait_max: Duration) -> SwapBounds {
    let default = SwapBounds::default();
    let least_residency = section.value("least_residency", value::duration);
    let longest_wait = section.value("longest_wait", |text| match value::duration(text)? {
        wait if wait >= queue_wait_max => {
            value::expected("less than `queue.wait`, after which nobody waits", text)
        }
        wait => Ok(wait),
    });
    SwapBounds {
        least_residency: least_residency.unwrap_or(default.least_residency),
        longest_wait: longest_wait.unwrap_or(default.longest_wait),
    }
}

/// Only llama-server is known to have a place to ask at.
fn health(section: &mut Section, kind: Kind) -> HealthCheck {
    let default = HealthCheck::default();
    let usual = default.path.filter(|_| kind == Kind::Llama);
    HealthCheck {
        path: section.value("path", value::url_path).or(usual),
        every: section.value("every", value::period).unwrap_or(default.every),
        timeout: section.value("timeout", value::period).unwrap_or(default.timeout),
        down_after: section.value("down_after", value::small_count).unwrap_or(default.down_after),
        up_after: section.value("up_after", value::small_count).unwrap_or(default.up_after),
    }
}

fn timeouts(section: &mut Section) -> Timeouts {
    let default = Timeouts::default();
    Timeouts {
        connect: section.value("connect", value::time_limit).unwrap_or(default.connect),
        first_byte: section.value("first_byte", value::time_limit).unwrap_or(default.first_byte),
        between_bytes: section.value("between_bytes", value::time_limit).unwrap_or(default.between_bytes),
        total: section.value("total", value::time_limit).unwrap_or(default.total),
    }
}
