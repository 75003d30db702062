//! What listeners with TLS show, and who does not come past them.

use jiff::Timestamp;
use prometheus::{GaugeVec, IntCounterVec};

use super::Metrics;
use crate::observe::families::Table;

/// Why a connection did not get past its handshake.
#[derive(Debug, Clone, Copy)]
pub enum Unshaken {
    /// One side refused the other: no TLS, no certificate, none that is trusted.
    Failed,
    /// It took too long.
    Late,
}

impl Unshaken {
    const ALL: [Self; 2] = [Self::Failed, Self::Late];

    fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Late => "late",
        }
    }
}

pub(super) struct Families {
    failures: IntCounterVec,
    not_after: GaugeVec,
}

impl Families {
    pub(super) fn new(table: &Table) -> prometheus::Result<Self> {
        let families = Self {
            failures: table.counters(
                "tls_handshake_failures_total",
                "Connections that did not get past their TLS handshake, by why.",
                &["reason"],
            )?,
            not_after: table.floats(
                "tls_certificate_not_after_seconds",
                "When a listener's certificate ends, in seconds since 1970; +Inf where it has none.",
                &["listener"],
            )?,
        };
        Unshaken::ALL.iter().for_each(|why| drop(families.failures.with_label_values(&[why.name()])));
        Ok(families)
    }
}

impl Metrics {
    pub fn unshaken(&self, why: Unshaken) {
        self.tls.failures.with_label_values(&[why.name()]).inc();
    }

    /// `None`: it has no certificate.
    pub fn certificate_ends(&self, listener: &str, not_after: Option<Timestamp>) {
        let seconds = not_after.map_or(f64::INFINITY, |it| it.as_second() as f64);
        self.tls.not_after.with_label_values(&[listener]).set(seconds);
    }
}
