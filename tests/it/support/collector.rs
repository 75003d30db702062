//! A collector of traces: it takes OTLP over gRPC and over HTTP, and remembers every span as it was told.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use super::address::Loopback;
use super::http::{Head, Inbox, header};
use super::tls::Pair;

/// A span as it was told; ids in hexadecimal, of no parent none.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) name: String,
    /// As OTLP numbers them: 1 internal, 2 server, 3 client.
    pub(crate) kind: i32,
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    pub(crate) failed: bool,
    /// Lists as their items, with commas.
    pub(crate) attributes: BTreeMap<String, String>,
    /// Of who tells.
    pub(crate) resource: BTreeMap<String, String>,
}

impl Span {
    pub(crate) fn has(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    pub(crate) fn is_within(&self, other: &Self) -> bool {
        other.began <= self.began && self.began <= self.ended && self.ended <= other.ended
    }
}

#[derive(Default)]
struct Told {
    spans: Vec<Span>,
    messages: Vec<Bytes>,
    heads: Vec<Vec<(String, String)>>,
}

pub(crate) struct Collector {
    at: Loopback,
    told: Arc<Mutex<Told>>,
    scheme: &'static str,
}

const GRPC: u16 = 4317;
const HTTP: u16 = 4318;

/// One that speaks both, in plain text.
pub(crate) async fn collector() -> Collector {
    start(|_| None).await
}

/// One that speaks by TLS, with the certificate that it gets for its address.
pub(crate) async fn start(pair: impl FnOnce(SocketAddr) -> Option<Pair>) -> Collector {
    let (at, told) = (Loopback::claim(), Arc::<Mutex<Told>>::default());
    let acceptor = pair(at.port(HTTP)).map(|pair| pair.acceptor());
    let scheme = if acceptor.is_some() { "https" } else { "http" };
    for port in [GRPC, HTTP] {
        let listener = TcpListener::bind(at.port(port)).await.expect("the address is ours");
        let (told, acceptor) = (Arc::clone(&told), acceptor.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (told, acceptor) = (Arc::clone(&told), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(port, stream, &told).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(port, stream, &told).await;
                            }
                        }
                    }
                });
            }
        });
    }
    Collector { at, told, scheme }
}

async fn serve(port: u16, stream: impl AsyncRead + AsyncWrite + Unpin, told: &Mutex<Told>) {
    if port == GRPC { by_grpc(stream, told).await } else { by_http(stream, told).await }
}

impl Collector {
    pub(crate) fn grpc(&self) -> String {
        format!("{}://{}", self.scheme, self.at.port(GRPC))
    }

    pub(crate) fn http(&self) -> String {
        format!("{}://{}", self.scheme, self.at.port(HTTP))
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.told().spans.clone()
    }

    /// The spans of a trace once its request's own is there, which comes last: that one first.
    pub(crate) async fn trace(&self, id: &str) -> Vec<Span> {
        let of = || self.spans().into_iter().filter(|span| span.trace == id).collect::<Vec<_>>();
        eventually!(of().iter().any(|span| span.kind == 2), "{:?}", self.spans());
        let mut spans = of();
        spans.sort_by_key(|span| span.kind != 2);
        spans
    }

    /// Whether a text was in any message.
    pub(crate) fn heard(&self, text: &str) -> bool {
        let told = self.told();
        told.messages.iter().any(|message| message.windows(text.len()).any(|it| it == text.as_bytes()))
    }

    /// What stood in a header of each message.
    pub(crate) fn header(&self, name: &str) -> Vec<String> {
        let told = self.told();
        told.heads.iter().filter_map(|head| header(head, name).map(str::to_owned)).collect()
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().expect("not poisoned")
    }
}

async fn by_grpc(stream: impl AsyncRead + AsyncWrite + Unpin, told: &Mutex<Told>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut answer))) = connection.accept().await {
        let (head, mut body) = request.into_parts();
        assert_eq!(head.uri.path(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        let headers = head.headers.iter();
        let headers =
            headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("").to_owned()));
        let headers = headers.collect();
        let mut read = Box::pin(async move {
            let mut message = BytesMut::new();
            while let Some(Ok(piece)) = body.data().await {
                drop(body.flow_control().release_capacity(piece.len()));
                message.extend(piece);
            }
            message.freeze()
        });
        // Frames come in while somebody drives the connection.
        let message = poll_fn(|cx| {
            let read = read.as_mut().poll(cx);
            if read.is_pending() {
                let _ = connection.poll_closed(cx);
            }
            read
        })
        .await;
        // A byte that says it is not compressed, and four of its length.
        take(&message.slice(5..), headers, told);
        agree(&mut answer);
    }
}

fn agree(answer: &mut SendResponse<Bytes>) {
    let head = http::Response::builder().header("content-type", "application/grpc").body(());
    let mut body = answer.send_response(head.expect("a good head"), false).expect("the stream is open");
    let message = ExportTraceServiceResponse::default().encode_to_vec();
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("it is short"));
    framed.extend(message);
    body.send_data(framed.freeze(), false).expect("the stream is open");
    let trailers = http::HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        "0".parse().expect("ASCII"),
    )]);
    body.send_trailers(trailers).expect("the stream is open");
}

async fn by_http(mut stream: impl AsyncRead + AsyncWrite + Unpin, told: &Mutex<Told>) {
    let mut inbox = Inbox::default();
    while let Ok(Some(head)) = inbox.head(&mut stream).await {
        let Head { line, headers } = &head;
        assert!(line.starts_with("POST /v1/traces "), "{line}");
        assert_eq!(header(headers, "content-type"), Some("application/x-protobuf"));
        let (mut framing, mut message) = (head.framing(), Vec::new());
        while let Ok(Some(piece)) = inbox.piece(&mut framing, &mut stream).await {
            message.extend(piece);
        }
        take(&message.into(), headers.clone(), told);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

fn take(message: &Bytes, headers: Vec<(String, String)>, told: &Mutex<Told>) {
    let request = ExportTraceServiceRequest::decode(message.clone()).expect("a message of OTLP");
    let mut told = told.lock().expect("not poisoned");
    for told_of in request.resource_spans {
        let resource = attributes(told_of.resource.map(|it| it.attributes).unwrap_or_default());
        for span in told_of.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            told.spans.push(Span {
                name: span.name,
                kind: span.kind,
                trace: hex::encode(span.trace_id),
                id: hex::encode(span.span_id),
                parent: hex::encode(span.parent_span_id),
                began: Duration::from_nanos(span.start_time_unix_nano),
                ended: Duration::from_nanos(span.end_time_unix_nano),
                failed: span.status.is_some_and(|status| status.code == 2),
                attributes: attributes(span.attributes),
                resource: resource.clone(),
            });
        }
    }
    told.messages.push(message.clone());
    told.heads.push(headers);
}

fn attributes(all: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<Value>| text(&value.expect("a value"));
    all.into_iter().map(|it| (it.key, text(it.value.and_then(|it| it.value)))).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::StringValue(text) => text.clone(),
        Value::BoolValue(switch) => switch.to_string(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        Value::ArrayValue(list) => {
            let items: Vec<_> = list.values.iter().filter_map(|it| it.value.as_ref().map(text)).collect();
            items.join(",")
        }
        other => panic!("no such value is told: {other:?}"),
    }
}
