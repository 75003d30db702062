//! Replicas that act as one: limits in a real Valkey or Redis, which is killed, paused, filled and started again.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::client::{Answer, get, post};
use crate::support::expect::{auth, passed, refused, says_when};
use crate::support::gateway::{self, Gateway, chat};
use crate::support::llama::{self, Llama};
use crate::support::replicas::{self, PATIENT, volleys};
use crate::support::valkey::{self, Valkey};

async fn replicas<const N: usize>(llama: &Llama, valkey: &Valkey, yaml: &str) -> [Gateway; N] {
    sharing(llama, valkey, false, yaml).await
}

/// `required`: they never go on by themselves, however long a busy machine keeps Valkey from answering.
async fn sharing<const N: usize>(llama: &Llama, valkey: &Valkey, required: bool, yaml: &str) -> [Gateway; N] {
    let how = if required { PATIENT } else { "required: false" };
    replicas::replicas(llama, valkey, how, yaml).await
}

async fn is_up(gateway: &Gateway) -> bool {
    gateway.scrape().await.sum("ai_gateway_shared_up", &[]) == 1.0
}

/// How many milliseconds each of so many requests waited for Valkey, one after the other; all pass.
async fn waits(gateway: &Gateway, count: usize) -> Vec<f64> {
    let mut caller = gateway.caller().await;
    let mut answers = Vec::new();
    for number in 0..count {
        answers.push(caller.send(chat(&format!("meanwhile {number}"))).await);
    }
    assert_eq!(passed(&answers), count);
    let mut waits = Vec::new();
    for answer in answers {
        let line = gateway.line_of(answer.request_id()).await;
        waits.push(line.fields["shared_ms"].as_f64().expect("it is told"));
    }
    waits
}

