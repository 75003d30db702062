//! A peer that answers every request with an error's status, in memory.
//!
//! Once Pingora has tried to connect, it closes the caller's connection unless some server answered. So that a caller
//! whose server is away keeps its connection, the last try goes here; `respond` puts the real refusal in the place of
//! this answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use http::StatusCode;
use pingora::Result;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::upstreams::peer::HttpPeer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The body of every answer: one byte, to be replaced.
const BODY: &str = "-";

/// The peer that answers with this status.
pub(super) fn peer(status: StatusCode) -> HttpPeer {
    let mut peer = HttpPeer::new(std::net::SocketAddr::from(([0, 0, 0, 0], 0)), false, String::new());
    peer.options.custom_l4 = Some(Arc::new(Refuser(status)));
    peer
}

#[derive(Debug)]
struct Refuser(StatusCode);

#[async_trait]
impl Connect for Refuser {
    async fn connect(&self, _address: &SocketAddr) -> Result<Stream> {
        // `connection: close` keeps it out of the pool.
        let answer = format!(
            "HTTP/1.1 {} {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{BODY}",
            self.0.as_u16(),
            self.0.canonical_reason().unwrap_or_default(),
            BODY.len()
        );
        let socket = Answer { bytes: answer.into_bytes(), read: 0 };
        Ok(Stream::from(VirtualSocketStream::new(Box::new(socket))))
    }
}

/// Swallows what is written and gives its bytes to who reads.
#[derive(Debug)]
struct Answer {
    bytes: Vec<u8>,
    read: usize,
}

impl AsyncRead for Answer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let end = self.bytes.len().min(self.read + buf.remaining());
        buf.put_slice(&self.bytes[self.read..end]);
        self.read = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Answer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl VirtualSocket for Answer {
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}
