//! `isolation: key`: what one key's request finds in a KV cache is never another's.

use serde_json::Value;

use crate::support::client::post;
use crate::support::expect::auth;
use crate::support::gateway::{self, Gateway, chat};
use crate::support::llama::{Llama, scripted};

const ISOLATED: &str =
    "isolation: key, balance: least_busy, health: {every: 20ms, timeout: 2s, down_after: 2, up_after: 1}";

/// Before servers that begin after the gateway: they hold nothing.
async fn before_fresh(servers: &[&Llama]) -> Gateway {
    for server in servers {
        server.dies().await;
    }
    let urls: Vec<_> = servers.iter().map(|server| server.url()).collect();
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    let keys = auth(&[("alice", "sk-alice", ""), ("bob", "sk-bob", ""), ("carol", "sk-carol", "")]);
    let gateway = gateway::before_urls(&urls).upstream(ISOLATED).yaml(&keys).start().await;
    eventually!(up(&gateway).await == 0.0);
    for server in servers {
        server.comes_back().await;
    }
    eventually!(up(&gateway).await == servers.len() as f64);
    gateway
}

async fn up(gateway: &Gateway) -> f64 {
    gateway.scrape().await.sum("ai_gateway_server_up", &[])
}

/// The server that a key's request went to.
async fn asks(gateway: &Gateway, key: &str, text: &str) -> String {
    let answer = gateway.send(chat(text).key(&format!("sk-{key}"))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    gateway.line_of(answer.request_id()).await.text("server").to_owned()
}

/// Whether the last request may have found its prompt.
fn finds(llama: &Llama) -> bool {
    let body: Value = serde_json::from_str(&llama.last().text()).expect("JSON");
    body.get("cache_prompt") != Some(&Value::Bool(false))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_its_first_keys_until_another_comes() {
    let llama = scripted().start().await;
    let gateway = before_fresh(&[&llama]).await;
    let mut found = Vec::new();
    for (number, key) in ["alice", "alice", "bob", "alice"].into_iter().enumerate() {
        asks(&gateway, key, &number.to_string()).await;
        found.push(finds(&llama));
    }
    assert_eq!(found, [true, true, false, false]);
    // A server that has begun anew holds nothing.
    llama.dies().await;
    eventually!(up(&gateway).await == 0.0);
    llama.comes_back().await;
    eventually!(up(&gateway).await == 1.0);
    asks(&gateway, "bob", "5").await;
    assert!(finds(&llama));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_there_before_holds_nobody_knows_what() {
    let llama = scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", "")]);
    let gateway = gateway::before(&llama).upstream("isolation: key").yaml(&keys).start().await;
    asks(&gateway, "alice", "x").await;
    assert!(!finds(&llama));
    // An endpoint on which the server cannot keep them apart is refused there, before anything is sent.
    let part = "--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\ntiny\r\n--x--\r\n";
    let form = post("/v1/audio/transcriptions").header("content-type", "multipart/form-data; boundary=x");
    for request in [post("/v1/messages").body(r#"{"messages": []}"#), form.body(part)] {
        let answer = gateway.send(request.key("sk-alice")).await;
        assert_eq!((answer.status, llama.requests()), (400, 1), "{answer:?}");
        assert!(answer.text().contains("isolation: key"), "{answer:?}");
    }
    // What generates nothing is sent as it came.
    let body = r#"{ "content" : "x" }"#;
    let request = post("/tokenize").body(body).key("sk-alice");
    assert_eq!((gateway.send(request).await.status, llama.last().text().as_str()), (200, body));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_on_servers_of_their_own_while_there_are_enough() {
    let (one, two) = (scripted().start().await, scripted().start().await);
    let gateway = before_fresh(&[&one, &two]).await;
    let alices = asks(&gateway, "alice", "1").await;
    let bobs = asks(&gateway, "bob", "2").await;
    assert_ne!(alices, bobs);
    for number in 3..9 {
        let (key, own) = if number % 2 == 0 { ("alice", &alices) } else { ("bob", &bobs) };
        assert_eq!(&asks(&gateway, key, &number.to_string()).await, own);
    }
    assert!(finds(&one) && finds(&two));
    // A third must meet one of them; the other keeps its own.
    let carols = asks(&gateway, "carol", "9").await;
    let (met, alone, other) =
        if carols == alices { ("alice", "bob", bobs) } else { ("bob", "alice", alices) };
    let [of_met, of_alone] = if one.url().ends_with(&carols) { [&one, &two] } else { [&two, &one] };
    assert!(!finds(of_met));
    asks(&gateway, met, "10").await;
    assert!(!finds(of_met));
    assert_eq!(asks(&gateway, alone, "11").await, other);
    assert!(finds(of_alone));
    assert_eq!(asks(&gateway, "carol", "12").await, carols, "where keys have met already");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_gateway_has_one_key() {
    let llama = scripted().start().await;
    llama.dies().await;
    let gateway = gateway::before(&llama).upstream(ISOLATED).start().await;
    eventually!(up(&gateway).await == 0.0);
    llama.comes_back().await;
    eventually!(up(&gateway).await == 1.0);
    for text in ["a", "b"] {
        assert_eq!(gateway.chat(text).await.status, 200);
        assert!(finds(&llama));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_name_of_several_addresses_nobody_knows_which_process_holds_what() {
    let (one, two) = (scripted().start().await, scripted().unhealthy().start().await);
    one.dies().await;
    let hosts = one.is_called("gpu.invalid") + &two.is_called("gpu.invalid");
    let keys = auth(&[("alice", "sk-alice", "")]);
    let plan = gateway::before_urls(&["http://gpu.invalid:8080"]).upstream(ISOLATED).yaml(&keys);
    let gateway = plan.hosts(&hosts).start().await;
    eventually!(up(&gateway).await == 0.0);
    two.becomes(scripted());
    eventually!(up(&gateway).await == 1.0);
    asks(&gateway, "alice", "x").await;
    assert!(!finds(&two));
}
