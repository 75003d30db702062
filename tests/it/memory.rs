//! What the cache costs in memory: `size` is what it takes, and little more.

use serde_json::json;

use crate::support::client::post;
use crate::support::gateway::{self, chat, chat_stream};
use crate::support::llama;

const SIZE: u64 = 64 << 20;
const ANSWERS: u32 = 4000;

/// 1 to 200 KiB, each octave as likely as another.
fn body(number: u32) -> String {
    let part = f64::from(number.wrapping_mul(2_654_435_761)) / f64::from(u32::MAX);
    let length = 1024.0 * 200_f64.powf(part);
    format!("{{\"text\":\"{}\"}}", "x".repeat(length as usize - 11))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cache_takes_what_the_file_says() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("cache: {size: 64MiB}").unprobed().start().await;
    let mut caller = gateway.caller().await;
    for number in 0..20 {
        caller.send(chat(&format!("to warm up {number}"))).await;
    }
    let idle = gateway.resident_bytes();
    for number in 0..ANSWERS {
        llama.becomes(llama::scripted().answers(body(number)));
        let answer = caller.send(chat(&number.to_string())).await;
        assert_eq!((answer.status, answer.cache()), (200, "miss"));
        if number % 50 == 0 {
            // Some are asked for again: they stay longer.
            caller.send(chat(&(number / 2).to_string())).await;
            let stats = gateway.stats().await;
            assert_eq!(stats["cache_capacity"], SIZE);
            assert!(stats["cache_size"].as_u64() <= Some(SIZE), "{stats}");
        }
    }
    let stats = gateway.stats().await;
    assert!(stats["cache_size"].as_u64() > Some(SIZE * 9 / 10), "it is full: {stats}");
    let above = || gateway.resident_bytes().saturating_sub(idle);
    let most = SIZE * 13 / 10;
    println!("idle {} KiB, full {} KiB above it, {stats}", idle >> 10, above() >> 10);
    eventually!(above() < most, "{} KiB above idle, {} allowed", above() >> 10, most >> 10);
    println!("settled: {} KiB above idle", above() >> 10);
}

/// 150 KB of short messages take more than a megabyte when they are read: not of all callers at once.
#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_are_read_in_turns() {
    const CALLERS: usize = 400;
    let llama = llama::scripted().holds().start().await;
    let gateway = gateway::before(&llama).yaml("server: {threads: 1}").unprobed().start().await;
    let idle = gateway.resident_bytes_max();
    let asked = |number: usize| {
        let message = |part: usize| json!({"role": "user", "content": format!("{number} {part}")});
        let messages: Vec<_> = (0..3800).map(message).collect();
        post("/v1/chat/completions").json(&json!({"model": "tiny", "messages": messages}))
    };
    let mut ready = Vec::new();
    for number in 0..CALLERS {
        ready.push((gateway.caller().await, asked(number)));
    }
    let all: tokio::task::JoinSet<_> = ready.into_iter().map(|(caller, asked)| caller.ask(asked)).collect();
    let callers = all.join_all().await;
    eventually!(llama.requests() == CALLERS);
    let above = gateway.resident_bytes_max() - idle;
    println!("{} MiB above idle", above >> 20);
    // Each is held as it came, to be sent again where its server fails.
    let bodies = CALLERS as u64 * (150 << 10);
    assert!(above < 2 * bodies + (200 << 20), "{} MiB above idle", above >> 20);
    drop(callers);
}

/// Of each form: a thousand together, where a process may have so many files open (`make test` sees to it).
fn followers() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("Linux tells its limits");
    let files =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    let files = files.and_then(|soft| soft.parse().ok()).unwrap_or(1024);
    if files >= 4096 { 500 } else { 150 }
}

/// What a connection costs while an answer is written to it, roughly.
const CONNECTION: u64 = 128 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_in_memory_once_however_many_share_it() {
    let word: &'static str = "x".repeat(4 << 20).leak();
    let llama = llama::scripted().streams([word, "!"]).holds().start().await;
    // Nothing is kept: what is measured is the flight.
    let gateway = gateway::before(&llama).yaml("cache: {entry: 1KiB}").unprobed().start().await;
    let leader = gateway.caller().await.ask(chat_stream("hi")).await;
    eventually!(llama.requests() == 1);
    let followers = followers();
    let mut waiting = Vec::new();
    for number in 0..2 * followers {
        let asked = if number % 2 == 0 { chat_stream("hi") } else { chat("hi") };
        waiting.push(gateway.caller().await.ask(asked).await);
    }
    let aboard = async || gateway.scrape().await.sum("ai_gateway_flight_followers", &[]);
    eventually!(aboard().await == 2.0 * followers as f64);
    let before = gateway.resident_bytes();
    llama.release_all();
    // Nobody reads: what the gateway has for each of them stays there.
    eventually!(llama.finished() == 1);
    let counted = async || gateway.scrape().await.sum("ai_gateway_cache_rendered_total", &[]);
    eventually!(counted().await == followers as f64);
    let grown = gateway.resident_bytes().saturating_sub(before);
    // As a stream, in one piece, and rendered; and what rendering takes on the way.
    let most = 8 * word.len() as u64 + 2 * followers as u64 * CONNECTION;
    println!("{} MiB for {} followers", grown >> 20, 2 * followers);
    assert!(grown < most, "{} MiB, {} allowed", grown >> 20, most >> 20);
    let (first, _) = leader.answering("POST").await.finish().await;
    for (number, caller) in waiting.into_iter().enumerate() {
        let (answer, _) = caller.answering("POST").await.finish().await;
        assert_eq!((answer.status, answer.cache(), answer.whole), (200, "shared", true));
        if number % 2 == 0 {
            assert!(answer.body == first.body, "the stream as it was made");
        } else {
            assert_eq!(
                answer.json()["choices"][0]["message"]["content"].as_str().map(str::len),
                Some(word.len() + 1)
            );
        }
    }
    assert_eq!(llama.requests(), 1);
}
