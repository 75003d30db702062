//! Where the body of an HTTP/1 answer ends: by its length, its last chunk, or its connection (RFC 9112, section 6.3).

use std::fmt;

use http::{HeaderMap, HeaderName, StatusCode, header};
use httparse::{Status, parse_chunk_size};

/// A chunk's size and what it says beside it.
const SIZE_LINE_BYTES_MAX: usize = 1 << 10;

/// What follows the last chunk is read and not passed on.
const TRAILERS_BYTES_MAX: usize = 16 << 10;

/// What is left of a body, as its bytes come.
#[derive(Debug, PartialEq, Eq)]
pub struct Framing {
    awaited: Awaited,
    /// The beginning of a chunk's size.
    line: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// So many bytes more.
    Length(u64),
    Size,
    /// Of a chunk.
    Chunk(u64),
    /// What ends a chunk, of which so many bytes have come.
    ChunkEnd(usize),
    /// Lines, of which so many bytes have come in all, and of the last so many that are no end of it.
    Trailers {
        bytes: usize,
        line: usize,
    },
    /// Its connection's end.
    Close,
    Nothing,
    /// Nobody knows: from here on all is an error.
    Lost(Misframed),
}

/// Why a body cannot be told from what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misframed {
    Length,
    Coding,
    Chunk,
    Trailers,
    /// The connection ended before the body.
    Cut,
}

impl fmt::Display for Misframed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Length => "a content-length that is no length, or several that differ",
            Self::Coding => "a transfer-encoding that nobody asked for",
            Self::Chunk => "a chunk without its size or its end",
            Self::Trailers => "trailers without an end",
            Self::Cut => "the connection ended before the body",
        })
    }
}

impl Framing {
    /// By the header of an answer to a request that is no HEAD.
    pub fn of(status: StatusCode, headers: &HeaderMap) -> Result<Self, Misframed> {
        let awaited = if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            Awaited::Nothing
        } else if headers.contains_key(header::TRANSFER_ENCODING) {
            // It stands above a length.
            let mut codings = words(headers, &header::TRANSFER_ENCODING);
            match (codings.next(), codings.next()) {
                (Some(only), None) if only.eq_ignore_ascii_case(b"chunked") => Awaited::Size,
                _ => return Err(Misframed::Coding),
            }
        } else {
            match content_length(headers)? {
                Some(0) => Awaited::Nothing,
                Some(bytes) => Awaited::Length(bytes),
                None => Awaited::Close,
            }
        };
        Ok(Self { awaited, line: Vec::new() })
    }

    /// Whether all has come.
    pub fn is_over(&self) -> bool {
        self.awaited == Awaited::Nothing
    }

    /// Why nobody knows any more, if that is so.
    pub fn lost(&self) -> Option<Misframed> {
        if let Awaited::Lost(why) = self.awaited { Some(why) } else { None }
    }

    /// Whether only the connection's end ends it.
    pub fn ends_by_close(&self) -> bool {
        self.awaited == Awaited::Close
    }

    /// Takes in what has come, and adds to `body` what of it is the body's, up to an error too. Says how many bytes
    /// were not read, which stand behind its end.
    pub fn take(&mut self, bytes: &[u8], body: &mut Vec<u8>) -> Result<usize, Misframed> {
        self.read(bytes, body).inspect_err(|why| self.awaited = Awaited::Lost(*why))
    }

    fn read(&mut self, mut bytes: &[u8], body: &mut Vec<u8>) -> Result<usize, Misframed> {
        while !bytes.is_empty() {
            let read = match self.awaited {
                Awaited::Nothing => return Ok(bytes.len()),
                Awaited::Lost(why) => return Err(why),
                Awaited::Close => {
                    body.extend_from_slice(bytes);
                    bytes.len()
                }
                Awaited::Length(left) | Awaited::Chunk(left) => {
                    let read = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    body.extend_from_slice(&bytes[..read]);
                    self.awaited = match (self.awaited, left - read as u64) {
                        (Awaited::Length(_), 0) => Awaited::Nothing,
                        (Awaited::Length(_), left) => Awaited::Length(left),
                        (_, 0) => Awaited::ChunkEnd(0),
                        (_, left) => Awaited::Chunk(left),
                    };
                    read
                }
                Awaited::ChunkEnd(come) => {
                    if bytes[0] != b"\r\n"[come] {
                        return Err(Misframed::Chunk);
                    }
                    self.awaited = if come == 0 { Awaited::ChunkEnd(1) } else { Awaited::Size };
                    1
                }
                Awaited::Size => self.size(bytes)?,
                Awaited::Trailers { bytes: come, line } => self.trailers(bytes, come, line)?,
            };
            bytes = &bytes[read..];
        }
        Ok(0)
    }

    /// Takes in that the connection has ended.
    pub fn close(&mut self) -> Result<(), Misframed> {
        match self.awaited {
            Awaited::Close | Awaited::Nothing => self.awaited = Awaited::Nothing,
            Awaited::Lost(why) => return Err(why),
            _ => return Err(Misframed::Cut),
        }
        Ok(())
    }

    /// Reads as far as the end of a line that says how large a chunk is.
    fn size(&mut self, bytes: &[u8]) -> Result<usize, Misframed> {
        let read = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1);
        let (now, before) = (&bytes[..read], self.line.len());
        if before + read > SIZE_LINE_BYTES_MAX {
            return Err(Misframed::Chunk);
        }
        let line = if before == 0 {
            now
        } else {
            self.line.extend_from_slice(now);
            &self.line
        };
        // It would take an empty line for a chunk of no bytes.
        let parsed = match line.first() {
            Some(first) if first.is_ascii_hexdigit() => parse_chunk_size(line),
            _ => return Err(Misframed::Chunk),
        };
        match parsed {
            Ok(Status::Complete((end, _))) if end != line.len() => return Err(Misframed::Chunk),
            Ok(Status::Complete((_, 0))) => self.awaited = Awaited::Trailers { bytes: 0, line: 0 },
            Ok(Status::Complete((_, size))) => self.awaited = Awaited::Chunk(size),
            Ok(Status::Partial) if !now.ends_with(b"\n") => {
                if before == 0 {
                    self.line = now.to_vec();
                }
                return Ok(read);
            }
            Ok(Status::Partial) | Err(_) => return Err(Misframed::Chunk),
        }
        self.line = Vec::new();
        Ok(read)
    }

    /// Reads as far as the end of a line. An empty one ends the body.
    fn trailers(&mut self, bytes: &[u8], come: usize, line: usize) -> Result<usize, Misframed> {
        let end = memchr::memchr(b'\n', bytes);
        let read = end.map_or(bytes.len(), |end| end + 1);
        if come + read > TRAILERS_BYTES_MAX {
            return Err(Misframed::Trailers);
        }
        let line = line + bytes[..read].iter().filter(|byte| !matches!(byte, b'\r' | b'\n')).count();
        self.awaited = match end {
            Some(_) if line == 0 => Awaited::Nothing,
            Some(_) => Awaited::Trailers { bytes: come + read, line: 0 },
            None => Awaited::Trailers { bytes: come + read, line },
        };
        Ok(read)
    }
}

