//! Replicas that share a cache on bad days: purges, a Valkey that is killed, paused, full and written to by others, an
//! upgrade; and what they tell each other of prompts.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::client::{Answer, get, post, request};
use crate::support::gateway::{self, Folder, Gateway, chat, chat_stream};
use crate::support::llama::{self, Llama};
use crate::support::replicas::{PATIENT, answers, counted, crowd, kept, replicas, stored};
use crate::support::valkey;

/// What a dead Valkey adds to a request, once it is known to be dead: nothing that a busy machine does not add.
const NOTHING: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_reaches_all() {
    const MODELS: &str = "models: {tiny: {upstream: local}, other: {upstream: local}}";
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, MODELS).await;
    let ask = async |gateway: &Gateway| gateway.send(chat("hi")).await.cache().to_owned();
    for (round, query) in ["", "?model=tiny", "?model=tiny", ""].into_iter().enumerate() {
        assert_eq!(ask(&one).await, "miss", "round {round}");
        stored(&one, 1.0 + round as f64).await;
        assert_eq!((ask(&other).await, ask(&one).await), ("hit".to_owned(), "hit".to_owned()));
        let purged = other.admin(request("DELETE", &format!("/cache{query}"))).await;
        assert_eq!((purged.status, &purged.json()["everywhere"]), (200, &json!(true)), "{purged:?}");
    }
    // Neither in one's own level nor in Valkey, by one that has just begun.
    let [third] = replicas::<1>(&llama, &valkey, PATIENT, MODELS).await;
    assert_eq!(ask(&third).await, "miss");
    stored(&third, 1.0).await;
    assert_eq!((ask(&one).await, ask(&other).await), ("hit".to_owned(), "hit".to_owned()));
    // Of another model nothing is purged.
    other.admin(request("DELETE", "/cache?model=other")).await;
    assert_eq!((ask(&one).await, ask(&other).await), ("hit".to_owned(), "hit".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_reaches_all_though_valkey_was_away_and_lost_everything() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let [one, other] = replicas::<2>(&llama, &valkey, "required: false", "").await;
    assert_eq!(one.send(chat("hi")).await.cache(), "miss");
    eventually!(other.send(chat("hi")).await.cache() == "hit");
    valkey.kill();
    let purged = one.admin(request("DELETE", "/cache")).await;
    assert_eq!(purged.json(), json!({"purged": "all", "everywhere": false}));
    assert_eq!(one.send(chat("hi")).await.cache(), "miss");
    valkey.start().await;
    eventually!(other.stats().await["cache_entries"] == json!(0));
    // They are at one again.
    eventually!(one.admin(request("DELETE", "/cache?model=tiny")).await.json()["everywhere"] == json!(true));
    let before = counted(&one, "cache_replica_stored_total").await;
    one.send(chat("another")).await;
    stored(&one, before + 1.0).await;
    assert_eq!(other.send(chat("another")).await.cache(), "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_valkey_each_goes_on_by_itself() {
    for signal in ["KILL", "STOP"] {
        let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
        let [one, other] = replicas::<2>(&llama, &valkey, "required: false", "").await;
        assert_eq!(one.send(chat("before")).await.cache(), "miss");
        eventually!(other.send(chat("before")).await.cache() == "hit");
        valkey.signal(signal);
        // Found out by those who ask, or by the look.
        eventually!(other.stderr().contains("is away") && one.stderr().contains("is away"));
        let mut fastest = Duration::MAX;
        for text in ["1", "2", "3", "4", "5"] {
            let began = Instant::now();
            assert_eq!(other.send(chat(text)).await.cache(), "miss");
            fastest = fastest.min(began.elapsed());
            assert_eq!(other.send(chat(text)).await.cache(), "hit", "its own level goes on");
        }
        assert!(fastest < NOTHING, "{fastest:?}");
        if signal == "STOP" {
            valkey.signal("CONT");
        } else {
            valkey.start().await;
        }
        eventually!(other.stderr().contains("is back") && one.stderr().contains("is back"));
        // What is asked next may come while the first look is under way.
        let mut number = 0;
        let mut shared = async || {
            number += 1;
            one.send(chat(&format!("after {number}"))).await;
            eventually!(counted(&one, "requests_in_flight").await == 0.0);
            other.send(chat(&format!("after {number}"))).await.cache() == "hit"
        };
        eventually!(shared().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_another_replica_goes_on_when_valkey_dies() {
    let llama = llama::scripted().streams(["Hel", "lo", "!"]).holds().start().await;
    let valkey = valkey::start().await;
    let [one, other] = replicas::<2>(&llama, &valkey, "required: false", "").await;
    let leader = one.caller().await.ask(chat("hi")).await;
    eventually!(llama.requests() == 1);
    let there = crowd(&other, &chat("hi"), 5).await;
    // One of them leads here only if Valkey had not answered in time.
    eventually!(counted(&other, "flight_followers").await as usize >= 4);
    valkey.kill();
    eventually!(llama.requests() == 2);
    llama.release_all();
    assert_eq!(leader.answering("POST").await.finish().await.0.status, 200);
    let there = answers(there).await;
    assert!(there.iter().all(|answer| answer.status == 200 && answer.whole), "{there:?}");
    assert_eq!(llama.requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_valkey_keeps_nothing_and_stops_nobody() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, "").await;
    one.send(chat("before")).await;
    stored(&one, 1.0).await;
    assert_eq!(valkey.ask(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
    assert_eq!(other.send(chat("before")).await.cache(), "hit", "what is there is found");
    for text in ["1", "2"] {
        let (here, there) = (one.send(chat(text)).await, other.send(chat(text)).await);
        assert_eq!((here.cache(), there.cache()), ("miss", "miss"));
        assert_eq!(one.send(chat(text)).await.cache(), "hit");
    }
    eventually!(counted(&one, "cache_replica_dropped_total").await == 2.0);
    assert_eq!(valkey.ask(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
    one.send(chat("after")).await;
    stored(&one, 2.0).await;
    assert_eq!(other.send(chat("after")).await.cache(), "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_there_is_no_answer() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let [one] = replicas::<1>(&llama, &valkey, PATIENT, "").await;
    one.send(chat("hi")).await;
    one.send(chat("another")).await;
    stored(&one, 2.0).await;
    let keys = kept(&valkey);
    let swap: &[&[&str]] = &[
        &["SET", &keys[0], "nonsense", "PX", "100000"],
        &["SETRANGE", &keys[0], "60", "x"],
        &["PERSIST", &keys[0]],
        &["COPY", &keys[1], &keys[0], "REPLACE"],
        &["EVAL", "redis.call('DEL', KEYS[1]) return redis.call('RPUSH', KEYS[1], 'x')", "1", &keys[0]],
    ];
    for (round, command) in swap.iter().enumerate() {
        let [fresh] = replicas::<1>(&llama, &valkey, PATIENT, "").await;
        let said = valkey.ask(command);
        let asked = [fresh.send(chat("hi")).await, fresh.send(chat("another")).await];
        assert!(asked.iter().all(|answer| answer.status == 200));
        let outcomes: Vec<_> = asked.iter().map(Answer::cache).collect();
        assert!(outcomes.contains(&"miss") && outcomes.contains(&"hit"), "{command:?}: {said}: {outcomes:?}");
        assert_eq!(counted(&fresh, "cache_replica_rejected_total").await, 1.0, "round {round}");
        // The new one takes its place.
        stored(&fresh, 1.0).await;
        assert!(fresh.errors().is_empty(), "{}", fresh.stderr());
        let [after] = replicas::<1>(&llama, &valkey, PATIENT, "").await;
        assert_eq!(after.send(chat("hi")).await.cache(), "hit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_takes_nothing_from_the_others() {
    let llama = llama::scripted().streams(["Hel", "lo", "!"]).holds().start().await;
    let valkey = valkey::start().await;
    let upgradable = "server: {pid_file: gateway.pid}";
    let [one, other] = replicas::<2>(&llama, &valkey, PATIENT, upgradable).await;
    let leader = one.caller().await.ask(chat_stream("hi")).await;
    eventually!(llama.requests() == 1);
    one.upgraded().await;
    // The process before makes it still, for the new one and for the other replica.
    let mut followers = vec![other.caller().await.ask(chat("hi")).await];
    eventually!(counted(&other, "flight_followers").await == 1.0);
    // What comes at the last moment is taken by the process before, and follows there, where nobody sees it.
    let mut looks = 0;
    let mut follows = async || {
        if looks % 100 == 0 {
            followers.push(one.caller().await.ask(chat("hi")).await);
        }
        looks += 1;
        counted(&one, "flight_followers").await == 1.0
    };
    eventually!(follows().await);
    llama.release_all();
    assert_eq!(leader.answering("POST").await.finish().await.0.cache(), "miss");
    let followed = answers(followers).await;
    assert!(followed.iter().all(|answer| answer.cache() == "shared" && answer.status == 200), "{followed:?}");
    assert_eq!(llama.requests(), 1);
    assert_eq!(one.send(get("/ready")).await.status, 200);
    assert_eq!((one.send(chat("hi")).await.cache(), other.send(chat("hi")).await.cache()), ("hit", "hit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_needs_no_valkey() {
    let (llama, valkey) = (llama::scripted().start().await, valkey::start().await);
    let upgradable = "server: {pid_file: gateway.pid}";
    let [one] = replicas::<1>(&llama, &valkey, "required: false", upgradable).await;
    assert_eq!(one.send(chat("before")).await.status, 200);
    valkey.kill();
    eventually!(one.stderr().contains("is away"));
    assert_eq!(one.send(chat("meanwhile")).await.status, 200);
    one.upgraded().await;
    assert_eq!(one.send(chat("after")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_of_three() {
    let llama = llama::scripted().streams(["Hel", "lo", "!"]).holds().start().await;
    let folder = Folder::new("cluster-of-replicas");
    let nodes = valkey::cluster(folder.path()).await;
    let addresses: Vec<_> = nodes.iter().map(|node| node.address().to_string()).collect();
    let shared = format!("shared: {{valkey: \"redis-cluster://{}\", {PATIENT}}}", addresses.join(","));
    let one = gateway::before(&llama).yaml(&shared).start().await;
    let other = gateway::before(&llama).yaml(&shared).start().await;
    let leader = one.caller().await.ask(chat_stream("0")).await;
    eventually!(llama.requests() == 1);
    let follower = other.caller().await.ask(chat("0")).await;
    eventually!(counted(&other, "flight_followers").await == 1.0);
    llama.release_all();
    assert_eq!(leader.answering("POST").await.finish().await.0.cache(), "miss");
    assert_eq!(follower.answering("POST").await.finish().await.0.cache(), "shared");
    for number in 1..20 {
        let asked = chat(&number.to_string());
        assert_eq!(one.send(asked.clone()).await.cache(), "miss");
        stored(&one, 1.0 + f64::from(number)).await;
        assert_eq!(other.send(asked).await.cache(), "hit");
    }
    // They lie on all three.
    assert!(nodes.iter().all(|node| !kept(node).is_empty()));
    let purged = other.admin(request("DELETE", "/cache")).await;
    assert_eq!(purged.json(), json!({"purged": "all", "everywhere": true}));
    let absent = chat("1").header("cache-control", "only-if-cached");
    assert_eq!((one.send(absent.clone()).await.status, other.send(absent).await.status), (504, 504));
}

/// The messages of a conversation of so many turns, which begins with a long prompt of the system's.
fn messages(system: &str, turns: usize) -> Value {
    let mut messages = vec![json!({"role": "system", "content": system.repeat(600)})];
    for number in 0..turns {
        messages.push(json!({"role": "user", "content": format!("question {number} {}", "x".repeat(300))}));
    }
    messages.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_stays_at_its_server_whichever_replica_it_comes_to() {
    let servers =
        [llama::scripted().start().await, llama::scripted().start().await, llama::scripted().start().await];
    let (urls, valkey) = (servers.each_ref().map(Llama::url), valkey::start().await);
    let shared = format!("shared: {{valkey: \"{}\"}}", valkey.url());
    let mut replicas = Vec::new();
    for _ in 0..3 {
        let plan = gateway::before_urls(&urls.each_ref().map(String::as_str)).upstream("balance: prefix");
        replicas.push(plan.yaml(&shared).start().await);
    }
    let systems = ["a", "b", "c", "d", "e", "f"];
    let mut homes = vec![String::new(); systems.len()];
    // What each was told of, in blocks of 256 bytes.
    let (mut told, mut blocks) = ([0; 3], 0);
    for turns in 1..6 {
        let sender = turns % 3;
        for (system, home) in systems.iter().zip(&mut homes) {
            let body = json!({"model": "tiny", "messages": messages(system, turns)});
            let answer = replicas[sender].send(post("/v1/chat/completions").json(&body)).await;
            assert_eq!((answer.status, answer.cache()), (200, "miss"));
            let server = replicas[sender].line_of(answer.request_id()).await.text("server").to_owned();
            if turns == 1 {
                *home = server;
            } else {
                assert_eq!(server, *home, "turn {turns} of {system}");
            }
        }
        let all = messages("a", turns).to_string().len() / 256;
        for place in (0..3).filter(|place| *place != sender) {
            told[place] += systems.len() * (all - blocks);
            let learned = async || counted(&replicas[place], "prompt_blocks_learned_total").await;
            eventually!(learned().await == told[place] as f64);
        }
        blocks = all;
    }
    homes.sort();
    homes.dedup();
    assert_eq!(homes.len(), 3, "what is new goes to the server that holds the least");
}
