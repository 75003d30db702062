//! Families of metrics: what one is called and tells, and its series.
//!
//! The vectors of `prometheus` find a series by a hash over its labels that has no boundary between them: key `a` with
//! model `b1` and key `ab` with model `1` would be one series. So a [`Family`] has series of its own, each found by
//! its labels as they are. It has a bound too: what is beyond is counted together, where each label is `other`.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use prometheus::core::{Collector, Desc, Metric};
use prometheus::proto::{MetricFamily, MetricType};
use prometheus::{Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry};

/// The label of what is not named anywhere, and of what is too much.
pub(super) const OTHER: &str = "other";

/// Stands between the labels of a series: a control character, which no name has.
const BOUNDARY: char = '\u{1f}';
const BOUNDARY_TEXT: &str = "\u{1f}";

/// What a family is: a row of the table in `metrics.rs`, and of docs/METRICS.md.
#[derive(Debug)]
pub(super) struct Row {
    /// Without `ai_gateway_`.
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) labels: &'static [Label],
    pub(super) help: &'static str,
    /// What to look at it for.
    pub(super) use_for: &'static str,
    /// The upper ends of a histogram's buckets.
    pub(super) buckets: &'static [f64],
}

/// A label, and what it may be.
#[derive(Debug, PartialEq)]
pub(super) struct Label {
    pub(super) name: &'static str,
    pub(super) values: Values,
}

#[derive(Debug, PartialEq)]
pub(super) enum Values {
    /// These and no others.
    These(&'static [&'static str]),
    /// Told in words.
    Told(&'static str),
}

/// What a row of the table becomes: a metric without labels, or a [`Family`].
pub(super) trait Made: Sized {
    const KIND: &'static str;

    fn made(row: &'static Row, registry: &Registry) -> prometheus::Result<Self>;
}

/// One series.
pub(super) trait Series: Collector + Metric + Clone + 'static {
    const KIND: &'static str;
    const TYPE: MetricType;
    /// A histogram is a line for each of its buckets.
    const SERIES_MAX: usize = 20_000;

    fn series(row: &Row, opts: Opts) -> prometheus::Result<Self>;
}

impl Series for IntCounter {
    const KIND: &'static str = "counter";
    const TYPE: MetricType = MetricType::COUNTER;

