//! The files in `conf/` that somebody starts with: each runs as it stands, but for its addresses, and does what its
//! comments promise.

use std::path::Path;

use serde_json::json;

use crate::support::client::{Request, get, post};
use crate::support::expect::{refused, sha256};
use crate::support::gateway::{self, Folder, Gateway, Plan, chat};
use crate::support::llama::{Llama, scripted};

fn text(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name);
    std::fs::read_to_string(path).expect("it is there")
}

/// The file with the addresses of the play, and its keys file at this place.
fn plan(name: &str, keys: &str) -> Plan {
    let mut own = true;
    let kept = |line: &&str| {
        if line.starts_with(|c: char| c.is_ascii_alphabetic()) {
            own = !["listen:", "admin:", "metrics:"].iter().any(|section| line.starts_with(section));
        }
        own
    };
    let file = text(name);
    let file: Vec<&str> = file.lines().filter(kept).collect();
    gateway::before_urls(&[])
        .yaml(&file.join("\n").replace("keys_file: keys.yaml", &format!("keys_file: {keys}")))
}

fn ask(model: &str, key: &str, words: &str) -> Request {
    let messages = json!([{"role": "user", "content": words}]);
    post("/v1/chat/completions")
        .json(&json!({"model": model, "messages": messages, "temperature": 0}))
        .key(key)
}

async fn is_up(gateway: &Gateway, servers: usize) {
    let up = async || gateway.scrape().await.sum("ai_gateway_server_up", &[]);
    eventually!(up().await as usize == servers, "{}", gateway.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vps() {
    let llama = scripted().start().await;
    let plan = plan("vps.yaml", "").env("LLM_URL", &llama.url());
    let gateway = plan.env("GATEWAY_KEY_SHA256", &sha256("sk-mine")).start().await;
    is_up(&gateway, 1).await;
    refused(&gateway.chat("hi").await, 401, "invalid_api_key");
    let first = gateway.send(chat("hi").key("sk-mine")).await;
    assert_eq!((first.status, first.cache()), (200, "miss"), "{first:?}");
    assert_eq!(gateway.send(chat("hi").key("sk-mine")).await.cache(), "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team() {
    let folder = Folder::new("team");
    let keys = folder.file(
        "keys.yaml",
        &format!("{}- {{name: alice, sha256: {}}}\n", text("keys.yaml"), sha256("sk-alice")),
    );
    let llama = scripted().start().await;
    let plan = plan("team.yaml", keys.to_str().expect("UTF-8")).env("LLM_URL", &llama.url());
    let plan = plan.env("OPEN_WEBUI_KEY_SHA256", &sha256("sk-webui"));
    let gateway = plan.env("NIGHTLY_KEY_SHA256", &sha256("sk-nightly")).start().await;
    is_up(&gateway, 1).await;
    assert_eq!(gateway.send(ask("gpt-4o-mini", "sk-alice", "hi")).await.status, 200);
    assert!(llama.last().text().contains("\"model\":\"chat\""), "{}", llama.last().text());
    let answer = gateway.send(ask("chat", "sk-webui", "hi").header("x-openwebui-user-id", "carol")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let line = gateway.line_of(answer.request_id()).await;
    assert_eq!((line.text("key"), line.text("user")), ("open-webui", "carol"));
    refused(&gateway.send(ask("gpt-4o-mini", "sk-nightly", "hi")).await, 403, "model_not_allowed");
    assert_eq!(gateway.send(ask("chat", "sk-nightly", "hi")).await.status, 200);
    let told = async |who: &str| gateway.admin(get("/usage")).await.text().contains(who);
    eventually!(told("alice").await && told("carol").await && told("nightly").await);
    eventually!(gateway.folder().join("usage.db").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rack() {
    let [gpu1, gpu2, gpu3, embed] = [
        scripted().start().await,
        scripted().start().await,
        scripted().start().await,
        scripted().start().await,
    ];
    let urls: [(&str, &Llama); 4] = [("GPU1", &gpu1), ("GPU2", &gpu2), ("GPU3", &gpu3), ("EMBED", &embed)];
    let plan = urls.iter().fold(plan("rack.yaml", ""), |plan, (name, llama)| plan.env(name, &llama.url()));
    let gateway = plan.env("PEOPLE_KEY_SHA256", &sha256("sk-people")).start().await;
    is_up(&gateway, 4).await;
    let server = |answer: &crate::support::client::Answer| {
        let header = |name| answer.header(name).unwrap_or_default().to_owned();
        (header("x-ai-gateway-server"), header("x-ai-gateway-model"))
    };
    // A conversation stays where its beginning is.
    let begins = "A long conversation. ".repeat(100);
    let first = gateway.send(ask("large", "sk-people", &begins)).await;
    let (stays, model) = server(&first);
    assert!(first.status == 200 && model == "large" && stays.starts_with("gpu"), "{first:?}");
    for more in ["and on", "and on and on"] {
        let next = gateway.send(ask("gpt-4o", "sk-people", &format!("{begins}{more}"))).await;
        assert_eq!((next.status, server(&next)), (200, (stays.clone(), "large".to_owned())));
    }
    let answer = gateway.send(ask("gpt-4o-mini", "sk-people", "hi")).await;
    assert_eq!(server(&answer), ("gpu3".to_owned(), "small".to_owned()));
    let embeddings = post("/v1/embeddings").json(&json!({"model": "text-embedding-3-small", "input": "hi"}));
    assert_eq!(gateway.send(embeddings.key("sk-people")).await.status, 200);
    assert_eq!(embed.requests(), 1);
    // What fails goes on elsewhere.
    gpu1.dies().await;
    gpu2.dies().await;
    let answer = gateway.send(ask("large", "sk-people", "are you there?")).await;
    assert_eq!(
        (answer.status, server(&answer)),
        (200, ("gpu3".to_owned(), "small".to_owned())),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn production() {
    let folder = Folder::new("production");
    let keys = folder.file("keys.yaml", &format!("- {{name: alice, sha256: {}}}\n", sha256("sk-alice")));
    let llama = scripted().start().await;
    let plan = plan("production.yaml", keys.to_str().expect("UTF-8")).env("LLM_URL", &llama.url());
    let path = folder.file("nothing", "").parent().expect("a folder").display().to_string();
    let plan = plan.env("STATE_DIRECTORY", &path).env("LOGS_DIRECTORY", &path);
    let gateway = plan.start().await;
    is_up(&gateway, 1).await;
    let answer = gateway.send(ask("chat", "sk-alice", "hi")).await;
    assert_eq!((answer.status, answer.cache()), (200, "miss"), "{answer:?}");
    assert!(
        answer.header("x-ratelimit-remaining-requests").is_some()
            && llama.last().text().contains("\"stream\":true")
    );
    assert_eq!(gateway.send(ask("chat", "sk-alice", "hi")).await.cache(), "hit");
    let log = || std::fs::read_to_string(keys.with_file_name("access.log")).unwrap_or_default();
    eventually!(log().contains(answer.request_id()));
    assert!(keys.with_file_name("usage.db").exists() && gateway.stdout().is_empty());
    gateway.signal("TERM");
    eventually!(gateway.admin(get("/ready")).await.status == 503, "it says so before it goes");
}
