//! A server's answer, read from its connection.
//!
//! Pingora's reader holds a header's buffer and one for the body as long as an answer lasts, a page of memory each, and
//! copies each event between them. Here what comes is read to the stack, and only what is passed on is kept. The
//! grammar is `httparse`'s, where a body ends `wire::Framing`'s.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, Version, header, response};
use httparse::{ParserConfig, Status};
use pingora::protocols::Stream;
use pingora::protocols::http::HttpTask;
use pingora::{Error, ErrorType, OrErr, Result};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::wire::{Framing, Misframed, content_length, words};

/// What is read at once.
const READ_BYTES: usize = 16 << 10;

/// More than any server of this kind says before its answer.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 128;
const HEADS_MAX: usize = 32;

/// How long it is waited for a server to take its leave of.
const SHUTDOWN_TIME_MAX: Duration = Duration::from_millis(100);

/// The error of a body whose end cannot be told.
const MISFRAMED: ErrorType = ErrorType::Custom("misframed");

/// An answer to one request.
pub(super) struct Reply {
    stream: Stream,
    /// A head that has not come to its end yet, or what came behind one that another follows.
    head: Vec<u8>,
    /// The latter.
    is_unread: bool,
    heads: usize,
    /// Once its header has come.
    framing: Option<Framing>,
    /// What has come together with the piece before.
    next: Option<HttpTask>,
    /// The connection may carry another request once the answer is over.
    keeps: bool,
}

impl Reply {
    /// Of a server that has the request, which is no HEAD.
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, head: Vec::new(), is_unread: false, heads: 0, framing: None, next: None, keeps: false }
    }

    /// The next piece: a header, of which those that only inform are followed by another, or bytes of the body, the
    /// last of them marked. Whoever does not wait for it loses nothing.
    pub(super) async fn piece(&mut self) -> Result<HttpTask> {
        poll_fn(|cx| self.poll_piece(cx)).await
    }

    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<HttpTask>> {
        let mut piece = self.at_hand();
        while matches!(piece, Ok(None)) {
            piece = ready!(self.poll_read(cx));
        }
        Poll::Ready(piece.map(|piece| piece.unwrap_or(HttpTask::Done)))
    }

    /// A piece that came together with the one before.
    fn at_hand(&mut self) -> Result<Option<HttpTask>> {
        if let Some(next) = self.next.take() {
            return Ok(Some(next));
        }
        if std::mem::take(&mut self.is_unread) {
            let head = std::mem::take(&mut self.head);
            return self.head(&head);
        }
        match &self.framing {
            Some(framing) if framing.is_over() => Ok(Some(HttpTask::Done)),
            Some(framing) => framing.lost().map_or(Ok(None), |why| Err(misframed(why))),
            None => Ok(None),
        }
    }

    /// Its connection, where that may carry another request.
    pub(super) async fn into_kept(mut self) -> Option<Stream> {
        let is_over = self.framing.is_some_and(|framing| framing.is_over());
        if self.keeps && is_over && self.next.is_none() {
            return Some(self.stream);
        }
        // TLS has a word for it (RFC 8446, section 6.1).
        if self.stream.get_ssl_digest().is_some() {
            let _ = timeout(SHUTDOWN_TIME_MAX, AsyncWriteExt::shutdown(&mut self.stream)).await;
        }
        None
    }

    /// A function of its own: all of its room is on the stack while it runs. `None`: what came is no whole piece.
    #[inline(never)]
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HttpTask>>> {
        let mut room = [const { MaybeUninit::uninit() }; READ_BYTES];
        let mut read = ReadBuf::uninit(&mut room);
        let came = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read));
        came.or_err(ErrorType::ReadError, "reading the answer")?;
        Poll::Ready(self.take(read.filled()))
    }

    /// Takes in what has come; nothing: the connection has ended.
    fn take(&mut self, bytes: &[u8]) -> Result<Option<HttpTask>> {
        match (bytes, &mut self.framing) {
            ([], None) => {
                Error::e_explain(ErrorType::ConnectionClosed, "the connection ended before the answer")
            }
            ([], Some(framing)) => {
                framing.close().map_err(misframed)?;
                Ok(Some(HttpTask::Body(None, true)))
            }
            (bytes, Some(_)) => self.body(bytes),
            (bytes, None) if self.head.is_empty() => self.head(bytes),
            (bytes, None) => {
                self.head.extend_from_slice(bytes);
                let head = std::mem::take(&mut self.head);
                self.head(&head)
            }
        }
    }

    fn body(&mut self, bytes: &[u8]) -> Result<Option<HttpTask>> {
        let Some(framing) = &mut self.framing else { return Ok(None) };
        let mut body = Vec::with_capacity(bytes.len());
        let took = framing.take(bytes, &mut body).map_err(misframed);
        // What nobody asked for may be followed by more.
        self.keeps &= matches!(took, Ok(0));
        let is_over = framing.is_over();
        let body = Some(Bytes::from(body)).filter(|body| !body.is_empty());
        let piece = (body.is_some() || is_over).then_some(HttpTask::Body(body, is_over));
        match took {
            Err(error) if piece.is_none() => Err(error),
            // What came before an error is the body's; that comes next.
            _ => Ok(piece),
        }
    }

    /// Reads a head, and what has come behind it.
    fn head(&mut self, bytes: &[u8]) -> Result<Option<HttpTask>> {
        let Some((mut header, read)) = parsed(bytes)? else {
            if bytes.len() > HEAD_BYTES_MAX {
                return Error::e_explain(ErrorType::InvalidHTTPHeader, "a head without an end");
            }
            self.head = bytes.to_vec();
            return Ok(None);
        };
        self.heads += 1;
        if self.heads > HEADS_MAX {
            return Error::e_explain(ErrorType::InvalidHTTPHeader, "heads without an answer");
        }
        let behind = bytes.get(read..).unwrap_or_default();
        let status = header.status;
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            self.head = behind.to_vec();
            self.is_unread = !behind.is_empty();
            return Ok(Some(HttpTask::Header(Box::new(header.into()), false)));
        }
        let framing = Framing::of(status, &header.headers)
            .or_else(|why| Error::e_explain(ErrorType::InvalidHTTPHeader, why.to_string()))?;
        self.keeps = keeps(&header) && !framing.ends_by_close() && status != StatusCode::SWITCHING_PROTOCOLS;
        tidy(&mut header);
        let is_over = framing.is_over();
        self.framing = Some(framing);
        if is_over {
            self.keeps &= behind.is_empty();
        } else if !behind.is_empty() {
            // What is wrong in it stays so, and is told where it is asked for.
            self.next = self.body(behind).ok().flatten();
        }
        Ok(Some(HttpTask::Header(Box::new(header.into()), is_over)))
    }
}

