//! Who waits, waits here: while every slot is busy, by priority, then fairly between keys, bounded in number and time.

use serde_json::json;

use crate::support::client::{Caller, Request, post};
use crate::support::expect::{auth, refused, says_when};
use crate::support::gateway::{self, Gateway, chat, chat_stream};
use crate::support::llama::{Llama, Script, scripted};

async fn one_slot(yaml: &str, upstream: &str) -> (Llama, Gateway) {
    let llama = scripted().slots(1).holds().start().await;
    let upstream = if upstream.is_empty() { "retries: 2" } else { upstream };
    let gateway = gateway::before(&llama).yaml(yaml).upstream(upstream).start().await;
    (llama, gateway)
}

async fn waiting(gateway: &Gateway, count: f64) {
    let queued = async || gateway.scrape().await.sum("ai_gateway_queue_requests", &[]);
    eventually!(queued().await == count);
}

/// Asks, and waits until that stands in the queue as the number that it is.
async fn queues(gateway: &Gateway, asked: Request, number: usize) -> Caller {
    let caller = gateway.caller().await.ask(asked).await;
    waiting(gateway, number as f64).await;
    caller
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_slot_waits_here_and_goes_to_the_first_that_frees() {
    let (llama, gateway) = one_slot("", "").await;
    let first = gateway.caller().await.ask(chat("first")).await;
    eventually!(llama.requests() == 1);
    let second = queues(&gateway, chat("second"), 1).await;
    assert_eq!((llama.requests(), &gateway.stats().await["queue"]), (1, &json!(1)));
    llama.release_all();
    let (first, _) = first.answering("POST").await.finish().await;
    let (second, _) = second.answering("POST").await.finish().await;
    assert_eq!((first.status, second.status, llama.requests()), (200, 200, 2));
    waiting(&gateway, 0.0).await;
    let (first, second) =
        (gateway.line_of(first.request_id()).await, gateway.line_of(second.request_id()).await);
    let queued = |line: &crate::support::log::Line| line.fields["queue_ms"].as_f64().expect("a number");
    assert!(queued(&first) < queued(&second), "{first:?} {second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_slots_of_all_servers_are_used_and_no_more() {
    let servers = [scripted().slots(2).holds().start().await, scripted().slots(3).holds().start().await];
    let gateway = gateway::before_urls(&[&servers[0].url(), &servers[1].url()]).start().await;
    let mut callers = Vec::new();
    for number in 0..8 {
        callers.push(gateway.caller().await.ask(chat(&number.to_string())).await);
    }
    waiting(&gateway, 3.0).await;
    eventually!((servers[0].requests(), servers[1].requests()) == (2, 3));
    servers.iter().for_each(Llama::release_all);
    for caller in callers {
        assert_eq!(caller.answering("POST").await.finish().await.0.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_may_say_how_many_slots_there_are() {
    let llama = scripted().slots(8).holds().start().await;
    let servers = format!("servers: [{{url: \"{}\", slots: 2}}]", llama.url());
    let yaml = format!("upstreams: {{local: {{{servers}}}}}\n");
    let gateway = gateway::before(&llama).yaml(&yaml).start().await;
    let _callers = [
        gateway.caller().await.ask(chat("1")).await,
        gateway.caller().await.ask(chat("2")).await,
        gateway.caller().await.ask(chat("3")).await,
    ];
    waiting(&gateway, 1.0).await;
    eventually!(llama.requests() == 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_bounded_in_number_and_in_time() {
    let (llama, gateway) = one_slot("", "queue: {waiting: 1, wait: 1s}").await;
    let _first = gateway.caller().await.ask(chat("first")).await;
    eventually!(llama.requests() == 1);
    let second = queues(&gateway, chat("second"), 1).await;
    let third = gateway.chat("third").await;
    refused(&third, 503, "queue_full");
    assert!(says_when(&third) >= 1);
    let (second, _) = second.answering("POST").await.finish().await;
    refused(&second, 503, "queue_timeout");
    assert!(says_when(&second) >= 1);
    waiting(&gateway, 0.0).await;
    assert_eq!(llama.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_while_waiting_is_gone_at_once() {
    let (llama, gateway) = one_slot("", "").await;
    let first = gateway.caller().await.ask(chat("first")).await;
    eventually!(llama.requests() == 1);
    let gone = queues(&gateway, chat("gone").header("x-request-id", "gone"), 1).await;
    let second = queues(&gateway, chat("second"), 2).await;
    gone.leaves();
    waiting(&gateway, 1.0).await;
    assert_eq!(gateway.line_of("gone").await.number("status"), 499);
    llama.release_all();
    for caller in [first, second] {
        assert_eq!(caller.answering("POST").await.finish().await.0.status, 200);
    }
    assert_eq!(llama.requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_leaves_keeps_its_place_for_its_followers() {
    let (llama, gateway) = one_slot("", "").await;
    let first = gateway.caller().await.ask(chat("first")).await;
    eventually!(llama.requests() == 1);
    let leader = queues(&gateway, chat_stream("shared"), 1).await;
    let follower = gateway.caller().await.ask(chat_stream("shared")).await;
    let aboard = async || gateway.scrape().await.sum("ai_gateway_flight_followers", &[]);
    eventually!(aboard().await == 1.0);
    leader.leaves();
    llama.release_all();
    let (answer, _) = follower.answering("POST").await.finish().await;
    assert_eq!((answer.status, answer.cache(), answer.whole), (200, "shared", true));
    assert_eq!(first.answering("POST").await.finish().await.0.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn priority_goes_first_and_a_heavy_key_does_not_delay_another() {
    let keys =
        auth(&[("heavy", "sk-heavy", ""), ("light", "sk-light", ""), ("vip", "sk-vip", "priority: 1")]);
    let (llama, gateway) = one_slot(&keys, "").await;
    let asked = |text: &str, key: &str| {
        let body =
            json!({"model": "tiny", "max_tokens": 50, "messages": [{"role": "user", "content": text}]});
        post("/v1/chat/completions").json(&body).key(key)
    };
    let mut callers = vec![gateway.caller().await.ask(asked("work", "sk-heavy")).await];
    eventually!(llama.requests() == 1);
    for number in 0..20 {
        callers.push(queues(&gateway, asked(&format!("heavy {number}"), "sk-heavy"), number + 1).await);
    }
    callers.push(queues(&gateway, asked("light", "sk-light"), 21).await);
    callers.push(queues(&gateway, asked("vip", "sk-vip"), 22).await);
    let mut order = Vec::new();
    for number in 1..5 {
        llama.release();
        eventually!(llama.requests() == number + 1);
        order.push(llama.last().text());
    }
    let place = |who: &str| order.iter().position(|body| body.contains(who)).unwrap_or(usize::MAX);
    assert_eq!(place("vip"), 0, "{order:?}");
    assert!(place("light") <= 2, "after at most one of the heavy key: {order:?}");
    llama.release_all();
    for caller in callers {
        assert_eq!(caller.answering("POST").await.finish().await.0.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heavy_user_of_a_key_does_not_delay_another() {
    let keys = auth(&[("webui", "sk-webui", "user_header: x-user")]);
    let (llama, gateway) = one_slot(&keys, "").await;
    let asked = |text: &str, user: &str| chat(text).key("sk-webui").header("x-user", user);
    let mut callers = vec![gateway.caller().await.ask(asked("work", "heavy")).await];
    eventually!(llama.requests() == 1);
    for number in 0..10 {
        callers.push(queues(&gateway, asked(&format!("heavy {number}"), "heavy"), number + 1).await);
    }
    callers.push(queues(&gateway, asked("light", "light"), 11).await);
    let mut order = Vec::new();
    for number in 1..4 {
        llama.release();
        eventually!(llama.requests() == number + 1);
        order.push(llama.last().text());
    }
    assert!(
        order.iter().take(2).any(|body| body.contains("light")),
        "after at most one of the heavy: {order:?}"
    );
    llama.release_all();
    for caller in callers {
        assert_eq!(caller.answering("POST").await.finish().await.0.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_server_that_dies_is_told_so() {
    let llama = scripted().slots(1).holds().start().await;
    let gateway = gateway::before(&llama)
        .upstream("health: {every: 100ms, timeout: 200ms, down_after: 1}")
        .start()
        .await;
    let _first = gateway.caller().await.ask(chat("first")).await;
    eventually!(llama.requests() == 1);
    let second = queues(&gateway, chat("second"), 1).await;
    llama.dies().await;
    let (second, _) = second.answering("POST").await.finish().await;
    assert!(matches!(second.refusal().1.as_str(), "no_upstream" | "upstream_error"), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_no_slot_does_not_wait_for_one() {
    let (llama, gateway) = one_slot("", "").await;
    let _first = gateway.caller().await.ask(chat("first")).await;
    eventually!(llama.requests() == 1);
    let tokenised = gateway.caller().await.ask(post("/tokenize").json(&json!({"content": "x"}))).await;
    eventually!(llama.requests() == 2);
    llama.release_all();
    assert_eq!(tokenised.answering("POST").await.finish().await.0.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_no_slots_is_taken_as_one_that_does_not_say() {
    let llama = scripted().slots(0).holds().start().await;
    let gateway = gateway::before(&llama).start().await;
    let _callers = [gateway.caller().await.ask(chat("1")).await, gateway.caller().await.ask(chat("2")).await];
    eventually!(llama.requests() == 2);
}

/// An answer that says how long its whole prompt took to read.
fn read_in(ms: u64) -> Script {
    let usage =
        r#""usage":{"prompt_tokens":100,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":0}}"#;
    let timings = format!(
        r#""timings":{{"cache_n":0,"prompt_n":100,"prompt_ms":{ms},"predicted_n":2,"predicted_ms":1}}"#
    );
    scripted().slots(1).answers(format!(r#"{{"choices":[],{usage},{timings}}}"#))
}

/// The turns of one conversation, each of which begins with some 5 KiB.
fn turn(number: u32) -> Request {
    let system = "the harbour and its lighthouse ".repeat(160);
    chat(&format!("{system}{number}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_waits_for_its_busy_server_where_that_costs_less_than_reading_it_again() {
    let (one, two) = (read_in(60_000).start().await, read_in(60_000).start().await);
    let gateway = gateway::before_urls(&[&one.url(), &two.url()]).upstream("balance: prefix").start().await;
    eventually!(gateway.scrape().await.sum("ai_gateway_server_slots", &[]) == 2.0);
    assert_eq!(gateway.send(turn(1)).await.status, 200);
    let (own, other) = if one.requests() == 1 { (&one, &two) } else { (&two, &one) };
    own.becomes(read_in(60_000).holds());
    let second = gateway.caller().await.ask(turn(2)).await;
    eventually!(own.requests() == 2);
    let third = gateway.caller().await.ask(turn(3)).await;
    eventually!(gateway.stats().await["queue"] == 1);
    // Nobody else waits for it: what begins otherwise goes where there is room.
    assert_eq!((gateway.chat("something else").await.status, other.requests()), (200, 1));
    own.release();
    assert_eq!(second.answering("POST").await.finish().await.0.status, 200);
    own.release();
    assert_eq!(third.answering("POST").await.finish().await.0.status, 200);
    assert_eq!((own.requests(), other.requests()), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn patience_has_an_end() {
    let (one, two) = (read_in(300).start().await, read_in(300).start().await);
    let gateway = gateway::before_urls(&[&one.url(), &two.url()]).upstream("balance: prefix").start().await;
    eventually!(gateway.scrape().await.sum("ai_gateway_server_slots", &[]) == 2.0);
    assert_eq!(gateway.send(turn(1)).await.status, 200);
    let (own, other) = if one.requests() == 1 { (&one, &two) } else { (&two, &one) };
    own.becomes(read_in(300).holds());
    let held = gateway.caller().await.ask(turn(2)).await;
    eventually!(own.requests() == 2);
    let answer = gateway.send(turn(3)).await;
    let line = gateway.line_of(answer.request_id()).await;
    assert_eq!((answer.status, own.requests(), other.requests()), (200, 2, 1));
    let waited = line.fields["queue_ms"].as_f64().unwrap_or_default();
    assert!((150.0..3000.0).contains(&waited), "no longer than reading it takes: {line:?}");
    drop(held);
}
