//! One connection after another, one request after another, by the script.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::script::{Cut, Ending, Script};
use super::shapes::{self, Ask};
use super::{Framing, Received, Stage};
use crate::support::http::Inbox;

/// As the real server: an idle connection is closed after five seconds, and each after its hundredth answer.
const IDLE_MAX: Duration = Duration::from_secs(5);
const ANSWERS_MAX: usize = 100;

pub(super) async fn accept(listener: TcpListener, stage: Arc<Stage>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).expect("a fresh socket takes options");
        connections.spawn(serve(stream, Arc::clone(&stage)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, stage: Arc<Stage>) {
    let tls = stage.script.lock().expect("not poisoned").tls;
    let stream: Box<dyn Stream> = if tls {
        // Whoever does not trust the certificate leaves here.
        let Ok(stream) = tls_acceptor().accept(stream).await else { return };
        Box::new(stream)
    } else {
        Box::new(stream)
    };
    Connection { stream, inbox: Inbox::default(), stage, answers: 0 }.serve().await;
}

fn tls_acceptor() -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("../../../tls/server.pem"));
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("../../../tls/server.key")).expect("a key");
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.expect("a certificate")], key)
        .expect("they are a pair");
    TlsAcceptor::from(Arc::new(config))
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

struct Connection {
    stream: Box<dyn Stream>,
    inbox: Inbox,
    stage: Arc<Stage>,
    answers: usize,
}

/// What goes out, before the script takes it apart.
struct Answer {
    status: u16,
    content_type: &'static str,
    pieces: Vec<String>,
    streamed: bool,
}

impl Connection {
    async fn serve(mut self) {
        while let Ok(Ok(Some(request))) = timeout(IDLE_MAX, self.receive()).await {
            self.answers += 1;
            let script = Arc::clone(&self.stage.script.lock().expect("not poisoned"));
            // What the gateway asks for itself has no request id of a caller's.
            let counting = request.path() == "/tokenize" || request.path().ends_with("_tokens");
            let counts = counting && request.method() == "POST" && request.header("x-request-id").is_none();
            let unloads = request.path() == "/models/unload";
            let probe = request.method() != "POST" || counts || unloads;
            let number = self.note(&request, probe);
            let body = || serde_json::from_slice::<Value>(&request.body).unwrap_or_default();
            let model = || body()["model"].as_str().unwrap_or_default().to_owned();
            let router = &self.stage.router;
            let routes = script.router.as_ref().filter(|_| request.method() == "POST" && !unloads);
            let at_work = routes.map(|script| router.enter(&model(), script));
            let (answer, script) = if let Some(script) = script.router.as_ref().filter(|_| unloads) {
                let (status, answer) = router.unload(&model(), script);
                (json(status, answer.to_string()), super::scripted())
            } else if let Some(told) =
                script.router.as_ref().filter(|_| probe).and_then(|it| router.about(request.target(), it))
            {
                (json(200, told.to_string()), super::scripted())
            } else if counts {
                let holds = script.holds_counts;
                (
                    count(&request, &script),
                    Script { headers: script.headers.clone(), holds, ..super::scripted() },
                )
            } else if probe {
                (
                    about(&request, &script),
                    Script { headers: script.headers.clone(), tls: script.tls, ..super::scripted() },
                )
            } else {
                (answer(&request, &script, number), Script::clone(&script))
            };
            let kept = self.perform(&request, &answer, &script).await;
            drop(at_work);
            if !probe {
                let mut seen = self.stage.seen.lock().expect("not poisoned");
                match kept {
                    Err(_) => seen.cancelled.push(Instant::now()),
                    Ok(_) if script.cut == Cut::Never => seen.finished += 1,
                    Ok(_) => {}
                }
            }
            if !matches!(kept, Ok(true)) {
                break;
            }
        }
    }

    async fn receive(&mut self) -> io::Result<Option<Received>> {
        let Some(head) = self.inbox.head(&mut self.stream).await? else { return Ok(None) };
        let framing = match head.framing() {
            Framing::Close => Framing::Length(0),
            told => told,
        };
        let (mut left, mut body) = (framing, Vec::new());
        while let Some(piece) = self.inbox.piece(&mut left, &mut self.stream).await? {
            body.extend_from_slice(&piece);
        }
        Ok(Some(Received { head, body }))
    }

    fn note(&self, request: &Received, probe: bool) -> usize {
        let mut seen = self.stage.seen.lock().expect("not poisoned");
        seen.connections += usize::from(!probe && self.answers == 1);
        let list = if probe { &mut seen.probes } else { &mut seen.requests };
        list.push(request.clone());
        list.len()
    }

