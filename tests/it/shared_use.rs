//! What keys use, told by replicas: budgets are one, whoever is asked; what a killed replica loses is a second's use at
//! most, and one that is told to end at once loses nothing.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::client::{Request, get, post};
use crate::support::expect::{auth, passed, refused};
use crate::support::gateway::{Gateway, chat};
use crate::support::llama;
use crate::support::replicas::{PATIENT, counted, replicas, volleys};
use crate::support::valkey::{self, Valkey};

/// Longer than a batch is under way, and shorter than a share stands.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);

/// So many tokens at most.
fn asks(text: &str, tokens: u64) -> Request {
    let messages = json!([{"role": "user", "content": text}]);
    let body = json!({"model": "tiny", "max_tokens": tokens, "messages": messages});
    post("/v1/chat/completions").json(&body).key("sk-alice")
}

/// The requests that Valkey has of all keys.
fn told(valkey: &Valkey) -> usize {
    let sum = "local sum = 0 for _, day in ipairs(redis.call('SMEMBERS', '{ai-gateway}:usage:days')) do \
               local fields = redis.call('HGETALL', '{ai-gateway}:usage:rows:' .. day) \
               for at = 1, #fields, 2 do \
               if string.sub(fields[at], -2) == '#0' then sum = sum + fields[at + 1] end end end return sum";
    valkey.ask(&["EVAL", sum, "0"]).parse().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn from_four_replicas_a_budget_lets_through_what_it_holds() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let keys = auth(&[("alice", "sk-alice", "budget: [{requests: 50/day}]")]);
    let all = replicas::<4>(&llama, &valkey, PATIENT, &keys).await;
    let answers = volleys(&all, 50, |text| chat(text).key("sk-alice")).await;
    assert_eq!((passed(&answers), llama.requests()), (50, 50));
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        refused(answer, 429, "budget_exceeded");
    }
    eventually!(told(&valkey) == 50);
    refused(&all[3].send(chat("late").key("sk-alice")).await, 429, "budget_exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_reserved_of_a_budget_on_one_replica_is_gone_on_the_others() {
    let (llama, valkey) = (llama::scripted().holds().start().await, valkey::start().await);
    let keys = auth(&[("alice", "sk-alice", "budget: [{tokens: 1000/month}]")]);
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, &keys).await;
    let first = one.caller().await.ask(asks("first", 600)).await;
    eventually!(llama.requests() == 1);
    let answer = other.send(asks("second", 600)).await;
    refused(&answer, 429, "budget_exceeded");
    assert_eq!(answer.header("retry-after"), Some("1"), "it may come back");
    // It is settled when it has ended: of 600 it has used 10.
    llama.release_all();
    first.answering("POST").await.finish().await;
    let began = Instant::now();
    eventually!(other.send(asks("third", 600)).await.status == 200);
    assert!(began.elapsed() < SETTLES_WITHIN, "{:?}", began.elapsed());
    // What a caller that left had reserved comes back too. There is enough for it though the third is not settled yet.
    let (held, second) = (llama.requests(), one.caller().await);
    let second = second.ask(asks("fourth", 300)).await;
    eventually!(llama.requests() == held + 1);
    second.leaves();
    eventually!(other.send(asks("fifth", 900)).await.status == 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_count_to_a_budget_of_requests_everywhere() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let keys = auth(&[("alice", "sk-alice", "budget: [{requests: 5/day}]")]);
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, &keys).await;
    for _ in 0..4 {
        assert_eq!(one.send(chat("hi").key("sk-alice")).await.status, 200);
    }
    // Four are gone, whether the ledger has told them yet or not.
    let left = || valkey.ask(&["HGET", "{ai-gateway}:open:alice", "=#r"]);
    eventually!(left().is_empty());
    assert_eq!(other.send(chat("new").key("sk-alice")).await.status, 200);
    refused(&other.send(chat("newer").key("sk-alice")).await, 429, "budget_exceeded");
    eventually!(told(&valkey) == 5);
    eventually!(valkey.ask(&["HLEN", "{ai-gateway}:open:alice"]) == "0", "each is told once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_goes_on_without_valkey_and_counts_once_when_it_is_back() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let keys = auth(&[("alice", "sk-alice", "budget: [{requests: 6/day}]")]);
    let [one, other] = replicas::<2>(&llama, &valkey, "required: false", &keys).await;
    let send = async |gateway: &Gateway, text: &str| gateway.send(chat(text).key("sk-alice")).await;
    assert_eq!(send(&one, "1").await.status, 200);
    valkey.signal("STOP");
    // Asked in vain, then not asked.
    for text in ["2", "3"] {
        assert_eq!(send(&one, text).await.status, 200);
    }
    eventually!(counted(&one, "shared_up").await == 0.0);
    assert_eq!(send(&one, "4").await.status, 200);
    valkey.signal("CONT");
    eventually!(counted(&one, "shared_up").await == 1.0 && counted(&other, "shared_up").await == 1.0);
    let used = async || {
        let usage = other.send(get("/v1/usage").key("sk-alice")).await.json();
        usage["used"]["day"]["requests"].as_u64().expect("a number")
    };
    eventually!(used().await == 4 && told(&valkey) == 4);
    eventually!(valkey.ask(&["HLEN", "{ai-gateway}:open:alice"]) == "0");
    assert_eq!((send(&other, "5").await.status, send(&one, "6").await.status), (200, 200));
    eventually!(used().await == 6);
    refused(&send(&other, "7").await, 429, "budget_exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_loses_a_seconds_use_at_most() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let keys = auth(&[("alice", "sk-alice", "")]);
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, &keys).await;
    // One after the other, so that what is told lies between what was answered and what was asked.
    let (began, mut answered) = (Instant::now(), Vec::new());
    let mut caller = one.caller().await;
    while began.elapsed() < Duration::from_millis(2500) {
        let text = answered.len().to_string();
        assert_eq!(caller.send(chat(&text).key("sk-alice")).await.status, 200);
        answered.push(began.elapsed());
    }
    let killed = began.elapsed();
    one.signal("KILL");
    one.exit().await;
    assert_eq!(other.send(chat("another").key("sk-alice")).await.status, 200);
    let used = async || {
        let usage = other.send(get("/v1/usage").key("sk-alice")).await.json();
        usage["used"]["day"]["requests"].as_u64().expect("a number") as usize
    };
    eventually!(used().await > 1 && used().await == told(&valkey));
    let (mine, all) = (told(&valkey) - 1, answered.len());
    let before = answered.iter().filter(|at| **at + Duration::from_secs(1) <= killed).count();
    assert!((before..=all).contains(&mine), "{before} before the last second, {mine} told, {all} in all");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_ends_at_once_has_told_all() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let keys = auth(&[("alice", "sk-alice", "limits: {concurrent: 9}, budget: [{requests: 1000/day}]")]);
    let [one, _other] = replicas::<2>(&llama, &valkey, PATIENT, &keys).await;
    let asked = (0..30).map(|number| chat(&number.to_string()).key("sk-alice"));
    let before = counted(&one, "requests_total").await;
    let answers = one.volley(asked).await;
    one.signal("INT");
    one.exit().await;
    assert!(before == 0.0 && passed(&answers) >= 9, "{before}, {}", passed(&answers));
    assert_eq!((told(&valkey), one.errors()), (passed(&answers), Vec::new()));
    for what in ["at_once:key", "open"] {
        let held = valkey.ask(&["EXISTS", &format!("{{ai-gateway}}:{what}:alice")]);
        assert_eq!(held, "0", "{what}: nothing is held any more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_bounded_and_read_by_day() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let [one] = replicas::<1>(&llama, &valkey, PATIENT, "").await;
    let fill = "for n = 0, 599 do local year, month = 10 + n / 300, 1 + n / 25 % 12 \
                local day = string.format('20%02d-%02d-%02d', year, month, 1 + n % 25) \
                redis.call('SADD', '{ai-gateway}:usage:days', day) \
                for user = 1, 20 do redis.call('HSET', '{ai-gateway}:usage:rows:' .. day, \
                string.format('[\"%s\",\"bob\",\"%d\",\"tiny\"]#0', day, user), user) end end return 'filled'";
    assert_eq!(valkey.ask(&["EVAL", fill, "0"]), "filled");
    eventually!(counted(&one, "shared_up").await == 1.0);
    let rows = async |query: &str| {
        let report = one.admin(get(&format!("/usage{query}"))).await;
        (report.status, report.json()["usage"].as_array().map_or(0, Vec::len), report.text())
    };
    let (status, count, text) = rows("").await;
    assert_eq!((status, count), (200, 401 * 20), "the last days: {}", &text[..text.len().min(300)]);
    assert_eq!(rows("?since=2011-12-24").await.1, 2 * 20);
    // By and by, so that it is not away meanwhile.
    for part in 0..55 {
        let more = "for n = ARGV[1] * 20000, ARGV[1] * 20000 + 19999 do \
                    redis.call('HSET', '{ai-gateway}:usage:rows:2011-12-25', \
                    '[\"2011-12-25\",\"bob\",\"u' .. n .. '\",\"tiny\"]#0', 1) end return 'filled'";
        assert_eq!(valkey.ask(&["EVAL", more, "0", &part.to_string()]), "filled");
    }
    eventually!(counted(&one, "shared_up").await == 1.0);
    let (status, _, text) = rows("?since=2011-12-25").await;
    assert!(status == 503 && text.contains("`since`"), "{status} {}", &text[..text.len().min(300)]);
    assert_eq!(rows("?since=2012-01-01").await.0, 200);
}
