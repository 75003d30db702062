//! Families of metrics, made and registered in one step.

use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    Opts, Registry,
};

/// OpenTelemetry's GenAI buckets for durations (10 ms to 82 s), extended down to 1 ms and up to 20 minutes; seconds.
pub(super) const SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
    163.84, 327.68, 655.36, 1200.0,
];

/// Makes families and registers them.
pub(super) struct Table<'a>(pub(super) &'a Registry);

impl Table<'_> {
    pub(super) fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        let family = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(family.clone())).map(|()| family)
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        let family = IntCounter::new(name, help)?;
        self.0.register(Box::new(family.clone())).map(|()| family)
    }

    pub(super) fn seconds(&self, name: &str, help: &str) -> prometheus::Result<Counter> {
        let family = Counter::new(name, help)?;
        self.0.register(Box::new(family.clone())).map(|()| family)
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        let family = IntGauge::new(name, help)?;
        self.0.register(Box::new(family.clone())).map(|()| family)
    }

    pub(super) fn float(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        let family = Gauge::new(name, help)?;
        self.0.register(Box::new(family.clone())).map(|()| family)
    }

    pub(super) fn floats(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
        let family = GaugeVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(family.clone())).map(|()| family)
    }

    pub(super) fn histogram(&self, name: &str, help: &str) -> prometheus::Result<Histogram> {
        let family = Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()))?;
        self.0.register(Box::new(family.clone())).map(|()| family)
    }

    pub(super) fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<HistogramVec> {
        let family = HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels)?;
        self.0.register(Box::new(family.clone())).map(|()| family)
    }
}
