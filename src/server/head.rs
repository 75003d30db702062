//! A caller's connection, and the time that it has for what must come before anything can be decided: the head of a
//! request, or the preface of HTTP/2.
//!
//! Pingora bounds each read and not their sum, so that one byte a second would hold a connection for ever. The bytes
//! are watched on their way for the end of what is awaited; a timer is only made where that does not come at once.
//!
//! What comes is read as far as there is room on the stack, since Pingora reads a head into 4 KiB and a body that came
//! with it would cost another system call. A buffer of the connection's own would be held, and cleared at its start,
//! for as long as an answer takes. For the same reason what is written gathers here (`gather.rs`).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use memchr::memchr;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep, timeout};

use super::gather::Gathering;

/// The length of the preface that a caller of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

/// A head and a body that is not large. What is read into as much room goes there at once.
const AHEAD_BYTES: usize = 16 << 10;

/// Whoever reads nothing any more is not waited for to take the last bytes.
const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(5);

/// What is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// The first byte of a head. Empty lines before it are none.
    Head,
    /// The end of a line of the head.
    LineEnd,
    /// An empty line, or more of the head.
    EmptyLine,
    /// So many bytes of the preface.
    Preface(usize),
    /// Nothing: what comes is a body, or frames.
    Nothing,
}

impl Awaited {
    /// Takes in what has come.
    fn after(mut self, mut bytes: &[u8]) -> Self {
        while let Some((first, rest)) = bytes.split_first() {
            self = match (self, first) {
                (Self::Nothing, _) => return self,
                (Self::Preface(left), _) if left > bytes.len() => return Self::Preface(left - bytes.len()),
                (Self::Preface(_), _) | (Self::EmptyLine, b'\n') => return Self::Nothing,
                (Self::Head, b'\r' | b'\n') => Self::Head,
                (Self::EmptyLine, b'\r') => Self::EmptyLine,
                (Self::Head | Self::LineEnd | Self::EmptyLine, _) => match memchr(b'\n', bytes) {
                    None => return Self::LineEnd,
                    Some(end) => {
                        bytes = &bytes[end + 1..];
                        self = Self::EmptyLine;
                        continue;
                    }
                },
            };
            bytes = rest;
        }
        self
    }

    /// Whether its time runs.
    fn has_begun(self) -> bool {
        !matches!(self, Self::Head | Self::Nothing)
    }
}

/// A connection whose caller is not let to take its time.
#[derive(Debug)]
pub(super) struct Watched {
    out: Gathering<Stream>,
    /// Whether more is read than is asked for: TLS does that by itself.
    reads_ahead: bool,
    /// What was read so.
    ahead: Bytes,
    awaited: Awaited,
    time_max: Duration,
    /// There once the time runs and there was nothing to read.
    timer: Option<Pin<Box<Sleep>>>,
    given_up: Arc<Notify>,
    /// What a caller is told whose time is over.
    last_word: fn() -> Vec<u8>,
}

impl Watched {
    /// A connection on which a head of HTTP/1 is awaited. The other is told when it is given up: then nothing more
    /// can be read, and it is to be dropped.
    pub(super) fn for_heads(
        inner: Stream,
        time_max: Duration,
        last_word: fn() -> Vec<u8>,
    ) -> (Box<Self>, Arc<Notify>) {
        Self::new(inner, Awaited::Head, time_max, last_word)
    }

    /// The same for the preface of HTTP/2. Its frames have bounds of their own.
    pub(super) fn for_preface(inner: Stream, time_max: Duration) -> (Box<Self>, Arc<Notify>) {
        Self::new(inner, Awaited::Preface(PREFACE_BYTES), time_max, Vec::new)
    }

    fn new(
        inner: Stream,
        awaited: Awaited,
        time_max: Duration,
        last_word: fn() -> Vec<u8>,
    ) -> (Box<Self>, Arc<Notify>) {
        let given_up = Arc::new(Notify::new());
        let watched = Self {
            reads_ahead: inner.get_ssl_digest().is_none(),
            out: Gathering::new(inner),
            ahead: Bytes::new(),
            awaited,
            time_max,
            timer: None,
            given_up: Arc::clone(&given_up),
            last_word,
        };
        (Box::new(watched), given_up)
    }

    /// Awaits the next head, on a connection that is used again.
    pub(super) fn again(stream: Stream) -> Stream {
        let given_back = stream.into_any().downcast::<Self>();
        let mut watched = given_back.expect("Pingora gives back the stream that it was given");
        watched.awaited = Awaited::Head;
        watched.timer = None;
        watched
    }