fn misframed(why: Misframed) -> Box<Error> {
    let etype = if why == Misframed::Cut { ErrorType::ConnectionClosed } else { MISFRAMED };
    Error::explain(etype, why.to_string())
}

/// A head, and its bytes; `None`: there is more of it to come. Its values share one piece of memory.
fn parsed(bytes: &[u8]) -> Result<Option<(response::Parts, usize)>> {
    let mut room = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut []);
    let mut config = ParserConfig::default();
    // Whoever passes it on takes them away (RFC 9112, section 5.1).
    config.allow_spaces_after_header_name_in_responses(true);
    let parsed = config.parse_response_with_uninit_headers(&mut head, bytes, &mut room);
    let read = match parsed.or_err(ErrorType::InvalidHTTPHeader, "an answer that is none")? {
        Status::Complete(read) => read,
        Status::Partial => return Ok(None),
    };
    let mut parts = http::Response::new(()).into_parts().0;
    parts.version = if head.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    parts.status = StatusCode::from_u16(head.code.unwrap_or_default())
        .or_err(ErrorType::InvalidHTTPHeader, "a status that is none")?;
    let block = Bytes::copy_from_slice(bytes.get(..read).unwrap_or_default());
    parts.headers.reserve(head.headers.len());
    for line in head.headers.iter() {
        let start = (line.value.as_ptr() as usize).wrapping_sub(bytes.as_ptr() as usize);
        let value = match start.checked_add(line.value.len()) {
            Some(end) if end <= block.len() => HeaderValue::from_maybe_shared(block.slice(start..end)),
            _ => HeaderValue::from_bytes(line.value),
        };
        let value = value.or_err(ErrorType::InvalidHTTPHeader, "a value that no header can have")?;
        let name = HeaderName::from_bytes(line.name.as_bytes())
            .or_err(ErrorType::InvalidHTTPHeader, "a name that no header can have")?;
        parts.headers.append(name, value);
    }
    Ok(Some((parts, read)))
}

/// Whether its server keeps the connection (RFC 9112, section 9.3).
fn keeps(header: &response::Parts) -> bool {
    let says = |option: &str| {
        words(&header.headers, &header::CONNECTION).any(|word| word.eq_ignore_ascii_case(option.as_bytes()))
    };
    let coded = header.headers.contains_key(header::TRANSFER_ENCODING);
    match header.version {
        // Whoever knows no chunks, and sends some, has passed on what it did not read (section 6.1).
        Version::HTTP_10 => says("keep-alive") && !says("close") && !coded,
        _ => !(says("close") || coded && header.headers.contains_key(header::CONTENT_LENGTH)),
    }
}

/// Leaves one length, spelled as one, and none where chunks are.
fn tidy(header: &mut response::Parts) {
    if header.headers.contains_key(header::TRANSFER_ENCODING) {
        header.headers.remove(header::CONTENT_LENGTH);
        return;
    }
    let Ok(length) = content_length(&header.headers) else {
        // Where none counts.
        header.headers.remove(header::CONTENT_LENGTH);
        return;
    };
    if let Some(length) = length {
        let mut spelled = header.headers.get_all(header::CONTENT_LENGTH).iter();
        let is_plain = |value: &HeaderValue| value == itoa::Buffer::new().format(length);
        if !spelled.next().is_some_and(is_plain) || spelled.next().is_some() {
            header.headers.insert(header::CONTENT_LENGTH, length.into());
        }
    }
}

#[cfg(test)]
mod tests;
