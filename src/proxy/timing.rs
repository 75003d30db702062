//! The timeouts of an answer that is awaited: first byte, between bytes, total. That of a connection is `conduit`'s.

use std::time::Duration;

use crate::route::Timeouts;

/// Which bound was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    Connect,
    FirstByte,
    BetweenBytes,
    Total,
}

impl Late {
    /// What the server did not do.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Connect => "could not be reached in time",
            Self::FirstByte => "did not begin to answer in time",
            Self::BetweenBytes => "was silent for too long",
            Self::Total => "did not finish its answer in time",
        }
    }

    /// As the file calls the bound.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::FirstByte => "first_byte",
            Self::BetweenBytes => "between_bytes",
            Self::Total => "total",
        }
    }
}

/// When the current try was sent and when its last byte came.
#[derive(Debug, Default)]
pub(super) struct Timing(Option<Progress>);

#[derive(Debug, Clone, Copy)]
struct Progress {
    timeouts: Timeouts,
    sent: Duration,
    last_byte: Option<Duration>,
}

impl Timing {
    pub(super) fn sent(&mut self, timeouts: Timeouts, now: Duration) {
        self.0 = Some(Progress { timeouts, sent: now, last_byte: None });
    }

    /// Nothing is awaited until it is sent again.
    pub(super) fn rest(&mut self) {
        self.0 = None;
    }

    pub(super) fn byte(&mut self, now: Duration) {
        if let Some(progress) = &mut self.0 {
            progress.last_byte = Some(now);
        }
    }

    /// The next moment at which the answer is late, and for what; `None`: never, as things are.
    pub(super) fn due(&self) -> Option<(Duration, Late)> {
        let Progress { timeouts, sent, last_byte } = self.0?;
        let waiting = match last_byte {
            None => timeouts.first_byte.map(|bound| (sent + bound, Late::FirstByte)),
            Some(last) => timeouts.between_bytes.map(|bound| (last + bound, Late::BetweenBytes)),
        };
        let total = timeouts.total.map(|bound| (sent + bound, Late::Total));
        [waiting, total].into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_bound_counts() {
        let seconds = |n| Some(Duration::from_secs(n));
        let mut timing = Timing::default();
        assert_eq!(timing.due(), None);
        let all =
            Timeouts { connect: None, first_byte: seconds(5), between_bytes: seconds(2), total: seconds(10) };
        timing.sent(all, Duration::from_secs(100));
        assert_eq!(timing.due(), seconds(105).zip(Some(Late::FirstByte)));
        timing.byte(Duration::from_secs(104));
        assert_eq!(timing.due(), seconds(106).zip(Some(Late::BetweenBytes)));
        timing.byte(Duration::from_secs(109));
        assert_eq!(timing.due(), seconds(110).zip(Some(Late::Total)));
        timing.sent(Timeouts { first_byte: None, total: None, ..all }, Duration::from_secs(200));
        assert_eq!(timing.due(), None);
    }
}
