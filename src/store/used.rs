//! What is counted, of whom, and on which day.

use std::ops::AddAssign;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// The user of a key whose users are too many to be told apart, or whose name is too long.
pub const OTHER: &str = "other";

/// A longer name of a user counts as [`OTHER`].
const USER_BYTES_MAX: usize = 256;

/// What one or more requests have used.
#[derive(Debug, Clone, Copy)]
pub struct Use<'a> {
    /// The key's name, never the key.
    pub key: &'a str,
    /// The user within the key; empty where there is none.
    pub user: &'a str,
    pub model: &'a str,
    pub counts: Counts,
    /// Where processes share budgets: the place of its share of the key's, until this is told.
    pub open: Option<&'a str>,
}

/// Sums of uses. They stop at their largest value and never wrap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub requests: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Prompt tokens that the server found in its KV cache.
    pub cached_tokens: u64,
    pub prefill_ms: u64,
    pub generation_ms: u64,
}

/// A day or a month of the calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Period {
    Day,
    Month,
}

/// Which rows are asked for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub key: Option<String>,
    /// From this day on.
    pub since: Option<Date>,
}

/// What a user of a key has used of a model on a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// In UTC.
    pub day: Date,
    pub key: String,
    pub user: String,
    pub model: String,
    #[serde(flatten)]
    pub counts: Counts,
}

/// Whose use is summed up in one row, and on which day.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Account {
    pub(super) day: Date,
    pub(super) key: String,
    pub(super) user: String,
    pub(super) model: String,
}

/// Whose share of the key's budgets is to be let go when what it used is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) key: String,
    pub(super) place: String,
}

/// Reads a day as people write it: `2026-11-24`, and no other way.
pub fn day(text: &str) -> Result<Date, String> {
    let day = text.parse().ok().filter(|_| text.len() == "2026-11-24".len());
    day.ok_or_else(|| format!("expected a day as YYYY-MM-DD, found `{text}`"))
}

/// The day that it is, in UTC.
pub fn today(now: Timestamp) -> Date {
    TimeZone::UTC.to_datetime(now).date()
}

impl Counts {
    /// What limits and budgets of tokens count.
    pub fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }

    /// What is left without `written`, which is part of it.
    pub fn without(self, written: Self) -> Self {
        self.with(written, u64::saturating_sub)
    }

    fn with(self, other: Self, merge: fn(u64, u64) -> u64) -> Self {
        Self {
            requests: merge(self.requests, other.requests),
            prompt_tokens: merge(self.prompt_tokens, other.prompt_tokens),
            completion_tokens: merge(self.completion_tokens, other.completion_tokens),
            cached_tokens: merge(self.cached_tokens, other.cached_tokens),
            prefill_ms: merge(self.prefill_ms, other.prefill_ms),
            generation_ms: merge(self.generation_ms, other.generation_ms),
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        *self = self.with(other, u64::saturating_add);
    }
}

impl Filter {
    pub(super) fn takes(&self, account: &Account) -> bool {
        self.key.as_ref().is_none_or(|key| *key == account.key)
            && self.since.is_none_or(|since| since <= account.day)
    }
}

impl Account {
    pub(super) fn of(used: &Use<'_>, day: Date) -> Self {
        let user = if used.user.len() > USER_BYTES_MAX { OTHER } else { used.user };
        Self { day, key: used.key.to_owned(), user: user.to_owned(), model: used.model.to_owned() }
    }

    /// Of a row that another process tells.
    pub(super) fn of_row(row: Row) -> (Self, Counts) {
        let Row { day, key, user, model, counts } = row;
        (Self { day, key, user, model }, counts)
    }

    pub(super) fn row(self, counts: Counts) -> Row {
        let Self { day, key, user, model } = self;
        Row { day, key, user, model, counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_written_in_one_way() {
        assert_eq!(day("2026-02-28"), Ok(jiff::civil::date(2026, 2, 28)));
        for wrong in
            ["", "2026-2-28", "20260228", "2026-02-29", "2026-02-28T00:00", "-02026-02-1", "yesterday"]
        {
            assert!(day(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn days_are_those_of_utc() {
        for (now, of) in [
            ("2026-02-28T23:59:59.999Z", "2026-02-28"),
            ("2026-03-01T00:30:00+01:00", "2026-02-28"),
            ("2026-03-01T00:00:00Z", "2026-03-01"),
        ] {
            assert_eq!(today(now.parse().unwrap()), of.parse().unwrap(), "{now}");
        }
        // The clock of a machine without one says anything.
        for extreme in [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX] {
            today(extreme);
        }
    }

    #[test]
    fn sums_do_not_wrap() {
        let most = Counts { prompt_tokens: u64::MAX, ..Counts::default() };
        let mut sum = Counts { prompt_tokens: 1, completion_tokens: 2, ..Counts::default() };
        sum += most;
        assert_eq!((sum.prompt_tokens, sum.completion_tokens, sum.tokens()), (u64::MAX, 2, u64::MAX));
    }

    #[test]
    fn a_name_without_end_is_no_name() {
        let day = day("2026-02-28").unwrap();
        for (bytes, told) in [(256, 256), (257, OTHER.len())] {
            let user = "x".repeat(bytes);
            let counts = Counts { requests: 1, ..Counts::default() };
            let used = Use { key: "alice", user: &user, model: "tiny", counts, open: None };
            assert_eq!(Account::of(&used, day).user.len(), told);
        }
    }
}
