//! How an HTTP/2 caller is written to whose answer others follow: at its own pace, while they go on.
//!
//! Pingora's HTTP/2 session writes only as fast as its caller reads, and has none of the queued writes that its HTTP/1
//! session has. So its writing half is taken from it, once, and what it writes from there on is written here.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::{Error, ErrorType, OrErr, Result};
use tokio::time::timeout;

/// The writing half of a stream, and what is queued for it.
pub(super) struct Lane {
    writer: SendStream<Bytes>,
    queued: VecDeque<Bytes>,
    ends: bool,
    ended: bool,
}

impl Lane {
    /// Takes the writing half of an HTTP/2 session whose header is written. `None`: it is none, or not yet.
    pub(super) fn of(session: &mut HttpSession) -> Option<Self> {
        let HttpSession::H2(session) = session else { return None };
        let writer = session.take_response_body_writer()?;
        Some(Self { writer, queued: VecDeque::new(), ends: false, ended: false })
    }

    /// Queues what is no header.
    pub(super) fn push(&mut self, task: HttpTask) {
        self.ends |= task.is_end();
        if let HttpTask::Body(Some(bytes), _) = task
            && !bytes.is_empty()
        {
            self.queued.push_back(bytes);
        }
    }

    pub(super) fn is_behind(&self) -> bool {
        !self.queued.is_empty() || self.ends != self.ended
    }

    /// Writes what the caller has room for. Ready once it has all.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Self { writer, queued, ends, ended } = self;
        while let Some(bytes) = queued.front_mut() {
            writer.reserve_capacity(bytes.len());
            let mut room = writer.capacity();
            if room == 0 {
                room = match writer.poll_capacity(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(room)) => {
                        room.or_err(ErrorType::H2Error, "while the caller makes room")?
                    }
                    Poll::Ready(None) => {
                        return Poll::Ready(Error::e_explain(ErrorType::H2Error, "the stream is closed"));
                    }
                };
            }
            let piece = bytes.split_to(room.min(bytes.len()));
            if bytes.is_empty() {
                queued.pop_front();
            }
            writer.send_data(piece, false).or_err(ErrorType::WriteError, "on the caller's stream")?;
        }
        if *ends && !*ended {
            *ended = true;
            writer.send_data(Bytes::new(), true).or_err(ErrorType::WriteError, "at the stream's end")?;
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for the caller to give its stream up. Pingora's session would ask the writing half too.
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Box<Error>> {
        self.writer.poll_reset(cx).map(|reset| {
            let reason = reset.map_or_else(|error| error.to_string(), |reason| reason.to_string());
            Error::explain(ErrorType::H2Error, reason).into_down()
        })
    }

    /// Writes all that is queued, to a caller that takes something at least now and then.
    pub(super) async fn drain(&mut self, silence_max: Option<Duration>) -> Result<()> {
        while self.is_behind() {
            let left = self.queued.len();
            let progress = poll_fn(|cx| match self.poll_write(cx) {
                Poll::Pending if self.queued.len() < left => Poll::Ready(Ok(())),
                other => other,
            });
            match silence_max {
                None => progress.await?,
                Some(time) => {
                    timeout(time, progress).await.or_err(ErrorType::WriteTimedout, "the caller")??
                }
            }
        }
        Ok(())
    }
}
