//! A caller on a raw socket: it sees exactly what comes back, and whether its connection is still its own.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::http::{Framing, Headers, Inbox, header};

/// Longer than anything takes that is not stuck.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);

/// How a request's body is sent.
#[derive(Debug, Clone)]
pub(super) enum Body {
    None,
    Length(Vec<u8>),
    Chunked(Vec<Vec<u8>>),
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    version: &'static str,
    pub(super) headers: Headers,
    pub(super) body: Body,
}

pub(crate) fn get(target: &str) -> Request {
    request("GET", target)
}

pub(crate) fn post(target: &str) -> Request {
    request("POST", target)
}

pub(crate) fn request(method: &str, target: &str) -> Request {
    let (method, target) = (method.to_owned(), target.to_owned());
    Request { method, target, version: "HTTP/1.1", headers: Vec::new(), body: Body::None }
}

impl Request {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// From a caller of the last century.
    pub(crate) fn http_10(mut self) -> Self {
        self.version = "HTTP/1.0";
        self
    }

    /// Presents a key as OpenAI's clients do.
    pub(crate) fn key(self, key: &str) -> Self {
        self.header("Authorization", &format!("Bearer {key}"))
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.body(body.to_string())
    }

    /// With `Content-Length`.
    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Body::Length(body.into());
        self
    }

    /// The body that it has, in chunks of this size instead.
    pub(crate) fn chunked(mut self, size: usize) -> Self {
        if let Body::Length(body) = &self.body {
            self.body = Body::Chunked(body.chunks(size).map(<[u8]>::to_vec).collect());
        }
        self
    }

    fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} {}\r\n", self.method, self.target, self.version);
        if header(&self.headers, "host").is_none() {
            head += "Host: gateway.test\r\n";
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !matches!(self.body, Body::None) && header(&self.headers, "content-type").is_none() {
            head += "Content-Type: application/json\r\n";
        }
        match &self.body {
            Body::None if self.method == "POST" => head += "Content-Length: 0\r\n",
            Body::None => {}
            Body::Length(body) => head += &format!("Content-Length: {}\r\n", body.len()),
            Body::Chunked(_) => head += "Transfer-Encoding: chunked\r\n",
        }
        (head + "\r\n").into_bytes()
    }

    fn body_bytes(&self) -> Vec<u8> {
        match &self.body {
            Body::None => Vec::new(),
            Body::Length(body) => body.clone(),
            Body::Chunked(chunks) => {
                let framed = chunks
                    .iter()
                    .map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
                framed.chain([b"0\r\n\r\n".to_vec()]).collect::<Vec<_>>().concat()
            }
        }
    }
}

/// An answer, read to its end.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    /// Whether its end was told: all bytes of `content-length`, or the last chunk. Not so where it broke off.
    pub(crate) whole: bool,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.whole { "whole" } else { "broken off" };
        let body: String = self.text().chars().take(2000).collect();
        write!(f, "{} {:?}, {} bytes, {end}: {body}", self.status, self.headers, self.body.len())
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// What the cache had to do with it: `x-cache`.
    pub(crate) fn cache(&self) -> &str {
        self.header("x-cache").unwrap_or("no x-cache")
    }

    pub(crate) fn request_id(&self) -> &str {
        self.header("x-request-id").expect("every answer has an x-request-id")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|fault| panic!("{fault} in {self:?}"))
    }

    /// The code in the envelope of a refusal; Anthropic's envelope has a type instead.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Status and code, as DESIGN 1.4 lists them.
    pub(crate) fn refusal(&self) -> (u16, String) {
        (self.status, self.code())
    }
}

/// What a connection runs on: TCP, or TLS on top of it.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// A connection to the gateway. It is never opened again: an answer after which it is closed fails the next request.
pub(crate) struct Caller {
    reader: ReadHalf<Box<dyn Wire>>,
    writer: WriteHalf<Box<dyn Wire>>,
    inbox: Inbox,
}

pub(crate) async fn try_connect(address: SocketAddr) -> Option<Caller> {
    let stream = TcpStream::connect(address).await.ok()?;
    stream.set_nodelay(true).expect("a fresh socket takes options");
    Some(Caller::over(stream))
}

pub(crate) async fn connect(address: SocketAddr) -> Caller {
    try_connect(address).await.unwrap_or_else(|| panic!("nobody listens on {address}"))
}

impl Caller {
    pub(crate) fn over(wire: impl Wire + 'static) -> Self {
        let (reader, writer) = tokio::io::split(Box::new(wire) as Box<dyn Wire>);
        Self { reader, writer, inbox: Inbox::default() }
    }

    /// Sends a request and reads its answer to the end. The answer may come before all of the body is sent.
    pub(crate) async fn send(&mut self, request: Request) -> Answer {
        let bytes = [request.head(), request.body_bytes()].concat();
        let Self { reader, writer, inbox } = self;
        let reading = read_answer(reader, inbox, &request.method);
        let writing = async {
            // A gateway that has refused may have closed: what it said is read all the same.
            drop(writer.write_all(&bytes).await);
            std::future::pending().await
        };
        let answered = async {
            tokio::select! {
                answer = reading => answer,
                never = writing => never,
            }
        };
        let answer = timeout(ANSWER_WAIT_MAX, answered).await;
        answer.unwrap_or_else(|_| panic!("no answer to {} {}", request.method, request.target))
    }

    /// Whether this is answered with a 200, by a gateway that may not be one yet: it tries its addresses first, and
    /// resets who was too early.
    pub(crate) async fn is_told_200(&mut self, request: &Request) -> bool {
        let Self { reader, writer, inbox } = self;
        let told = async {
            writer.write_all(&request.head()).await.ok()?;
            let head = inbox.head(reader).await.ok()??;
            let (_, whole) = read_body(reader, inbox, &mut head.framing()).await;
            Some(whole && head.line.contains(" 200 "))
        };
        timeout(ANSWER_WAIT_MAX, told).await.is_ok_and(|told| told == Some(true))
    }