/// The parts of a list that may stand in several headers (RFC 9110, section 5.6.1).
pub fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    parts(headers, name).filter(|word| !word.is_empty())
}

fn parts<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// The length that a header announces. Of several, all must be one (RFC 9110, section 8.6).
pub fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Misframed> {
    let mut lengths = parts(headers, &header::CONTENT_LENGTH);
    let Some(first) = lengths.next() else { return Ok(None) };
    if !first.iter().all(u8::is_ascii_digit) || lengths.any(|other| other != first) {
        return Err(Misframed::Length);
    }
    let first = str::from_utf8(first).ok().and_then(|digits| digits.parse().ok());
    first.map(Some).ok_or(Misframed::Length)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn framing(lines: &[(&'static str, &'static str)]) -> Result<Framing, Misframed> {
        Framing::of(StatusCode::OK, &headers(lines))
    }

    fn chunked() -> Framing {
        framing(&[("transfer-encoding", "chunked")]).expect("a coding that is known")
    }

    /// A body in such pieces, as far as it is one, and how many bytes stand behind it.
    fn read(mut framing: Framing, pieces: &[&[u8]]) -> (Vec<u8>, Result<usize, Misframed>) {
        let (mut body, mut behind) = (Vec::new(), Ok(0));
        for piece in pieces {
            let took = framing.take(piece, &mut body);
            behind = behind.and_then(|before| took.map(|behind| before + behind));
        }
        let closed = framing.close();
        (body, behind.and_then(|behind| closed.map(|()| behind)))
    }

    fn body(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, usize), Misframed> {
        let (body, behind) = read(framing, pieces);
        behind.map(|behind| (body, behind))
    }

    #[test]
    fn a_header_says_how_its_body_ends() {
        let ends = |lines: &[_]| framing(lines).map(|framing| framing.awaited);
        let cases: [(&[(&str, &str)], _); 18] = [
            (&[], Ok(Awaited::Close)),
            (&[("content-length", "7")], Ok(Awaited::Length(7))),
            (&[("content-length", "0")], Ok(Awaited::Nothing)),
            (&[("content-length", "7"), ("content-length", "7, 7")], Ok(Awaited::Length(7))),
            (&[("content-length", "7"), ("content-length", "8")], Err(Misframed::Length)),
            (&[("content-length", "7, 8")], Err(Misframed::Length)),
            (&[("content-length", "")], Err(Misframed::Length)),
            (&[("content-length", "7,")], Err(Misframed::Length)),
            (&[("content-length", "7"), ("content-length", "")], Err(Misframed::Length)),
            (&[("content-length", "007")], Ok(Awaited::Length(7))),
            (&[("content-length", "+7")], Err(Misframed::Length)),
            (&[("content-length", "-7")], Err(Misframed::Length)),
            (&[("content-length", "99999999999999999999")], Err(Misframed::Length)),
            (&[("transfer-encoding", "Chunked")], Ok(Awaited::Size)),
            (&[("transfer-encoding", "chunked"), ("content-length", "7")], Ok(Awaited::Size)),
            (&[("transfer-encoding", "gzip, chunked")], Err(Misframed::Coding)),
            (&[("transfer-encoding", "chunked, chunked")], Err(Misframed::Coding)),
            (&[("transfer-encoding", "identity")], Err(Misframed::Coding)),
        ];
        for (lines, expected) in cases {
            assert_eq!(ends(lines), expected, "{lines:?}");
        }
        for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
            let framing = Framing::of(status, &headers(&[("content-length", "7")]));
            assert!(framing.expect("a length").is_over());
        }
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        let length = || framing(&[("content-length", "5")]).expect("a length");
        assert_eq!(body(length(), &[b"he", b"llo"]), Ok((b"hello".to_vec(), 0)));
        assert_eq!(body(length(), &[b"hello!!"]), Ok((b"hello".to_vec(), 2)));
        assert_eq!(body(length(), &[b"hell"]), Err(Misframed::Cut));
        assert_eq!(body(framing(&[]).expect("none"), &[b"he", b"llo"]), Ok((b"hello".to_vec(), 0)));
        let good: [(&[u8], &[u8], usize); 6] = [
            (b"0\r\n\r\n", b"", 0),
            (b"5\r\nhello\r\n0\r\n\r\n", b"hello", 0),
            (b"1\r\nh\r\n4;a=\"b\"\r\nello\r\n00\r\n\r\nHTTP", b"hello", 4),
            (b"A\r\nhello, you\r\n0\r\nserver-timing: 1\r\nb:\r\n\r\n", b"hello, you", 0),
            (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n", 0),
            (b"000000000000005 \r\nhello\r\n0;x\r\n\r\n", b"hello", 0),
        ];
        for (bytes, expected, behind) in good {
            assert_eq!(
                body(chunked(), &[bytes]),
                Ok((expected.to_vec(), behind)),
                "{}",
                bytes.escape_ascii()
            );
        }
        let long = ["1", &"0".repeat(2000), "\r\n"].concat();
        let trailers = ["0\r\n", &"a: b\r\n".repeat(4000), "\r\n"].concat();
        let bad: [(&[u8], Misframed); 11] = [
            (b"", Misframed::Cut),
            (b"5\r\nhell", Misframed::Cut),
            (b"5\r\nhello\r\n", Misframed::Cut),
            (b"5\r\nhello\r\n0\r\n", Misframed::Cut),
            (b"\r\n", Misframed::Chunk),
            (b"5\nhello\r\n0\r\n\r\n", Misframed::Chunk),
            (b"-5\r\nhello\r\n0\r\n\r\n", Misframed::Chunk),
            (b"5\r\nhello0\r\n\r\n", Misframed::Chunk),
            (b"11111111111111111\r\n", Misframed::Chunk),
            (long.as_bytes(), Misframed::Chunk),
            (trailers.as_bytes(), Misframed::Trailers),
        ];
        for (bytes, expected) in bad {
            assert_eq!(body(chunked(), &[bytes]), Err(expected), "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        /// However the connection cuts it.
        #[test]
        fn pieces_make_no_difference(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            noise in prop::option::of((0_usize..200, any::<u8>())),
            cuts in prop::collection::vec(0_usize..300, 0..12),
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend_from_slice(format!("{:x};x\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\na: b\r\n\r\nmore");
            if let Some((at, byte)) = noise {
                let at = at % bytes.len();
                bytes[at] = byte;
            } else {
                prop_assert_eq!(body(chunked(), &[&bytes]), Ok((chunks.concat(), 4)));
            }
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % bytes.len()).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            prop_assert_eq!(read(chunked(), &pieces), read(chunked(), &[&bytes]));
        }
    }
}
