//! Replicas that share a Valkey.

use super::client::{Answer, Caller, Request};
use super::gateway::{self, Gateway};
use super::llama::Llama;
use super::valkey::Valkey;

/// With the patience of those who must share: a busy machine is no Valkey that is away.
pub(crate) const PATIENT: &str = "required: true";

pub(crate) async fn replicas<const N: usize>(
    llama: &Llama,
    valkey: &Valkey,
    how: &str,
    yaml: &str,
) -> [Gateway; N] {
    let shared = format!("shared: {{valkey: \"{}\", {how}}}\n{yaml}", valkey.url());
    let mut replicas = Vec::new();
    for _ in 0..N {
        replicas.push(gateway::before(llama).yaml(&shared).start().await);
    }
    replicas.try_into().unwrap_or_else(|_| unreachable!("there are as many"))
}

pub(crate) async fn counted(gateway: &Gateway, family: &str) -> f64 {
    gateway.scrape().await.sum(&format!("ai_gateway_{family}"), &[])
}

/// Waits until so many requests follow an answer in the making.
pub(crate) async fn followers(gateway: &Gateway, count: f64) {
    eventually!(counted(gateway, "flight_followers").await == count);
}

/// Waits until what was made is there for others.
pub(crate) async fn stored(gateway: &Gateway, count: f64) {
    eventually!(counted(gateway, "cache_replica_stored_total").await == count);
}

/// So many that ask the same at once.
pub(crate) async fn crowd(gateway: &Gateway, asked: &Request, count: usize) -> Vec<Caller> {
    let mut crowd = Vec::new();
    for _ in 0..count {
        crowd.push(gateway.caller().await.ask(asked.clone()).await);
    }
    crowd
}

pub(crate) async fn answers(crowd: Vec<Caller>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for caller in crowd {
        answers.push(caller.answering("POST").await.finish().await.0);
    }
    answers
}

/// The keys of what is kept.
pub(crate) fn kept(valkey: &Valkey) -> Vec<String> {
    valkey.ask(&["KEYS", "*:answer"]).lines().map(str::to_owned).collect()
}

/// So many requests to each of all replicas, at once.
pub(crate) async fn volleys(all: &[Gateway], each: usize, asks: impl Fn(&str) -> Request) -> Vec<Answer> {
    let mut callers = Vec::new();
    for number in 0..each {
        for (place, replica) in all.iter().enumerate() {
            callers.push((replica.caller().await, asks(&format!("{place}, {number}"))));
        }
    }
    let calls = callers.into_iter().map(|(mut caller, asked)| async move { caller.send(asked).await });
    let calls: Vec<_> = calls.map(tokio::spawn).collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.expect("a call does not panic"));
    }
    answers
}
