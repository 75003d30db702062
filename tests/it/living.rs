//! How a gateway ends: no stream is dropped, and no time is lost.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::client::{self, get};
use crate::support::gateway::{self, chat, chat_stream};
use crate::support::llama;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlives_the_signal() {
    let llama = llama::scripted().streams(["one", "two", "three"]).holds().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut stream = gateway.caller().await.begin(chat_stream("hi")).await;
    llama.release();
    assert!(stream.event().await.is_some());
    gateway.signal("TERM");
    eventually!(client::try_connect(gateway.address()).await.is_none(), "new connections are refused");
    assert!(gateway.exited().is_none());
    llama.release_all();
    let (answer, _) = stream.finish().await;
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    let ended = Instant::now();
    assert_eq!(gateway.exit().await.code(), Some(0), "{}", gateway.stderr());
    assert!(ended.elapsed() < Duration::from_secs(2), "it stayed for {:?}", ended.elapsed());
    assert_eq!(gateway.lines().iter().filter(|line| line.text("path") == "/v1/chat/completions").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_answer_outlives_the_signal() {
    let llama = llama::scripted().holds().start().await;
    let gateway = gateway::before(&llama).start().await;
    let caller = gateway.caller().await.ask(chat("hi")).await;
    eventually!(llama.requests() == 1);
    gateway.signal("TERM");
    eventually!(client::try_connect(gateway.address()).await.is_none());
    llama.release_all();
    let (answer, _) = caller.answering("POST").await.finish().await;
    assert!(answer.whole && answer.status == 200, "{answer:?}");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_gateway_ends_at_once() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    // A connection that is kept open and idle holds nobody up.
    let mut idle = gateway.caller().await;
    assert_eq!(idle.send(chat("hi")).await.status, 200);
    let signalled = Instant::now();
    gateway.signal("TERM");
    assert_eq!(gateway.exit().await.code(), Some(0), "{}", gateway.stderr());
    assert!(signalled.elapsed() < Duration::from_secs(2), "it stayed for {:?}", signalled.elapsed());
    assert!(idle.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_grace_period() {
    let llama = llama::scripted().holds().start().await;
    let gateway = gateway::before(&llama).yaml("server: {grace_period_seconds: 1}").start().await;
    let stream = gateway.caller().await.begin(chat_stream("hi")).await;
    let signalled = Instant::now();
    gateway.signal("TERM");
    let (answer, _) = stream.finish().await;
    assert!(!answer.text().contains("[DONE]"), "{answer:?}");
    gateway.exit().await;
    assert!(signalled.elapsed() >= Duration::from_secs(1), "it went after {:?}", signalled.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_not_ready_before_its_listeners_close() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("server: {pre_stop: 2s}").start().await;
    assert_eq!(gateway.admin(get("/ready")).await.status, 200);
    gateway.signal("TERM");
    eventually!(gateway.admin(get("/ready")).await.status == 503);
    assert_eq!(gateway.send(get("/ready")).await.status, 503);
    assert_eq!(gateway.send(get("/live")).await.status, 200);
    assert_eq!(gateway.chat("hi").await.status, 200, "it still serves");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let llama = llama::scripted().holds().start().await;
    for (settings, ended_by) in [("{}", "the last requests"), ("{pre_stop: 1h}", "the balancers")] {
        let gateway = gateway::before(&llama).yaml(&format!("server: {settings}")).start().await;
        let stream = gateway.caller().await.begin(chat_stream(ended_by)).await;
        gateway.signal("TERM");
        // The listener may close between a connection and its request.
        let ready = async || match client::try_connect(gateway.address()).await {
            Some(mut caller) => caller.is_told_200(&get("/ready")).await,
            None => false,
        };
        eventually!(!ready().await);
        assert!(gateway.exited().is_none(), "it waits for {ended_by}");
        gateway.signal("TERM");
        gateway.exit().await;
        assert!(!stream.finish().await.0.text().contains("[DONE]"));
    }
}
