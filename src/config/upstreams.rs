//! `upstreams`: named groups of servers.

use std::collections::HashSet;

use super::section::{Field, Section};
use super::value;
use crate::route::{
    Balance, HealthCheck, Kind, QueueBounds, Secret, ServerSpec, ServerUrl, Slots, Timeouts, UpstreamSpec,
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
    let members = field.members();
    if members.is_empty() && (field.is_null() || field.is_mapping()) {
        field.fault(EXAMPLE);
    }
    members.iter().map(|(name, field)| upstream(name, field)).collect()
}

/// One upstream. It stands even where it is faulty, so that the models that name it do not seem wrong too.
fn upstream(name: &str, field: &Field) -> UpstreamSpec {
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
        streamed: false,
    };
    if field.is_scalar() {
        upstream.servers.extend(field.value(|url| url.parse()).map(plain_server));
        return upstream;
    }
    field.section(|section| {
        upstream.servers = servers(section);
        let kinds = [("llama", Kind::Llama), ("openai", Kind::OpenAi)];
        upstream.kind = section.value("kind", value::choice(&kinds)).unwrap_or_default();
        upstream.balance = balance(section).unwrap_or_default();
        upstream.health = section.section("health", health);
        upstream.timeouts = section.section("timeouts", timeouts);
        upstream.retries = section.value("retries", value::number(0..=RETRIES_MAX)).unwrap_or(RETRIES);
        upstream.queue = section.section("queue", queue);
        upstream.streamed = section.value("streamed", value::choice(&[("always", true)])).unwrap_or_default();
        section.idle("isolation", "keys may meet in one KV cache", |field| {
            field.value(value::choice(&[("key", ())]))
        });
    });
    upstream
}

fn balance(section: &mut Section) -> Option<Balance> {
    let balances = [
        ("round_robin", Balance::RoundRobin),
        ("least_busy", Balance::LeastBusy),
        ("prefix", Balance::Prefix),
    ];
    section.value("balance", value::choice(&balances))
}

fn servers(section: &mut Section) -> Vec<ServerSpec> {
    let Some(list) = section.take("servers") else {
        section.missing("servers", EXAMPLE_SERVER);
        return Vec::new();
    };
    let mut names = HashSet::new();
    let mut servers = Vec::new();
    for item in list.some_items(EXAMPLE_SERVER) {
        let Some(server) = item.section(server).flatten() else { continue };
        if !names.insert(server.name.clone()) {
            item.fault(format!(
                "two servers of this upstream are called `{}`; give each its own `name`, or keep one",
                server.name
            ));
        }
        servers.push(server);
    }
    servers
}

fn server(section: &mut Section) -> Option<ServerSpec> {
    let url = section.required("url", "name the server, such as `http://127.0.0.1:8080`", |url| url.parse());
    let api_key = section.value("api_key", |key| Ok(key.to_owned())).filter(|key| !key.is_empty());
    let slots = section.value("slots", slots);
    let name = section.value("name", value::name);
    let weight = section.value("weight", value::small_count);
    section.idle("ca", "servers are reached by plain http", |field| field.value(value::text));
    let mut server = plain_server(url?);
    server.name = name.unwrap_or(server.name);
    server.api_key = api_key.map(Secret);
    server.slots = slots.unwrap_or(server.slots);
    server.weight = weight.unwrap_or(server.weight);
    Some(server)
}

/// A server of which only the URL is written.
fn plain_server(url: ServerUrl) -> ServerSpec {
    let name = url.to_string().trim_start_matches("http://").to_owned();
    ServerSpec { name, url, api_key: None, slots: Slots::Auto, weight: 1 }
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

fn health(section: &mut Section) -> HealthCheck {
    let default = HealthCheck::default();
    HealthCheck {
        path: section.value("path", value::url_path).unwrap_or(default.path),
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
