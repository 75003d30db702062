//! What outlives a process: what each key has used.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// What one request used.
#[derive(Debug, Clone, Copy)]
pub struct Use<'a> {
    pub key: &'a str,
    /// Empty: none.
    pub user: &'a str,
    pub model: &'a str,
    pub requests: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub cached_tokens: u64,
    pub prefill_ms: u64,
    pub generation_ms: u64,
}

impl Use<'_> {
    fn counts(&self) -> Counts {
        Counts {
            requests: self.requests,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            cached_tokens: self.cached_tokens,
            prefill_ms: self.prefill_ms,
            generation_ms: self.generation_ms,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub cached_tokens: u64,
    pub prefill_ms: u64,
    pub generation_ms: u64,
}

impl Counts {
    /// Prompt and completion.
    pub fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }

    pub fn add(&mut self, other: &Self) {
        let sum = |own: &mut u64, other: u64| *own = own.saturating_add(other);
        sum(&mut self.requests, other.requests);
        sum(&mut self.prompt_tokens, other.prompt_tokens);
        sum(&mut self.completion_tokens, other.completion_tokens);
        sum(&mut self.cached_tokens, other.cached_tokens);
        sum(&mut self.prefill_ms, other.prefill_ms);
        sum(&mut self.generation_ms, other.generation_ms);
    }
}

/// A calendar period, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Period {
    Day,
    Month,
}

#[derive(Debug, Default)]
pub struct Ledger {
    days: Mutex<HashMap<(String, Date), Counts>>,
}

impl Ledger {
    pub fn in_memory() -> Self {
        Self::default()
    }

    pub fn note(&self, used: &Use<'_>, now: Timestamp) {
        let mut days = self.days.lock().unwrap_or_else(PoisonError::into_inner);
        days.entry((used.key.to_owned(), day(now))).or_default().add(&used.counts());
    }

    pub fn spent(&self, key: &str, period: Period, now: Timestamp) -> Counts {
        let today = day(now);
        let days = self.days.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = Counts::default();
        for ((own, day), counts) in &*days {
            let within = match period {
                Period::Day => *day == today,
                Period::Month => day.first_of_month() == today.first_of_month(),
            };
            if own == key && within {
                sum.add(counts);
            }
        }
        sum
    }
}

fn day(now: Timestamp) -> Date {
    TimeZone::UTC.to_datetime(now).date()
}
