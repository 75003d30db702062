//! The wrapper around the caller's session while a server works for it.
//!
//! Pingora 0.9.1 gives a body that was read ahead back only up to 64 KiB, and has one timeout for everything a server
//! sends. The wrapper is a session of Pingora's custom kind that hands all else to the real one: it offers the whole
//! body as Pingora's retry buffer (shared, not copied; any framing, any number of tries), and while it watches for a
//! caller that leaves it watches the answer's timeouts too. Where others follow the answer, it hides from Pingora
//! that the caller left, or that it reads slowly, until the last of them has left too.
//! `pingora_core::protocols::http::custom` is not a documented interface, hence the exact version in Cargo.toml.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use http::HeaderMap;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;

use crate::cache::Flight;

use super::context::{Context, PermitSlot, vacate};
use super::gateway::Gateway;
use super::lane::Lane;
use super::refusal::Refusal;
use super::timing::Timing;
use super::turned::Cue;
use super::wait::{Alarm, LAG_BYTES_MAX, catch_up, late, late_error, poll_write, watch};

pub(super) type Slot = Arc<Seat>;

#[derive(Default)]
pub(super) struct Seat {
    /// Where the real session comes back to when the wrapper is taken off.
    session: Mutex<Option<HttpSession>>,
    /// The wrapper has the session's writing half, and stays on to the end.
    stays: AtomicBool,
}

/// Puts the wrapper on. Pingora sends the body that the cue holds.
pub(super) fn wrap(session: &mut Session, gateway: &Arc<Gateway>, ctx: &Context) {
    let inner = std::mem::replace(&mut *session.downstream_session, nobody());
    let wrapper = Wrapper {
        inner: Some(inner),
        cue: Arc::clone(&ctx.cue),
        held: None,
        timing: Arc::clone(&ctx.route.timing),
        gateway: Arc::clone(gateway),
        alarm: Alarm::default(),
        slot: Arc::clone(&ctx.slot),
        flight: ctx.flight.clone(),
        permit: Arc::clone(&ctx.guards.permit),
        hidden: false,
        lag_bytes: 0,
        lane: None,
    };
    *session.downstream_session = HttpSession::new_custom(Box::new(wrapper));
}

/// Takes it off again. Pingora finishes and reuses only sessions of its own kinds.
pub(super) fn unwrap(session: &mut Session, slot: &Slot) {
    if session.downstream_session.is_custom() && !slot.stays.load(Ordering::Relaxed) {
        // Dropping the wrapper puts the real session into the slot.
        *session.downstream_session = nobody();
        if let Some(inner) = slot.session.lock().unwrap_or_else(PoisonError::into_inner).take() {
            *session.downstream_session = inner;
        }
    }
}

fn nobody() -> HttpSession {
    HttpSession::new_custom(Box::new(()))
}

struct Wrapper {
    /// There until the wrapper is dropped.
    inner: Option<HttpSession>,
    /// The body that Pingora is to send, and whether the answer's header waits for its body.
    cue: Arc<Cue>,
    held: Option<Box<ResponseHeader>>,
    timing: Arc<Timing>,
    gateway: Arc<Gateway>,
    alarm: Alarm,
    slot: Slot,
    /// The flight that this request leads.
    flight: Option<Arc<Flight<Refusal>>>,
    permit: PermitSlot,
    /// The caller is gone, and its answer goes on for its followers: nothing more is read from it or written to it.
    hidden: bool,
    /// Bytes that were queued for a caller that takes them slower than its followers.
    lag_bytes: usize,
    /// How a caller over HTTP/2 is written to, once others follow its answer.
    lane: Option<Lane>,
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        *self.slot.session.lock().unwrap_or_else(PoisonError::into_inner) = self.inner.take();
    }
}

impl Wrapper {
    fn inner(&self) -> &HttpSession {
        self.inner.as_ref().expect("the session is taken on drop alone")
    }

    fn inner_mut(&mut self) -> &mut HttpSession {
        self.parts().0
    }

    fn parts(&mut self) -> (&mut HttpSession, &mut Option<Lane>) {
        (self.inner.as_mut().expect("the session is taken on drop alone"), &mut self.lane)
    }

    /// Takes in that the caller is gone. True: others follow its answer, and it goes on for them.
    fn hide(&mut self) -> bool {
        let goes_on = self.flight.as_ref().is_some_and(|flight| flight.leader_leaves());
        if goes_on {
            self.hidden = true;
            self.inner_mut().set_keepalive(None);
            drop(vacate(&self.permit));
        }
        goes_on
    }

    fn is_followed(&self) -> bool {
        self.flight.as_ref().is_some_and(|flight| flight.followers() > 0)
    }

