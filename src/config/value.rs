//! Single values, as operators write them -> domain values.
//!
//! Plain functions from text to a value, or to the sentence that says what was expected.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::cache::Answers;
use crate::limit::{Rate, parse_count};

pub(super) type Read<T> = Result<T, String>;

/// Ends what was expected with what was found, cut where it is long.
pub(super) fn expected<T>(what: &str, found: &str) -> Read<T> {
    const CHARS_MAX: usize = 60;
    if found.is_empty() {
        return Err(format!("expected {what}, found an empty text"));
    }
    let cut: String = found.chars().take(CHARS_MAX).collect();
    let rest = if cut.len() < found.len() { "…" } else { "" };
    Err(format!("expected {what}, found `{cut}{rest}`"))
}

const SECOND: u64 = 1000;
const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", SECOND), ("m", 60 * SECOND), ("h", 3600 * SECOND), ("d", 86_400 * SECOND)];
/// Ten years: the clocks of timers and caches count on far beyond it.
const DURATION_MS_MAX: u64 = 3650 * 86_400 * SECOND;

const SIZE_UNITS: [(&str, u64); 8] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Reads digits and a unit: `64KiB` by `("KiB", 1024)` is 65536.
fn in_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

pub(super) fn duration(text: &str) -> Read<Duration> {
    match in_units(text, &DURATION_UNITS) {
        Some(ms) if ms <= DURATION_MS_MAX => Ok(Duration::from_millis(ms)),
        Some(_) => expected("a duration of at most 3650d", text),
        None => expected("a duration such as `300ms`, `30s`, `5m`, `2h` or `1d`", text),
    }
}

/// A duration that is more than nothing.
pub(super) fn period(text: &str) -> Read<Duration> {
    match duration(text)? {
        Duration::ZERO => expected("a duration above 0", text),
        period => Ok(period),
    }
}

/// A duration above 0, or `none` for no bound.
pub(super) fn time_limit(text: &str) -> Read<Option<Duration>> {
    if text == "none" {
        return Ok(None);
    }
    match in_units(text, &DURATION_UNITS) {
        None => expected("a duration such as `300ms`, `30s`, `5m`, `2h` or `1d`, or `none`", text),
        Some(_) => period(text).map(Some),
    }
}

/// Bytes.
pub(super) fn size(text: &str) -> Read<u64> {
    match in_units(text, &SIZE_UNITS) {
        Some(bytes) => Ok(bytes),
        None => expected("a size such as `64KiB`, `256MiB`, `1GiB` or `0B`", text),
    }
}

pub(super) fn size_above_zero(text: &str) -> Read<u64> {
    match size(text)? {
        0 => expected("a size above 0", text),
        bytes => Ok(bytes),
    }
}

pub(super) fn rate(text: &str) -> Read<Rate> {
    text.parse()
}

/// A count of at least 1, `k` and `M` allowed.
pub(super) fn count(text: &str) -> Read<u64> {
    match parse_count(text) {
        Some(count) if count > 0 => Ok(count),
        _ => expected("a count of at least 1 such as `10`, `100k` or `2M`", text),
    }
}

/// `count` that fits into 32 bits.
pub(super) fn small_count(text: &str) -> Read<u32> {
    match u32::try_from(count(text)?) {
        Ok(count) => Ok(count),
        Err(_) => expected("a count below 4294967296", text),
    }
}

/// A whole number within a range.
pub(super) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Read<T>
where
    T: std::str::FromStr + std::fmt::Display + PartialOrd,
{
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => expected(&format!("a whole number from {} to {}", range.start(), range.end()), text),
    }
}

pub(super) fn switch(text: &str) -> Read<bool> {
    choice(&[("true", true), ("false", false)])(text)
}

