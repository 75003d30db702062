//! A caller: HTTP/1.1 over a plain socket, one connection per request, answers as the bytes that arrived.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longer than any answer here takes; a hang fails the test instead of the build.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A whole answer, its body without the framing.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Headers,
    pub(crate) body: String,
    /// From before the connection was made until the last byte.
    pub(crate) took: Duration,
}

impl Answer {
    /// The value of a header, or an empty one.
    pub(crate) fn header(&self, name: &str) -> &str {
        value_of(&self.headers, name)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|fault| panic!("not JSON ({fault}): {}", self.body))
    }
}

pub(crate) fn get(at: SocketAddr, path: &str) -> Answer {
    Reply::to(at, "GET", path, "").whole()
}

pub(crate) fn post(at: SocketAddr, path: &str, body: &str) -> Answer {
    Reply::to(at, "POST", path, body).whole()
}

/// The status of `GET path`, or none while nobody answers.
pub(crate) fn status_of(at: SocketAddr, path: &str) -> Option<u16> {
    Reply::sought(at, "GET", path, "").ok().map(|reply| reply.status)
}

/// A request that nobody has answered yet. Dropping it is leaving.
pub(crate) fn send(at: SocketAddr, path: &str, body: &str) -> TcpStream {
    sent(at, "POST", path, body).unwrap_or_else(|fault| panic!("POST {path} to {at}: {fault}"))
}

fn sent(at: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(at)?;
    socket.set_read_timeout(Some(SILENCE_MAX))?;
    socket.set_nodelay(true)?;
    let head = [
        &format!("{method} {path} HTTP/1.1"),
        &format!("host: {at}"),
        "content-type: application/json",
        &format!("content-length: {}\r\n\r\n", body.len()),
    ];
    socket.write_all(head.join("\r\n").as_bytes())?;
    socket.write_all(body.as_bytes())?;
    Ok(socket)
}

/// An answer that has begun. Dropping it is leaving: the connection closes.
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Headers,
    socket: TcpStream,
    /// What has arrived and has not been taken yet, framing included.
    arrived: Vec<u8>,
    left: Left,
    /// What `event` has seen of an event that is not yet complete.
    partial: String,
    began: Instant,
}

/// What of the body is still to come.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    Bytes(usize),
    Chunks,
    Nothing,
}

impl Reply {
    /// Sends a request and waits for the head of its answer.
    pub(crate) fn to(at: SocketAddr, method: &str, path: &str, body: &str) -> Reply {
        Reply::sought(at, method, path, body)
            .unwrap_or_else(|fault| panic!("{method} {path} to {at}: {fault}"))
    }

    /// The same, where nobody need be there to answer.
    fn sought(at: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<Reply> {
        let began = Instant::now();
        let mut socket = sent(at, method, path, body)?;
        let (status, headers, arrived) = read_head(&mut socket)?;
        let left = match (value_of(&headers, "transfer-encoding"), value_of(&headers, "content-length")) {
            ("chunked", _) => Left::Chunks,
            (_, length) => Left::Bytes(length.parse().expect("an answer is framed")),
        };
        Ok(Reply { status, headers, socket, arrived, left, partial: String::new(), began })
    }

    /// The value of a header, or an empty one.
    pub(crate) fn header(&self, name: &str) -> &str {
        value_of(&self.headers, name)
    }

    /// Reads to the end.
    pub(crate) fn whole(mut self) -> Answer {
        let mut body = Vec::new();
        while let Some(bytes) = self.next() {
            body.extend(bytes);
        }
        let body = String::from_utf8(body).expect("these answers are text");
        Answer { status: self.status, headers: self.headers, body, took: self.began.elapsed() }
    }

    /// The next server-sent event, as soon as it is complete, and none after the last.
    pub(crate) fn event(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.partial.find("\n\n") {
                let rest = self.partial.split_off(end + 2);
                return Some(std::mem::replace(&mut self.partial, rest));
            }
            let bytes = self.next()?;
            self.partial.push_str(std::str::from_utf8(&bytes).expect("events are text"));
        }
    }

    /// The body's next bytes, or none at its proper end. A body that breaks off panics.
    fn next(&mut self) -> Option<Vec<u8>> {
        match self.left {
            Left::Nothing | Left::Bytes(0) => None,
            Left::Bytes(count) => {
                if self.arrived.is_empty() {
                    self.receive();
                }
                let taken: Vec<u8> = self.arrived.drain(..count.min(self.arrived.len())).collect();
                self.left = Left::Bytes(count - taken.len());
                Some(taken)
            }
            Left::Chunks => {
                let (start, size) = loop {
                    match httparse::parse_chunk_size(&self.arrived).expect("chunks are well formed") {
                        httparse::Status::Complete((start, size)) => break (start, size as usize),
                        httparse::Status::Partial => self.receive(),
                    }
                };
                while self.arrived.len() < start + size + 2 {
                    self.receive();
                }
                let chunk = self.arrived[start..start + size].to_vec();
                self.arrived.drain(..start + size + 2);
                if size == 0 {
                    self.left = Left::Nothing;
                    return None;
                }
                Some(chunk)
            }
        }
    }

    fn receive(&mut self) {
        receive(&mut self.socket, &mut self.arrived)
            .unwrap_or_else(|fault| panic!("within an answer: {fault}"));
    }
}

/// Names are in lower case.
type Headers = Vec<(String, String)>;

fn value_of<'h>(headers: &'h Headers, name: &str) -> &'h str {
    headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
}

/// Status, headers, and what came after them.
fn read_head(socket: &mut TcpStream) -> io::Result<(u16, Headers, Vec<u8>)> {
    let mut arrived = Vec::new();
    loop {
        receive(socket, &mut arrived)?;
        let mut slots = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut slots);
        if let httparse::Status::Complete(length) = head.parse(&arrived).map_err(io::Error::other)? {
            let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
            let headers = head.headers.iter().map(|h| (h.name.to_ascii_lowercase(), text(h.value))).collect();
            let status = head.code.expect("a complete head has a status");
            arrived.drain(..length);
            return Ok((status, headers, arrived));
        }
    }
}

/// Appends what comes next; the end of the connection is an error, since every answer here says how long it is.
fn receive(socket: &mut TcpStream, into: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    match socket.read(&mut buffer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => {
            into.extend(&buffer[..count]);
            Ok(())
        }
    }
}