    /// Writes at the caller's pace, or, where others follow, at theirs: what the caller does not take at once is
    /// queued, up to a bound, and then the caller is cut.
    async fn write(&mut self, mut tasks: Vec<HttpTask>) -> Result<bool> {
        let behind = self.lane.is_some() || self.inner().has_pending_downstream_proxy_tasks();
        if !behind && !self.is_followed() {
            return self.inner_mut().response_duplex_vec(tasks).await;
        }
        let ends = tasks.iter().any(HttpTask::is_end);
        if matches!(self.inner(), HttpSession::H2(_)) && self.lane.is_none() {
            // The header takes no time.
            let headers = tasks.iter().take_while(|task| matches!(task, HttpTask::Header(..))).count();
            if self.inner_mut().response_duplex_vec(tasks.drain(..headers).collect()).await? {
                return Ok(true);
            }
            self.lane = Lane::of(self.inner_mut());
            let Some(_) = &self.lane else { return self.inner_mut().response_duplex_vec(tasks).await };
            self.slot.stays.store(true, Ordering::Relaxed);
        }
        for task in tasks {
            if let HttpTask::Body(Some(chunk), _) = &task {
                self.lag_bytes += chunk.len();
            }
            match &mut self.lane {
                Some(lane) => lane.push(task),
                None => self.inner_mut().send_downstream_proxy_task(task),
            }
        }
        let (inner, lane) = self.parts();
        let written = poll_fn(|cx| Poll::Ready(poll_write(inner, lane, cx))).await;
        match written {
            Poll::Ready(written) => {
                self.lag_bytes = 0;
                written?;
            }
            Poll::Pending if self.lag_bytes > LAG_BYTES_MAX => {
                catch_up(self.parts()).await?;
                self.lag_bytes = 0;
            }
            Poll::Pending => {}
        }
        Ok(ends)
    }
}

#[async_trait]
impl CustomSession for Wrapper {
    async fn read_body_or_idle(&mut self, _no_body_expected: bool) -> Result<Option<Bytes>> {
        loop {
            let Self { inner, timing, gateway, alarm, flight, hidden, lane, .. } = self;
            let late = late(timing, gateway.clock, alarm);
            if let (true, Some(flight)) = (*hidden, flight) {
                return tokio::select! {
                    biased;
                    () = flight.abandoned() => Error::e_explain(ErrorType::ConnectionClosed, "the last follower left"),
                    late = late => Error::e_explain(late_error(late), late.what()),
                };
            }
            let inner = inner.as_mut().expect("the session is taken on drop alone");
            let left = tokio::select! {
                biased;
                read = watch(inner, lane) => match read {
                    Err(left) => left,
                    read => return read,
                },
                late = late => return Error::e_explain(late_error(late), late.what()),
            };
            if !self.hide() {
                return Err(left);
            }
        }
    }

    fn is_body_done(&mut self) -> bool {
        true
    }

    fn is_body_empty(&mut self) -> bool {
        self.cue.body().is_empty()
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        Some(self.cue.body())
    }

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn enable_retry_buffering(&mut self) {}

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    fn req_header(&self) -> &RequestHeader {
        self.inner().req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.inner_mut().req_header_mut()
    }

    async fn write_response_header(&mut self, resp: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.inner_mut().write_response_header(resp).await
    }

    async fn write_response_header_ref(&mut self, resp: &ResponseHeader, _end: bool) -> Result<()> {
        self.inner_mut().write_response_header_ref(resp).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        let silence_max = self.get_write_timeout();
        if let Some(lane) = &mut self.lane {
            lane.push(HttpTask::Body(Some(data), end));
            return lane.drain(silence_max).await;
        }
        self.inner_mut().write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.inner_mut().write_response_trailers(trailers).await
    }

    async fn response_duplex_vec(&mut self, mut tasks: Vec<HttpTask>) -> Result<bool> {
        // The server's failure is nobody's leaving.
        let failed = tasks.pop_if(|task| matches!(task, HttpTask::Failed(_)));
        let tasks = self.cue.hold(tasks, &mut self.held, self.gateway.clock)?;
        // Its header says so; a connection that it offered to keep is kept, until it is idle.
        if !self.gateway.is_ready() && tasks.iter().any(|task| matches!(task, HttpTask::Header(..))) {
            self.inner_mut().set_keepalive(None);
        }
        let ends = tasks.iter().any(HttpTask::is_end);
        let written = match tasks.is_empty() || self.hidden {
            true => Ok(ends),
            false => self.write(tasks).await,
        };
        let ended = match written {
            Ok(ended) => ended,
            Err(_) if self.hide() => ends,
            Err(left) => return Err(left.into_down()),
        };
        if let Some(HttpTask::Failed(error)) = failed {
            return Err(error);
        }
        // The time that the caller took to take them is not the server's silence.
        self.timing.byte(self.gateway.clock.now());
        Ok(ended)
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.inner().get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner().get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner().get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.inner().request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.inner().response_written()
    }

    async fn shutdown(&mut self, _code: u32, _ctx: &str) {
        self.inner_mut().shutdown().await;
    }

    async fn finish(&mut self) -> Result<()> {
        if self.hidden {
            return Ok(());
        }
        let silence_max = self.get_write_timeout();
        if let Some(lane) = &mut self.lane {
            lane.push(HttpTask::Done);
            // A caller that left at the end is no error worth a line.
            return lane.drain(silence_max).await.or(Ok(()));
        }
        while self.inner().has_pending_downstream_proxy_tasks() {
            self.inner_mut().write_downstream_proxy_tasks().await?;
        }
        self.inner_mut().finish_body().await
    }

    fn body_bytes_sent(&self) -> usize {
        self.inner().body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.inner().body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.inner().digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner_mut().digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner().client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner().server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.inner().to_h1_raw()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
