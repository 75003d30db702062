//! What keys have used: each use counted once, whatever becomes of the process and of its store.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ai_gateway::store::{Filter, Row, read};
use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::client::{Request, get, request};
use crate::support::expect::auth;
use crate::support::gateway::{self, Folder, Gateway, Plan, chat, chat_stream, run};
use crate::support::llama::{self, Llama};

/// A folder with room for a store.
struct Place {
    _folder: Folder,
    store: PathBuf,
}

fn place(name: &str) -> Place {
    let folder = Folder::new(&format!("usage-{name}"));
    let store = folder.file("nothing", "").with_file_name("usage.db");
    Place { _folder: folder, store }
}

impl Place {
    fn rows(&self) -> Vec<Row> {
        read(&self.store, &Filter::default()).expect("the store can be read")
    }

    fn requests(&self) -> u64 {
        self.rows().iter().map(|row| row.counts.requests).sum()
    }
}

fn with(store: &Path, llama: &Llama) -> Plan {
    let keys = auth(&[("alice", "sk-alice", ""), ("bob", "sk-bob", "")]);
    let yaml = format!("{keys}usage: {{path: {}}}\nmodels: {{tiny: {{upstream: local}}}}", store.display());
    gateway::before(llama).yaml(&yaml)
}

fn by(key: &str, text: &str) -> Request {
    chat(text).key(&format!("sk-{key}"))
}

