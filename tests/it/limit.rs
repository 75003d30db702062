//! How much they may ask, exactly.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::expect::{auth, passed, refused, says_when};
use crate::support::gateway::{self, chat, chat_stream};
use crate::support::llama;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_of_a_hundred_that_race() {
    let llama = llama::scripted().start().await;
    let limits = "limits: {gateway: {requests: 1/h, burst: 50}}";
    let gateway = gateway::before(&llama).yaml(limits).start().await;
    let answers = gateway.volley((0..100).map(|number| chat(&format!("question {number}")))).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!((passed(&answers), llama.requests()), (50, 50), "{statuses:?}\n{}", gateway.stdout());
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        refused(answer, 429, "rate_limit_exceeded");
        assert!((3500..=3600).contains(&says_when(answer)), "{answer:?}");
    }
    assert_eq!(gateway.scrape().await.sum("ai_gateway_limit_refusals_total", &[]), 50.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_comes_back_every_200_ms_and_not_before() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("limits: {gateway: {requests: 5/s, burst: 1}}").start().await;
    let mut caller = gateway.caller().await;
    let began = Instant::now();
    for number in 1_u32..4 {
        eventually!(caller.send(chat("hi")).await.status == 200);
        let earliest = Duration::from_millis(200) * (number - 1);
        assert!(began.elapsed() >= earliest, "number {number} after {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_without_burst_holds_what_its_rate_names() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("limits: {gateway: {requests: 7/h}}").start().await;
    let answers = gateway.volley((0..20).map(|number| chat(&number.to_string()))).await;
    assert_eq!(passed(&answers), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_limits_must_admit_and_the_refusal_names_the_one_that_did_not() {
    let llama = llama::scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", ""), ("bob", "sk-bob", "")]);
    let limits = "limits: {gateway: {requests: 1/h, burst: 3}, key: {requests: 1/h, burst: 2}}\n";
    let gateway = gateway::before(&llama).yaml(&(keys + limits)).start().await;
    let mut caller = gateway.caller().await;
    let mut ask = async |key: &str| caller.send(chat("hi").key(key)).await;
    assert_eq!((ask("sk-alice").await.status, ask("sk-alice").await.status), (200, 200));
    let by_key = ask("sk-alice").await;
    // Refused by her key, Alice has not used up what the gateway has left for Bob.
    assert_eq!(ask("sk-bob").await.status, 200);
    let by_gateway = ask("sk-bob").await;
    refused(&by_key, 429, "rate_limit_exceeded");
    refused(&by_gateway, 429, "rate_limit_exceeded");
    let by_key = gateway.line_of(by_key.request_id()).await;
    let by_gateway = gateway.line_of(by_gateway.request_id()).await;
    assert!(by_key.text("limit").contains("key"), "{by_key:?}");
    assert!(by_gateway.text("limit").contains("gateway"), "{by_gateway:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateways_refusal_does_not_charge_the_key() {
    let llama = llama::scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {requests: 1/h, burst: 3}")]);
    let limits = "limits: {gateway: {requests: 20/s, burst: 1}}\n";
    let gateway = gateway::before(&llama).yaml(&(keys + limits)).start().await;
    let mut caller = gateway.caller().await;
    let (mut passed, mut by_gateway) = (0, 0);
    while passed < 3 {
        let answer = caller.send(chat("hi").key("sk-alice")).await;
        match answer.status {
            200 => passed += 1,
            _ => by_gateway += usize::from(says_when(&answer) == 1),
        }
    }
    assert!(by_gateway > 0, "the gateway's own limit refused nobody");
    let mut refusal = caller.send(chat("hi").key("sk-alice")).await;
    eventually!({
        let by_key = says_when(&refusal) > 1;
        refusal = caller.send(chat("hi").key("sk-alice")).await;
        by_key
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keys_own_limits_replace_the_common_ones_name_by_name() {
    let llama = llama::scripted().holds().start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {requests: 1/h, burst: 3}"), ("bob", "sk-bob", "")]);
    let limits = "limits: {key: {requests: 1/h, burst: 1, concurrent: 1}}\n";
    let gateway = gateway::before(&llama).yaml(&(keys + limits)).start().await;
    let first = gateway.caller().await.ask(chat("one").key("sk-alice")).await;
    eventually!(llama.requests() == 1);
    let second = gateway.send(chat("two").key("sk-alice")).await;
    refused(&second, 429, "concurrency_limit");
    llama.release_all();
    assert_eq!(first.answering("POST").await.finish().await.0.status, 200);
    // Three requests are her own limit; the one of the common limit would have refused the second.
    let mut caller = gateway.caller().await;
    eventually!(caller.send(chat("one").key("sk-alice")).await.status == 200);
    assert_eq!(caller.send(chat("hi").key("sk-bob")).await.status, 200);
    refused(&caller.send(chat("hi").key("sk-bob")).await, 429, "rate_limit_exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_is_given_back_however_the_caller_leaves() {
    let llama = llama::scripted().holds().start().await;
    let gateway = gateway::before(&llama)
        .yaml(&auth(&[("alice", "sk-alice", "limits: {concurrent: 1}")]))
        .start()
        .await;
    for asked in [chat("plain"), chat_stream("stream")] {
        let seen = llama.requests();
        let caller = gateway.caller().await.ask(asked.key("sk-alice")).await;
        eventually!(llama.requests() > seen);
        let refusal = gateway.send(chat("another").key("sk-alice")).await;
        refused(&refusal, 429, "concurrency_limit");
        says_when(&refusal);
        caller.leaves();
        let ask =
            async || gateway.send(chat("x").key("sk-alice").header("cache-control", "only-if-cached")).await;
        eventually!(ask().await.status == 504);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn places_of_every_scope_come_back_from_who_leaves() {
    let one = "{concurrent: 1}";
    let tiny = |more: &str| format!("models: {{tiny: {{upstream: local, {more}}}}}\n");
    for (limit, yaml) in [
        ("gateway.concurrent", format!("limits: {{gateway: {one}}}\n")),
        ("user.concurrent", format!("limits: {{user: {one}}}\n")),
        ("model.concurrent", tiny(&format!("limits: {one}"))),
        ("key_model.concurrent", tiny(&format!("key_limits: {one}"))),
    ] {
        let llama = llama::scripted().holds().start().await;
        let keys = auth(&[("alice", "sk-alice", "user_header: x-user")]);
        let gateway = gateway::before(&llama).yaml(&(keys + &yaml)).start().await;
        let asked = |text: &str| chat(text).key("sk-alice").header("x-user", "ann");
        let caller = gateway.caller().await.ask(asked("held")).await;
        eventually!(llama.requests() == 1);
        let refusal = gateway.send(asked("another")).await;
        refused(&refusal, 429, "concurrency_limit");
        assert!(refusal.text().contains(limit), "{refusal:?}");
        caller.leaves();
        let ask = async || gateway.send(asked("x").header("cache-control", "only-if-cached")).await.status;
        eventually!(ask().await == 504, "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_say_what_is_left() {
    let llama = llama::scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {requests: 60/min}")]);
    let gateway = gateway::before(&llama).yaml(&keys).start().await;
    let mut caller = gateway.caller().await;
    for (asked, left) in [(chat("hi"), "59"), (chat("hi"), "58"), (chat_stream("hi"), "57")] {
        let answer = caller.send(asked.key("sk-alice")).await;
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("60"), "{answer:?}");
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some(left), "{answer:?}");
        let reset = answer.header("x-ratelimit-reset-requests").expect("when all of it is back");
        assert!(reset.starts_with(|it: char| it.is_ascii_digit()) && reset.ends_with('s'), "{reset}");
    }
    let open = gateway::before(&llama).start().await;
    let answer = open.chat("hi").await;
    assert!(!answer.headers.iter().any(|(name, _)| name.starts_with("x-ratelimit")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hit_costs_a_request() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("limits: {gateway: {requests: 1/h, burst: 2}}").start().await;
    assert_eq!(gateway.chat("hi").await.cache(), "miss");
    assert_eq!(gateway.chat("hi").await.cache(), "hit");
    refused(&gateway.chat("hi").await, 429, "rate_limit_exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_shielded_before_its_key_is_looked_at() {
    let llama = llama::scripted().start().await;
    let yaml = auth(&[("alice", "sk-alice", "")]) + "limits: {ip: {requests: 2/s}}\n";
    let gateway = gateway::before(&llama).yaml(&yaml).start().await;
    let answers = gateway.volley((0..40).map(|_| chat("hi").key("sk-wrong"))).await;
    let refusals: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(!refusals.is_empty() && answers.iter().any(|answer| answer.status == 401));
    refusals.iter().for_each(|answer| refused(answer, 429, "rate_limit_exceeded"));
}

/// Of a hundred thousand requests, on sixteen connections, against the gateway's two threads or more.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_thousand_exactly_half_pass() {
    const CONNECTIONS: usize = 16;
    const ALL: usize = 100_000;
    let llama = llama::scripted().start().await;
    let limits =
        format!("limits: {{gateway: {{requests: 1/day, burst: {}}}}}\nlog: {{access: none}}\n", ALL / 2);
    let gateway = gateway::before(&llama).yaml(&limits).start().await;
    let mut callers = Vec::new();
    for _ in 0..CONNECTIONS {
        callers.push(gateway.caller().await);
    }
    let calls = callers.into_iter().map(async |mut caller| {
        let mut passed = 0;
        for _ in 0..ALL / CONNECTIONS {
            passed += usize::from(caller.send(chat("hi")).await.status == 200);
        }
        passed
    });
    let passed: usize = futures_util::future::join_all(calls).await.into_iter().sum();
    let refusals = gateway.scrape().await.sum("ai_gateway_limit_refusals_total", &[]);
    assert_eq!((passed, refusals as usize), (ALL / 2, ALL / 2), "an error of 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ipv6_subscriber_is_shielded_by_its_64() {
    let llama = llama::scripted().start().await;
    let yaml = "trusted_proxies: [127.0.0.0/8]\nlimits: {ip: {requests: 3/h}}\n";
    let gateway = gateway::before(&llama).yaml(yaml).start().await;
    let ask = async |from: &str| gateway.send(chat("hi").header("x-forwarded-for", from)).await;
    for from in ["2001:db8::1", "2001:db8::2", "2001:db8::ffff:ffff:1:1"] {
        assert_eq!(ask(from).await.status, 200, "{from}");
    }
    let answer = ask("2001:db8::3").await;
    refused(&answer, 429, "rate_limit_exceeded");
    assert_eq!(gateway.line_of(answer.request_id()).await.text("limit"), "ip.requests");
    assert_eq!(ask("2001:db8:0:1::1").await.status, 200, "another subscriber");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_bodies_together_have_a_bound() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("body: {max: 64KiB, total: 64KiB}").start().await;
    let large = chat(&"x".repeat(40 << 10));
    let begins = async || {
        let mut half = gateway.caller().await;
        half.send_raw(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n")
            .await;
        half.send_raw(&[b' '; 50_000]).await;
        half
    };
    let mut caller = gateway.caller().await;
    let mut half = begins().await;
    while caller.send(large.clone()).await.status != 503 {
        // It came while the other body was there, and was itself refused.
        half = begins().await;
    }
    let answer = caller.send(large.clone()).await;
    refused(&answer, 503, "queue_full");
    assert_eq!(says_when(&answer), 1);
    assert_eq!(caller.send(chat("small")).await.status, 200);
    half.leaves();
    eventually!(caller.send(large.clone()).await.status == 200);
}
