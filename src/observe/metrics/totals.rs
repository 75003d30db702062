//! Sums over the families, as they are now: two of them tell what happened between.

use prometheus::Histogram;
use prometheus::core::Metric;

use serde::{Deserialize, Serialize};

use super::super::labels::CacheOutcome;
use super::{FIRST_TOKEN, Metrics};

/// Buckets of a histogram, the one beyond the last bound included.
const BUCKETS: usize = FIRST_TOKEN.len() + 1;

/// What has been counted since the process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub requests: u64,
    /// Answered with a 4xx.
    pub refused: u64,
    /// Answered with a 5xx.
    pub failed: u64,
    /// Left by their callers.
    pub left: u64,
    pub hits: u64,
    pub misses: u64,
    pub shared: u64,
    pub tokens_in: u64,
    pub tokens_out: u64,
    /// Answers that were not hits, by the time to their first token.
    pub first_token: Times,
}

/// How many times fell into each bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<u64>", try_from = "Vec<u64>")]
pub struct Times([u64; BUCKETS]);

impl Totals {
    /// From an earlier one to this.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            refused: self.refused.saturating_sub(earlier.refused),
            failed: self.failed.saturating_sub(earlier.failed),
            left: self.left.saturating_sub(earlier.left),
            hits: self.hits.saturating_sub(earlier.hits),
            misses: self.misses.saturating_sub(earlier.misses),
            shared: self.shared.saturating_sub(earlier.shared),
            tokens_in: self.tokens_in.saturating_sub(earlier.tokens_in),
            tokens_out: self.tokens_out.saturating_sub(earlier.tokens_out),
            first_token: Times(std::array::from_fn(|at| {
                self.first_token.0[at].saturating_sub(earlier.first_token.0[at])
            })),
        }
    }
}

impl From<Times> for Vec<u64> {
    fn from(times: Times) -> Self {
        times.0.to_vec()
    }
}

impl TryFrom<Vec<u64>> for Times {
    type Error = &'static str;

    fn try_from(counts: Vec<u64>) -> Result<Self, Self::Error> {
        counts.try_into().map(Self).map_err(|_| "other buckets than this version has")
    }
}

impl Times {
    /// In seconds, as Prometheus's `histogram_quantile` tells it: within its bucket, by a straight line. `None`: there
    /// are none.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let all: u64 = self.0.iter().sum();
        if all == 0 {
            return None;
        }
        let rank = part * all as f64;
        let mut below = 0;
        for (at, count) in self.0.iter().enumerate() {
            if *count > 0 && (below + count) as f64 >= rank {
                let Some(end) = FIRST_TOKEN.get(at) else { break };
                let begin = at.checked_sub(1).map_or(0.0, |at| FIRST_TOKEN[at]);
                return Some(begin + (end - begin) * ((rank - below as f64) / *count as f64).max(0.0));
            }
            below += count;
        }
        FIRST_TOKEN.last().copied()
    }

    fn add(&mut self, series: &Histogram) {
        let metric = series.metric();
        let histogram = metric.get_histogram();
        let mut below = 0;
        for (at, bucket) in histogram.get_bucket().iter().enumerate().take(FIRST_TOKEN.len()) {
            self.0[at] += bucket.cumulative_count().saturating_sub(below);
            below = bucket.cumulative_count();
        }
        self.0[BUCKETS - 1] += histogram.get_sample_count().saturating_sub(below);
    }
}

impl Metrics {
    /// Goes through every series of three families: for once a second, not for once a request.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            requests: self.total.get(),
            hits: self.cache_hits.get(),
            misses: self.cache_misses.get(),
            shared: self.cache_shared.get(),
            ..Totals::default()
        };
        self.requests.each(|labels, series| match labels.get(2).copied().unwrap_or_default() {
            "499" => totals.left += series.get(),
            status if status.starts_with('4') => totals.refused += series.get(),
            status if status.starts_with('5') => totals.failed += series.get(),
            _ => {}
        });
        self.tokens.each(|labels, series| match labels.last() {
            Some(&"input") => totals.tokens_in += series.get(),
            _ => totals.tokens_out += series.get(),
        });
        self.first_token.each(|labels, series| {
            if labels.last() != Some(&CacheOutcome::Hit.name()) {
                totals.first_token.add(series);
            }
        });
        totals
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observe::{Ended, Labels};

    fn ended(status: u16, cache: CacheOutcome, first_ms: u64) -> Ended<'static> {
        Ended {
            key: None,
            model: None,
            upstream: None,
            status,
            cache,
            duration: Duration::from_secs(1),
            first_token: Some(Duration::from_millis(first_ms)),
            stream: true,
            generation: None,
            prompt_tokens: Some(7),
            completion_tokens: Some(3),
            cached_prompt_tokens: None,
        }
    }

    #[test]
    fn sums_are_over_all_labels_and_differ_by_what_happened() {
        let metrics = Metrics::new(&Labels::default()).expect("the table names nothing twice");
        metrics.ended(&ended(200, CacheOutcome::Miss, 300));
        let before = metrics.totals();
        assert_eq!((before.requests, before.tokens_in, before.tokens_out), (1, 7, 3));
        for (status, cache, first_ms) in [
            (200, CacheOutcome::Hit, 0),
            (429, CacheOutcome::Bypass, 2000),
            (502, CacheOutcome::Miss, 2000),
            (499, CacheOutcome::Miss, 2000),
        ] {
            metrics.ended(&ended(status, cache, first_ms));
        }
        let between = metrics.totals().since(&before);
        assert_eq!(between.requests, 4);
        assert_eq!((between.refused, between.failed, between.left), (1, 1, 1));
        assert_eq!(between.tokens_out, 9, "a hit makes no tokens");
        let slow = between.first_token.quantile(0.5).expect("three were not hits");
        assert!((1.0..2.5).contains(&slow), "{slow}: neither the hit nor what was before counts");
    }

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let mut times = Times::default();
        assert_eq!(times.quantile(0.5), None);
        // Ten between 10 and 20 ms.
        times.0[3] = 10;
        let middle = times.quantile(0.5).expect("there are some");
        assert!((middle - 0.015).abs() < 1e-9, "{middle}");
        times.0[BUCKETS - 1] = 1000;
        assert_eq!(times.quantile(0.5), Some(1200.0), "beyond the last bound it is that bound");
    }
}
