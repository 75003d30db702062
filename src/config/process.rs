//! `server` and `log`: the process. Keys of `server` that are not ours are Pingora's own.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::section::{Field, Section};
use super::settings::{AccessLog, Log, LogFormat, Server};
use super::value::{self, Read};

const THREADS_MAX: usize = 1024;
const GRACE_PERIOD_SECONDS: u64 = 900;
/// Pingora's own.
const UPGRADE_SOCK: &str = "/tmp/pingora_upgrade.sock";
const GRACE_PERIOD_SECONDS_MAX: u64 = 7 * 86_400;

/// What Pingora accepts for one of its keys.
enum Kind {
    Switch,
    /// A whole number from this one on.
    From(u64),
    Between(u64, u64),
    /// As `From(0)`, or `null`.
    FromZeroOrNull,
    Text,
    Ipv4Addresses,
    Ipv6Addresses,
    Scale,
}

/// The keys of `ServerConf` in pingora-core 0.9.1, without those that are ours. Pingora ignores a key that it
/// does not know, so that a typing error would go unnoticed: hence the table.
const PINGORA: [(&str, Kind); 32] = [
    ("daemon", Kind::Switch),
    ("error_log", Kind::Text),
    ("pid_file", Kind::Text),
    ("upgrade_sock", Kind::Text),
    ("user", Kind::Text),
    ("group", Kind::Text),
    ("working_directory", Kind::Text),
    ("listener_tasks_per_fd", Kind::From(1)),
    ("work_stealing", Kind::Switch),
    ("runtime_enable_alt_timer", Kind::Switch),
    ("ca_file", Kind::Text),
    ("graceful_shutdown_timeout_seconds", Kind::From(0)),
    ("client_bind_to_ipv4", Kind::Ipv4Addresses),
    ("client_bind_to_ipv6", Kind::Ipv6Addresses),
    ("upstream_keepalive_pool_size", Kind::From(0)),
    ("upstream_connect_offload_threadpools", Kind::From(0)),
    ("upstream_connect_offload_thread_per_pool", Kind::From(0)),
    ("downstream_tls_offload_threadpools", Kind::From(0)),
    ("downstream_tls_offload_thread_per_pool", Kind::From(0)),
    ("upstream_debug_ssl_keylog", Kind::Switch),
    ("max_retries", Kind::From(0)),
    ("upgrade_sock_connect_accept_max_retries", Kind::From(0)),
    ("max_blocking_threads", Kind::From(1)),
    ("blocking_threads_ttl_seconds", Kind::From(0)),
    ("fast_timeout_to_tokio_threshold_seconds", Kind::FromZeroOrNull),
    ("runtime_metrics_poll_time_histogram", Kind::Switch),
    ("runtime_metrics_poll_time_histogram_scale", Kind::Scale),
    ("runtime_metrics_poll_time_histogram_resolution_micros", Kind::From(1)),
    ("runtime_metrics_poll_time_histogram_buckets", Kind::Between(1, 1024)),
    ("daemon_wait_for_ready", Kind::Switch),
    ("daemon_ready_timeout_seconds", Kind::From(1)),
    ("daemon_notify_timeout_seconds", Kind::From(1)),
];

/// Keys that say how connections to servers are made, which only Pingora does so.
const PINGORA_CONNECTS: [&str; 2] = ["client_bind_to_ip", "upstream_connect_offload"];

/// Idle connections to servers in plain text, where the file says no number. (Pingora's own, by TLS: 128.)
const IDLE_CONNECTIONS: usize = 1024;

