//! A caller over HTTP/2, by the `h2` crate: many streams on one connection.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::client::{Answer, Body, Request};
use super::tls::Hand;

const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);

/// A connection.
pub(crate) struct Connection {
    send: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

/// How many bytes of an answer the caller takes before it has read them.
const WINDOW_BYTES: u32 = 64 << 10;

pub(crate) async fn connect(hand: &Hand<'_>, address: SocketAddr) -> Connection {
    let stream = hand.clone().speaking(&["h2", "http/1.1"]).shake(address).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "the listener chooses HTTP/2");
    over(stream).await
}

async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Connection {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW_BYTES).max_header_list_size(1 << 20);
    let (send, connection) = builder.handshake(stream).await.expect("HTTP/2 begins");
    Connection { send, driver: tokio::spawn(connection) }
}

impl Connection {
    /// Sends a request as it is, whose body comes in pieces of this size, and reads its answer.
    pub(crate) async fn send(&mut self, request: Request) -> Answer {
        self.begin(request).await.finish().await
    }

    /// Sends a request whole: `content-length` and body where it has a length, frames alone where it is chunked, an
    /// empty DATA frame at their end.
    pub(crate) async fn begin(&mut self, request: Request) -> Stream {
        let (mut stream, mut body) = self.open(&request, request.body.length()).await;
        let pieces: Vec<Bytes> = match request.body {
            Body::None => return stream,
            Body::Length(body) => vec![body.into()],
            Body::Chunked(pieces) => pieces.into_iter().map(Bytes::from).collect(),
        };
        for piece in pieces {
            write(&mut body, piece).await;
        }
        drop(body.send_data(Bytes::new(), true));
        stream.body = Some(body);
        stream
    }

    /// Sends a head alone; the body follows, or does not.
    pub(crate) async fn open(
        &mut self,
        request: &Request,
        length: Option<usize>,
    ) -> (Stream, SendStream<Bytes>) {
        let mut head = http::Request::builder()
            .method(request.method.as_str())
            .uri(format!("https://gateway.test{}", request.target))
            .version(http::Version::HTTP_2);
        for (name, value) in &request.headers {
            head = head.header(name.to_ascii_lowercase(), value);
        }
        if let Some(length) = length {
            head = head.header("content-length", length);
        }
        let head = head.body(()).expect("a good head");
        poll_fn(|cx| self.send.poll_ready(cx)).await.expect("the connection is open");
        let bodiless = matches!(request.body, Body::None);
        let (answer, body) = self.send.send_request(head, bodiless).expect("the connection is open");
        (Stream { answer: Some(answer), reading: None, body: None }, body)
    }

    /// Whether the gateway ends the connection in time.
    pub(crate) async fn is_closed(&mut self) -> bool {
        timeout(ANSWER_WAIT_MAX, &mut self.driver).await.is_ok()
    }
}

/// Writes as the gateway makes room; gives up where it wants no more.
pub(crate) async fn write(body: &mut SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        body.reserve_capacity(bytes.len());
        let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await else { return };
        if body.send_data(bytes.split_to(room.min(bytes.len())), false).is_err() {
            return;
        }
    }
}

/// One request of a connection.
pub(crate) struct Stream {
    answer: Option<ResponseFuture>,
    reading: Option<(http::response::Parts, RecvStream)>,
    body: Option<SendStream<Bytes>>,
}

impl Stream {
    async fn head(&mut self) -> &mut (http::response::Parts, RecvStream) {
        if let Some(answer) = self.answer.take() {
            let answer = timeout(ANSWER_WAIT_MAX, answer).await.expect("a head in time");
            self.reading = Some(answer.expect("an answer").into_parts());
        }
        self.reading.as_mut().expect("just read")
    }

    pub(crate) async fn status(&mut self) -> u16 {
        self.head().await.0.status.as_u16()
    }

    /// The next bytes of the body, and room for as many; `None` at its end.
    pub(crate) async fn piece(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let (_, reading) = self.head().await;
        let piece = timeout(ANSWER_WAIT_MAX, reading.data()).await.expect("more of the body in time");
        if let Some(Ok(piece)) = &piece {
            drop(reading.flow_control().release_capacity(piece.len()));
        }
        piece
    }

    pub(crate) async fn finish(mut self) -> Answer {
        let (mut body, mut whole) = (Vec::new(), true);
        while let Some(piece) = self.piece().await {
            match piece {
                Ok(piece) => body.extend(piece),
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        let (head, _) = self.reading.expect("just read");
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        Answer { status: head.status.as_u16(), headers, body, whole }
    }

    /// Cancels this request, and leaves the others of the connection be.
    pub(crate) fn cancel(mut self) {
        if let Some(body) = &mut self.body {
            body.send_reset(Reason::CANCEL);
        }
    }
}

impl Body {
    fn length(&self) -> Option<usize> {
        match self {
            Self::Length(body) => Some(body.len()),
            Self::None | Self::Chunked(_) => None,
        }
    }
}
