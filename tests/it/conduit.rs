//! Connections to servers: one carries one request after another, and comes back from every end that leaves it usable.

use crate::support::gateway::{self, chat, chat_stream};
use crate::support::llama::{Llama, Script, scripted};

/// Five requests, each another one, one after the other; over how many connections they came. Of those that are kept
/// some may come back after the caller has asked again, where the machine is busy.
async fn connections(llama: &Llama, yaml: &str) -> usize {
    let gateway = gateway::before(llama).yaml(yaml).start().await;
    for number in 0..5 {
        let asked =
            if number % 2 == 0 { chat(&number.to_string()) } else { chat_stream(&number.to_string()) };
        let answer = gateway.send(asked).await;
        assert!(answer.whole, "{answer:?}");
        eventually!(llama.finished() == llama.requests());
    }
    assert_eq!(llama.requests(), 5);
    llama.connections()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_one_request_after_another() {
    let scripts: [(&str, Script); 4] = [
        ("whole", scripted()),
        ("in chunks of any size", scripted().chunked_as([1, 7])),
        ("refused by the server", scripted().status(400)),
        ("with more behind it than belongs to it", scripted().status(204)),
    ];
    for (name, script) in scripts {
        let llama = script.start().await;
        let count = connections(&llama, "").await;
        let is_clean = !name.contains("more behind it");
        assert!(if is_clean { count < 5 } else { count > 2 }, "{name}: {count}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ends_with_its_connection_ends_it() {
    let llama = scripted().close_delimited().start().await;
    assert_eq!(connections(&llama, "").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn how_many_wait_is_what_the_file_says() {
    for (keys, kept) in [
        ("upstream_keepalive_pool_size: 0", false),
        ("upstream_keepalive_pool_size: 1, work_stealing: false", true),
    ] {
        let llama = scripted().start().await;
        let count = connections(&llama, &format!("server: {{{keys}}}\n")).await;
        assert_eq!(count < 5, kept, "{keys}: {count}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_pingora_is_told_how_to_connect_it_does() {
    let llama = scripted().start().await;
    let count = connections(&llama, "server: {client_bind_to_ipv4: [127.0.0.1]}\n").await;
    assert!(count < 5, "{count}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_answer_that_was_made_of_a_stream_leaves_its_connection_usable() {
    let llama = scripted().start().await;
    let gateway = gateway::before(&llama).upstream("streamed: always").start().await;
    for number in 0..5 {
        assert_eq!(gateway.send(chat(&number.to_string())).await.status, 200);
        eventually!(llama.finished() == number + 1);
    }
    assert!(llama.connections() < 5, "{}", llama.connections());
    assert!(llama.last().text().contains(r#""stream":true"#), "it was asked for a stream");
}
