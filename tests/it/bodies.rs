//! Bodies of every size in each framing: read ahead by the gateway, and whole at the server.

use crate::support::client::{Request, post};
use crate::support::expect::{refused, sha256};
use crate::support::gateway;
use crate::support::llama::{self, Llama};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const SIZES: [usize; 6] = [1, 64, 65, 128, 1024, 20 * 1024];

/// A completion whose body has exactly so many bytes.
fn sized(bytes: usize) -> String {
    let frame = r#"{"prompt":""}"#;
    format!(r#"{{"prompt":"{}"}}"#, "x".repeat(bytes - frame.len()))
}

fn ask(bytes: usize) -> Request {
    post("/v1/completions").body(sized(bytes))
}

fn arrived_whole(llama: &Llama, bytes: usize) {
    let arrived = llama.last();
    assert_eq!(
        arrived.header("content-length"),
        Some(bytes.to_string().as_str()),
        "the server gets a length"
    );
    assert_eq!(arrived.header("transfer-encoding"), None);
    assert_eq!(arrived.sha256(), sha256(&sized(bytes)), "{bytes} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_content_length() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    for size in SIZES {
        assert_eq!(caller.send(ask(size * KIB)).await.status, 200);
        arrived_whole(&llama, size * KIB);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_chunks() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("cache: {size: 0B}").start().await;
    let mut caller = gateway.caller().await;
    for chunk in [1000, 64 * KIB, 3 * MIB] {
        for size in SIZES {
            assert_eq!(caller.send(ask(size * KIB).chunked(chunk)).await.status, 200);
            arrived_whole(&llama, size * KIB);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_at_a_time() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    assert_eq!(gateway.send(ask(KIB).chunked(1)).await.status, 200);
    arrived_whole(&llama, KIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_nothing_is_a_400() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    refused(&caller.send(post("/v1/completions").body("")).await, 400, "invalid_json");
    refused(&caller.send(post("/v1/completions").body("").chunked(1)).await, 400, "invalid_json");
    assert_eq!(caller.send(ask(KIB)).await.status, 200);
    assert_eq!(llama.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_100_continue() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    for size in SIZES {
        assert_eq!(caller.send_after_continue(ask(size * KIB)).await.status, 200);
        arrived_whole(&llama, size * KIB);
        assert_eq!(llama.last().header("expect"), None);
    }
    assert_eq!(caller.send_after_continue(ask(KIB).chunked(100)).await.cache(), "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_head_of_many_kilobytes() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    for size in [64 * KIB, 100 * KIB] {
        let answer = caller.send(ask(size).header("x-long", &"y".repeat(30 * KIB))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        arrived_whole(&llama, size);
    }
}

/// At once, in steps, and beside the threads that serve: it is the same to who asks.
#[tokio::test(flavor = "multi_thread")]
async fn has_one_answer_however_it_is_read() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("server: {threads: 1}").start().await;
    let long = "0123456789".repeat(1000);
    let texts = |count: usize| vec![format!("\"{long}\""); count].join(",");
    let numbers = |count: usize| vec!["1"; count].join(",");
    for (number, values) in [texts(4), texts(30), numbers(60_000), texts(80)].iter().enumerate() {
        let ask = async |body: String| gateway.send(post("/v1/completions").body(body)).await;
        let first = ask(format!(r#"{{"prompt":[{values}],"seed":{number},"model":"tiny"}}"#)).await;
        assert_eq!((first.status, first.cache()), (200, "miss"), "{number}");
        let again = format!(r#" {{ "model" : "tiny", "seed" : {number} , "prompt" :[ {values} ] }} "#);
        let again = ask(again).await;
        assert_eq!((again.cache(), &again.body), ("hit", &first.body), "{number}");
        let twice = ask(format!(r#"{{"prompt":[{values}],"seed":1,"\u0073eed":2}}"#)).await;
        refused(&twice, 400, "invalid_json");
        let told = twice.json()["error"]["message"].to_string();
        assert!(told.contains("`seed` is there twice"), "{told}");
        let cut = ask(format!(r#"{{"prompt":[{values}"#)).await;
        refused(&cut, 400, "invalid_json");
    }
    assert_eq!(llama.requests(), 4);
}
