//! Connections to servers in plain text: a request goes out in one write, and they are kept for the next one.
//!
//! Pingora 0.9.1 writes a request's header and its body each by a send of its own, has a task watch each connection
//! that waits for its next request, and asks the kernel whom it leads to before it takes it. Between two processes of
//! one machine a send takes as long as all that the gateway does to a header. So Pingora is given a socket that is not
//! its own: one that holds back the header until the body comes, and that comes back here when Pingora would keep it.
//! Connections by TLS are Pingora's own, as they were.

use std::collections::HashMap;
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::{Error, ErrorType, OrErr, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::clock::Clock;

/// llama-server closes an idle connection after 5.01 s (measured, b11434) and says so in a header that Pingora's pool
/// does not read.
pub(super) const IDLE_TIME_MAX: Duration = Duration::from_secs(4);

/// The connections that wait for their next request, to all servers together.
#[derive(Debug)]
pub struct Conduits {
    idle: Mutex<Idle>,
    /// Those beyond are closed.
    max: usize,
}

#[derive(Debug, Default)]
struct Idle {
    /// The one that was used last stands last.
    by_address: HashMap<SocketAddr, Vec<Resting>>,
    count: usize,
}

#[derive(Debug)]
struct Resting {
    stream: TcpStream,
    since: Duration,
}

impl Resting {
    fn is_usable(&self, now: Duration) -> bool {
        // A server that says something unasked, or that it closes, is of no use. No system call but where it did.
        let is_quiet =
            || matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
        now.saturating_sub(self.since) < IDLE_TIME_MAX && is_quiet()
    }
}

impl Conduits {
    pub fn new(max: usize) -> Self {
        Self { idle: Mutex::default(), max }
    }

    fn take(&self, address: SocketAddr, now: Duration) -> Option<TcpStream> {
        let mut idle = self.idle();
        loop {
            let resting = idle.by_address.get_mut(&address)?.pop()?;
            idle.count -= 1;
            if resting.is_usable(now) {
                return Some(resting.stream);
            }
        }
    }

    fn keep(&self, address: SocketAddr, stream: TcpStream, now: Duration) {
        let mut idle = self.idle();
        if idle.count < self.max {
            idle.count += 1;
            idle.by_address.entry(address).or_default().push(Resting { stream, since: now });
        }
    }

    /// Closes those that have waited for long. To be called now and then.
    pub fn sweep(&self, now: Duration) {
        let mut idle = self.idle();
        let Idle { by_address, count } = &mut *idle;
        by_address.retain(|_, resting| {
            let before = resting.len();
            resting.retain(|resting| resting.is_usable(now));
            *count -= before - resting.len();
            !resting.is_empty()
        });
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request knows of its connection.
#[derive(Debug, Default)]
pub(super) struct Link {
    used: AtomicBool,
}

impl Link {
    /// Whether it has carried a request before: then it may have died while it waited.
    pub(super) fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
}

/// How Pingora comes to a connection for one try.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) conduits: Arc<Conduits>,
    pub(super) clock: Clock,
    pub(super) connect: Option<Duration>,
    /// Not one that waits: those may all have died.
    pub(super) afresh: bool,
    /// Of the request's body, which follows its header at once.
    pub(super) body_bytes: usize,
    pub(super) link: Arc<Link>,
}

#[async_trait]
impl Connect for Dial {
    async fn connect(&self, address: &PeerAddr) -> Result<Stream> {
        let Some(address) = address.as_inet().copied() else {
            return Error::e_explain(ErrorType::InternalError, "a server without an address");
        };
        let kept = if self.afresh { None } else { self.conduits.take(address, self.clock.now()) };
        let stream = match kept {
            Some(stream) => {
                self.link.used.store(true, Ordering::Relaxed);
                stream
            }
            None => dial(address, self.connect).await?,
        };
        let conduit = Conduit {
            stream: Some(stream),
            address,
            conduits: Arc::clone(&self.conduits),
            clock: self.clock,
            held: Vec::new(),
            holds: self.body_bytes > 0,
            body_bytes: self.body_bytes,
            released: false,
            closed: false,
        };
        Ok(Stream::from(VirtualSocketStream::new(Box::new(conduit))))
    }
}

async fn dial(address: SocketAddr, within: Option<Duration>) -> Result<TcpStream> {
    let connecting = TcpStream::connect(address);
    let connected = match within {
        None => connecting.await,
        Some(within) => match timeout(within, connecting).await {
            Ok(connected) => connected,
            Err(_) => {
                let why = format!("no connection to {address} within {within:?}");
                return Error::e_explain(ErrorType::ConnectTimedout, why);
            }
        },
    };
    let stream = connected.map_err(|error| {
        let kind = match error.kind() {
            ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
            ErrorKind::TimedOut => ErrorType::ConnectTimedout,
            ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => ErrorType::ConnectNoRoute,
            _ => ErrorType::ConnectError,
        };
        Error::because(kind, format!("connecting to {address}"), error)
    })?;
    stream.set_nodelay(true).or_err(ErrorType::ConnectError, "TCP_NODELAY")?;
    Ok(stream)
}

/// A connection while a request has it.
#[derive(Debug)]
struct Conduit {
    /// There until it is dropped.
    stream: Option<TcpStream>,
    address: SocketAddr,
    conduits: Arc<Conduits>,
    clock: Clock,
    /// The header, until the body comes.
    held: Vec<u8>,
    /// What is written is still the header.
    holds: bool,
    /// What is still to come of the body.
    body_bytes: usize,
    /// Pingora would keep it.
    released: bool,
    /// Pingora has closed it.
    closed: bool,
}

impl Conduit {
    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| ErrorKind::NotConnected.into())
    }

    /// Writes what is held, and as much of this as goes with it; says how much of this.
    fn poll_write_held(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        while !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            let written = self.stream()?.poll_write_vectored(cx, &[IoSlice::new(&held), IoSlice::new(buf)]);
            self.held = held;
            let count = ready!(written)?;
            if count == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            let more = count.saturating_sub(self.held.len());
            self.held.drain(..count - more);
            if more > 0 {
                // Its room would be kept as long as the answer comes.
                self.held = Vec::new();
                return Poll::Ready(Ok(more));
            }
        }
        if buf.is_empty() { Poll::Ready(Ok(0)) } else { self.stream()?.poll_write(cx, buf) }
    }
}

impl AsyncRead for Conduit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A read of one byte is Pingora's look at a connection whose answer has come to its end, before it keeps it. It
        // is told that this one has ended: it is kept here.
        if buf.remaining() == 1 {
            self.released = true;
            return Poll::Ready(Ok(()));
        }
        self.stream()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Conduit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.holds {
            self.held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        let written = ready!(self.poll_write_held(cx, buf))?;
        self.body_bytes = self.body_bytes.saturating_sub(written);
        Poll::Ready(Ok(written))
    }

    /// The first one is the header's, whose body comes at once: Pingora is given all of it beforehand (`session.rs`).
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.holds) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_write_held(cx, &[]))?;
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closed = true;
        self.stream()?.poll_shutdown(cx)
    }
}

impl VirtualSocket for Conduit {
    /// They are set as it is connected.
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Conduit {
    fn drop(&mut self) {
        // The body comes behind the header: with its last byte all has been sent.
        let is_done = self.released && self.body_bytes == 0 && !self.closed;
        if let Some(stream) = self.stream.take().filter(|_| is_done) {
            self.conduits.keep(self.address, stream, self.clock.now());
        }
    }
}

#[cfg(test)]
mod tests;