    /// Reads what is there, and keeps what there is no room for.
    fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            // With the last of it, its room is given back.
            let now = self.ahead.split_to(self.ahead.len().min(buf.remaining()));
            buf.put_slice(&now);
            return Poll::Ready(Ok(()));
        }
        // One byte is Pingora's look whether the caller is still there.
        if !self.reads_ahead || buf.remaining() >= AHEAD_BYTES || buf.remaining() == 1 {
            return Pin::new(&mut self.out.inner).poll_read(cx, buf);
        }
        self.poll_ahead(cx, buf)
    }

    /// A function of its own: all of its room is on the stack while it runs.
    #[inline(never)]
    fn poll_ahead(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut room = [const { MaybeUninit::uninit() }; AHEAD_BYTES];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.out.inner).poll_read(cx, &mut read))?;
        let (now, later) = read.filled().split_at(read.filled().len().min(buf.remaining()));
        buf.put_slice(now);
        self.ahead = Bytes::copy_from_slice(later);
        Poll::Ready(Ok(()))
    }

    /// Says the last word, as far as it is taken at once. Nothing is read from here on.
    fn give_up(&mut self, cx: &mut Context<'_>, word: &[u8]) -> Poll<io::Result<()>> {
        if !word.is_empty() && self.out.poll_take(cx, &[IoSlice::new(word)]).is_ready() {
            let _ = self.out.poll_flush(cx);
        }
        self.given_up.notify_one();
        Poll::Pending
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = this.poll_fill(cx, buf);
        if this.awaited == Awaited::Nothing {
            return read;
        }
        match read {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                this.awaited = this.awaited.after(&buf.filled()[before..]);
                if this.awaited == Awaited::Nothing {
                    this.timer = None;
                } else if this.awaited.has_begun() && this.timer.is_none() {
                    this.timer = Some(Box::pin(sleep(this.time_max)));
                }
            }
            // Closed or broken in the middle: nobody is there to be told, and it is not worth a line of the log.
            Poll::Ready(_) if this.awaited.has_begun() => return this.give_up(cx, &[]),
            Poll::Pending if this.awaited.has_begun() => {
                let time_max = this.time_max;
                let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(time_max)));
                if timer.as_mut().poll(cx).is_ready() {
                    let word = (this.last_word)();
                    return this.give_up(cx, &word);
                }
            }
            _ => {}
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.out.poll_take(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.out.poll_take(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.out.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.out.poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Watched {
    async fn shutdown(&mut self) {
        // Whether the caller is still there to take leave of does not matter.
        let _ = timeout(SHUTDOWN_TIME_MAX, AsyncWriteExt::shutdown(self)).await;
    }
}

impl UniqueID for Watched {
    fn id(&self) -> UniqueIDType {
        self.out.inner.id()
    }
}

impl Ssl for Watched {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.out.inner.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.out.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.out.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Watched {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.out.inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.out.inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.out.inner.get_write_pending_time()
    }
}

impl GetProxyDigest for Watched {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.out.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Watched {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.out.inner.get_socket_digest()
    }
}

#[async_trait]
impl Peek for Watched {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.out.inner.try_peek(buf).await
    }
}

#[cfg(test)]
mod tests {
    use pingora::protocols::l4::stream::Stream as PlainStream;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_head_ends_with_an_empty_line_however_it_is_cut() {
        let cases: [(&str, Awaited); 12] = [
            ("", Awaited::Head),
            ("\r\n\r\n\n", Awaited::Head),
            ("G", Awaited::LineEnd),
            ("\r\n\r\nGET / HTTP/1.1\r", Awaited::LineEnd),
            ("GET / HTTP/1.1\r\n", Awaited::EmptyLine),
            ("GET / HTTP/1.1\r\n\r", Awaited::EmptyLine),
            ("GET / HTTP/1.1\r\na: b\r\nc", Awaited::LineEnd),
            ("GET / HTTP/1.1\r\n\r\n", Awaited::Nothing),
            ("GET / HTTP/1.1\n\n", Awaited::Nothing),
            ("GET / HTTP/1.1\r\na: b\r\n\r\nbody", Awaited::Nothing),
            ("POST / HTTP/1.1\na: b\n\r\n", Awaited::Nothing),
            ("POST / HTTP/1.1\r\na: \r b\r\n\r\n\r\n\r\n", Awaited::Nothing),
        ];
        for (text, expected) in cases {
            assert_eq!(Awaited::Head.after(text.as_bytes()), expected, "{text:?} at once");
            let bytewise = text.bytes().fold(Awaited::Head, |awaited, byte| awaited.after(&[byte]));
            assert_eq!(bytewise, expected, "{text:?} byte by byte");
        }
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_in_its_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut caller =
            TcpStream::connect(listener.local_addr().expect("an address")).await.expect("it listens");
        let (stream, _) = listener.accept().await.expect("a connection");
        let (mut watched, _) =
            Watched::for_heads(Box::new(PlainStream::from(stream)), SHUTDOWN_TIME_MAX, Vec::new);
        let body = (0..40_000_u32).map(|number| number as u8);
        let sent: Vec<u8> = b"POST / HTTP/1.1\r\n\r\n".iter().copied().chain(body).collect();
        caller.write_all(&sent).await.expect("it is taken");
        drop(caller);
        let mut read = Vec::new();
        for room in [4096, 1, 7, AHEAD_BYTES, 100, AHEAD_BYTES - 1, 1].into_iter().cycle() {
            let mut buffer = vec![0; room];
            let count = watched.read(&mut buffer).await.expect("it comes");
            read.extend_from_slice(&buffer[..count]);
            if count == 0 {
                break;
            }
        }
        assert!(read == sent, "{} of {} bytes", read.len(), sent.len());
    }

    #[test]
    fn a_preface_ends_by_its_length() {
        let preface = Awaited::Preface(PREFACE_BYTES);
        assert_eq!(preface.after(&[0; 23]), Awaited::Preface(1));
        assert_eq!(preface.after(&[0; 23]).after(&[0]), Awaited::Nothing);
        assert_eq!(preface.after(&[0; 99]), Awaited::Nothing);
    }
}
