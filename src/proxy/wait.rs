//! What a session waits for while a server works: the caller's leaving, its own slow writes, the answer's being late.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pingora::protocols::http::server::Session as HttpSession;
use pingora::{Error, ErrorType, Result};
use tokio::time::{Sleep, timeout};

use super::clock::Clock;
use super::lane::Lane;
use super::timing::{Late, Timing};

/// What a caller may be behind those who follow its answer.
pub(super) const LAG_BYTES_MAX: usize = 4 << 20;

/// For how long it may be further behind.
const CATCH_UP_TIME_MAX: Duration = Duration::from_millis(250);

/// The type of the errors that a late answer raises, one a bound.
pub(super) fn late_error(late: Late) -> ErrorType {
    ErrorType::Custom(late.what())
}

/// Writes what is queued, as far as the caller takes it now. Pingora's writes of this kind may be dropped midway.
pub(super) fn poll_write(
    inner: &mut HttpSession,
    lane: &mut Option<Lane>,
    cx: &mut Context<'_>,
) -> Poll<Result<()>> {
    match lane {
        Some(lane) => lane.poll_write(cx),
        None => std::pin::pin!(inner.write_downstream_proxy_tasks()).poll(cx).map_ok(drop),
    }
}

/// Waits until a caller that is further behind than it may be has all that is queued for it. One that reads has it at
/// once; one that does not keeps its followers for so long, once.
pub(super) async fn catch_up(inner: &mut HttpSession, lane: &mut Option<Lane>) -> Result<()> {
    match timeout(CATCH_UP_TIME_MAX, poll_fn(|cx| poll_write(inner, lane, cx))).await {
        Ok(written) => written,
        Err(_) => Error::e_explain(ErrorType::WriteTimedout, "the caller is too far behind"),
    }
}

/// Waits for the caller to leave, and writes meanwhile what is queued for it.
pub(super) async fn left(inner: &mut HttpSession, lane: &mut Option<Lane>) -> Box<Error> {
    poll_fn(|cx| {
        let left = match lane {
            Some(lane) => lane.poll_left(cx),
            None => std::pin::pin!(inner.read_body_or_idle(true))
                .poll(cx)
                .map(|read| read.err().unwrap_or_else(|| Error::new(ErrorType::ConnectionClosed))),
        };
        if left.is_ready() {
            return left;
        }
        let behind = lane.as_ref().is_some_and(Lane::is_behind) || inner.has_pending_downstream_proxy_tasks();
        if behind && let Poll::Ready(Err(error)) = poll_write(inner, lane, cx) {
            return Poll::Ready(error);
        }
        Poll::Pending
    })
    .await
}

/// Waits until the answer is late. Progress does not touch the timer: it is asked when the timer rings.
pub(super) async fn late(timing: &Timing, clock: Clock, alarm: &mut Alarm) -> Late {
    loop {
        let Some((due, late)) = timing.due() else { return std::future::pending().await };
        // One that rings no later than that stands: this is asked with every piece of an answer, and clocks cost more.
        if alarm.timer.is_none() || alarm.rings > due || alarm.has_rung {
            let now = clock.now();
            if due <= now {
                return late;
            }
            let deadline = tokio::time::Instant::now() + (due - now);
            match &mut alarm.timer {
                Some(timer) => timer.as_mut().reset(deadline),
                None => alarm.timer = Some(Box::pin(tokio::time::sleep_until(deadline))),
            }
            (alarm.rings, alarm.has_rung) = (due, false);
        }
        if let Some(timer) = &mut alarm.timer {
            timer.as_mut().await;
            alarm.has_rung = true;
        }
    }
}

/// A timer that is set anew when it has rung, or where something is due sooner.
#[derive(Default)]
pub(super) struct Alarm {
    timer: Option<Pin<Box<Sleep>>>,
    /// By the gateway's clock.
    rings: Duration,
    has_rung: bool,
}
