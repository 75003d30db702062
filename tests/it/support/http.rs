//! HTTP/1.1 as bytes, for both ends of a play: heads, bodies in either framing, and what is left for the next message.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

const HEAD_BYTES_MAX: usize = 2 << 20;
const HEADERS_MAX: usize = 512;

pub(crate) type Headers = Vec<(String, String)>;

/// The first value of a header, in any spelling of its name.
pub(crate) fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The start line and the headers of a message.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) line: String,
    pub(crate) headers: Headers,
}

/// How a body's end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(usize),
    Chunked,
    /// Until the connection closes; a request has no body then.
    Close,
}

impl Head {
    pub(crate) fn framing(&self) -> Framing {
        if header(&self.headers, "transfer-encoding").is_some_and(|it| it.eq_ignore_ascii_case("chunked")) {
            return Framing::Chunked;
        }
        match header(&self.headers, "content-length") {
            Some(length) => Framing::Length(length.parse().expect("content-length is a number")),
            None => Framing::Close,
        }
    }
}

/// What has been read from a peer and not yet been used.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    used: usize,
}

impl Inbox {
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    pub(crate) fn take(&mut self, length: usize) -> Vec<u8> {
        let taken = self.unread()[..length].to_vec();
        self.used += length;
        if self.used == self.bytes.len() {
            self.bytes.clear();
            self.used = 0;
        }
        taken
    }

    /// Reads once. `Ok(0)`: the peer has closed.
    pub(crate) async fn fill(&mut self, peer: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        self.bytes.reserve(64 << 10);
        peer.read_buf(&mut self.bytes).await
    }

    async fn fill_or_eof(&mut self, peer: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        match self.fill(peer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// The next head; `None` if the peer closed, or broke off, before it was whole.
    pub(crate) async fn head(&mut self, peer: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = find(self.unread(), b"\r\n\r\n") {
                let bytes = self.take(end + 4);
                return Ok(Some(parse_head(&bytes)));
            }
            assert!(self.unread().len() < HEAD_BYTES_MAX, "a head without an end");
            if self.fill(peer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next piece of a body of this framing, of whatever length came; `None` after its end.
    pub(crate) async fn piece(
        &mut self,
        framing: &mut Framing,
        peer: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Option<Vec<u8>>> {
        match framing {
            Framing::Length(0) => Ok(None),
            Framing::Length(left) => {
                if self.unread().is_empty() {
                    self.fill_or_eof(peer).await?;
                }
                let piece = self.take(self.unread().len().min(*left));
                *left -= piece.len();
                Ok(Some(piece))
            }
            Framing::Chunked => self.chunk(framing, peer).await,
            Framing::Close => {
                if self.unread().is_empty() && self.fill(peer).await? == 0 {
                    return Ok(None);
                }
                Ok(Some(self.take(self.unread().len())))
            }
        }
    }

    async fn chunk(
        &mut self,
        framing: &mut Framing,
        peer: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Option<Vec<u8>>> {
        let size = loop {
            if let Some(end) = find(self.unread(), b"\r\n") {
                let line = self.take(end + 2);
                let digits = std::str::from_utf8(&line[..end]).expect("a chunk's size is ASCII");
                break usize::from_str_radix(digits, 16).expect("a chunk's size is hexadecimal");
            }
            self.fill_or_eof(peer).await?;
        };
        while self.unread().len() < size + 2 {
            self.fill_or_eof(peer).await?;
        }
        let mut chunk = self.take(size + 2);
        assert_eq!(chunk.split_off(size), b"\r\n", "a chunk ends with CRLF");
        if size == 0 {
            *framing = Framing::Length(0);
            return Ok(None);
        }
        Ok(Some(chunk))
    }
}

fn parse_head(bytes: &[u8]) -> Head {
    let lines_end = find(bytes, b"\r\n").expect("a head has a first line");
    let line = String::from_utf8_lossy(&bytes[..lines_end]).into_owned();
    let mut parsed = vec![httparse::EMPTY_HEADER; HEADERS_MAX];
    let (_, headers) = httparse::parse_headers(&bytes[lines_end + 2..], &mut parsed)
        .expect("headers are well formed")
        .unwrap();
    let headers = headers
        .iter()
        .map(|it| (it.name.to_owned(), String::from_utf8_lossy(it.value).into_owned()))
        .collect();
    Head { line, headers }
}

pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|it| it == needle)
}