    /// Sends the bytes as they are.
    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.expect("the gateway reads");
    }

    /// The same, to a gateway that may want no more.
    pub(crate) async fn try_send_raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }

    /// Waits until something comes, or the connection is closed. It is there for whoever reads next.
    pub(crate) async fn wait_for_bytes(&mut self) {
        drop(self.inbox.fill(&mut self.reader).await);
    }

    /// Sends a request and reads the answer's head.
    pub(crate) async fn begin(mut self, request: Request) -> Answering {
        self.send_raw(&[request.head(), request.body_bytes()].concat()).await;
        self.answering(&request.method).await
    }

    /// Sends a request and does not wait for any of the answer.
    pub(crate) async fn ask(mut self, request: Request) -> Self {
        self.send_raw(&[request.head(), request.body_bytes()].concat()).await;
        self
    }

    /// Reads the head of the answer to what has been sent.
    pub(crate) async fn answering(mut self, method: &str) -> Answering {
        let reading = read_head(&mut self.reader, &mut self.inbox, method);
        let (status, headers, framing) = timeout(ANSWER_WAIT_MAX, reading).await.expect("a head in time");
        Answering { caller: self, status, headers, framing, body: Vec::new(), events_read: 0 }
    }

    /// Sends a head with `Expect: 100-continue`; the body only after the 100. The 100 is not part of the answer.
    pub(crate) async fn send_after_continue(&mut self, request: Request) -> Answer {
        let request = request.header("Expect", "100-continue");
        self.send_raw(&request.head()).await;
        let reading = read_head(&mut self.reader, &mut self.inbox, "POST");
        let (status, ..) = timeout(ANSWER_WAIT_MAX, reading).await.expect("a 100 in time");
        assert_eq!(status, 100, "Expect: 100-continue is answered with a 100");
        self.send_raw(&request.body_bytes()).await;
        let reading = read_answer(&mut self.reader, &mut self.inbox, "POST");
        timeout(ANSWER_WAIT_MAX, reading).await.expect("an answer in time")
    }

    /// Closes the connection, and says when.
    pub(crate) fn leaves(self) -> Instant {
        let now = Instant::now();
        drop(self);
        now
    }

    /// Whether the gateway closes this connection in time, with nothing more to say.
    pub(crate) async fn is_closed(&mut self) -> bool {
        matches!(timeout(ANSWER_WAIT_MAX, self.inbox.fill(&mut self.reader)).await, Ok(Ok(0) | Err(_)))
    }
}

/// An answer whose head has been read, and which is read on as it comes.
pub(crate) struct Answering {
    caller: Caller,
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    framing: Framing,
    body: Vec<u8>,
    events_read: usize,
}

impl Answering {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The next event of a stream, with its blank line; `None` at the end, told or not.
    pub(crate) async fn event(&mut self) -> Option<String> {
        loop {
            let unread = &self.body[self.events_read..];
            if let Some(end) = super::http::find(unread, b"\n\n") {
                let event = String::from_utf8_lossy(&unread[..end + 2]).into_owned();
                self.events_read += end + 2;
                return Some(event);
            }
            let Caller { reader, inbox, .. } = &mut self.caller;
            let piece = timeout(ANSWER_WAIT_MAX, inbox.piece(&mut self.framing, reader)).await;
            self.body.extend(piece.expect("an event in time").ok()??);
        }
    }

    /// Reads to the end; gives the whole answer, and the connection back.
    pub(crate) async fn finish(mut self) -> (Answer, Caller) {
        let Caller { reader, inbox, .. } = &mut self.caller;
        let reading = read_body(reader, inbox, &mut self.framing);
        let (rest, whole) = timeout(ANSWER_WAIT_MAX, reading).await.expect("an end in time");
        self.body.extend(rest);
        (Answer { status: self.status, headers: self.headers, body: self.body, whole }, self.caller)
    }

    pub(crate) fn leaves(self) -> Instant {
        self.caller.leaves()
    }
}

async fn read_head(
    reader: &mut ReadHalf<Box<dyn Wire>>,
    inbox: &mut Inbox,
    method: &str,
) -> (u16, Headers, Framing) {
    let head = inbox.head(reader).await.expect("the connection holds");
    let head = head.expect("the gateway closed the connection instead of answering");
    let status: u16 = head.line.split(' ').nth(1).and_then(|it| it.parse().ok()).expect("a status line");
    let bodiless = status < 200 || status == 204 || status == 304 || method == "HEAD";
    let framing = if bodiless { Framing::Length(0) } else { head.framing() };
    (status, head.headers, framing)
}

async fn read_answer(reader: &mut ReadHalf<Box<dyn Wire>>, inbox: &mut Inbox, method: &str) -> Answer {
    let (status, headers, mut framing) = read_head(reader, inbox, method).await;
    let (body, whole) = read_body(reader, inbox, &mut framing).await;
    Answer { status, headers, body, whole }
}

async fn read_body(
    reader: &mut ReadHalf<Box<dyn Wire>>,
    inbox: &mut Inbox,
    framing: &mut Framing,
) -> (Vec<u8>, bool) {
    let told = *framing != Framing::Close;
    let mut body = Vec::new();
    loop {
        match inbox.piece(framing, reader).await {
            Ok(Some(piece)) => body.extend(piece),
            Ok(None) => return (body, told),
            Err(_) => return (body, false),
        }
    }
}
