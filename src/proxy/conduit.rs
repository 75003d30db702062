//! Connections to servers, and those that wait for their next request.
//!
//! Pingora 0.9.1 has a task watch each connection that waits, and asks the kernel whom it leads to before it takes it.
//! Between two processes of one machine a system call takes as long as a good part of all else that a request takes,
//! so connections in plain text wait here, where neither is done. Those by TLS are Pingora's, and so are all of them
//! where the file says how Pingora is to connect.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::protocols::Stream;
use pingora::protocols::l4::stream::Stream as PlainStream;
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::{Error, ErrorType, OrErr, Result};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::unconstrained;
use tokio::time::timeout;

use super::trust;

/// llama-server closes an idle connection after 5.01 s (measured, b11434) and says so in a header that Pingora's pool
/// does not read.
const IDLE_TIME_MAX: Duration = Duration::from_secs(4);

/// The ways to all servers.
pub struct Conduits {
    idle: Mutex<Idle>,
    /// Of idle connections in plain text, those beyond are closed. `None`: they are Pingora's too.
    max: Option<usize>,
    options: ConnectorOptions,
    /// Once it is needed, since it reads the roots of TLS, half a MiB; and why it knows none, if it knows none.
    pingora: OnceLock<(TransportConnector, Option<String>)>,
}

#[derive(Default)]
struct Idle {
    /// The one that was used last stands last.
    by_address: HashMap<SocketAddr, Vec<Resting>>,
    count: usize,
}

struct Resting {
    stream: Stream,
    since: Duration,
}

impl Resting {
    fn is_usable(&mut self, now: Duration) -> bool {
        now.saturating_sub(self.since) < IDLE_TIME_MAX && is_quiet(&mut self.stream)
    }
}

/// A server that says something unasked, or that closes, is of no use. No system call but where it did.
fn is_quiet(stream: &mut Stream) -> bool {
    // Out of tokio's turn: else it would be quiet for whoever has used up its own.
    unconstrained(stream.read(&mut [0])).now_or_never().is_none()
}

/// A connection for one try, and whether it has carried a request before: then it may have died while it waited.
pub(super) struct Line {
    pub(super) stream: Stream,
    pub(super) was_used: bool,
}

impl Conduits {
    /// `max`: how many connections in plain text may wait; `None`: those are Pingora's too.
    pub fn new(options: ConnectorOptions, max: Option<usize>) -> Self {
        Self { idle: Mutex::default(), max, options, pingora: OnceLock::new() }
    }

    /// Comes to a connection. `afresh`: not to one that waits, since those may all have died.
    pub(super) async fn line(&self, peer: &HttpPeer, afresh: bool, now: Duration) -> Result<Line> {
        let Some(address) = self.own(peer) else {
            let (stream, was_used) = match afresh {
                true => (Box::pin(self.pingora().new_stream(peer)).await?, false),
                false => Box::pin(self.pingora().get_stream(peer)).await?,
            };
            return Ok(Line { stream, was_used });
        };
        let kept = if afresh { None } else { self.take(address, now) };
        Ok(match kept {
            Some(stream) => Line { stream, was_used: true },
            None => {
                let stream = Box::pin(dial(address, peer.options.connection_timeout)).await?;
                Line { stream, was_used: false }
            }
        })
    }

    /// Takes back a connection whose server is ready for the next request.
    pub(super) fn keep(&self, peer: &HttpPeer, stream: Stream, now: Duration) {
        match self.own(peer) {
            Some(address) => self.rest(address, stream, now),
            None => self.pingora().release_stream(stream, peer.reuse_hash(), Some(IDLE_TIME_MAX)),
        }
    }

    fn pingora(&self) -> &TransportConnector {
        &self.made().0
    }

    /// Why no server can be verified by the roots of TLS, if none can. They are read once, at the latest here.
    pub(super) fn without_roots(&self) -> Option<&str> {
        self.made().1.as_deref()
    }

    fn made(&self) -> &(TransportConnector, Option<String>) {
        self.pingora.get_or_init(|| trust::connector(self.options.clone()))
    }

    /// Where connections to this peer wait here.
    fn own(&self, peer: &HttpPeer) -> Option<SocketAddr> {
        self.max.filter(|_| !peer.tls()).and_then(|_| peer.address().as_inet().copied())
    }

    fn take(&self, address: SocketAddr, now: Duration) -> Option<Stream> {
        let mut idle = self.idle();
        loop {
            let mut resting = idle.by_address.get_mut(&address)?.pop()?;
            idle.count -= 1;
            if resting.is_usable(now) {
                return Some(resting.stream);
            }
        }
    }

    fn rest(&self, address: SocketAddr, stream: Stream, now: Duration) {
        let mut idle = self.idle();
        if self.max.is_some_and(|max| idle.count < max) {
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
            resting.retain_mut(|resting| resting.is_usable(now));
            *count -= before - resting.len();
            !resting.is_empty()
        });
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn dial(address: SocketAddr, within: Option<Duration>) -> Result<Stream> {
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
    let stream = connected
        .map_err(|error| Error::because(failure(&error), format!("connecting to {address}"), error))?;
    stream.set_nodelay(true).or_err(ErrorType::ConnectError, "TCP_NODELAY")?;
    // Without buffers: a request goes out in one write, and what is read goes to its place at once.
    Ok(Box::new(PlainStream::from(stream)))
}

fn failure(error: &io::Error) -> ErrorType {
    match error.kind() {
        ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
        ErrorKind::TimedOut => ErrorType::ConnectTimedout,
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => ErrorType::ConnectNoRoute,
        _ => ErrorType::ConnectError,
    }
}

#[cfg(test)]
mod tests;