    /// Answers; whether the connection stays open. An error: the peer left before the end.
    async fn perform(&mut self, request: &Received, answer: &Answer, script: &Script) -> io::Result<bool> {
        if script.cut == Cut::BeforeHead {
            return Ok(false);
        }
        if script.garbage {
            self.stream.write_all(b"\x16\x03 this is not HTTP\r\n\r\n").await?;
            return Ok(false);
        }
        if script.holds_head || (script.holds && !answer.streamed) {
            self.held().await?;
        }
        let default = if answer.streamed { Ending::Chunked } else { Ending::Length };
        let ending = script.ending.unwrap_or(default);
        let last = ending == Ending::Close || self.answers == ANSWERS_MAX;
        let head = head(request, answer, script, ending, last);
        if script.cut == Cut::InHead {
            self.stream.write_all(&head.as_bytes()[..head.len() / 2]).await?;
            return Ok(false);
        }
        self.stream.write_all(head.as_bytes()).await?;
        let mut bytes_left = match script.cut {
            Cut::Bytes(bytes) => bytes,
            _ => usize::MAX,
        };
        for (index, piece) in answer.pieces.iter().enumerate() {
            if script.cut == Cut::Pieces(index) {
                return Ok(false);
            }
            if script.holds && answer.streamed {
                self.held().await?;
            }
            let part = &piece.as_bytes()[..piece.len().min(bytes_left)];
            self.write(part, ending, &script.chunk_sizes).await?;
            bytes_left -= part.len();
            if bytes_left == 0 {
                return Ok(false);
            }
        }
        if ending == Ending::Chunked {
            self.stream.write_all(b"0\r\n\r\n").await?;
        }
        if ending == Ending::TooLong {
            self.stream.write_all(b"HTTP/1.1 2").await?;
        }
        Ok(!last && ending != Ending::TooShort)
    }

    async fn write(&mut self, mut part: &[u8], ending: Ending, sizes: &[usize]) -> io::Result<()> {
        if ending != Ending::Chunked {
            return self.stream.write_all(part).await;
        }
        let mut sizes = sizes.iter().copied();
        let mut size = usize::MAX;
        while !part.is_empty() {
            size = sizes.next().unwrap_or(size);
            let (chunk, rest) = part.split_at(part.len().min(size));
            let framed = [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
            self.stream.write_all(&framed).await?;
            part = rest;
        }
        Ok(())
    }

    /// Waits for the play to let it go on, or for the peer to leave.
    async fn held(&mut self) -> io::Result<()> {
        let stage = Arc::clone(&self.stage);
        loop {
            tokio::select! {
                permit = stage.gate.acquire() => {
                    permit.expect("the gate is never closed").forget();
                    return Ok(());
                }
                read = self.inbox.fill(&mut self.stream) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }
}

fn head(request: &Received, answer: &Answer, script: &Script, ending: Ending, last: bool) -> String {
    let length: usize = answer.pieces.iter().map(String::len).sum();
    let framing = match ending {
        Ending::Length | Ending::TooLong => format!("Content-Length: {length}\r\n"),
        Ending::TooShort => format!("Content-Length: {}\r\n", length + 10),
        Ending::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
        Ending::Close => String::new(),
    };
    let origin = request.header("origin").unwrap_or_default();
    let content_type = script.content_type.unwrap_or(answer.content_type);
    let buffering = if answer.streamed { "X-Accel-Buffering: no\r\n" } else { "" };
    let connection = if last { "Connection: close\r\n" } else { "Keep-Alive: timeout=5, max=100\r\n" };
    let more: String = script.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!(
        "HTTP/1.1 {} Scripted\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: {origin}\r\n{buffering}\
         Content-Type: {content_type}\r\n{framing}{more}{connection}\r\n",
        answer.status
    )
}

fn json(status: u16, body: String) -> Answer {
    Answer { status, content_type: "application/json; charset=utf-8", pieces: vec![body], streamed: false }
}

fn about(request: &Received, script: &Script) -> Answer {
    if !script.healthy {
        return json(503, shapes::error(503).to_string());
    }
    if request.path() == "/props"
        && let Some(body) = &script.props_body
    {
        return json(200, body.clone());
    }
    if request.path() == "/props" && script.props_status != 200 {
        return json(script.props_status, shapes::error(script.props_status).to_string());
    }
    if request.path() == "/slots" {
        let Some(slots) = script.listed else { return json(501, shapes::error(501).to_string()) };
        let listed = (0..slots).map(|id| serde_json::json!({"id": id, "is_processing": false}));
        return json(200, listed.collect::<serde_json::Value>().to_string());
    }
    match shapes::about(&script.path(request.path()), &script.model, script.slots) {
        Some(body) => json(200, body.to_string()),
        None => json(404, shapes::error(404).to_string()),
    }
}

/// The tokens of a prompt.
fn count(request: &Received, script: &Script) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    if !script.counts {
        return json(404, shapes::error(404).to_string());
    }
    let ask =
        Ask { path: request.path(), body: &body, words: &script.words, model: &script.model, number: 1 };
    json(200, ask.plain().expect("only what counts is asked for without a caller").to_string())
}

fn answer(request: &Received, script: &Script, number: usize) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let path = script.path(request.path());
    let ask = Ask { path: &path, body: &body, words: &script.words, model: &script.model, number };
    if let Some(key) = &script.api_key
        && request.header("authorization") != Some(&format!("Bearer {key}"))
    {
        return json(401, shapes::error(401).to_string());
    }
    if script.status >= 400 {
        let body = script.plain.clone().unwrap_or_else(|| shapes::error(script.status).to_string());
        return json(script.status, body);
    }
    if ask.streamed() {
        let pieces = script.events.clone().unwrap_or_else(|| ask.pieces(script.end_mark));
        return Answer { status: script.status, content_type: "text/event-stream", pieces, streamed: true };
    }
    match script.plain.clone().or_else(|| ask.plain().map(|body| body.to_string())) {
        Some(body) => json(script.status, body),
        None => json(404, shapes::error(404).to_string()),
    }
}
