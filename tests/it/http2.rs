//! Callers over HTTP/2: framings of bodies, streams that end by themselves, and what is shared with other callers.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::support::client::{Request, get, post};
use crate::support::expect::{auth, refused};
use crate::support::gateway::{self, Folder, Gateway, PORT, chat, chat_stream};
use crate::support::h2::{self, Connection};
use crate::support::llama::{self, Llama};
use crate::support::tls::{Authority, trusting};

const TLS_PORT: u16 = 9443;

/// A gateway, and how callers get to it over HTTP/2.
struct Stage {
    gateway: Gateway,
    authority: Authority,
    _folder: Folder,
}

impl Stage {
    async fn connect(&self) -> Connection {
        h2::connect(&trusting(&self.authority), self.gateway.at(TLS_PORT)).await
    }

    async fn sum(&self, family: &str) -> f64 {
        self.gateway.scrape().await.sum(family, &[])
    }
}

async fn before(llama: &Llama, name: &str, yaml: &str) -> Stage {
    let (folder, authority) = (Folder::new(name), Authority::new());
    let (cert, key) = authority.server().write(&folder);
    let plan = gateway::before(llama);
    let (plain, tls) = (plan.address(PORT), plan.address(TLS_PORT));
    let files = format!("{{cert: {}, key: {}}}", cert.display(), key.display());
    let listen = format!("listen: [{{address: {plain}}}, {{address: {tls}, tls: {files}}}]\n");
    let gateway = plan.yaml(&(listen + yaml)).start().await;
    Stage { gateway, authority, _folder: folder }
}

