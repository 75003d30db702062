//! The process's environment: variables in the file, and a gateway without a file.

use std::env::VarError;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::fault::{Fault, Faults, Report};
use super::source::Environment;
use super::value::{self, Read};
use super::{Loaded, from_text};
use crate::auth::KeyHash;
use crate::route::ServerUrl;

/// What a gateway without a file runs under, written as a file. Everything else is the file's defaults.
const NO_FILE: &str = "\
listen: [{address: '${ADDRESS}'}]
upstreams: {local: '${URL}'}
limits: {gateway: {requests: 5/s, burst: 10}}
";

/// What follows where `GATEWAY_KEY` is set.
const NO_FILE_KEY: &str = "auth: {keys: [{name: default, sha256: '${KEY_SHA256}'}]}\n";

/// What follows where `GATEWAY_METRICS` is set.
const NO_FILE_METRICS: &str = "metrics: {listen: '${METRICS}'}\n";

/// The process's own environment. A variable that is not UTF-8 counts as set all the same: a `GATEWAY_KEY` that
/// cannot be read must not leave the gateway open.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn process_environment(name: &str) -> Option<String> {
    match std::env::var(name) {
        Ok(value) => Some(value),
        Err(VarError::NotUnicode(value)) => Some(value.to_string_lossy().into_owned()),
        Err(VarError::NotPresent) => None,
    }
}

/// The settings of a gateway that was given no file, from `LLM_URL`, `GATEWAY_HOST`, `GATEWAY_PORT`, `GATEWAY_KEY` and
/// `GATEWAY_METRICS`. A variable that is empty counts as not set.
pub fn from_environment(environment: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Faults> {
    let report = Report::new("");
    let variable = |name: &str| environment(name).filter(|text| !text.is_empty());

    let url = read(
        &report,
        "LLM_URL",
        variable,
        ServerUrl { tls: false, host: "localhost".to_owned(), port: 8080, base: String::new() },
        str::parse,
    );
    let host = read(&report, "GATEWAY_HOST", variable, IpAddr::V4(Ipv4Addr::LOCALHOST), host);
    let port = read(&report, "GATEWAY_PORT", variable, 9001, |text| {
        text.parse()
            .ok()
            .filter(|&port| port > 0)
            .map_or_else(|| value::expected("a port from 1 to 65535", text), Ok)
    });
    let key = variable("GATEWAY_KEY");
    let metrics = read(&report, "GATEWAY_METRICS", variable, None, |text| value::address(text).map(Some));
    report.close()?;

    let text = [
        NO_FILE,
        if key.is_some() { NO_FILE_KEY } else { "" },
        if metrics.is_some() { NO_FILE_METRICS } else { "" },
    ]
    .concat();
    from_text(&text, "environment", &|name| match name {
        "ADDRESS" => Some(SocketAddr::new(host, port).to_string()),
        "URL" => Some(url.to_string()),
        "GATEWAY_HOSTS_FILE" => environment(name),
        "METRICS" => metrics.map(|address| address.to_string()),
        "KEY_SHA256" => key.as_ref().map(|key| KeyHash::of(key.trim().as_bytes()).to_string()),
        _ => None,
    })
}

fn host(text: &str) -> Read<IpAddr> {
    match text {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => text
            .parse()
            .or_else(|_| value::expected("an address such as `127.0.0.1`, `0.0.0.0` or `::`", text)),
    }
}

/// Reads one variable. A fault is noted, and the default stands in until the report is closed.
fn read<T>(
    report: &Report,
    name: &str,
    variable: impl Fn(&str) -> Option<String>,
    default: T,
    read: impl FnOnce(&str) -> Read<T>,
) -> T {
    match variable(name).map(|text| read(&text)) {
        None => default,
        Some(Ok(value)) => value,
        Some(Err(message)) => {
            report.fault(Fault { file: String::new(), place: None, path: name.to_owned(), message });
            default
        }
    }
}

/// Fills in `${NAME}` and `${NAME:-default}`; the default stands for a variable that is unset or empty, as in a
/// shell. `$${` is a literal `${`. What is filled in is not looked at again.
pub(super) fn interpolate(text: &str, environment: Environment) -> Read<String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, reference) = (&rest[..start], &rest[start + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            filled.push_str(before);
            filled.push_str("${");
            rest = reference;
            continue;
        }
        filled.push_str(before);
        let end =
            reference.find('}').ok_or("a `${` is never closed by `}`; for a literal `${` write `$${`")?;
        filled.push_str(&look_up(&reference[..end], environment)?);
        rest = &reference[end + 1..];
    }
    filled.push_str(rest);
    Ok(filled)
}

