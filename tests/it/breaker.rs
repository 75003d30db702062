//! A server that fails is taken out by what requests meet, tried by one of them, and never the last; what breaks
//! servers is kept from them, and a storm of failures does not become one of retries.

use serde_json::Value;

use crate::support::client::{Answer, get};
use crate::support::expect::{refused, says_when};
use crate::support::gateway::{self, Gateway, chat, chat_stream};
use crate::support::llama::{Llama, Script, scripted};

const UNPROBED_TWICE: &str = "balance: round_robin, health: {every: 1h, down_after: 2}";

/// The breaker of a server, as `/stats` has it.
async fn breaker(gateway: &Gateway, llama: &Llama) -> String {
    let stats = gateway.admin(get("/stats")).await.json();
    let servers = stats["servers"].as_array().cloned().unwrap_or_default();
    let server = servers.into_iter().find(|server| server["url"] == llama.url().as_str());
    server.and_then(|server| server["breaker"].as_str().map(str::to_owned)).unwrap_or_default()
}

/// The same as `/metrics` has it.
async fn breaker_number(gateway: &Gateway, llama: &Llama) -> f64 {
    let name = llama.url().trim_start_matches("http://").to_owned();
    gateway.scrape().await.sum("ai_gateway_server_breaker", &[("server", &name)])
}

/// Two servers, the first by this script.
async fn two(script: Script, upstream: &str) -> (Llama, Llama, Gateway) {
    let (one, other) = (script.start().await, scripted().start().await);
    let gateway = gateway::before_urls(&[&one.url(), &other.url()]).upstream(upstream).start().await;
    (one, other, gateway)
}

