//! Answers that are being made: twins share one generation, and the first caller may leave.

use std::time::Duration;

use crate::support::client::Answer;
use crate::support::eventually::PATIENCE;
use crate::support::expect::{auth, refused};
use crate::support::gateway::{self, Gateway, chat, chat_stream};
use crate::support::llama::{self, Llama};

/// A gateway in front of a server that holds before each event.
async fn held(words: [&str; 3], yaml: &str) -> (Llama, Gateway) {
    let llama = llama::scripted().streams(words).holds().start().await;
    let gateway = gateway::before(&llama).yaml(yaml).start().await;
    (llama, gateway)
}

/// Waits until so many requests follow an answer in the making.
async fn followers(gateway: &Gateway, count: f64) {
    let aboard = async || gateway.scrape().await.sum("ai_gateway_flight_followers", &[]);
    eventually!(aboard().await == count);
}

fn same(answers: &[Answer], first: &Answer) {
    for answer in answers {
        assert!(answer.whole && answer.status == first.status, "{answer:?}");
        assert_eq!(answer.body, first.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twins_share_one_generation() {
    for asked in [chat("hi"), chat_stream("hi")] {
        let (llama, gateway) = held(["Hel", "lo", "!"], "").await;
        let leader = gateway.caller().await.ask(asked.clone()).await;
        eventually!(llama.requests() == 1);
        let twins = tokio::join!(gateway.caller(), gateway.caller());
        let (one, other) = tokio::join!(twins.0.ask(asked.clone()), twins.1.ask(asked.clone()));
        followers(&gateway, 2.0).await;
        llama.release_all();
        let (first, _) = leader.answering("POST").await.finish().await;
        let (one, _) = one.answering("POST").await.finish().await;
        let (other, _) = other.answering("POST").await.finish().await;
        assert_eq!((first.cache(), one.cache(), other.cache()), ("miss", "shared", "shared"));
        same(&[one, other], &first);
        assert_eq!((llama.requests(), gateway.send(asked).await.cache()), (1, "hit"));
        assert_eq!(gateway.scrape().await.sum("ai_gateway_cache_shared_total", &[]), 2.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_late_gets_all_so_far_and_then_follows() {
    let (llama, gateway) = held(["one", "two", "three"], "").await;
    let mut leader = gateway.caller().await.begin(chat_stream("hi")).await;
    llama.release();
    llama.release();
    let (first, second) = (leader.event().await, leader.event().await);
    let mut follower = gateway.caller().await.begin(chat_stream("hi")).await;
    assert_eq!((follower.event().await, follower.event().await), (first, second));
    llama.release();
    assert_eq!(follower.event().await, leader.event().await);
    llama.release_all();
    let (led, followed) = tokio::join!(leader.finish(), follower.finish());
    same(&[followed.0], &led.0);
    assert_eq!(llama.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_caller_may_leave() {
    for events_before in [0, 2] {
        let (llama, gateway) = held(["one", "two", "three"], "").await;
        let mut leader = gateway.caller().await.begin(chat_stream("hi")).await;
        let follower = gateway.caller().await.begin(chat_stream("hi")).await;
        for _ in 0..events_before {
            llama.release();
            leader.event().await.expect("an event");
        }
        leader.leaves();
        let third = gateway.caller().await.begin(chat_stream("hi")).await;
        llama.release_all();
        let (followed, third) = tokio::join!(follower.finish(), third.finish());
        same(&[third.0], &followed.0);
        assert!(followed.0.text().contains("three") && followed.0.text().ends_with("data: [DONE]\n\n"));
        assert_eq!((llama.requests(), llama.cancelled().len()), (1, 0));
        assert_eq!(gateway.send(chat_stream("hi")).await.cache(), "hit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_first_caller_may_leave_too() {
    let (llama, gateway) = held(["one", "two", "three"], "").await;
    let leader = gateway.caller().await.ask(chat("hi")).await;
    eventually!(llama.requests() == 1);
    let follower = gateway.caller().await.ask(chat("hi")).await;
    followers(&gateway, 1.0).await;
    leader.leaves();
    llama.release_all();
    let (answer, _) = follower.answering("POST").await.finish().await;
    assert_eq!((answer.status, answer.cache(), llama.requests()), (200, "shared", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_last_leaves_the_server_is_told_at_once() {
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        let (llama, gateway) = held(["one", "two", "three"], "").await;
        let leader = gateway.caller().await.begin(chat_stream("hi")).await;
        let follower = gateway.caller().await.begin(chat_stream("hi")).await;
        leader.leaves();
        llama.release();
        let mut follower = follower;
        follower.event().await.expect("it goes on");
        assert_eq!(llama.cancelled().len(), 0);
        let left = follower.leaves();
        eventually!(llama.cancelled().len() == 1);
        quickest = quickest.min(llama.cancelled()[0].duration_since(left));
        llama.release_all();
        assert_eq!(gateway.chat("another").await.status, 200);
    }
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_caller_that_does_not_read_stalls_nobody() {
    let word = "x".repeat(256 << 10);
    let words = [word.as_str(); 100];
    let llama = llama::scripted().streams(words).holds().start().await;
    let gateway = gateway::before(&llama).unprobed().start().await;
    // It asks, and never reads what comes.
    let leader = gateway.caller().await.ask(chat_stream("hi")).await;
    eventually!(llama.requests() == 1);
    let follower = gateway.caller().await.begin(chat_stream("hi")).await;
    llama.release_all();
    let (answer, _) = follower.finish().await;
    assert!(answer.whole && answer.body.len() > 25 << 20 && answer.text().ends_with("[DONE]\n\n"));
    leader.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_does_not_read_stalls_nobody() {
    let word = "x".repeat(256 << 10);
    let words = [word.as_str(); 40];
    let llama = llama::scripted().streams(words).holds().start().await;
    let gateway = gateway::before(&llama).unprobed().start().await;
    let leader = gateway.caller().await.begin(chat_stream("hi")).await;
    let _idle = gateway.caller().await.ask(chat_stream("hi")).await;
    followers(&gateway, 1.0).await;
    llama.release_all();
    let (answer, _) = leader.finish().await;
    assert!(answer.whole && answer.body.len() > 10 << 20);
    // It is cut once it has taken nothing for a minute: six times the patience of a play.
    let follows = async || gateway.scrape().await.sum("ai_gateway_flight_followers", &[]);
    assert_eq!(follows().await, 1.0, "it may take its time");
    eventually!(within PATIENCE * 9; follows().await == 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_fails_fails_for_all_alike() {
    let llama = llama::scripted().holds().dies_after(2).start().await;
    let gateway = gateway::before(&llama).start().await;
    let leader = gateway.caller().await.begin(chat_stream("hi")).await;
    let follower = gateway.caller().await.begin(chat_stream("hi")).await;
    llama.release_all();
    let (led, followed) = tokio::join!(leader.finish(), follower.finish());
    assert_eq!(followed.0.text(), led.0.text());
    assert!(led.0.text().contains("upstream_error") && !led.0.text().contains("[DONE]"), "{}", led.0.text());
    assert_eq!(gateway.stats().await["cache_entries"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_everybodys() {
    let llama = llama::scripted().slow_start().start().await;
    let gateway = gateway::before(&llama).upstream("timeouts: {first_byte: 2s}").start().await;
    let leader = gateway.caller().await.ask(chat("hi")).await;
    eventually!(llama.requests() == 1);
    let follower = gateway.caller().await.ask(chat("hi")).await;
    followers(&gateway, 1.0).await;
    let (led, _) = leader.answering("POST").await.finish().await;
    let (followed, mut caller) = follower.answering("POST").await.finish().await;
    refused(&led, 504, "upstream_timeout");
    refused(&followed, 504, "upstream_timeout");
    assert_eq!(llama.requests(), 1);
    assert_eq!(
        caller.send(crate::support::client::get("/live")).await.status,
        200,
        "the connection is usable"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_error_is_everybodys() {
    let llama = llama::scripted().holds().status(500).start().await;
    let gateway = gateway::before(&llama).start().await;
    let leader = gateway.caller().await.ask(chat("hi")).await;
    eventually!(llama.requests() == 1);
    let follower = gateway.caller().await.ask(chat("hi")).await;
    followers(&gateway, 1.0).await;
    llama.release_all();
    let (led, _) = leader.answering("POST").await.finish().await;
    let (followed, _) = follower.answering("POST").await.finish().await;
    assert_eq!((led.status, followed.status), (500, 500));
    assert_eq!((&led.body, llama.requests()), (&followed.body, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_gives_its_permit_back_though_others_follow() {
    let keys = auth(&[("alice", "sk-alice", "limits: {concurrent: 1}"), ("bob", "sk-bob", "")]);
    let (llama, gateway) = held(["one", "two", "three"], &(keys + "cache: {scope: gateway}\n")).await;
    let leader = gateway.caller().await.begin(chat_stream("hi").key("sk-alice")).await;
    let follower = gateway.caller().await.begin(chat_stream("hi").key("sk-bob")).await;
    refused(&gateway.send(chat("more").key("sk-alice")).await, 429, "concurrency_limit");
    leader.leaves();
    eventually!(
        gateway
            .send(chat_stream("hi").key("sk-alice").header("cache-control", "only-if-cached"))
            .await
            .status
            == 504
    );
    llama.release_all();
    assert!(follower.finish().await.0.whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_a_fresh_answer_joins_none() {
    let (llama, gateway) = held(["one", "two", "three"], "").await;
    let leader = gateway.caller().await.ask(chat("hi")).await;
    eventually!(llama.requests() == 1);
    let fresh = gateway.caller().await.ask(chat("hi").header("cache-control", "no-cache")).await;
    eventually!(llama.requests() == 2);
    llama.release_all();
    let (led, _) = leader.answering("POST").await.finish().await;
    let (fresh, _) = fresh.answering("POST").await.finish().await;
    assert!(led.status == 200 && fresh.status == 200 && led.body != fresh.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_followers_cost_one_generation() {
    let (llama, gateway) = held(["one", "two", "three"], "").await;
    let leader = gateway.caller().await.begin(chat_stream("hi")).await;
    let mut followers = Vec::new();
    for _ in 0..300 {
        followers.push(gateway.caller().await.begin(chat_stream("hi")).await);
    }
    llama.release_all();
    let (led, _) = leader.finish().await;
    for follower in followers {
        same(&[follower.finish().await.0], &led);
    }
    assert_eq!((llama.requests(), llama.finished()), (1, 1));
}
