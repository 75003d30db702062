//! Servers that fail: nothing cut off ever looks complete, and what has not begun goes elsewhere.

use std::time::Duration;

use tokio::net::TcpStream;

use super::stream::protocols;
use crate::support::address::Loopback;
use crate::support::client::post;
use crate::support::expect::refused;
use crate::support::gateway::{self, chat, chat_stream};
use crate::support::llama;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_off_ends_in_an_error_event_of_its_protocol() {
    for (asked, end_mark) in protocols() {
        let llama = llama::scripted().streams(["one", "two", "three"]).dies_after(2).start().await;
        let gateway = gateway::before(&llama).start().await;
        let answer = gateway.send(asked).await;
        let text = answer.text();
        let last = text.trim_end().rsplit("\n\n").next().unwrap_or_default();
        let named = end_mark.starts_with("event:");
        assert_eq!(last.starts_with("event: error\ndata: {"), named, "{end_mark}: {text}");
        assert!(named || last.starts_with("data: {\"error\":{"), "{end_mark}: {text}");
        assert!(text.contains("two") && !text.contains("three") && !text.contains(end_mark), "{text}");
        assert!(text.ends_with("\n\n") && last.contains("upstream_error"), "{text}");
        let data = last.lines().find_map(|line| line.strip_prefix("data: ")).expect("an event has data");
        assert!(serde_json::from_str::<serde_json::Value>(data).is_ok(), "{data}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_cut_through_is_closed_first() {
    let events = ["data: {\"n\":1}\n\n", "data: {\"n\":2}\n\n"];
    for bytes in [20, 28, 29] {
        let llama = llama::scripted().events(events).dies_after_bytes(bytes).start().await;
        let gateway = gateway::before(&llama).start().await;
        let text = gateway.send(chat_stream("hi")).await.text();
        let (sent, error) = text.split_at(bytes);
        assert_eq!(sent, &events.concat()[..bytes]);
        assert!(error.starts_with('\n') && error.trim_start().starts_with("data: {\"error\":{"), "{text}");
        assert!(
            text[..text.len() - error.trim_start().len()].ends_with("\n\n"),
            "a blank line first: {text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_answer_that_breaks_off_is_broken_off() {
    for script in [
        llama::scripted().dies_after_bytes(30),
        llama::scripted().wrong_length(),
        llama::scripted().chunked_as([10]).dies_after_bytes(30),
    ] {
        let llama = script.start().await;
        let gateway = gateway::before(&llama).start().await;
        let answer = gateway.chat("hi").await;
        assert!(!answer.whole || answer.status == 502, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_a_502_after_at_most_one_more_try() {
    for script in
        [llama::scripted().dies_at_once(), llama::scripted().garbage(), llama::scripted().half_header()]
    {
        let llama = script.start().await;
        let gateway = gateway::before(&llama).unprobed().start().await;
        let mut caller = gateway.caller().await;
        refused(&caller.send(chat("hi")).await, 502, "upstream_error");
        assert!((1..=2).contains(&llama.requests()), "{} tries", llama.requests());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_retries_there_is_one_try() {
    let llama = llama::scripted().dies_at_once().start().await;
    let gateway = gateway::before(&llama).upstream("retries: 0").start().await;
    refused(&gateway.chat("hi").await, 502, "upstream_error");
    assert_eq!(llama.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_errors_pass_unchanged() {
    for status in [400, 422, 500, 501, 503] {
        let body = format!("{{\"error\": {{\"code\":{status},  \"message\":\"as it came\"}}}}");
        let llama = llama::scripted().status(status).answers(body.clone()).start().await;
        let gateway = gateway::before(&llama).unprobed().start().await;
        for asked in [chat("hi"), chat_stream("hi")] {
            let answer = gateway.send(asked).await;
            assert_eq!((answer.status, answer.text()), (status, body.clone()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_accept_the_gateways_key_is_a_502() {
    let llama = llama::scripted().api_key("sk-server").start().await;
    let gateway = gateway::before(&llama).start().await;
    refused(&gateway.send(chat("hi").key("sk-caller")).await, 502, "upstream_error");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_falls_silent_is_ended() {
    let llama = llama::scripted().holds().start().await;
    let gateway = gateway::before(&llama).upstream("timeouts: {between_bytes: 200ms}").start().await;
    let mut stream = gateway.caller().await.begin(chat_stream("hi")).await;
    llama.release();
    assert!(stream.event().await.is_some());
    let (answer, _) = stream.finish().await;
    let text = answer.text();
    assert!(text.contains("data: {\"error\":{") && !text.contains("[DONE]"), "{text}");
    assert!(text.contains("upstream_timeout") && text.contains("`timeouts.between_bytes`"), "{text}");
    eventually!(llama.cancelled().len() == 1);
    assert_eq!(llama.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_a_bound_of_time_for_its_beginning_and_one_in_all() {
    for bound in ["first_byte", "total"] {
        let llama = llama::scripted().holds().start().await;
        let gateway =
            gateway::before(&llama).upstream(&format!("timeouts: {{{bound}: 200ms}}")).start().await;
        let answer = gateway.chat("hi").await;
        refused(&answer, 504, "upstream_timeout");
        assert!(answer.text().contains(&format!("`timeouts.{bound}`")), "{answer:?}");
        assert_eq!(answer.header("x-should-retry"), Some("false"));
        eventually!(llama.cancelled().len() == 1);
        assert_eq!(llama.requests(), 1, "never again after a time-out");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_a_bound_of_time_and_the_next_server_is_asked_after_it() {
    // A queue of connections that nobody takes: once it is full, nothing answers any more.
    let address = Loopback::claim();
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(address.port(8080)).expect("the address is ours");
    let deaf = socket.listen(1).expect("it listens");
    let mut queued = Vec::new();
    let connect = || tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address.port(8080)));
    while let Ok(stream) = connect().await {
        queued.push(stream.expect("it listens"));
    }
    let url = format!("http://{}", address.port(8080));
    let upstream = "timeouts: {connect: 150ms}, balance: round_robin";
    let gateway = gateway::before_urls(&[&url]).upstream(upstream).start().await;
    let answer = gateway.chat("hi").await;
    refused(&answer, 504, "upstream_timeout");
    assert!(answer.text().contains("`timeouts.connect`"), "{answer:?}");

    let llama = llama::scripted().start().await;
    let gateway = gateway::before_urls(&[&url, &llama.url()]).upstream(upstream).start().await;
    for text in ["one", "two"] {
        assert_eq!(gateway.chat(text).await.status, 200);
    }
    assert!(gateway.scrape().await.sum("ai_gateway_retries_total", &[("reason", "connect")]) >= 1.0);
    drop((deaf, queued));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_closes_its_connections_costs_nobody_an_answer() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).unprobed().start().await;
    let mut caller = gateway.caller().await;
    // The real server closes after each hundredth answer.
    for number in 0..250 {
        assert_eq!(caller.send(chat(&number.to_string())).await.status, 200, "answer {number}");
    }
    for number in 0..20 {
        llama.dies().await;
        llama.comes_back().await;
        assert_eq!(caller.send(chat(&format!("restart {number}"))).await.status, 200, "restart {number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_and_comes_back() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    assert_eq!(gateway.chat("one").await.status, 200);
    llama.dies().await;
    let answer = gateway.chat("two").await;
    assert!(matches!(answer.status, 502 | 503), "{answer:?}");
    eventually!(gateway.chat("three").await.status == 503);
    assert_ne!(gateway.chat("one").await.cache(), "hit", "it may come back with another model");
    llama.comes_back().await;
    eventually!(gateway.chat("one").await.cache() == "hit", "it came back with the same");
    eventually!(gateway.chat("four").await.status == 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_odd_chunks_or_without_length_arrives_whole() {
    for script in [llama::scripted().chunked_as([1]), llama::scripted().close_delimited()] {
        let llama = script.start().await;
        let gateway = gateway::before(&llama).start().await;
        let mut caller = gateway.caller().await;
        for text in ["one", "two"] {
            let answer = caller.send(chat(text)).await;
            assert_eq!(answer.json()["choices"][0]["message"]["content"], "Hello");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_sent_whole_to_the_next_server_too() {
    let (dying, llama) = (llama::scripted().dies_at_once().start().await, llama::scripted().start().await);
    let gateway = gateway::before_urls(&[&dying.url(), &llama.url()])
        .upstream("balance: round_robin, health: {every: 1h}")
        .start()
        .await;
    for number in 0..4 {
        let body = format!("{{\"prompt\":\"{number}{}\"}}", "x".repeat(200 << 10));
        assert_eq!(gateway.send(post("/v1/completions").body(body.clone())).await.status, 200);
        assert_eq!(llama.last().text(), body);
    }
    assert!(dying.requests() >= 1, "the first server was never tried");
    assert!(gateway.scrape().await.sum("ai_gateway_retries_total", &[]) >= 1.0);
}