fn says(gateway: &Gateway, what: &str) -> usize {
    gateway.stderr().lines().filter(|line| line.contains(what)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_opens_lets_one_request_try_and_closes_on_its_answer() {
    let (bad, good, gateway) = two(scripted().dies_at_once(), UNPROBED_TWICE).await;
    let mut number = 0;
    let mut next = || {
        number += 1;
        chat(&number.to_string())
    };
    eventually!(gateway.send(next()).await.status == 200 && breaker(&gateway, &bad).await == "open");
    assert_eq!(breaker_number(&gateway, &bad).await, 2.0);
    // A trial that fails opens it again, for longer.
    eventually!(breaker(&gateway, &bad).await == "half_open");
    eventually!(gateway.send(next()).await.status == 200 && breaker(&gateway, &bad).await == "open");
    eventually!((says(&gateway, "(breaker open for"), says(&gateway, "(breaker half open)")) == (2, 1));
    let seen = bad.requests();
    for _ in 0..4 {
        assert_eq!(gateway.send(next()).await.status, 200);
    }
    assert_eq!(bad.requests(), seen, "an open breaker lets nothing through");

    bad.becomes(scripted().holds());
    eventually!(breaker(&gateway, &bad).await == "half_open");
    assert_eq!(breaker_number(&gateway, &bad).await, 1.0);
    let first = gateway.caller().await.ask(next()).await;
    let second = gateway.caller().await.ask(next()).await;
    eventually!(bad.requests() == seen + 1, "one of two in turn tries it");
    for _ in 0..4 {
        assert_eq!(gateway.send(next()).await.status, 200, "the other answers meanwhile");
    }
    assert_eq!(bad.requests(), seen + 1, "one tries it and no more");
    bad.release_all();
    for caller in [first, second] {
        assert_eq!(caller.answering("POST").await.finish().await.0.status, 200);
    }
    eventually!(breaker(&gateway, &bad).await == "closed");
    assert_eq!(breaker_number(&gateway, &bad).await, 0.0);
    let (seen, others) = (bad.requests(), good.requests());
    for _ in 0..4 {
        assert_eq!(gateway.send(next()).await.status, 200);
    }
    assert!(bad.requests() > seen && good.requests() > others, "both are asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn good_probes_do_not_hide_that_every_request_fails() {
    let health = "balance: round_robin, health: {every: 20ms, timeout: 2s, down_after: 3, up_after: 1}";
    for script in [scripted().dies_at_once(), scripted().garbage(), scripted().status(502)] {
        let (bad, _good, gateway) = two(script, health).await;
        let mut number = 0;
        let mut next = || {
            number += 1;
            gateway.send(chat(&number.to_string()))
        };
        // With probes in between it comes to a trial soon, and from the second pause on they do not shorten it.
        eventually!({
            next().await;
            says(&gateway, "(breaker open for") >= 2
        });
        assert_eq!(breaker(&gateway, &bad).await, "open");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_break_off_count_although_they_began() {
    let (bad, _good, gateway) = two(scripted().dies_after(1), UNPROBED_TWICE).await;
    for number in 0..4 {
        gateway.send(chat_stream(&number.to_string())).await;
    }
    eventually!(breaker(&gateway, &bad).await == "open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_bad_request_never_opens_it() {
    for status in [400, 404, 422, 500] {
        let (bad, good, gateway) = two(scripted().status(status), UNPROBED_TWICE).await;
        for number in 0..12 {
            gateway.chat(&number.to_string()).await;
        }
        assert_eq!(breaker(&gateway, &bad).await, "closed", "{status}");
        assert_eq!((bad.requests(), good.requests()), (6, 6));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_server_stays_whatever_requests_meet() {
    let llama = scripted().dies_at_once().start().await;
    let gateway = gateway::before(&llama).unprobed().start().await;
    for number in 0..8 {
        refused(&gateway.chat(&number.to_string()).await, 502, "upstream_error");
    }
    assert!(llama.requests() >= 8 && breaker(&gateway, &llama).await == "closed");

    let (one, other, gateway) = two(scripted().dies_at_once(), UNPROBED_TWICE).await;
    other.becomes(scripted().dies_at_once());
    for number in 0..12 {
        refused(&gateway.chat(&number.to_string()).await, 502, "upstream_error");
    }
    let both = [breaker(&gateway, &one).await, breaker(&gateway, &other).await];
    assert!(both.contains(&"closed".to_owned()), "{both:?}");
    one.becomes(scripted());
    other.becomes(scripted());
    assert_eq!(gateway.chat("now").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_requests_took_out_is_back_at_once_where_the_other_goes_away() {
    let health = "balance: round_robin, health: {every: 20ms, timeout: 2s, down_after: 3, up_after: 1000}";
    let (bad, good, gateway) = two(scripted().dies_at_once(), health).await;
    let mut number = 0;
    eventually!({
        number += 1;
        gateway.chat(&number.to_string()).await;
        breaker(&gateway, &bad).await == "open"
    });
    bad.becomes(scripted());
    good.becomes(scripted().unhealthy());
    eventually!(gateway.chat("anybody").await.status == 200 && breaker(&gateway, &bad).await == "closed");
    eventually!(gateway.stderr().contains("there is no other"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_servers_away_and_back() {
    let health = "health: {every: 50ms, timeout: 2s, down_after: 2, up_after: 1}";
    let (one, other, gateway) = two(scripted(), health).await;
    assert_eq!(gateway.chat("before").await.status, 200);
    one.dies().await;
    other.dies().await;
    eventually!(gateway.chat("away").await.status == 503);
    let away = gateway.chat("away").await;
    refused(&away, 503, "no_upstream");
    says_when(&away);
    one.comes_back().await;
    other.comes_back().await;
    eventually!(gateway.chat("back").await.status == 200);
    eventually!(gateway.scrape().await.sum("ai_gateway_server_up", &[]) == 2.0);
}

fn is_harmful(answer: &Answer) -> bool {
    let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    answer.status == 502 && message.contains("broke 2 model servers")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_took_two_servers_down_is_refused() {
    for retries in [2, 0] {
        let upstream = format!("balance: round_robin, retries: {retries}, health: {{every: 1h}}");
        let (one, other, gateway) = two(scripted().dies_at_once(), &upstream).await;
        other.becomes(scripted().dies_at_once());
        if retries == 0 {
            let first = gateway.chat("poison").await;
            refused(&first, 502, "upstream_error");
            assert!(!is_harmful(&first), "{first:?}");
        }
        let second = gateway.chat("poison").await;
        refused(&second, 502, "upstream_error");
        assert!(is_harmful(&second), "{second:?}");
        assert_eq!((one.requests(), other.requests()), (1, 1));
        one.becomes(scripted());
        other.becomes(scripted());
        for asked in [chat("poison"), chat("poison").header("cache-control", "no-cache")] {
            let third = gateway.send(asked).await;
            assert!(is_harmful(&third), "{third:?}");
            assert_eq!(third.header("x-should-retry"), Some("false"));
            assert!((30..=60).contains(&says_when(&third)), "{third:?}");
        }
        assert_eq!((one.requests(), other.requests()), (1, 1), "it reaches no server");
        assert_eq!(gateway.chat("another").await.status, 200);
        assert_eq!(gateway.scrape().await.sum("ai_gateway_requests_barred_total", &[]), 3.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_broke_one_server_and_was_answered_by_the_other_is_not_held_against_it() {
    let (one, other, gateway) = two(scripted().dies_at_once(), "balance: round_robin, retries: 2").await;
    let no_store = || chat("hi").header("cache-control", "no-store");
    assert_eq!(gateway.send(no_store()).await.status, 200);
    one.becomes(scripted());
    other.becomes(scripted().dies_at_once());
    for _ in 0..2 {
        assert_eq!(gateway.send(no_store()).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_failures_is_no_storm_of_retries() {
    let llama = scripted().dies_at_once().start().await;
    let gateway = gateway::before(&llama).upstream("retries: 2").start().await;
    for number in 0..50 {
        refused(&gateway.chat(&number.to_string()).await, 502, "upstream_error");
    }
    // A fifth of the requests of ten seconds and ten more; without a budget each would have been made twice.
    assert!((60..=70).contains(&llama.requests()), "{} tries for 50 requests", llama.requests());
    let scrape = gateway.scrape().await;
    let withheld = scrape.sum("ai_gateway_retries_withheld_total", &[("upstream", "local")]);
    let made = scrape.sum("ai_gateway_retries_total", &[]);
    assert_eq!((made + withheld, made), (50.0, (llama.requests() - 50) as f64));
    eventually!(says(&gateway, "budget of retries is spent") == 1);
    llama.becomes(scripted());
    let answer = gateway.chat("now").await;
    let line = gateway.line_of(answer.request_id()).await;
    assert_eq!((answer.status, &line.fields["attempts"]), (200, &Value::from(1)));
}
