//! What is written to a caller, gathered until it is flushed.
//!
//! An answer goes out with its header in one piece, a replayed stream of some kilobytes too, where each piece would be
//! a system call and a packet. The room for it is gone once it is flushed: Pingora's own buffer would be held by each
//! stream between its events.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use arrayvec::ArrayVec;
use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::task::unconstrained;

/// So much waits for more.
const WAITING_BYTES_MAX: usize = 16 << 10;

/// The room that is made at first: a header and an event.
const ROOM_BYTES: usize = 2 << 10;

/// How many pieces are written at once.
const PIECES_MAX: usize = 16;

/// A connection that is written to by what has gathered.
#[derive(Debug)]
pub(super) struct Gathering<S: AsyncWrite + Unpin> {
    pub(super) inner: S,
    waiting: BytesMut,
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, waiting: BytesMut::new() }
    }

    /// Takes what is written, or as much of it as can be passed on where it is too much to wait.
    pub(super) fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        if self.waiting.len() + bytes > WAITING_BYTES_MAX {
            return match ready!(self.poll_pass(cx, pieces))? {
                0 => Pin::new(&mut self.inner).poll_write_vectored(cx, pieces),
                taken => Poll::Ready(Ok(taken)),
            };
        }
        if self.waiting.is_empty() {
            self.waiting.reserve(bytes.max(ROOM_BYTES));
        }
        pieces.iter().for_each(|piece| self.waiting.extend_from_slice(piece));
        Poll::Ready(Ok(bytes))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pass(cx, &[]))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pass(cx, &[]))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    /// Passes on what waits. Ready: nothing waits any more, and so many bytes of what comes behind it went with it.
    fn poll_pass(&mut self, cx: &mut Context<'_>, behind: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        while !self.waiting.is_empty() {
            let mut pieces = ArrayVec::<_, PIECES_MAX>::new();
            pieces.push(IoSlice::new(&self.waiting));
            pieces.extend(behind.iter().copied().take(PIECES_MAX - 1));
            let passed = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, &pieces))?;
            drop(pieces);
            if passed == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            match passed.checked_sub(self.waiting.len()) {
                None => self.waiting.advance(passed),
                Some(further) => {
                    self.waiting = BytesMut::new();
                    return Poll::Ready(Ok(further));
                }
            }
        }
        Poll::Ready(Ok(0))
    }
}

/// An answer that breaks off is not flushed any more; its caller has what there is of it, as Pingora's own does it.
impl<S: AsyncWrite + Unpin> Drop for Gathering<S> {
    fn drop(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        if !waiting.is_empty() {
            // Out of tokio's turn, which may be used up.
            let _ = unconstrained(self.inner.write_all(&waiting)).now_or_never();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    use super::*;

    /// A connection that takes so much at once, and its other end.
    fn connected(bytes: usize) -> (Gathering<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(bytes);
        (Gathering::new(ours), theirs)
    }

    async fn write_all(to: &mut Gathering<DuplexStream>, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // In two pieces.
            let (one, other) = bytes.split_at(bytes.len() / 3);
            let pieces = [IoSlice::new(one), IoSlice::new(other)];
            let taken = poll_fn(|cx| to.poll_take(cx, &pieces)).await.expect("it is taken");
            bytes = &bytes[taken..];
        }
    }

    #[tokio::test]
    async fn what_is_written_goes_out_with_its_flush_or_once_it_is_much() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|number| (number / 3) as u8).collect();
        for at_once in [1, 1000, WAITING_BYTES_MAX + 1, 1 << 20] {
            let (mut ours, mut theirs) = connected(at_once);
            let mut read = vec![0; bytes.len()];
            for piece in [&bytes[..5], &bytes[5..4000], &bytes[4000..WAITING_BYTES_MAX]] {
                write_all(&mut ours, piece).await;
                assert!(theirs.read(&mut [0]).now_or_never().is_none());
            }
            let written = async {
                let (one, rest) = bytes[WAITING_BYTES_MAX..].split_at(1);
                let (much, last) = rest.split_at(rest.len() - 100);
                write_all(&mut ours, one).await;
                write_all(&mut ours, much).await;
                write_all(&mut ours, last).await;
                poll_fn(|cx| ours.poll_flush(cx)).await.expect("it is taken");
                assert_eq!(ours.waiting.capacity(), 0);
            };
            let (_, taken) = tokio::join!(written, theirs.read_exact(&mut read));
            taken.expect("it comes");
            assert!(read == bytes, "{at_once} at once");
        }
    }

    #[tokio::test]
    async fn what_waits_when_all_is_over_goes_out_too() {
        let (mut ours, mut theirs) = connected(100);
        write_all(&mut ours, b"the last word").await;
        drop(ours);
        let mut read = String::new();
        theirs.read_to_string(&mut read).await.expect("it ends");
        assert_eq!(read, "the last word");
    }
}
