//! Streams: event by event, byte for byte, and closed to the server as soon as the caller is gone.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::client::{Request, post};
use crate::support::expect::refused;
use crate::support::gateway::{self, chat, chat_stream};
use crate::support::llama::{self, Llama};

/// One stream of each protocol, and its end mark.
pub(crate) fn protocols() -> [(Request, &'static str); 5] {
    let messages = json!([{"role": "user", "content": "hi"}]);
    [
        (post("/v1/chat/completions").json(&json!({"messages": messages, "stream": true})), "data: [DONE]"),
        (post("/v1/completions").json(&json!({"prompt": "hi", "stream": true})), "data: [DONE]"),
        (post("/v1/messages").json(&json!({"messages": messages, "stream": true})), "event: message_stop"),
        (post("/v1/responses").json(&json!({"input": "hi", "stream": true})), "event: response.completed"),
        (post("/completion").json(&json!({"prompt": "hi", "stream": true})), "\"stop\":true"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_arrives_before_the_next_is_made() {
    for (asked, end_mark) in protocols() {
        let llama = llama::scripted().streams(["one", "two", "three"]).holds().start().await;
        let gateway = gateway::before(&llama).start().await;
        // The head is here before the first event is made.
        let mut stream = gateway.caller().await.begin(asked).await;
        assert_eq!((stream.status, stream.header("content-type")), (200, Some("text/event-stream")));
        for word in ["one", "two", "three"] {
            llama.release();
            while !stream.event().await.expect("the stream goes on").contains(word) {}
        }
        llama.release();
        let (answer, mut caller) = stream.finish().await;
        assert!(answer.whole && answer.text().contains(end_mark), "{answer:?}");
        llama.release_all();
        assert_eq!(caller.send(chat("on the same connection")).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_passes_byte_for_byte_however_it_is_cut() {
    let events = [
        ": ping\n\n",
        "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm é\u{1F600}\"}}]}\n\n",
        "id: 7\nretry: 10\ndata: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0}]}}],  \"x\" : 1.0}\r\n\r\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"timings\":{}}\n\n:\n\ndata: [DONE]\n\n",
    ];
    for sizes in [[1, 1, 1], [3, 50, 7], [1000, 1000, 1000]] {
        let llama = llama::scripted().events(events).chunked_as(sizes).start().await;
        let gateway = gateway::before(&llama).start().await;
        let answer = gateway.send(chat_stream("hi")).await;
        assert_eq!((answer.whole, answer.text()), (true, events.concat()));
        assert_eq!(gateway.send(chat_stream("hi")).await.text(), events.concat(), "and from the cache");
        assert_eq!(llama.requests(), 1);
    }
}

/// Starts a request, lets the caller go, and gives how long the server did not know.
async fn left(llama: &Llama, asked: Request, reads: usize) -> Duration {
    let gateway = gateway::before(llama).start().await;
    let (seen, cancelled) = (llama.requests(), llama.cancelled().len());
    let caller = gateway.caller().await;
    let gone = if reads == 0 {
        let caller = caller.ask(asked).await;
        eventually!(llama.requests() > seen);
        caller.leaves()
    } else {
        let mut stream = caller.begin(asked).await;
        for _ in 0..reads {
            llama.release();
            stream.event().await.expect("the stream goes on");
        }
        stream.leaves()
    };
    eventually!(llama.cancelled().len() > cancelled);
    let noticed: Instant = llama.cancelled()[cancelled];
    // Nothing of it is kept.
    llama.becomes(llama::scripted());
    let line = gateway.line_for("/v1/chat/completions").await;
    assert_eq!(line.number("status"), 499, "{line:?}");
    assert_eq!(gateway.scrape().await.sum("ai_gateway_client_disconnects_total", &[]), 1.0);
    assert_eq!(gateway.scrape().await.sum("ai_gateway_cache_stored_total", &[]), 0.0);
    noticed - gone
}

/// The contract is 100 ms; on a busy machine one of three may be late, all three may not.
async fn server_knows_at_once(script: llama::Script, asked: fn() -> Request, reads: usize) {
    let mut took = Vec::new();
    for _ in 0..3 {
        let llama = script.clone().start().await;
        took.push(left(&llama, asked(), reads).await);
    }
    assert!(took.iter().min() < Some(&Duration::from_millis(100)), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_leaves_in_the_middle_of_a_stream() {
    server_knows_at_once(llama::scripted().holds(), || chat_stream("hi"), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_leaves_before_the_first_byte() {
    server_knows_at_once(llama::scripted().slow_start(), || chat_stream("hi"), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_leaves_while_a_plain_answer_is_made() {
    server_knows_at_once(llama::scripted().holds(), || chat("hi"), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_at_once_do_not_mix() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let answers = gateway.volley((0..40).map(|number| chat_stream(&format!("question {number}")))).await;
    let mut bodies: Vec<String> = answers.iter().map(|answer| answer.text()).collect();
    assert!(answers.iter().all(|answer| answer.whole && answer.text().ends_with("data: [DONE]\n\n")));
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 40, "each has an answer of its own");
    // A caller has all of it before the server has ended the connection's last chunk.
    eventually!(llama.finished() == 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_byte_is_no_answer() {
    let server = llama::scripted().events([]).with_length().start().await;
    let gateway = gateway::before(&server).unprobed().start().await;
    let mut caller = gateway.caller().await;
    for _ in 0..2 {
        refused(&caller.send(chat_stream("a")).await, 502, "upstream_error");
    }
    server.becomes(llama::scripted().events([]));
    let answer = caller.send(chat_stream("a")).await;
    assert!(answer.text().contains("upstream_error"), "{answer:?}");
}
