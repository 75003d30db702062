//! What the cache costs in memory: `size` is what it takes, and little more.

use crate::support::gateway::{self, chat};
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