/// The value of what stands between `${` and `}`.
fn look_up(reference: &str, environment: Environment) -> Read<String> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let word = name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric());
    if name.is_empty() || !word || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!(
            "expected the name of a variable, found `${{{reference}}}`; for a literal `${{` write `$${{`"
        ));
    }
    match (environment(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            Err(format!("the environment has no `{name}`; set it, or give a default: `${{{name}:-…}}`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Cors;
    use crate::limit::Rate;

    fn environment<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> {
        move |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn variables_are_filled_in() {
        let environment = environment(&[("A", "alpha"), ("EMPTY", ""), ("NESTED", "${A}"), ("_B2", "b")]);
        for (text, filled) in [
            ("plain", "plain"),
            ("${A}", "alpha"),
            ("http://${A}:${_B2}/", "http://alpha:b/"),
            ("${NONE:-http://localhost:8080}", "http://localhost:8080"),
            ("${EMPTY:-default}", "default"),
            ("${A:-default}", "alpha"),
            ("[${EMPTY}]", "[]"),
            ("${NONE:-}", ""),
            ("$${A} costs $5 $$", "${A} costs $5 $$"),
            ("$${A} is ${A}", "${A} is alpha"),
            ("${NESTED}", "${A}"),
            ("ä${A}ö", "äalphaö"),
        ] {
            assert_eq!(interpolate(text, &environment), Ok(filled.to_owned()), "{text}");
        }
        for (text, says) in [
            ("${NONE}", "the environment has no `NONE`"),
            ("${A", "never closed"),
            ("${}", "expected the name of a variable"),
            ("${1A}", "expected the name of a variable"),
            ("${A B}", "expected the name of a variable"),
            ("${A:default}", "expected the name of a variable"),
        ] {
            let message = interpolate(text, &environment).unwrap_err();
            assert!(message.contains(says), "{text}: {message}");
        }
    }

    #[test]
    fn nothing_set_is_a_whole_gateway() {
        let settings = from_environment(&|_| None).unwrap().settings;
        assert_eq!(settings.listen[0].address, "127.0.0.1:9001".parse().unwrap());
        assert_eq!(settings.admin.listen.address, "127.0.0.1:9002".parse().unwrap());
        assert!(!settings.admin.named && settings.keys.is_none() && settings.models.is_empty());
        assert!(settings.metrics.is_none());
        assert_eq!(settings.upstreams.len(), 1);
        assert_eq!(settings.upstreams[0].name, "local");
        assert_eq!(settings.upstreams[0].servers[0].name, "localhost:8080");
        assert_eq!(settings.limits.gateway.requests, "5/s".parse::<Rate>().ok());
        assert_eq!(settings.limits.gateway.burst, Some(10));
        assert_eq!(settings.limits.key, Default::default());
        assert_eq!(settings.cache, Default::default());
        assert_eq!((settings.body.bytes_max, settings.body.bytes_total_max), (32 << 20, 512 << 20));
        assert!(!settings.body.remote_media);
        assert!(matches!(settings.cors, Cors::Loopback));
    }

    #[test]
    fn variables_make_the_gateway() {
        let variables = [
            ("LLM_URL", "http://[::1]:9090/v1"),
            ("GATEWAY_HOST", "0.0.0.0"),
            ("GATEWAY_PORT", "80"),
            ("GATEWAY_KEY", "secret"),
            ("GATEWAY_METRICS", "0.0.0.0:9003"),
        ];
        let loaded = from_environment(&environment(&variables)).unwrap();
        assert_eq!(loaded.warnings, Vec::<String>::new());
        let settings = loaded.settings;
        assert_eq!(settings.listen[0].address, "0.0.0.0:80".parse().unwrap());
        assert_eq!(settings.metrics.unwrap().address, "0.0.0.0:9003".parse().unwrap());
        assert_eq!(settings.upstreams[0].servers[0].url.to_string(), "http://[::1]:9090");
        let keys = settings.keys.unwrap();
        assert_eq!((keys.len(), keys[0].key.name.as_str()), (1, "default"));
        assert_eq!(keys[0].key.hashes, [KeyHash::of(b"secret")]);
        assert!(matches!(settings.cors, Cors::Any));
    }

    #[test]
    fn every_wrong_variable_is_named() {
        let variables = [
            ("LLM_URL", "localhost"),
            ("GATEWAY_HOST", "gateway"),
            ("GATEWAY_PORT", "0"),
            ("GATEWAY_METRICS", "9003"),
        ];
        let faults = from_environment(&environment(&variables)).unwrap_err().to_string();
        let lines: Vec<&str> = faults.lines().collect();
        assert_eq!(lines.len(), 4, "{faults}");
        assert!(lines[0].starts_with("LLM_URL: expected a URL"), "{faults}");
        assert!(lines[1].starts_with("GATEWAY_HOST: expected an address"), "{faults}");
        assert_eq!(lines[2], "GATEWAY_PORT: expected a port from 1 to 65535, found `0`");
        assert!(lines[3].starts_with("GATEWAY_METRICS: expected"), "{faults}");
    }
}
