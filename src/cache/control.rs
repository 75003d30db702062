//! What a request's `cache-control` asks for (RFC 9111, section 5.2.1), as far as a gateway can give it.

use std::time::Duration;

/// The directives that are understood; others change nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Control {
    /// Make a fresh answer, and keep it.
    pub no_cache: bool,
    /// Keep nothing, and answer from nothing kept.
    pub no_store: bool,
    /// An answer at most this old will do.
    pub age_max: Option<Duration>,
    /// Answer from what is kept, or not at all.
    pub only_if_cached: bool,
}

impl Control {
    /// Reads the values of all `cache-control` headers of a request.
    pub fn read<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut control = Self::default();
        for directive in values.into_iter().flat_map(|value| value.split(',')) {
            let (name, argument) = match directive.split_once('=') {
                Some((name, argument)) => (name.trim(), argument.trim().trim_matches('"')),
                None => (directive.trim(), ""),
            };
            match name.to_ascii_lowercase().as_str() {
                "no-cache" => control.no_cache = true,
                "no-store" => control.no_store = true,
                "only-if-cached" => control.only_if_cached = true,
                "max-age" => control.age_max = Some(Duration::from_secs(seconds(argument))),
                _ => {}
            }
        }
        control
    }
}

/// A number of seconds (RFC 9111, section 1.2.2): one too large is the largest; one that cannot be read counts as 0,
/// the careful side (section 4.2.1).
fn seconds(text: &str) -> u64 {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().unwrap_or(u64::MAX) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_read_in_any_spelling() {
        let control = Control::read(["No-Cache , max-age=\"60\"", "only-if-cached"]);
        let age_max = Some(Duration::from_secs(60));
        assert_eq!(control, Control { no_cache: true, no_store: false, age_max, only_if_cached: true });
        assert_eq!(Control::read(["max-age=soon"]).age_max, Some(Duration::ZERO));
        assert_eq!(
            Control::read(["max-age=99999999999999999999"]).age_max,
            Some(Duration::from_secs(u64::MAX))
        );
        assert_eq!(Control::read(["no-transform", ""]), Control::default());
    }
}