fn transcription() -> Request {
    let part = |name: &str, more: &str, value: &str| {
        format!("--x\r\ncontent-disposition: form-data; name=\"{name}\"{more}\r\n\r\n{value}\r\n")
    };
    let sound = "a sound ".repeat(50_000);
    let body = part("model", "", "tiny") + &part("file", "; filename=\"a.wav\"", &sound) + "--x--\r\n";
    post("/v1/audio/transcriptions").header("content-type", "multipart/form-data; boundary=x").body(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_reaches_the_server_whole_in_any_framing() {
    let llama = llama::scripted().answers(r#"{"a": 1}"#).start().await;
    let stage = before(&llama, "h2-framings", "cache: {size: 0B}").await;
    let mut connection = stage.connect().await;
    let long = chat(&"words ".repeat(60_000));
    let messages = post("/v1/messages").body(r#"{"model": "tiny", "max_tokens": 9, "messages": []}"#);
    let requests = [
        chat("hi"),
        long,
        messages,
        post("/v1/embeddings").body(r#"{"model": "tiny", "input": "hi"}"#),
        post("/v1/rerank").body(r#"{"model": "tiny", "query": "a", "documents": ["b"]}"#),
        post("/tokenize").body(r#"{"content": "hi"}"#),
        post("/completion").body(r#"{"prompt": "hi"}"#),
        transcription(),
    ];
    for request in requests {
        let plain = stage.gateway.send(request.clone()).await;
        let expected = llama.last();
        for framed in [request.clone(), request.clone().chunked(1 << 20), request.chunked(1000)] {
            let answer = connection.send(framed).await;
            assert!(answer.whole, "{answer:?}");
            assert_eq!((answer.status, &answer.body), (plain.status, &plain.body), "{}", expected.target());
            let received = llama.last();
            assert_eq!((received.target(), received.sha256()), (expected.target(), expected.sha256()));
            let length = expected.body.len().to_string();
            assert_eq!(received.header("content-length"), Some(length.as_str()));
            assert_eq!(received.header("transfer-encoding"), None);
            // What follows on the connection to the server is not taken for the body's rest.
            assert_eq!(answer.header("connection"), None);
        }
    }
    let asked = llama.requests();
    assert_eq!(connection.send(get("/v1/models")).await.status, 200);
    assert_eq!(connection.send(get("/live")).await.status, 200);
    refused(&connection.send(post("/v1/embeddings")).await, 400, "invalid_json");
    refused(&connection.send(get("/nothing")).await, 404, "not_found");
    assert_eq!(llama.requests(), asked);
    assert_eq!(stage.gateway.errors(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_is_refused_and_the_connection_goes_on() {
    let llama = llama::scripted().answers("{}").start().await;
    let yaml = auth(&[("alice", "sk-alice", "")]) + "body: {max: 1MiB, idle: 500ms}";
    let stage = before(&llama, "h2-bounds", &yaml).await;
    let mut connection = stage.connect().await;
    let key = |request: Request| request.key("sk-alice");
    refused(&connection.send(chat("hi")).await, 401, "invalid_api_key");
    let large = key(post("/v1/chat/completions").body(vec![b' '; (1 << 20) + 1]));
    refused(&connection.send(large.clone()).await, 413, "body_too_large");
    refused(&connection.send(large.chunked(1 << 14)).await, 413, "body_too_large");
    let headers = (0..9).fold(key(chat("hi")), |it, at| it.header(&format!("x-{at}"), &"a".repeat(4 << 10)));
    refused(&connection.send(headers).await, 431, "headers_too_large");

    // A body that stops on its way is not waited for; the other streams do not feel it.
    let silent = key(chat("hi"));
    let (stream, mut body) = connection.open(&silent, None).await;
    h2::write(&mut body, Bytes::from_static(b"{\"messages\":")).await;
    assert_eq!(connection.send(key(chat("hi"))).await.status, 200);
    let begun = Instant::now();
    refused(&stream.finish().await, 408, "request_timeout");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(connection.send(key(chat("hi again"))).await.status, 200);
    eventually!(stage.gateway.stats().await["in_flight"] == 0);
    assert_eq!(stage.gateway.errors(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cancelled_frees_its_server_and_the_others_go_on() {
    let llama = llama::scripted().streams(["one", "two", "three"]).holds().slots(4).start().await;
    let stage = before(&llama, "h2-cancelled", "cache: {size: 0B}").await;
    let mut connection = stage.connect().await;
    let mut kept = connection.begin(chat_stream("kept")).await;
    llama.release();
    assert!(matches!(kept.piece().await, Some(Ok(_))));
    for begun in [true, false] {
        let requests = llama.requests();
        let mut left = connection.begin(chat_stream("left")).await;
        eventually!(llama.requests() == requests + 1);
        if begun {
            llama.release();
            // The permit may be the other stream's.
            llama.release();
            assert!(matches!(left.piece().await, Some(Ok(_))));
        }
        let cancelled = llama.cancelled().len();
        let at = Instant::now();
        left.cancel();
        eventually!(llama.cancelled().len() == cancelled + 1);
        let took = llama.cancelled().last().expect("just seen").duration_since(at);
        assert!(took < Duration::from_millis(100), "the server's connection closed after {took:?}");
    }
    // One that waits for its own body's rest, and one whose answer nobody reads.
    let (stream, body) = connection.open(&chat("never"), None).await;
    drop((stream, body));
    llama.release_all();
    let answer = kept.finish().await;
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    eventually!(stage.gateway.stats().await["in_flight"] == 0);
    let left = || stage.gateway.lines().iter().filter(|line| line.number("status") == 499).count();
    eventually!(left() >= 2, "{}", stage.gateway.stdout());
    assert_eq!(stage.gateway.errors(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_kept_and_shared_between_both_versions() {
    let llama = llama::scripted().streams(["one", "two", "three"]).holds().start().await;
    let stage = before(&llama, "h2-shared", "").await;
    let mut connection = stage.connect().await;
    let mut leader = connection.begin(chat_stream("hi")).await;
    eventually!(llama.requests() == 1);
    let other = connection.begin(chat_stream("hi")).await;
    let plain = stage.gateway.caller().await.ask(chat_stream("hi")).await;
    let leaves = connection.begin(chat_stream("hi")).await;
    eventually!(stage.sum("ai_gateway_flight_followers").await == 3.0);
    leaves.cancel();
    eventually!(stage.sum("ai_gateway_flight_followers").await == 2.0);
    llama.release();
    assert!(matches!(leader.piece().await, Some(Ok(_))));
    llama.release_all();
    let (led, other) = tokio::join!(leader.finish(), other.finish());
    let (plain, _) = plain.answering("POST").await.finish().await;
    assert!(led.whole && other.whole && plain.whole, "{led:?} {other:?}");
    assert_eq!((led.cache(), other.cache(), plain.cache()), ("miss", "shared", "shared"));
    assert_eq!(other.body, plain.body);
    assert!(plain.body.ends_with(&led.body), "the leader's first piece was read before");
    let hit = connection.send(chat_stream("hi")).await;
    assert_eq!((hit.cache(), &hit.body), ("hit", &plain.body));
    assert_eq!(stage.gateway.send(chat_stream("hi")).await.cache(), "hit");
    assert_eq!(llama.requests(), 1);
    assert_eq!(stage.gateway.errors(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_caller_that_reads_nothing_holds_nobody_up() {
    // More than its window holds.
    let word: &'static str = Box::leak("word ".repeat(10_000).into_boxed_str());
    let llama = llama::scripted().streams([word; 9]).holds().start().await;
    let stage = before(&llama, "h2-slow", "").await;
    let mut connection = stage.connect().await;
    let mut leader = connection.begin(chat_stream("hi")).await;
    eventually!(llama.requests() == 1);
    let follower = stage.gateway.caller().await.ask(chat_stream("hi")).await;
    eventually!(stage.sum("ai_gateway_flight_followers").await == 1.0);
    llama.release_all();
    let (followed, _) = follower.answering("POST").await.finish().await;
    assert!(followed.whole && followed.text().ends_with("data: [DONE]\n\n"), "{followed:?}");
    eventually!(llama.finished() == 1);
    assert_eq!(leader.status().await, 200);
    let led = leader.finish().await;
    assert!(led.whole && led.body == followed.body, "{led:?}");

    // One that leaves, with followers and without.
    llama.becomes(llama::scripted().streams([word; 9]).holds());
    let mut leader = connection.begin(chat_stream("ho")).await;
    eventually!(llama.requests() == 2);
    let follower = stage.gateway.caller().await.ask(chat_stream("ho")).await;
    eventually!(stage.sum("ai_gateway_flight_followers").await == 1.0);
    assert!(leader.status().await == 200 && matches!(leader.piece().await, Some(Ok(_))));
    leader.cancel();
    let (followed, _) = follower.answering("POST").await.finish().await;
    assert!(followed.whole && followed.text().ends_with("data: [DONE]\n\n"), "{followed:?}");
    assert_eq!(connection.send(get("/live")).await.status, 200);
    eventually!(stage.gateway.stats().await["in_flight"] == 0);
    assert_eq!(stage.gateway.errors(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_never_looks_whole() {
    for followed in [false, true] {
        let llama = llama::scripted().streams(["one", "two", "three"]).holds().dies_after(2).start().await;
        let stage = before(&llama, &format!("h2-broken-{followed}"), "").await;
        let mut connection = stage.connect().await;
        let leader = connection.begin(chat_stream("hi")).await;
        eventually!(llama.requests() == 1);
        let follower = match followed {
            true => Some(connection.begin(chat_stream("hi")).await),
            false => None,
        };
        eventually!(stage.sum("ai_gateway_flight_followers").await == f64::from(u8::from(followed)));
        llama.release_all();
        for stream in [Some(leader), follower].into_iter().flatten() {
            let answer = stream.finish().await;
            assert!(answer.text().contains(r#""code":"upstream_error""#), "{answer:?}");
            assert!(!answer.text().contains("[DONE]"), "{answer:?}");
        }
        assert_eq!(connection.send(get("/live")).await.status, 200);
    }
    // A plain one is reset.
    let llama =
        llama::scripted().answers(r#"{"a": 1, "b": 2}"#).with_length().dies_after_bytes(9).start().await;
    let stage = before(&llama, "h2-broken-plain", "").await;
    let mut connection = stage.connect().await;
    let answer = connection.send(chat("hi")).await;
    assert!(!answer.whole, "{answer:?}");
    assert_eq!(connection.send(get("/live")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_when_it_is_idle_and_not_before() {
    let llama = llama::scripted().streams(["one", "two"]).holds().start().await;
    let stage = before(&llama, "h2-idle", "connections: {idle: 500ms}").await;
    let mut connection = stage.connect().await;
    let mut stream = connection.begin(chat_stream("hi")).await;
    llama.release();
    assert!(matches!(stream.piece().await, Some(Ok(_))));
    // While a stream is open it is not idle, however long that takes.
    assert!(stage.connect().await.is_closed().await);
    llama.release_all();
    let answer = stream.finish().await;
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    assert!(connection.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_before_the_process_does() {
    let llama = llama::scripted().streams(["one", "two"]).holds().start().await;
    let stage = before(&llama, "h2-drain", "").await;
    let mut connection = stage.connect().await;
    let mut stream = connection.begin(chat_stream("hi")).await;
    llama.release();
    assert!(matches!(stream.piece().await, Some(Ok(_))));
    stage.gateway.signal("TERM");
    eventually!(crate::support::client::try_connect(stage.gateway.at(TLS_PORT)).await.is_none());
    llama.release_all();
    let answer = stream.finish().await;
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    assert!(connection.is_closed().await);
    assert_eq!(stage.gateway.exit().await.code(), Some(0));
}