async fn chats(gateway: &Gateway, key: &str, count: usize) {
    for number in 0..count {
        let answer = gateway.send(by(key, &format!("{key} asks {number} of {count}"))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

async fn told(gateway: &Gateway) -> Vec<Value> {
    let answer = gateway.admin(get("/usage")).await;
    answer.json()["usage"].as_array().unwrap_or_else(|| panic!("{answer:?}")).clone()
}

/// The sum over all rows that operators are told.
async fn sum(gateway: &Gateway, of: &str) -> u64 {
    told(gateway).await.iter().map(|row| row[of].as_u64().expect("a number")).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_loses_nothing() {
    let place = place("term");
    let llama = llama::scripted().streams(["one", "two", "three"]).start().await;
    let gateway = with(&place.store, &llama).start().await;
    chats(&gateway, "alice", 5).await;
    chats(&gateway, "bob", 2).await;
    // A stream that outlives the signal is counted too, and with what it used in the end.
    llama.becomes(llama::scripted().streams(["four", "five"]).holds());
    let stream = gateway.caller().await.begin(chat_stream("long").key("sk-bob")).await;
    gateway.signal("TERM");
    llama.release_all();
    let (answer, _) = stream.finish().await;
    assert!(answer.whole, "{answer:?}");
    assert_eq!(gateway.exit().await.code(), Some(0), "{}", gateway.stderr());
    let rows = place.rows();
    let rows: Vec<_> = rows
        .iter()
        .map(|row| (row.key.as_str(), row.model.as_str(), row.counts.requests, row.counts.completion_tokens))
        .collect();
    assert_eq!(rows, [("alice", "tiny", 5, 15), ("bob", "tiny", 3, 8)]);
    // The next process goes on from there.
    llama.becomes(llama::scripted());
    let next = with(&place.store, &llama).start().await;
    assert_eq!(sum(&next, "requests").await, 8);
    chats(&next, "alice", 1).await;
    assert_eq!(sum(&next, "requests").await, 9, "what is not written yet is told");
    next.signal("TERM");
    next.exit().await;
    assert_eq!(place.requests(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_is_spent_stays_so() {
    let place = place("budget");
    let llama = llama::scripted().start().await;
    let start = async || {
        let keys = auth(&[("alice", "sk-alice", "budget: [{requests: 3/month}]")]);
        let yaml = format!("{keys}usage: {{path: {}}}", place.store.display());
        gateway::before(&llama).yaml(&yaml).start().await
    };
    let gateway = start().await;
    chats(&gateway, "alice", 2).await;
    gateway.signal("TERM");
    gateway.exit().await;
    let (old, new) = (start().await, start().await);
    chats(&old, "alice", 1).await;
    // What the other process wrote counts once it is read.
    let told = async || new.send(get("/v1/usage").key("sk-alice")).await.json();
    eventually!(told().await["used"]["month"]["requests"] == 3);
    assert_eq!(new.send(by("alice", "hi")).await.refusal(), (429, "budget_exceeded".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_loses_a_second_at_most() {
    let place = place("kill");
    let llama = llama::scripted().start().await;
    let gateway = with(&place.store, &llama).start().await;
    chats(&gateway, "alice", 5).await;
    let counted = Instant::now();
    eventually!(counted.elapsed() > Duration::from_secs(1));
    chats(&gateway, "alice", 1).await;
    gateway.signal("KILL");
    gateway.exit().await;
    let requests = place.requests();
    assert!((5..=6).contains(&requests), "{requests}");
    let next = with(&place.store, &llama).start().await;
    assert_eq!(sum(&next, "requests").await, requests, "nor is a store broken that nobody closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_a_store() {
    let place = place("two");
    let llama = llama::scripted().start().await;
    let (old, new) = (with(&place.store, &llama).start().await, with(&place.store, &llama).start().await);
    for round in 1..=3 {
        chats(&old, "alice", 4).await;
        chats(&new, "alice", 3).await;
        chats(&new, "bob", 2).await;
        for gateway in [&old, &new] {
            eventually!(sum(gateway, "requests").await == 9 * round);
        }
    }
    old.signal("TERM");
    chats(&new, "alice", 1).await;
    old.exit().await;
    chats(&new, "alice", 2).await;
    new.signal("TERM");
    new.exit().await;
    assert_eq!(place.requests(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_locked_makes_nobody_wait() {
    let place = place("locked");
    let llama = llama::scripted().start().await;
    let gateway = with(&place.store, &llama).start().await;
    chats(&gateway, "alice", 2).await;
    eventually!(place.requests() == 2);
    let other = Connection::open(&place.store).expect("it is a database");
    other.execute_batch("BEGIN EXCLUSIVE").expect("nobody writes for long");
    let begun = Instant::now();
    chats(&gateway, "alice", 20).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    eventually!(gateway.stderr().contains("held in memory until it can be written"));
    assert!(gateway.stderr().contains("usage.db is locked by another program"), "{}", gateway.stderr());
    chats(&gateway, "bob", 3).await;
    assert_eq!(place.requests(), 2);
    other.execute_batch("COMMIT").expect("it is ours");
    eventually!(place.requests() == 25);
    eventually!(gateway.stderr().contains("written again"));
    let said = |what: &str| gateway.stderr().matches(what).count();
    assert_eq!((said("held in memory"), said("written again")), (1, 1), "{}", gateway.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_room_is_written_when_there_is_some() {
    let place = place("full");
    let llama = llama::scripted().start().await;
    // Past the limit on a file's size a write then fails, as on a full disk; else it would be a signal.
    let gateway = with(&place.store, &llama).after("trap '' XFSZ").start().await;
    chats(&gateway, "alice", 2).await;
    eventually!(place.requests() == 2);
    let bytes = |limit: &str| {
        let id = gateway.id().to_string();
        let set =
            Command::new("prlimit").args(["--pid", &id, &format!("--fsize={limit}:unlimited")]).status();
        assert!(set.expect("util-linux is there").success());
    };
    bytes("1");
    chats(&gateway, "alice", 5).await;
    eventually!(gateway.stderr().contains("held in memory until it can be written"), "{}", gateway.stderr());
    chats(&gateway, "bob", 5).await;
    bytes("unlimited");
    eventually!(gateway.stderr().contains("written again"), "{}", gateway.stderr());
    gateway.signal("TERM");
    gateway.exit().await;
    assert_eq!(place.requests(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_none_stops_the_start_and_stays() {
    let llama = llama::scripted().start().await;
    let place = place("broken");
    std::fs::write(&place.store, "key: alice\n".repeat(1000)).expect("the folder is ours");
    let missing = place.store.with_file_name("missing").join("usage.db");
    for (store, why) in [(&place.store, "is no SQLite database"), (&missing, "needs the folder")] {
        let gateway = with(store, &llama).spawn();
        assert_eq!(gateway.exit().await.code(), Some(1));
        eventually!(gateway.stderr().contains(why), "{}", gateway.stderr());
        assert!(gateway.stderr().contains(store.to_str().expect("UTF-8")), "{}", gateway.stderr());
    }
    assert_eq!(std::fs::read(&place.store).expect("it is there").len(), 11_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_counts() {
    let llama = llama::scripted().streams(["one", "two", "three"]).start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {requests: 5/h}"), ("bob", "sk-bob", "")]);
    let yaml = keys + "models: {tiny: {upstream: local}}";
    let gateway = gateway::before(&llama).upstream("retries: 0").yaml(&yaml).start().await;
    let counts = async || {
        let row = told(&gateway).await.into_iter().find(|row| row["key"] == "alice").unwrap_or_default();
        ["requests", "prompt_tokens", "completion_tokens"].map(|of| row[of].as_u64().unwrap_or_default())
    };
    let asked = by("alice", "hi");
    assert_eq!(gateway.send(asked.clone()).await.cache(), "miss");
    let row = told(&gateway).await.remove(0);
    assert_eq!((&row["model"], &row["user"]), (&json!("tiny"), &json!("")));
    assert!(row["day"].as_str().is_some_and(|day| day.len() == 10), "{row}");
    assert_eq!(counts().await, [1, 8, 3]);
    assert_eq!(gateway.send(asked.clone()).await.cache(), "hit");
    assert_eq!(counts().await, [2, 8, 3], "a hit is a request and no tokens");
    llama.becomes(llama::scripted().status(400));
    assert_eq!(gateway.send(by("alice", "wrong")).await.status, 400);
    llama.becomes(llama::scripted().dies_at_once());
    assert_eq!(gateway.send(by("alice", "dead")).await.status, 502);
    assert_eq!(gateway.send(get("/v1/models").key("sk-alice")).await.status, 200);
    assert_eq!(gateway.send(asked.clone()).await.status, 429);
    assert_eq!(gateway.send(by("mallory", "hi")).await.status, 401);
    assert_eq!(counts().await, [2, 8, 3], "what failed or was refused used nothing");
    assert_eq!(told(&gateway).await.len(), 1, "and nobody else is known");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_ask_for_a_key_and_for_days() {
    let llama = llama::scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", ""), ("bob", "sk-bob", "")]);
    let gateway = gateway::before(&llama).yaml(&keys).start().await;
    chats(&gateway, "alice", 1).await;
    chats(&gateway, "bob", 1).await;
    for (query, rows) in [
        ("", 2),
        ("?key=alice", 1),
        ("?key=carol", 0),
        ("?since=2026-01-01", 2),
        ("?since=9999-12-31", 0),
        ("?since=2026-01-01&key=bob", 1),
    ] {
        let answer = gateway.admin(get(&format!("/usage{query}"))).await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        assert_eq!(answer.json()["usage"].as_array().map(Vec::len), Some(rows), "{query}: {answer:?}");
    }
    for query in
        ["?since=yesterday", "?since=2026-1-1", "?since=2026-02-30", "?user=eve", "?key=", "?key=a&key=b"]
    {
        let answer = gateway.admin(get(&format!("/usage{query}"))).await;
        assert_eq!(answer.refusal(), (400, "invalid_request".to_owned()), "{query}");
    }
    assert_eq!(gateway.admin(request("POST", "/usage")).await.status, 405);
    assert_eq!(gateway.send(get("/usage")).await.status, 404, "callers have no such path");
}

/// Runs `ai-gateway usage` under a file: its exit code, and what it says.
fn usage(config: &Path, arguments: &[&str]) -> (i32, String) {
    let fixed = ["usage", "--config", config.to_str().expect("UTF-8")];
    let output = run(&[&fixed[..], arguments].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().expect("it ends by itself"), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_reads_the_store_with_and_without_a_gateway() {
    let place = place("command");
    let llama = llama::scripted().streams(["one", "two", "three"]).start().await;
    let gateway = with(&place.store, &llama).start().await;
    let config = gateway.config();
    assert_eq!(usage(&config, &["--csv"]).1.lines().count(), 1, "a head and no rows");
    chats(&gateway, "alice", 2).await;
    chats(&gateway, "bob", 1).await;
    eventually!(place.requests() == 3);
    let (code, table) = usage(&config, &[]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let day = place.rows()[0].day.to_string();
    assert_eq!((code, lines.len()), (0, 4), "{table}");
    assert_eq!(lines[1][..6], [&day, "alice", "tiny", "2", "16", "6"], "{table}");
    assert_eq!((lines[3][0], &lines[3][1..4]), ("total", &["3", "24", "9"][..]), "{table}");
    gateway.signal("TERM");
    gateway.exit().await;
    let (code, csv) = usage(&config, &["--csv", "--key", "bob", "--since", &day]);
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!((code, lines.len()), (0, 2), "{csv}");
    assert!(lines[0].starts_with("day,key,user,model,requests,prompt_tokens,completion_tokens,"), "{csv}");
    assert!(lines[1].starts_with(&format!("{day},bob,,tiny,1,8,3,")), "{csv}");
    for wrong in ["soon", "2026-13-01"] {
        let (code, said) = usage(&config, &["--since", wrong]);
        assert!(code == 2 && said.contains("YYYY-MM-DD"), "{said}");
    }
    std::fs::remove_file(&place.store).expect("it is there");
    let (code, said) = usage(&config, &[]);
    assert!(code == 1 && said.contains("there is no usage store"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_asks_a_gateway_that_has_no_store() {
    let llama = llama::scripted().start().await;
    let plan = gateway::before(&llama);
    let admin = plan.file().lines().find(|line| line.starts_with("admin:")).expect("a line").to_owned();
    let admin = admin.replace('}', ", token: sesame-sesame-sesame}");
    let gateway = plan.yaml(&admin).start().await;
    assert_eq!(gateway.admin(get("/usage")).await.status, 401);
    assert_eq!(gateway.chat("hi").await.status, 200);
    let config = gateway.config();
    let (code, csv) = usage(&config, &["--csv", "--since", "2026-01-01", "--key", "anybody"]);
    assert!(code == 0 && csv.contains(",anybody,,tiny,1,8,2,"), "{csv}");
    gateway.signal("TERM");
    gateway.exit().await;
    let (code, said) = usage(&config, &[]);
    assert!(code == 1 && said.contains("no gateway answers") && said.contains("usage.path"), "{said}");
}
