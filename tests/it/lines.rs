//! The access log's lines on their way: in a file that is rotated, to a reader that stalls, for people, and with what
//! was said where that is asked for.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::client::{Answer, post};
use crate::support::gateway::{self, Gateway, chat, chat_stream};
use crate::support::llama;

const IN_A_FILE: &str = "log: {access: access.log}\nserver: {pid_file: gateway.pid}";

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The ids of the requests that a file has lines of; all of them whole.
fn ids(path: &Path) -> Vec<String> {
    let lines = text(path);
    let id = |line: &str| {
        let fields: Value = serde_json::from_str(line).unwrap_or_else(|fault| panic!("{fault} in `{line}`"));
        fields["request_id"].as_str().expect("a text").to_owned()
    };
    lines.lines().map(id).collect()
}

async fn asked(gateway: &Gateway, id: &str) {
    assert_eq!(gateway.send(chat("hi").header("x-request-id", id)).await.status, 200, "{id}");
}

/// Moves the log away as logrotate does.
async fn rotated(gateway: &Gateway, to: &str) {
    let log = gateway.folder().join("access.log");
    std::fs::rename(&log, gateway.folder().join(to)).expect("it is ours");
    gateway.signal("USR1");
    eventually!(log.exists(), "{}", gateway.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_moved_away_is_begun_anew_and_loses_nothing() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml(IN_A_FILE).start().await;
    // Somebody asks all the time, and a while longer.
    let rotations = AtomicUsize::new(0);
    let asking = async {
        let mut number = 0;
        while number < 300 || rotations.load(Ordering::Relaxed) < 3 {
            asked(&gateway, &format!("asked-{number}")).await;
            number += 1;
        }
        number
    };
    let rotating = async {
        for round in 0..3 {
            eventually!(!text(&gateway.folder().join("access.log")).is_empty());
            rotated(&gateway, &format!("access.log.{round}")).await;
            rotations.fetch_add(1, Ordering::Relaxed);
        }
    };
    let (asked_for, ()) = tokio::join!(asking, rotating);
    asked(&gateway, "the-last").await;
    let all = || {
        let names = ["access.log.0", "access.log.1", "access.log.2", "access.log"];
        let mut ids: Vec<String> = names.iter().flat_map(|name| ids(&gateway.folder().join(name))).collect();
        ids.retain(|id| id.starts_with("asked-") || id == "the-last");
        // Two that come together may have their lines in either order.
        ids.sort();
        ids
    };
    eventually!(all().contains(&"the-last".to_owned()));
    let mut expected: Vec<String> = (0..asked_for).map(|number| format!("asked-{number}")).collect();
    expected.push("the-last".to_owned());
    expected.sort();
    assert_eq!(all(), expected, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_begun_anew_goes_on_where_it_was() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml(IN_A_FILE).start().await;
    let (log, moved) = (gateway.folder().join("access.log"), gateway.folder().join("moved"));
    std::fs::rename(&log, &moved).expect("it is ours");
    std::fs::create_dir(&log).expect("it is ours");
    gateway.signal("USR1");
    eventually!(gateway.stderr().contains("what was open is written on"), "{}", gateway.stderr());
    asked(&gateway, "written-on").await;
    eventually!(text(&moved).contains("written-on"));
    std::fs::remove_dir(&log).expect("it is ours");
    gateway.signal("USR1");
    eventually!(log.is_file(), "{}", gateway.stderr());
    asked(&gateway, "begun-anew").await;
    eventually!(text(&log).contains("begun-anew"));
    let silent = gateway::before(&llama).yaml("log: {access: none}").start().await;
    silent.signal("USR1");
    assert_eq!(silent.chat("hi").await.status, 200, "nothing is to be done, and nothing is");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_serves_begins_the_log_anew() {
    let llama = llama::scripted().start().await;
    let yaml = "log: {access: access.log}\n\
                server: {pid_file: gateway.pid, daemon: true, error_log: daemon.log}";
    let gateway = gateway::before(&llama).yaml(yaml).spawn();
    assert_eq!(gateway.exit().await.code(), Some(0), "{}", gateway.stderr());
    eventually!(gateway.serving().is_some());
    eventually!(crate::support::client::try_connect(gateway.address()).await.is_some());
    let (log, said) = (gateway.folder().join("access.log"), gateway.folder().join("daemon.log"));
    for (round, replaced) in [("daemon", false), ("successor", true)] {
        if replaced {
            gateway.upgraded().await;
        }
        asked(&gateway, round).await;
        eventually!(text(&log).contains(round));
        std::fs::rename(&said, gateway.folder().join(format!("daemon.log.{round}"))).expect("it is ours");
        rotated(&gateway, &format!("access.log.{round}")).await;
        eventually!(text(&said).contains("is opened anew"), "{}", text(&said));
        let after = format!("after-the-{round}");
        asked(&gateway, &after).await;
        eventually!(text(&log).contains(&after));
        assert!(!text(&log).contains(&format!("\"{round}\"")), "{}", text(&log));
    }
}

/// How long each of some requests took, the slowest first.
async fn times(gateway: &Gateway, count: usize) -> Vec<Duration> {
    let mut caller = gateway.caller().await;
    let long = "x".repeat(30_000);
    let mut times = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        assert_eq!(caller.send(chat(&long)).await.status, 200);
        times.push(begun.elapsed());
    }
    times.sort_by(|one, other| other.cmp(one));
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_output_that_stalls_costs_lines_and_no_time() {
    let llama = llama::scripted().start().await;
    // The shell itself holds the other end, and does not read.
    let stalled = "mkfifo lines; exec 3<>lines; exec >lines";
    // Long lines, so that few are too many.
    let yaml = "log: {prompts: true}\nlimits: {}";
    let gateway = gateway::before(&llama).yaml(yaml).after(stalled).start().await;
    let unhurried = times(&gateway, 100).await;
    let dropped = async || gateway.scrape().await.sum("ai_gateway_log_lines_dropped_total", &[]);
    let mut rounds = 0;
    let after = loop {
        let after = times(&gateway, 100).await;
        if dropped().await > 50.0 {
            break after;
        }
        rounds += 1;
        assert!(rounds < 50, "all of it was taken");
    };
    let (before, after) = (unhurried[1], after[1]);
    assert!(after < before * 5 + Duration::from_millis(50), "p99 was {before:?} and is {after:?}");
    // Somebody reads again.
    let count = dropped().await;
    let mut reader = Command::new("sh");
    reader.args(["-c", "exec cat lines >read"]).current_dir(gateway.folder());
    let mut reader = reader.spawn().expect("there is a shell");
    eventually!(gateway.stderr().contains("the access log was not taken in time"), "{}", gateway.stderr());
    assert!(gateway.stderr().contains(&format!("{count} lines were dropped")), "{}", gateway.stderr());
    asked(&gateway, "heard-again").await;
    eventually!(text(&gateway.folder().join("read")).contains("heard-again"));
    assert_eq!(dropped().await, count);
    reader.kill().expect("it is ours");
    reader.wait().expect("it is ours");
}

/// The fields `prompt` and `answer` of an answer's line.
async fn quoted(gateway: &Gateway, answer: &Answer) -> (String, String) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let line = gateway.line_of(answer.request_id()).await;
    (line.text("prompt").to_owned(), line.text("answer").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_is_written_where_that_is_asked_for() {
    let llama = llama::scripted().streams(["Hel", "lo", "!"]).start().await;
    let gateway = gateway::before(&llama).yaml("log: {prompts: true}").start().await;
    assert!(gateway.stderr().contains("has prompts and answers written"), "{}", gateway.stderr());
    let expected = (json!({"messages": [{"content": "hi", "role": "user"}]}), "Hello!");
    // Made as a stream, found in the cache, and rendered from there.
    for (asked, cache) in [(chat_stream("hi"), "miss"), (chat_stream("hi"), "hit"), (chat("hi"), "hit")] {
        let answer = gateway.send(asked).await;
        assert_eq!(answer.cache(), cache);
        let (prompt, said) = quoted(&gateway, &answer).await;
        let prompt: Value = serde_json::from_str(&prompt).expect("JSON");
        assert_eq!((prompt, said.as_str()), expected, "{cache}");
    }
    let body = json!({"model": "tiny", "prompt": "x".repeat(100_000)});
    let (prompt, _) = quoted(&gateway, &gateway.send(post("/completion").json(&body)).await).await;
    assert!(prompt.ends_with("…[cut]") && prompt.len() < 17_000, "{}", prompt.len());
    assert!(!gateway.admin(crate::support::client::get("/dashboard/live")).await.text().contains("Hello!"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_is_in_no_line_for_people() {
    let llama = llama::scripted().streams(["the-", "answer"]).start().await;
    let gateway = gateway::before(&llama).yaml("log: {prompts: true, format: text}").start().await;
    assert!(gateway.stderr().contains("in `log.format: json` alone"), "{}", gateway.stderr());
    assert_eq!(gateway.send(chat_stream("the-prompt")).await.status, 200);
    eventually!(gateway.stdout().contains("/v1/chat/completions"));
    assert!(!gateway.stdout().contains("the-"), "{}", gateway.stdout());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_for_people_tells_what_matters() {
    let llama = llama::scripted().start().await;
    let servers = format!("upstreams: {{local: {{servers: [{{url: {}, name: gpu1}}]}}}}\n", llama.url());
    let limits = "limits: {gateway: {requests: 1/h, burst: 2}}\nlog: {format: text}";
    let gateway = gateway::before_urls(&[]).yaml(&(servers + limits)).start().await;
    for expected in [
        "Z 200 POST /v1/chat/completions -        tiny         gpu1     miss ",
        "Z 200 POST /v1/chat/completions -        tiny         -        hit ",
        "rate_limit_exceeded gateway.requests",
    ] {
        gateway.chat("hi").await;
        eventually!(gateway.stdout().contains(expected), "{expected} in {}", gateway.stdout());
    }
    // On a terminal the date is left out.
    assert!(gateway.stdout().lines().all(|line| line.len() <= 120 + 16), "{}", gateway.stdout());
}
