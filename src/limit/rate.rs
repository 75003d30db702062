//! Rates as operators write them, and what one caller is allowed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// So many in each period: `5/s`, `60/min`, `1000/h`, `2M/day`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub count: u64,
    pub per: Duration,
}

const PERIODS: [(&str, u64); 4] = [("s", 1), ("min", 60), ("h", 3600), ("day", 86_400)];

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("expected a rate such as `5/s`, `60/min`, `1000/h` or `2M/day`, found `{text}`");
        let (count, per) = text.split_once('/').ok_or_else(wrong)?;
        let seconds = PERIODS.iter().find(|(unit, _)| *unit == per.trim()).ok_or_else(wrong)?.1;
        let count = parse_count(count.trim()).filter(|&count| count > 0).ok_or_else(wrong)?;
        Ok(Self { count, per: Duration::from_secs(seconds) })
    }
}

/// Reads a count with an optional `k`, `M` or `G`: `100000`, `100k`, `2M`.
pub fn parse_count(text: &str) -> Option<u64> {
    let (digits, factor) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 1_000),
        b'M' => (&text[..text.len() - 1], 1_000_000),
        b'G' => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit =
            PERIODS.iter().find(|(_, seconds)| *seconds == self.per.as_secs()).map_or("?", |(unit, _)| unit);
        write!(f, "{}/{unit}", self.count)
    }
}

/// What one caller, or all of them together, may ask. `None`: that limit does not exist.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowance {
    pub requests: Option<Rate>,
    /// Requests a full bucket holds; `None`: what the rate names (`60/min` holds 60). Means nothing without `requests`.
    pub burst: Option<u64>,
    pub tokens: Option<Rate>,
    pub concurrent: Option<u32>,
}

impl Allowance {
    /// Its own limits, name by name, and the other's where it has none.
    pub fn or(self, other: Self) -> Self {
        Self {
            requests: self.requests.or(other.requests),
            // A burst belongs to the rate it was written beside.
            burst: if self.requests.is_some() || self.burst.is_some() { self.burst } else { other.burst },
            tokens: self.tokens.or(other.tokens),
            concurrent: self.concurrent.or(other.concurrent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_as_they_are_written() {
        let rate = |text: &str| text.parse::<Rate>().ok().map(|rate| (rate.count, rate.per.as_secs()));
        assert_eq!(rate("5/s"), Some((5, 1)));
        assert_eq!(rate("60/min"), Some((60, 60)));
        assert_eq!(rate("1000 / h"), Some((1000, 3600)));
        assert_eq!(rate("2M/day"), Some((2_000_000, 86_400)));
        for wrong in ["", "5", "/s", "0/s", "-1/s", "5/week", "5.5/s", "99999999999999999999/s"] {
            assert_eq!(rate(wrong), None, "{wrong}");
        }
    }
}
