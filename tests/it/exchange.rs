//! Servers that do not keep to the order of things, and callers that leave in the middle.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::expect::refused;
use crate::support::gateway::{self, Gateway, chat, chat_stream};
use crate::support::llama;

/// More than sockets hold.
const LARGE_BYTES: usize = 30 << 20;

/// Waits until so many requests follow an answer in the making.
async fn followers(gateway: &Gateway, count: f64) {
    let aboard = async || gateway.scrape().await.sum("ai_gateway_flight_followers", &[]);
    eventually!(aboard().await == count);
}

/// A server that reads the first bytes of a request, says this, and reads no more.
async fn stubborn(says: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 1000]).await;
            let _ = connection.write_all(says.as_bytes()).await;
            connections.push(connection);
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_before_it_has_read_all_is_heard() {
    let url = stubborn("HTTP/1.1 413 Payload Too Large\r\ncontent-length: 9\r\n\r\ntoo large").await;
    let gateway =
        gateway::before_urls(&[&url]).unprobed().upstream("timeouts: {between_bytes: 3s}").start().await;
    let answer = gateway.send(chat(&"x".repeat(LARGE_BYTES))).await;
    assert_eq!((answer.status, answer.text().as_str()), (413, "too large"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_reading_is_not_waited_for() {
    let url = stubborn("").await;
    let gateway =
        gateway::before_urls(&[&url]).unprobed().upstream("timeouts: {between_bytes: 300ms}").start().await;
    refused(&gateway.send(chat(&"x".repeat(LARGE_BYTES))).await, 504, "upstream_timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_pauses_is_cut_when_its_time_is_over() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 1000]).await;
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            let event = format!("data: {{\"x\":\"{}\"}}\n\n", "x".repeat(60_000));
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            let mut sent = connection.write_all(head.as_bytes()).await;
            while sent.is_ok() {
                sent = connection.write_all(chunk.as_bytes()).await;
            }
        }
    });
    let gateway = gateway::before_urls(&[&url]).upstream("timeouts: {total: 500ms}").start().await;
    let (answer, _) = gateway.caller().await.begin(chat_stream("hi")).await.finish().await;
    let end = String::from_utf8_lossy(&answer.body[answer.body.len().saturating_sub(1000)..]).into_owned();
    assert_eq!(answer.status, 200);
    assert!(end.contains("`timeouts.total`"), "{} bytes, {end}", answer.body.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hints_before_it_answers_is_asked_as_any_other() {
    let url = stubborn(concat!(
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    ))
    .await;
    let gateway = gateway::before_urls(&[&url]).upstream("health: {every: 50ms}").start().await;
    let up = async || gateway.scrape().await.sum("ai_gateway_server_up", &[]);
    eventually!(up().await == 1.0, "{}", gateway.stderr());
    let answer = gateway.send(chat("hi")).await;
    assert!(answer.status == 103 || answer.text() == "{}", "{answer:?}");
    assert_eq!(gateway.errors(), Vec::<String>::new());
}

const STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_header_behind_which_nothing_comes_goes_out_alone() {
    let url = stubborn(STREAM).await;
    let gateway = gateway::before_urls(&[&url]).unprobed().start().await;
    let begun = gateway.caller().await.ask(chat_stream("hi")).await.answering("POST").await;
    assert_eq!(begun.header("content-type"), Some("text/event-stream"));
}

/// A request as it goes over the wire.
fn asked(body: &str) -> Vec<u8> {
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-request-id: first\r\ncontent-type: application/json";
    format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_caller_that_left_is_told_nothing_more() {
    let llama = llama::scripted().slow_start().start().await;
    let gateway = gateway::before(&llama).start().await;
    let body = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let mut leader = TcpStream::connect(gateway.address()).await.expect("it listens");
    leader.write_all(&asked(body)).await.expect("it is taken");
    eventually!(llama.requests() == 1);
    let follower = gateway.caller().await.ask(chat_stream("hi")).await;
    followers(&gateway, 1.0).await;
    leader.shutdown().await.expect("it leaves, and listens");
    llama.release_all();
    let (answer, _) = follower.answering("POST").await.finish().await;
    assert!(answer.whole && answer.text().ends_with("[DONE]\n\n"), "{answer:?}");
    let mut told = Vec::new();
    leader.read_to_end(&mut told).await.expect("it ends");
    let told = String::from_utf8_lossy(&told);
    // It may be that its leaving was noticed late: then it has the whole answer.
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 200"), "{told}");
    eventually!(
        gateway.lines().iter().filter(|line| line.text("path") == "/v1/chat/completions").count() == 2
    );
    assert_eq!(gateway.errors(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_followers_have_had_of_an_answer_is_not_begun_anew() {
    for asked in [chat("hi"), chat_stream("hi")] {
        let llama =
            llama::scripted().streams(["one", "two", "three"]).slow_start().dies_after(2).start().await;
        let gateway = gateway::before(&llama).upstream("retries: 3, streamed: always").start().await;
        let leader = gateway.caller().await.ask(chat_stream("hi")).await;
        eventually!(llama.requests() == 1);
        let follower = gateway.caller().await.ask(asked).await;
        followers(&gateway, 1.0).await;
        leader.leaves();
        llama.release_all();
        let (answer, _) = follower.answering("POST").await.finish().await;
        assert_eq!(answer.text().matches("one").count(), usize::from(answer.status == 200), "{answer:?}");
        assert!(answer.text().contains("upstream_error"), "{answer:?}");
        assert_eq!(llama.requests(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_while_its_server_is_connected_to_has_left() {
    // One connection waits to be accepted, and for another there is no place.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let listener = socket.listen(0).expect("it listens");
    let address = listener.local_addr().expect("an address");
    let _waits = TcpStream::connect(address).await.expect("a place");
    let gateway = gateway::before_urls(&[&format!("http://{address}")])
        .upstream("timeouts: {connect: 60s}")
        .start()
        .await;
    let caller = gateway.caller().await.ask(chat("hi")).await;
    let in_flight = async || gateway.scrape().await.sum("ai_gateway_requests_in_flight", &[]);
    eventually!(in_flight().await == 1.0);
    caller.leaves();
    eventually!(in_flight().await == 0.0);
    assert_eq!(gateway.line_for("/v1/chat/completions").await.number("status"), 499);
}
