//! The stage itself, without a gateway on it: the scripted server and the callers mean what the plays take them for.

use crate::support::client::{connect, get, post};
use crate::support::expect::sha256;
use crate::support::gateway::{chat, chat_stream};
use crate::support::llama;

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_answers_of_every_framing_arrive_whole() {
    let body = format!("{{\"prompt\":\"{}\"}}", "x".repeat(300_000));
    for script in
        [llama::scripted(), llama::scripted().chunked_as([1, 7]), llama::scripted().close_delimited()]
    {
        let llama = script.start().await;
        for asked in
            [post("/completion").body(body.clone()), post("/completion").body(body.clone()).chunked(1000)]
        {
            let answer = connect(llama.address()).await.send(asked).await;
            assert_eq!(answer.json()["content"], "Hello");
            assert_eq!(llama.last().sha256(), sha256(&body));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_kept_for_a_hundred_answers() {
    let llama = llama::scripted().start().await;
    let mut caller = connect(llama.address()).await;
    for _ in 0..99 {
        assert_eq!(caller.send(chat("hi")).await.header("connection"), None);
    }
    assert_eq!(caller.send(get("/health")).await.header("connection"), Some("close"));
    assert!(caller.is_closed().await);
    assert_eq!((llama.requests(), llama.finished(), llama.probes().len()), (99, 99, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_held_until_they_are_released() {
    let llama = llama::scripted().streams(["one", "two"]).holds().start().await;
    let mut stream = connect(llama.address()).await.begin(chat_stream("hi")).await;
    llama.release();
    assert!(stream.event().await.is_some_and(|it| it.contains("assistant")));
    assert!(stream.event().await.is_some_and(|it| it.contains("one")));
    stream.leaves();
    eventually!(llama.cancelled().len() == 1);
    assert_eq!(llama.finished(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_not_whole() {
    for script in [
        llama::scripted().dies_after_bytes(10),
        llama::scripted().wrong_length(),
        llama::scripted().chunked_as([4]).dies_after_bytes(10),
    ] {
        let llama = script.start().await;
        assert!(!connect(llama.address()).await.send(chat("hi")).await.whole);
    }
    let llama = llama::scripted().dies_after(1).start().await;
    assert!(!connect(llama.address()).await.send(chat_stream("hi")).await.whole);
    llama.dies().await;
    assert!(crate::support::client::try_connect(llama.address()).await.is_none());
}
