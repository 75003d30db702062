//! The wrapper around the caller's session while a server works for it.
//!
//! Pingora 0.9.1 gives a body that was read ahead back only up to 64 KiB, and has one timeout for everything a server
//! sends. The wrapper is a session of Pingora's custom kind that hands all else to the real one: it offers the whole
//! body as Pingora's retry buffer (shared, not copied; any framing, any number of tries), and while it watches for a
//! caller that leaves it watches the answer's timeouts too. `pingora_core::protocols::http::custom` is not a
//! documented interface, hence the exact version in Cargo.toml.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
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
use tokio::time::Sleep;

use super::clock::Clock;
use super::gateway::Gateway;
use super::timing::{Late, Timing};

/// Where the real session comes back to when the wrapper is taken off.
pub(super) type Slot = Arc<Mutex<Option<HttpSession>>>;

/// The type of the errors that a late answer raises, one a bound.
pub(super) fn late_error(late: Late) -> ErrorType {
    ErrorType::Custom(late.what())
}

/// Puts the wrapper on, with the body that Pingora is to send.
pub(super) fn wrap(
    session: &mut Session,
    body: Bytes,
    timing: Arc<Timing>,
    gateway: Arc<Gateway>,
    slot: &Slot,
) {
    let inner = std::mem::replace(&mut *session.downstream_session, nobody());
    let wrapper = Wrapper { inner: Some(inner), body, timing, gateway, sleep: None, slot: Arc::clone(slot) };
    *session.downstream_session = HttpSession::new_custom(Box::new(wrapper));
}

/// Takes it off again. Pingora finishes and reuses only sessions of its own kinds.
pub(super) fn unwrap(session: &mut Session, slot: &Slot) {
    if session.downstream_session.is_custom() {
        // Dropping the wrapper puts the real session into the slot.
        *session.downstream_session = nobody();
        if let Some(inner) = slot.lock().unwrap_or_else(PoisonError::into_inner).take() {
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
    body: Bytes,
    timing: Arc<Timing>,
    gateway: Arc<Gateway>,
    sleep: Option<Pin<Box<Sleep>>>,
    slot: Slot,
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = self.inner.take();
    }
}

impl Wrapper {
    fn inner(&self) -> &HttpSession {
        self.inner.as_ref().expect("the session is taken on drop alone")
    }

    fn inner_mut(&mut self) -> &mut HttpSession {
        self.inner.as_mut().expect("the session is taken on drop alone")
    }
}

/// Waits until the answer is late. Progress does not touch the timer: it is asked when the timer rings.
async fn late(timing: &Timing, clock: Clock, sleep: &mut Option<Pin<Box<Sleep>>>) -> Late {
    loop {
        let Some((due, late)) = timing.due() else { return std::future::pending().await };
        let now = clock.now();
        if due <= now {
            return late;
        }
        let deadline = tokio::time::Instant::now() + (due - now);
        match sleep {
            Some(timer) if timer.is_elapsed() || timer.deadline() > deadline => {
                timer.as_mut().reset(deadline)
            }
            Some(_) => {}
            None => *sleep = Some(Box::pin(tokio::time::sleep_until(deadline))),
        }
        if let Some(timer) = sleep {
            timer.as_mut().await;
        }
    }
}

#[async_trait]
impl CustomSession for Wrapper {
    async fn read_body_or_idle(&mut self, _no_body_expected: bool) -> Result<Option<Bytes>> {
        let Self { inner, timing, gateway, sleep, .. } = self;
        let inner = inner.as_mut().expect("the session is taken on drop alone");
        tokio::select! {
            biased;
            read = inner.read_body_or_idle(true) => read,
            late = late(timing, gateway.clock, sleep) => Error::e_explain(late_error(late), late.what()),
        }
    }

    fn is_body_done(&mut self) -> bool {
        true
    }

    fn is_body_empty(&mut self) -> bool {
        self.body.is_empty()
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        Some(self.body.clone())
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
        self.inner_mut().write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.inner_mut().write_response_trailers(trailers).await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        if !self.gateway.is_ready() {
            self.inner_mut().set_keepalive(None);
        }
        let ended = self.inner_mut().response_duplex_vec(tasks).await?;
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