/// One of a few words, at least one.
pub(super) fn choice<T: Clone>(words: &[(&'static str, T)]) -> impl Fn(&str) -> Read<T> {
    move |text| match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(value.clone()),
        None => {
            let words: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            let (last, others) = words.split_last().ok_or("no word is right here")?;
            match others {
                [] => expected(last, text),
                _ => expected(&format!("{} or {last}", others.join(", ")), text),
            }
        }
    }
}

/// Which answers are kept, for the whole cache, a model or a key.
pub(super) fn answers(text: &str) -> Read<Answers> {
    let words = [("all", Answers::All), ("deterministic", Answers::Deterministic), ("none", Answers::None)];
    choice(&words)(text)
}

/// `host:port` to listen on.
pub(super) fn address(text: &str) -> Read<SocketAddr> {
    let address = match text.strip_prefix("localhost:") {
        Some(port) => port.parse().ok().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        None => text.parse().ok(),
    };
    match address {
        Some(address) if address.port() > 0 => Ok(address),
        Some(_) => expected("a port from 1 to 65535", text),
        None => expected("an address such as `127.0.0.1:9001`, `0.0.0.0:9001` or `[::]:9001`", text),
    }
}

/// A network in CIDR form; a single address counts as the network of itself.
pub(super) fn network(text: &str) -> Read<IpNet> {
    match text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
        Ok(network) => Ok(network),
        Err(_) => expected("a network such as `10.0.0.0/8`, or an address", text),
    }
}

/// RFC 3339; a bare date is its midnight in UTC.
pub(super) fn timestamp(text: &str) -> Read<Timestamp> {
    const DATE: usize = "2027-01-01".len();
    let whole = if text.len() == DATE { format!("{text}T00:00:00Z") } else { text.to_owned() };
    match whole.parse().ok() {
        Some(timestamp) => Ok(timestamp),
        None => expected("a time such as `2027-01-01T00:00:00Z`, or a date", text),
    }
}

/// Any text but none.
pub(super) fn text(text: &str) -> Read<String> {
    if text.is_empty() { expected("a text", text) } else { Ok(text.to_owned()) }
}

/// What logs, metrics and pages call something.
pub(super) fn name(text: &str) -> Read<String> {
    const BYTES_MAX: usize = 128;
    if text.is_empty() || text.len() > BYTES_MAX || text.trim() != text || text.contains(char::is_control) {
        return expected("a name of 1 to 128 bytes, without control characters or outer spaces", text);
    }
    Ok(text.to_owned())
}

pub(super) fn header_name(text: &str) -> Read<http::HeaderName> {
    text.parse().or_else(|_| expected("the name of a header, such as `x-user-id`", text))
}

/// The path of a URL.
pub(super) fn url_path(text: &str) -> Read<String> {
    match text.parse::<http::uri::PathAndQuery>() {
        Ok(path) if text.starts_with('/') => Ok(path.as_str().to_owned()),
        _ => expected("a path such as `/health`", text),
    }
}

/// A URL of one of these schemes.
pub(super) fn url(schemes: &'static [&'static str]) -> impl Fn(&str) -> Read<http::Uri> {
    move |text| {
        let url =
            text.parse::<http::Uri>().ok().filter(|url| url.host().is_some_and(|host| !host.is_empty()));
        match url {
            Some(url) if url.scheme_str().is_some_and(|scheme| schemes.contains(&scheme)) => Ok(url),
            _ => expected(&format!("a URL such as `{}://host:port`", schemes[0]), text),
        }
    }
}

/// What a browser sends as `origin`, or `*`: a scheme and a host, maybe a port, in lower case.
pub(super) fn origin(text: &str) -> Read<String> {
    let bare = |url: &http::Uri| url.query().is_none() && !text.ends_with('/') && url.path() == "/";
    match text.parse::<http::Uri>() {
        _ if text == "*" => Ok(text.to_owned()),
        Ok(url) if url.scheme().is_some() && url.authority().is_some() && bare(&url) => {
            Ok(text.to_ascii_lowercase())
        }
        _ => expected("an origin such as `https://app.example.com`, or `*`", text),
    }
}

#[cfg(test)]
mod tests;