/// A busy machine may run a timer late: with two programs that never rest beside it, one in seven was. Nothing else
/// adds more than five milliseconds.
fn within_bounds(waits: &[f64]) {
    let long = waits.iter().filter(|wait| **wait > 5.0).count();
    assert!(long <= 1 + waits.len() / 4 && waits.iter().all(|wait| *wait < 250.0), "{waits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn four_replicas_admit_what_one_bucket_holds() {
    let limits = "limits: {gateway: {requests: 1/h, burst: 50}}";
    for required in [true, false] {
        let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
        let all = sharing::<4>(&llama, &valkey, required, limits).await;
        let answers = volleys(&all, 50, chat).await;
        let mut late = 0.0;
        for replica in &all {
            late += replica.scrape().await.sum("ai_gateway_shared_late_total", &[]);
        }
        // Whoever had no answer in time was ruled on by itself; a busy machine may bring that about.
        let over = passed(&answers) as f64 - 50.0;
        assert!(over == 0.0 || !required && over > 0.0 && over <= late, "{over}, {late} late");
        assert_eq!(passed(&answers), llama.requests());
        well_refused(&all[0], &answers).await;
    }
}

async fn well_refused(one: &Gateway, answers: &[Answer]) {
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        refused(answer, 429, "rate_limit_exceeded");
        assert!((3500..=3600).contains(&says_when(answer)), "{answer:?}");
    }
    let line = one.line_of(answers[0].request_id()).await;
    assert!(line.fields["shared_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{line:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_reserved_and_settled_in_one_bucket() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let keys = auth(&[("alice", "sk-alice", "limits: {tokens: 1000/day}")]);
    let [one, other] = replicas::<2>(&llama, &valkey, &keys).await;
    let left = async |gateway: &Gateway| {
        let usage = gateway.send(get("/v1/usage").key("sk-alice")).await;
        usage.json()["limits"]["tokens"]["remaining"].as_u64().expect("tokens are limited")
    };
    let asked = |text: &str, tokens: u64| {
        let messages = json!([{"role": "user", "content": text}]);
        let body = json!({"model": "tiny", "max_tokens": tokens, "messages": messages});
        post("/v1/chat/completions").json(&body).key("sk-alice")
    };
    assert_eq!(one.send(asked("hi", 900)).await.status, 200);
    // The server reports 10 in all.
    eventually!(left(&other).await == 990);
    refused(&other.send(asked("too much", 990)).await, 429, "rate_limit_exceeded");
    assert_eq!(other.send(asked("enough", 900)).await.status, 200);
    eventually!(left(&one).await == 980);
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_shared_and_those_of_a_killed_replica_come_back() {
    let (llama, valkey) = (llama::scripted().holds().start().await, valkey::start().await);
    let keys = auth(&[("alice", "sk-alice", "limits: {concurrent: 2}")]);
    let [one, other] = sharing::<2>(&llama, &valkey, true, &keys).await;
    let _first = one.caller().await.ask(chat("first").key("sk-alice")).await;
    let second = other.caller().await.ask(chat("second").key("sk-alice")).await;
    eventually!(llama.requests() == 2);
    let ask =
        async || other.send(chat("x").key("sk-alice").header("cache-control", "only-if-cached")).await.status;
    assert_eq!(ask().await, 429);
    second.leaves();
    eventually!(ask().await == 504);
    // Who only asked has its place until Valkey is told.
    let places = valkey.ask(&["KEYS", "*at_once*"]);
    eventually!(valkey.ask(&["ZCARD", &places]) == "1", "{places}");
    let _second = other.caller().await.ask(chat("another").key("sk-alice")).await;
    eventually!(llama.requests() == 3);
    assert_eq!(ask().await, 429);
    one.signal("KILL");
    let began = Instant::now();
    // Ten seconds are what a place is let for.
    eventually!(within Duration::from_secs(30); ask().await == 504);
    assert!(began.elapsed() > Duration::from_secs(5), "its places stand until their time is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_is_killed_and_comes_back() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let [gateway] = replicas::<1>(&llama, &valkey, "limits: {gateway: {requests: 1/h, burst: 40}}").await;
    assert!(is_up(&gateway).await);
    let mut caller = gateway.caller().await;
    assert_eq!(caller.send(chat("before")).await.status, 200);
    valkey.kill();
    within_bounds(&waits(&gateway, 5).await);
    eventually!(!is_up(&gateway).await);
    let said = |text: &str| gateway.stderr().matches(text).count();
    assert_eq!((said("is away"), said("is back")), (1, 0), "{}", gateway.stderr());
    valkey.start().await;
    let began = Instant::now();
    eventually!(is_up(&gateway).await);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((said("is away"), said("is back")), (1, 1), "{}", gateway.stderr());
    assert_eq!(gateway.scrape().await.sum("ai_gateway_shared_breaks_total", &[]), 1.0);
    // What was admitted meanwhile is charged: of 40 there are 34 at most, and one is asked for now.
    let remaining = async || {
        let answer = gateway.send(chat("after")).await;
        answer.header("x-ratelimit-remaining-requests").expect("limited").parse::<u64>().expect("a number")
    };
    eventually!(remaining().await < 34);
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_that_does_not_answer_holds_nobody_up() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let [gateway] = replicas::<1>(&llama, &valkey, "limits: {gateway: {requests: 1000/h}}").await;
    let mut caller = gateway.caller().await;
    assert_eq!(caller.send(chat("before")).await.status, 200);
    valkey.signal("STOP");
    // Whoever asks waits a little until it is known, and nobody after.
    let began = Instant::now();
    within_bounds(&waits(&gateway, 60).await);
    eventually!(!is_up(&gateway).await);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(waits(&gateway, 5).await.iter().all(|wait| *wait < 1.0), "nobody asks any more");
    valkey.signal("CONT");
    let began = Instant::now();
    eventually!(is_up(&gateway).await);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(caller.send(chat("after")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_ruled_without_an_answer_counts_once() {
    let llama = llama::scripted().start().await;
    // It goes on while the questions still count, and when they no longer do.
    for pause in [Duration::ZERO, Duration::from_millis(1200)] {
        let valkey = valkey::start().await;
        let keys = auth(&[("alice", "sk-alice", "limits: {requests: 20/day}")]);
        let [one, other] = replicas::<2>(&llama, &valkey, &keys).await;
        let left = async |gateway: &Gateway| {
            let usage = gateway.send(get("/v1/usage").key("sk-alice")).await;
            usage.json()["limits"]["requests"]["remaining"].as_u64().expect("requests are limited")
        };
        assert_eq!(one.send(chat("first").key("sk-alice")).await.status, 200);
        valkey.signal("STOP");
        let began = Instant::now();
        for number in 0..3 {
            assert_eq!(one.send(chat(&number.to_string()).key("sk-alice")).await.status, 200);
        }
        assert!(one.scrape().await.sum("ai_gateway_shared_late_total", &[]) >= 3.0);
        eventually!(began.elapsed() >= pause);
        valkey.signal("CONT");
        eventually!(is_up(&one).await && is_up(&other).await);
        eventually!(left(&other).await == 16);
        assert_eq!(one.send(chat("last").key("sk-alice")).await.status, 200);
        eventually!(left(&other).await == 15);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_required_is_refused_without() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let shared = format!("shared: {{valkey: \"{}\", required: true}}\n", valkey.url());
    let gateway = gateway::before(&llama).yaml(&shared).start().await;
    assert_eq!(gateway.chat("before").await.status, 200);
    valkey.kill();
    eventually!(gateway.chat("meanwhile").await.status == 503);
    let answer = gateway.chat("meanwhile").await;
    refused(&answer, 503, "no_upstream");
    says_when(&answer);
    assert_eq!(gateway.send(get("/live")).await.status, 200);
    valkey.start().await;
    eventually!(gateway.chat("after").await.status == 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_that_is_full_still_counts() {
    let llama = llama::scripted().start().await;
    let valkey = valkey::with(&["--maxmemory", "4mb"]).await;
    let all = replicas::<2>(&llama, &valkey, "limits: {gateway: {requests: 1/h, burst: 10}}").await;
    // It looks at its memory when a script begins.
    let fill = ["EVAL", "for n = 1, 9000 do redis.call('SET', n, string.rep('x', 1000)) end", "0"];
    valkey.ask(&fill);
    let full = valkey.ask(&fill);
    assert!(full.contains("OOM"), "{full}");
    assert_eq!(passed(&volleys(&all, 20, chat).await), 10);
    assert!(is_up(&all[0]).await && is_up(&all[1]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_replica_holds_up_no_other() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let [one, other] = replicas::<2>(&llama, &valkey, "limits: {gateway: {requests: 1/h, burst: 10}}").await;
    assert_eq!(one.chat("one").await.status, 200);
    one.signal("STOP");
    let asked = (0..20).map(|number| chat(&number.to_string()));
    assert_eq!(passed(&other.volley(asked).await), 9);
    one.signal("CONT");
    refused(&one.chat("late").await, 429, "rate_limit_exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_counts_once_whichever_replica_served() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let keys = auth(&[("alice", "sk-alice", "budget: [{requests: 5/day}]")]);
    let [one, other] = replicas::<2>(&llama, &valkey, &keys).await;
    let used = async |gateway: &Gateway| {
        let usage = gateway.send(get("/v1/usage").key("sk-alice")).await.json();
        usage["used"]["day"]["requests"].as_u64().expect("a number")
    };
    for (replica, text) in [(&one, "1"), (&other, "2"), (&one, "3")] {
        assert_eq!(replica.send(chat(text).key("sk-alice")).await.status, 200);
    }
    eventually!(used(&one).await == 3 && used(&other).await == 3);
    // What it used a second ago is not lost with it.
    one.signal("KILL");
    assert_eq!(other.send(chat("4").key("sk-alice")).await.status, 200);
    assert_eq!(other.send(chat("5").key("sk-alice")).await.status, 200);
    refused(&other.send(chat("6").key("sk-alice")).await, 429, "budget_exceeded");
    // Another begins where they are, and tells it by day, user and model.
    let [third] = replicas::<1>(&llama, &valkey, &keys).await;
    eventually!(used(&third).await == 5);
    refused(&third.send(chat("7").key("sk-alice")).await, 429, "budget_exceeded");
    let report = async || third.admin(get("/usage")).await.json()["usage"][0]["requests"].as_u64();
    eventually!(report().await == Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn use_while_valkey_is_away_is_told_when_it_is_back() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::with(&["--appendonly", "no"]).await);
    let keys = auth(&[("alice", "sk-alice", "")]);
    let [one, other] = replicas::<2>(&llama, &valkey, &keys).await;
    valkey.signal("STOP");
    for number in 0..3 {
        assert_eq!(one.send(chat(&number.to_string()).key("sk-alice")).await.status, 200);
    }
    valkey.signal("CONT");
    let used = async || {
        let usage = other.send(get("/v1/usage").key("sk-alice")).await.json();
        usage["used"]["day"]["requests"].as_u64().expect("a number")
    };
    eventually!(used().await == 3);
    one.signal("TERM");
    one.exit().await;
    assert_eq!((used().await, one.errors()), (3, Vec::new()), "told once");
}
