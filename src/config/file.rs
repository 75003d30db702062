//! The whole file: its sections, in the order of the page that describes them.

use super::section::{Field, Section};
use super::settings::{AnswerHeaders, Body, Cors, Settings};
use super::{keys, limits, listen, models, process, shared, telemetry, upstreams, value};
use crate::cache::{CachePolicy, Scope};

const BODY_BYTES_MAX: u64 = 32 << 20;
const BODY_BYTES_TOTAL_MAX: u64 = 512 << 20;
const BODY_IDLE: std::time::Duration = std::time::Duration::from_secs(30);

pub(super) fn read(root: &Field) -> Option<Settings> {
    root.section(|file| {
        let mut taken = listen::Taken::default();
        let listen = listen::callers(file, &mut taken);
        let admin = listen::admin(file, &mut taken);
        let metrics = listen::metrics(file, &mut taken);
        let connections = file.section("connections", listen::connections);
        let upstreams = upstreams::read(file);
        let models = models::read(file, &upstreams);
        let (keys, keys_file) = keys::read(file, taken.certificates_asked)
            .map_or((None, None), |auth| (Some(auth.keys), auth.keys_file));
        let trusted_proxies = file.values("trusted_proxies", value::network).unwrap_or_default();
        let limits = file.section("limits", limits::read);
        let cache = file.section("cache", cache);
        let body = file.section("body", body);
        let cors = file.section("cors", |cors| cors.values("origins", value::origin));
        let answer_headers = answer_headers(file);
        let shared = file.section("shared", shared::read);
        let usage = file.section("usage", |usage| {
            let path = usage.take("path")?;
            path.value(value::text).map(|text| path.resolve(text))
        });
        let log = file.section("log", process::log);
        let telemetry = file.section("telemetry", telemetry::read);
        let server = file.section("server", process::server);
        let hosts = (root.source().environment)("GATEWAY_HOSTS_FILE").filter(|path| !path.is_empty());
        let cors = match cors {
            Some(origins) if origins.iter().any(|origin| origin == "*") => Cors::Any,
            Some(origins) => Cors::Listed(origins),
            None if keys.is_some() => Cors::Any,
            None => Cors::Loopback,
        };
        Settings {
            listen,
            admin,
            metrics,
            connections,
            upstreams,
            models,
            keys,
            keys_file,
            trusted_proxies,
            limits,
            cache,
            body,
            cors,
            answer_headers,
            shared,
            usage,
            log,
            telemetry,
            server,
            hosts: hosts.map(Into::into),
        }
    })
}

fn cache(section: &mut Section) -> CachePolicy {
    let default = CachePolicy::default();
    let scopes = [("key", Scope::Key), ("gateway", Scope::Gateway)];
    CachePolicy {
        ttl: section.value("ttl", value::duration).unwrap_or(default.ttl),
        size_bytes_max: section.value("size", value::size).unwrap_or(default.size_bytes_max),
        entry_bytes_max: section.value("entry", value::size_above_zero).unwrap_or(default.entry_bytes_max),
        scope: section.value("scope", value::choice(&scopes)).unwrap_or(default.scope),
        answers: section.value("answers", value::answers).unwrap_or(default.answers),
    }
}

fn body(section: &mut Section) -> Body {
    let bytes_max = section.value("max", value::size_above_zero).unwrap_or(BODY_BYTES_MAX);
    let total = section.take("total");
    let bytes_total_max = total.as_ref().and_then(|field| field.value(value::size_above_zero));
    if let (Some(field), Some(bytes_total_max)) = (total, bytes_total_max)
        && bytes_total_max < bytes_max
    {
        field.fault(format!("expected room for at least one body of `body.max`, {bytes_max} bytes"));
    }
    let remote_media = [("deny", false), ("allow", true)];
    Body {
        bytes_max,
        bytes_total_max: bytes_total_max.unwrap_or(BODY_BYTES_TOTAL_MAX.max(bytes_max)),
        idle: section.value("idle", value::period).unwrap_or(BODY_IDLE),
        remote_media: section.value("remote_media", value::choice(&remote_media)).unwrap_or(false),
    }
}

fn answer_headers(file: &mut Section) -> AnswerHeaders {
    let names = [("server", "server"), ("model", "model")];
    let named = file.values("answer_headers", value::choice(&names)).unwrap_or_default();
    AnswerHeaders { server: named.contains(&"server"), model: named.contains(&"model") }
}
