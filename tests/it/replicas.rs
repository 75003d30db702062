//! Replicas that share a cache: what one has made, all have, and what one is making, no other makes.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::client::Answer;
use crate::support::expect::auth;
use crate::support::gateway::{Gateway, chat, chat_stream};
use crate::support::llama;
use crate::support::replicas::{PATIENT, answers, counted, crowd, followers, kept, replicas, stored};
use crate::support::valkey;

#[tokio::test(flavor = "multi_thread")]
async fn what_one_has_made_all_have_in_every_form() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, "").await;
    for (made, wanted) in [
        (chat("a"), chat("a")),
        (chat_stream("b"), chat_stream("b")),
        (chat("c"), chat_stream("c")),
        (chat_stream("d"), chat("d")),
    ] {
        let before = counted(&one, "cache_replica_stored_total").await;
        let first = one.send(made.clone()).await;
        assert_eq!(first.cache(), "miss");
        stored(&one, before + 1.0).await;
        let (here, there) = (one.send(wanted.clone()).await, other.send(wanted.clone()).await);
        assert_eq!((here.cache(), there.cache(), there.status), ("hit", "hit", 200));
        assert_eq!((here.text(), here.header("content-type")), (there.text(), there.header("content-type")));
        assert!(there.header("cache-status").is_some_and(|it| it.starts_with("ai-gateway; hit; ttl=")));
        assert_eq!(other.send(wanted).await.cache(), "hit");
    }
    assert_eq!((llama.requests(), counted(&other, "cache_replica_found_total").await), (4, 4.0));
    assert_eq!(other.stats().await["hits"], json!(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_as_old_as_it_is() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, "cache: {ttl: 100s}").await;
    one.send(chat("hi")).await;
    let age = |answer: &Answer| answer.header("age").map(|age| age.parse::<u64>().expect("a number"));
    eventually!(age(&one.send(chat("hi")).await) >= Some(2));
    let found = other.send(chat("hi")).await;
    assert!(age(&found) >= Some(2) && age(&found) < Some(10), "{found:?}");
    let ttl = found.header("cache-status").and_then(|it| it.rsplit_once("ttl=")?.1.parse::<u64>().ok());
    assert!(ttl.is_some_and(|ttl| (90..=97).contains(&ttl)), "{found:?}");
    let rest: u64 = valkey.ask(&["PTTL", &kept(&valkey)[0]]).parse().expect("it has a time");
    assert!((90_000..=98_000).contains(&rest), "{rest}");
    // A third replica is asked for no older one than that.
    let [third] = replicas::<1>(&llama, &valkey, PATIENT, "cache: {ttl: 100s}").await;
    let asked = |control: &str| chat("hi").header("cache-control", control);
    assert_eq!(third.send(asked("only-if-cached, max-age=1")).await.status, 504);
    assert_eq!(third.send(asked("only-if-cached, max-age=60")).await.cache(), "hit");
    assert_eq!(llama.requests(), 1);
    assert_eq!(third.send(asked("max-age=1")).await.cache(), "miss");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_anothers_answers_on_any_replica() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let keys = auth(&[("alice", "sk-alice", ""), ("bob", "sk-bob", "")]);
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, &keys).await;
    assert_eq!(one.send(chat("hi").key("sk-alice")).await.cache(), "miss");
    stored(&one, 1.0).await;
    assert_eq!(other.send(chat("hi").key("sk-bob")).await.cache(), "miss");
    assert_eq!(other.send(chat("hi").key("sk-alice")).await.cache(), "hit");
    stored(&other, 1.0).await;
    assert_eq!(one.send(chat("hi").key("sk-bob")).await.cache(), "hit");
    assert_eq!(llama.requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_ask_of_two_replicas_at_once_is_made_once() {
    for asked in [chat("hi"), chat_stream("hi")] {
        let llama = llama::scripted().streams(["Hel", "lo", "!"]).holds().start().await;
        let valkey = valkey::start().await;
        let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, "").await;
        let (here, there) = tokio::join!(crowd(&one, &asked, 20), crowd(&other, &asked, 20));
        let aboard =
            async || counted(&one, "flight_followers").await + counted(&other, "flight_followers").await;
        eventually!(aboard().await == 39.0);
        llama.release_all();
        let all = [answers(here).await, answers(there).await].concat();
        assert_eq!(llama.requests(), 1);
        assert!(all.iter().all(|answer| answer.status == 200 && answer.whole && answer.body == all[0].body));
        let called = |name: &str| all.iter().filter(|answer| answer.cache() == name).count();
        assert_eq!((called("miss"), called("shared")), (1, 39));
        eventually!(valkey.ask(&["KEYS", "*:lease"]).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_caller_gets_what_another_replica_streams() {
    let llama = llama::scripted().streams(["Hel", "lo", "!"]).holds().start().await;
    let valkey = valkey::start().await;
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, "").await;
    let leader = one.caller().await.ask(chat_stream("hi")).await;
    eventually!(llama.requests() == 1);
    let follower = other.caller().await.ask(chat("hi")).await;
    followers(&other, 1.0).await;
    llama.release_all();
    let (first, _) = leader.answering("POST").await.finish().await;
    let (plain, _) = follower.answering("POST").await.finish().await;
    assert_eq!((first.cache(), plain.cache(), llama.requests()), ("miss", "shared", 1));
    assert_eq!(plain.json()["choices"][0]["message"]["content"], "Hello!");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_its_maker_is_killed_one_of_those_who_wait_makes_it() {
    let llama = llama::scripted().streams(["Hel", "lo", "!"]).holds().start().await;
    let valkey = valkey::start().await;
    let [one, other, third] = replicas::<3>(&llama, &valkey, PATIENT, "").await;
    let mut leader = one.caller().await.begin(chat_stream("hi")).await;
    llama.release();
    leader.event().await.expect("it has begun");
    let (streamed, plain) = (chat_stream("hi"), chat("hi"));
    let (here, there) = tokio::join!(crowd(&other, &streamed, 3), crowd(&third, &plain, 3));
    followers(&other, 3.0).await;
    followers(&third, 3.0).await;
    let killed = Instant::now();
    one.signal("KILL");
    eventually!(llama.requests() == 2);
    assert!(killed.elapsed() < Duration::from_secs(6), "{:?}", killed.elapsed());
    llama.release_all();
    let all = [answers(here).await, answers(there).await].concat();
    assert!(all.iter().all(|answer| answer.status == 200 && answer.whole), "{all:?}");
    assert_eq!(llama.requests(), 2);
    assert_eq!(all.iter().filter(|answer| answer.cache() == "miss").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_its_maker_gives_up_one_of_those_who_wait_makes_it() {
    let llama = llama::scripted().streams(["Hel", "lo", "!"]).holds().start().await;
    let valkey = valkey::start().await;
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, "").await;
    let leader = one.caller().await.ask(chat_stream("hi")).await;
    eventually!(llama.requests() == 1);
    let follower = other.caller().await.ask(chat_stream("hi")).await;
    followers(&other, 1.0).await;
    let left = leader.leaves();
    eventually!(llama.requests() == 2);
    assert!(left.elapsed() < Duration::from_secs(2), "nobody waits for the end of its lease");
    llama.release_all();
    assert_eq!(follower.answering("POST").await.finish().await.0.cache(), "miss");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_answer_does_not_hide_that_nobody_makes_the_new_one() {
    let llama = llama::scripted().streams(["Hel", "lo", "!"]).start().await;
    let valkey = valkey::start().await;
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, "").await;
    one.send(chat_stream("hi")).await;
    stored(&one, 1.0).await;
    let age = async || one.send(chat_stream("hi")).await.header("age").map(str::to_owned);
    eventually!(age().await.is_some_and(|age| age != "0" && age != "1"));
    llama.becomes(llama::scripted().streams(["Hel", "lo", "!"]).holds());
    let newer = || chat_stream("hi").header("cache-control", "max-age=1");
    let leader = one.caller().await.ask(newer()).await;
    eventually!(llama.requests() == 2);
    let follower = other.caller().await.ask(newer()).await;
    followers(&other, 1.0).await;
    leader.leaves();
    eventually!(llama.requests() == 3);
    llama.release_all();
    assert_eq!(follower.answering("POST").await.finish().await.0.cache(), "miss");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_is_waited_for_once() {
    let llama = llama::scripted().streams(["Hel", "lo", "!"]).holds().start().await;
    let valkey = valkey::start().await;
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, "cache: {entry: 16B}").await;
    let leader = one.caller().await.ask(chat("hi")).await;
    eventually!(llama.requests() == 1);
    let follower = other.caller().await.ask(chat("hi")).await;
    followers(&other, 1.0).await;
    llama.release_all();
    let (first, _) = leader.answering("POST").await.finish().await;
    let (second, _) = follower.answering("POST").await.finish().await;
    assert_eq!((first.cache(), second.cache(), llama.requests()), ("miss", "miss", 2));
    // From now on each replica makes it by itself.
    llama.becomes(llama::scripted().streams(["Hel", "lo", "!"]).holds());
    let again = [one.caller().await.ask(chat("hi")).await, other.caller().await.ask(chat("hi")).await];
    eventually!(llama.requests() == 4);
    llama.release_all();
    assert!(answers(again.into()).await.iter().all(|answer| answer.cache() == "miss"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_popular_answer_that_expires_is_made_once() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let all = replicas::<4>(&llama, &valkey, PATIENT, "cache: {ttl: 1s}").await;
    let began = Instant::now();
    let calls = async |gateway: &Gateway| {
        let mut caller = gateway.caller().await;
        let mut calls = 0;
        while began.elapsed() < Duration::from_millis(4500) {
            assert_eq!(caller.send(chat("popular")).await.status, 200);
            calls += 1;
        }
        calls
    };
    let [one, two, three, four] = &all;
    let asked = tokio::join!(calls(one), calls(two), calls(three), calls(four), calls(one), calls(two));
    let (made, lasted) = (llama.requests(), began.elapsed().as_secs() as usize);
    // Each by itself, four replicas would make four each time.
    assert!(made >= 4 && made <= 2 * lasted, "{made} generations in {lasted} s for calls of {asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_answer_takes_little() {
    let word = "word after word ".repeat(1000);
    let llama = llama::scripted().streams([word.as_str(), &word, &word]).start().await;
    let valkey = valkey::start().await;
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, "").await;
    let made = one.send(chat_stream("hi")).await;
    stored(&one, 1.0).await;
    let bytes: usize = valkey.ask(&["STRLEN", &kept(&valkey)[0]]).parse().expect("a length");
    assert!(made.body.len() > 40_000 && bytes < made.body.len() / 10, "{bytes} of {}", made.body.len());
    let found = other.send(chat_stream("hi")).await;
    assert_eq!((found.cache(), &found.body), ("hit", &made.body));
}