pub(super) fn server(section: &mut Section) -> Server {
    let threads = section.value("threads", value::number(0..=THREADS_MAX)).unwrap_or(0);
    let grace_period = section
        .value("grace_period_seconds", value::number(0..=GRACE_PERIOD_SECONDS_MAX))
        .unwrap_or(GRACE_PERIOD_SECONDS);
    let pre_stop = section.value("pre_stop", value::duration).unwrap_or_default();
    let mut pingora = "version: 1\n".to_owned();
    // 0 is ours: Pingora wants a number, which the process knows and the file does not.
    if threads > 0 {
        line(&mut pingora, "threads", &Value::from(threads));
    }
    let (mut pid_file, mut upgrade_sock) = (None, None);
    let mut idle_max = Some(IDLE_CONNECTIONS);
    for (key, kind) in PINGORA {
        if let Some(value) = section.take(key).and_then(|field| pingora_value(&field, &kind)) {
            line(&mut pingora, key, &value);
            match key {
                "pid_file" => pid_file = value.as_str().map(PathBuf::from),
                "upgrade_sock" => upgrade_sock = value.as_str().map(PathBuf::from),
                "upstream_keepalive_pool_size" => {
                    let told = value.as_u64().and_then(|max| max.try_into().ok());
                    idle_max = idle_max.and(told);
                }
                key if PINGORA_CONNECTS.iter().any(|way| key.starts_with(way)) => idle_max = None,
                _ => {}
            }
        }
    }
    // Beside the pid file, so that several gateways on one machine do not meet each other's successors.
    let beside = || pid_file.as_ref().map(|file| PathBuf::from(format!("{}.upgrade", file.display())));
    let upgrade_sock = upgrade_sock.or_else(beside).unwrap_or_else(|| UPGRADE_SOCK.into());
    let grace_period = Duration::from_secs(grace_period);
    Server { threads, grace_period, pre_stop, pid_file, upgrade_sock, idle_max, pingora }
}

/// One line of YAML. JSON is YAML too, and its quoting is safe for any text.
fn line(yaml: &mut String, key: &str, value: &Value) {
    let _ = writeln!(yaml, "{key}: {value}");
}

fn pingora_value(field: &Field, kind: &Kind) -> Option<Value> {
    match kind {
        Kind::FromZeroOrNull if field.is_null() => Some(Value::Null),
        Kind::Switch => field.value(value::switch).map(Value::from),
        Kind::From(min) => field.value(value::number(*min..=u64::from(u32::MAX))).map(Value::from),
        Kind::Between(min, max) => field.value(value::number(*min..=*max)).map(Value::from),
        Kind::FromZeroOrNull => field.value(value::number(0..=u64::from(u32::MAX))).map(Value::from),
        Kind::Text => field.value(value::text).map(Value::from),
        Kind::Ipv4Addresses => Some(Value::from(field.values(ip::<Ipv4Addr>))),
        Kind::Ipv6Addresses => Some(Value::from(field.values(ip::<Ipv6Addr>))),
        Kind::Scale => field.value(value::choice(&[("linear", "linear"), ("log", "log")])).map(Value::from),
    }
}

/// The text of an address of this family. Pingora panics over one that is not.
fn ip<T: FromStr>(text: &str) -> Read<String> {
    match text.parse::<T>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => value::expected("an address of this family, without a port", text),
    }
}

pub(super) fn log(section: &mut Section) -> Log {
    let access = section.take("access");
    let formats = [("json", LogFormat::Json), ("text", LogFormat::Text)];
    let mut log = Log {
        access: access.and_then(|field| access_log(&field)).unwrap_or(AccessLog::Stdout),
        format: section.value("format", value::choice(&formats)).unwrap_or(LogFormat::Json),
        level: section.value("level", level).unwrap_or(log::LevelFilter::Info),
        prompts: false,
    };
    if let Some(prompts) = section.take("prompts") {
        log.prompts = prompts.value(value::switch) == Some(true);
        match (log.prompts, log.format, &log.access) {
            (false, ..) => {}
            (true, LogFormat::Json, AccessLog::Stdout | AccessLog::File(_)) => {
                prompts
                    .warn("has prompts and answers written into the access log: whoever reads it reads them");
            }
            _ => prompts.warn("does nothing: prompts and answers are written in `log.format: json` alone"),
        }
    }
    log
}

fn access_log(field: &Field) -> Option<AccessLog> {
    field.value(|text| match text {
        "stdout" => Ok(AccessLog::Stdout),
        "none" => Ok(AccessLog::None),
        // A misspelled word would be a file's name otherwise.
        path if path.contains(['/', '.']) => Ok(AccessLog::File(field.resolve(path))),
        _ => value::expected("`stdout`, `none` or a file's path with a `/` or a `.` in it", text),
    })
}

fn level(text: &str) -> Read<log::LevelFilter> {
    use log::LevelFilter::{Debug, Error, Info, Off, Trace, Warn};
    let levels =
        [("off", Off), ("error", Error), ("warn", Warn), ("info", Info), ("debug", Debug), ("trace", Trace)];
    value::choice(&levels)(text)
}