    fn series(_: &Row, opts: Opts) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Series for Counter {
    const KIND: &'static str = "counter";
    const TYPE: MetricType = MetricType::COUNTER;

    fn series(_: &Row, opts: Opts) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Series for IntGauge {
    const KIND: &'static str = "gauge";
    const TYPE: MetricType = MetricType::GAUGE;

    fn series(_: &Row, opts: Opts) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Series for Gauge {
    const KIND: &'static str = "gauge";
    const TYPE: MetricType = MetricType::GAUGE;

    fn series(_: &Row, opts: Opts) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Series for Histogram {
    const KIND: &'static str = "histogram";
    const TYPE: MetricType = MetricType::HISTOGRAM;
    const SERIES_MAX: usize = 2000;

    fn series(row: &Row, opts: Opts) -> prometheus::Result<Self> {
        Self::with_opts(HistogramOpts { common_opts: opts, buckets: row.buckets.to_vec() })
    }
}

impl<S: Series> Made for S {
    const KIND: &'static str = S::KIND;

    fn made(row: &'static Row, registry: &Registry) -> prometheus::Result<Self> {
        let series = S::series(row, Opts::new(row.name, row.help))?;
        registry.register(Box::new(series.clone())).map(|()| series)
    }
}

type Table<S> = HashTable<(Box<str>, S)>;

/// All series of a name, by their labels.
#[derive(Debug, Clone)]
pub(super) struct Family<S> {
    row: &'static Row,
    desc: Desc,
    series: Arc<RwLock<Table<S>>>,
    hasher: RandomState,
}

impl<S: Series> Made for Family<S> {
    const KIND: &'static str = S::KIND;

    fn made(row: &'static Row, registry: &Registry) -> prometheus::Result<Self> {
        let labels = row.labels.iter().map(|label| label.name.to_owned()).collect();
        let desc = Desc::new(row.name.to_owned(), row.help.to_owned(), labels, HashMap::new())?;
        let family = Self { row, desc, series: Arc::default(), hasher: RandomState::default() };
        registry.register(Box::new(family.clone())).map(|()| family)
    }
}

impl<S: Series> Family<S> {
    /// The series with these labels, in the order of the table; from now on it is there.
    pub(super) fn with(&self, labels: &[&str]) -> S {
        self.to(labels, S::clone)
    }

    /// Tells it something.
    pub(super) fn to<T>(&self, labels: &[&str], tell: impl FnOnce(&S) -> T) -> T {
        debug_assert_eq!(labels.len(), self.row.labels.len(), "{}", self.row.name);
        let hash = self.hash(labels.iter().copied());
        if let Some((_, series)) = self.read().find(hash, |(key, _)| is_key_of(key, labels)) {
            return tell(series);
        }
        tell(&self.make(hash, labels))
    }

    fn make(&self, hash: u64, labels: &[&str]) -> S {
        let mut all = self.write();
        if all.len() >= S::SERIES_MAX && all.find(hash, |(key, _)| is_key_of(key, labels)).is_none() {
            let others = vec![OTHER; labels.len()];
            return self.in_its_place(&mut all, self.hash(others.iter().copied()), &others);
        }
        self.in_its_place(&mut all, hash, labels)
    }

    fn in_its_place(&self, all: &mut Table<S>, hash: u64, labels: &[&str]) -> S {
        let made = || {
            let names = self.row.labels.iter().map(|label| label.name.to_owned());
            let labels = names.zip(labels.iter().map(|label| (*label).to_owned())).collect();
            let opts = Opts::new(self.row.name, self.row.help).const_labels(labels);
            S::series(self.row, opts).expect("the table's names are good: a test makes each")
        };
        let rehash = |(key, _): &(Box<str>, S)| self.hash(key.split(BOUNDARY));
        let place = all.entry(hash, |(key, _)| is_key_of(key, labels), rehash);
        place.or_insert_with(|| (key(labels), made())).get().1.clone()
    }

    fn hash<'a>(&self, labels: impl Iterator<Item = &'a str>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for label in labels {
            hasher.write(label.as_bytes());
            hasher.write_u8(BOUNDARY as u8);
        }
        hasher.finish()
    }

    /// Takes out the series whose labels are not wanted any more.
    pub(super) fn retain(&self, mut wanted: impl FnMut(&[&str]) -> bool) {
        self.write().retain(|(key, _)| wanted(&split(key)));
    }

    /// Goes through all of them.
    pub(super) fn each(&self, mut look: impl FnMut(&[&str], &S)) {
        self.read().iter().for_each(|(key, series)| look(&split(key), series));
    }

    fn read(&self) -> RwLockReadGuard<'_, Table<S>> {
        self.series.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table<S>> {
        self.series.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Series> Collector for Family<S> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut family = MetricFamily::default();
        family.set_name(self.row.name.to_owned());
        family.set_help(self.row.help.to_owned());
        family.set_field_type(S::TYPE);
        family.set_metric(self.read().iter().map(|(_, series)| series.metric()).collect());
        vec![family]
    }
}

fn key(labels: &[&str]) -> Box<str> {
    labels.join(BOUNDARY_TEXT).into()
}

fn is_key_of(key: &str, labels: &[&str]) -> bool {
    let mut rest = Some(key);
    for (at, label) in labels.iter().enumerate() {
        let begins = rest.and_then(|rest| if at == 0 { Some(rest) } else { rest.strip_prefix(BOUNDARY) });
        rest = begins.and_then(|rest| rest.strip_prefix(label));
    }
    rest == Some("")
}

fn split(key: &str) -> Vec<&str> {
    key.split(BOUNDARY).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    static ROW: Row = Row {
        name: "tried_total",
        kind: "counter",
        labels: &[
            Label { name: "one", values: Values::These(&[]) },
            Label { name: "two", values: Values::These(&[]) },
        ],
        help: "Of the test.",
        use_for: "",
        buckets: &[],
    };

    fn family() -> Family<IntCounter> {
        Family::made(&ROW, &Registry::new()).expect("a good row")
    }

    #[test]
    fn labels_that_run_together_are_two_series() {
        let family = family();
        family.with(&["a", "b1"]).inc();
        family.with(&["ab", "1"]).inc_by(5);
        assert_eq!((family.with(&["a", "b1"]).get(), family.with(&["ab", "1"]).get()), (1, 5));
    }

    #[test]
    fn what_is_too_much_is_counted_together() {
        let family = family();
        for number in 0..IntCounter::SERIES_MAX + 10 {
            family.with(&["key", &number.to_string()]).inc();
        }
        assert_eq!(family.with(&[OTHER, OTHER]).get(), 10);
        family.with(&["key", "7"]).inc();
        assert_eq!(family.with(&["key", "7"]).get(), 2, "what was there before goes on");
    }

    #[test]
    fn some_are_taken_out() {
        let family = family();
        for two in ["1", "2"] {
            family.with(&["a", two]).inc();
        }
        family.retain(|labels| labels == ["a", "2"]);
        let mut left = Vec::new();
        family.each(|labels, series| left.push((labels.join(" "), series.get())));
        assert_eq!(left, [("a 2".to_owned(), 1)]);
    }
}
