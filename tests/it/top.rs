//! `ai-gateway top`: on a terminal, by keyboard, and as text where there is none.

use std::process::Output;

use serde_json::json;

use crate::support::client::{get, post};
use crate::support::expect::auth;
use crate::support::gateway::{self, Gateway, Plan, chat, command};
use crate::support::llama::{self, Llama};
use crate::support::terminal::Terminal;

const TOKEN: &str = "let-me-in";

fn guarded(llama: &Llama) -> Plan {
    let plan = gateway::before(llama);
    let admin = plan.file().lines().find(|line| line.starts_with("admin:")).expect("it has one").to_owned();
    plan.yaml(&admin.replace('}', &format!(", token: {TOKEN}}}")))
}

fn config(gateway: &Gateway) -> String {
    gateway.config().to_str().expect("temporary paths are UTF-8").to_owned()
}

fn admin(gateway: &Gateway) -> String {
    format!("http://{}", gateway.admin_address())
}

/// Runs it where there is no terminal.
async fn told(arguments: &[&str]) -> Output {
    let mut command = command(&[&["top"], arguments].concat());
    tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_terminal_it_is_told_once_as_text() {
    let llama = llama::scripted().slots(3).start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {requests: 1/h, burst: 2}")]);
    let gateway = guarded(&llama).yaml(&keys).start().await;
    for _ in 0..3 {
        gateway.send(chat("the-prompt").key("sk-alice")).await;
    }
    let hostile = json!({"model": "evil\u{1b}[2J\r\n\u{9b}31m", "messages": []});
    let last = gateway.send(post("/v1/chat/completions").key("sk-alice").json(&hostile)).await;
    gateway.line_of(last.request_id()).await;
    let output = told(&["--config", &config(&gateway)]).await;
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for words in
        ["ai-gateway  Up  ", "0 of 3 □□□", "alice", "0 of 2", "200 from the cache", "429 limit key.requests"]
    {
        assert!(told.contains(words), "no `{words}` in\n{told}");
    }
    assert!(told.contains(last.request_id()), "what a person looks for by its id:\n{told}");
    assert!(!told.replace('\n', "").contains(char::is_control), "{told:?}");
    assert!(!told.contains("sk-alice") && !told.contains("the-prompt") && !told.contains(TOKEN), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_told_is_told_why_and_what_to_do() {
    let llama = llama::scripted().start().await;
    let gateway = guarded(&llama).start().await;
    let folder = gateway.folder();
    let file = |name: &str, content: &str| {
        let path = folder.join(name);
        std::fs::write(&path, content).expect("the folder is ours");
        path.to_str().expect("UTF-8").to_owned()
    };
    let (right, wrong, empty) =
        (file("right", "let-me-in\n"), file("wrong", "let-me-out"), file("empty", "\n"));
    let (admin, callers) = (admin(&gateway), format!("http://{}", gateway.address()));
    let nobody = format!("http://{}", gateway.at(9009));
    let good = told(&["--admin", &admin, "--token-file", &right]).await;
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    for (arguments, code, words) in [
        (vec!["--admin", &admin], 1, "it asks for a token. Name the gateway's file with --config"),
        (vec!["--admin", &admin, "--token-file", &wrong], 1, "it does not know this token"),
        (vec!["--admin", &admin, "--token-file", &empty], 2, "it is empty"),
        (vec!["--admin", &admin, "--token-file", "nowhere"], 2, "--token-file nowhere: No such file"),
        (vec!["--admin", &nobody], 1, "nothing listens there. Is the gateway running"),
        (vec!["--admin", &callers], 1, "That is not the operator's listener"),
        (vec!["--admin", "localhost:9002"], 2, "write http://HOST:PORT"),
        (vec!["--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (vec!["--nonsense"], 2, "--nonsense"),
    ] {
        let output = told(&arguments).await;
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words) && output.stdout.is_empty(), "{arguments:?}: {said}");
        assert!(!said.contains("let-me"), "a token is never said: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_drained_by_keyboard_after_a_yes_and_the_terminal_is_given_back() {
    let llama = llama::scripted().slots(2).start().await;
    let gateway = guarded(&llama).start().await;
    let stats = || async { gateway.admin(get("/stats").key(TOKEN)).await.json()["servers"][0].clone() };
    let name = stats().await["server"].as_str().expect("a name").to_owned();
    let mut terminal = Terminal::run(&["top", "--config", &config(&gateway)], (80, 24), &[]);
    eventually!(terminal.shows("ai-gateway  Up ") && terminal.shows("0 of 2 □□"), "{}", terminal.text());
    terminal.press("2");
    eventually!(terminal.shows("It gets requests."));
    terminal.press("d");
    eventually!(terminal.shows(&format!("Drain {name}?")));
    terminal.press("n");
    eventually!(terminal.shows("Nothing was changed."));
    assert_eq!(stats().await["draining"], false);
    terminal.press("dy");
    eventually!(stats().await["draining"] == true);
    eventually!(
        terminal.shows("Drained") && terminal.shows("Up, with 0 of 1 servers"),
        "{}",
        terminal.text()
    );
    terminal.resize(30, 5);
    eventually!(terminal.shows("ai-gateway top needs 60"), "{}", terminal.text());
    terminal.resize(140, 45);
    eventually!(terminal.shows("Drained"), "{}", terminal.text());
    assert!(!terminal.is_restored(), "else this says nothing");
    terminal.press("q");
    assert_eq!(terminal.exit().await.code(), Some(0));
    eventually!(terminal.is_restored(), "{:?}", terminal.written());
    assert!(terminal.written().contains("\x1b[38;5;"), "it had colours");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_with_the_successor_and_says_while_nobody_is_there() {
    let llama = llama::scripted().start().await;
    let server = "server: {pid_file: gateway.pid, upgrade_sock: upgrade.sock}";
    let gateway = gateway::before(&llama).yaml(server).start().await;
    eventually!(gateway.serving().is_some());
    let mut terminal = Terminal::run(&["top", "--admin", &admin(&gateway)], (80, 24), &[("NO_COLOR", "1")]);
    eventually!(terminal.shows("ai-gateway  Up "), "{}", terminal.text());
    gateway.upgraded().await;
    let name = gateway.admin(get("/stats")).await.json()["servers"][0]["server"].as_str().map(str::to_owned);
    gateway.admin(post(&format!("/servers/{}/drain", name.expect("a name")))).await;
    eventually!(terminal.shows("Up, with 0 of 1 servers"), "{}", terminal.text());
    gateway.signal("KILL");
    eventually!(
        terminal.shows("Connection lost") && terminal.shows("What stands here is old."),
        "{}",
        terminal.text()
    );
    terminal.signal("TERM");
    assert_eq!(terminal.exit().await.code(), Some(0));
    eventually!(terminal.is_restored(), "{:?}", terminal.written());
    assert!(!terminal.written().contains("\x1b[38;"), "NO_COLOR: {:?}", terminal.written());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_can_be_typed_in_and_is_not_shown() {
    let llama = llama::scripted().start().await;
    let gateway = guarded(&llama).start().await;
    let mut terminal = Terminal::run(&["top", "--admin", &admin(&gateway)], (80, 24), &[]);
    eventually!(terminal.shows("Locked") && terminal.shows("it asks for a token"), "{}", terminal.text());
    terminal.press("tlet-me-out\r");
    eventually!(terminal.shows("it does not know this token"), "{}", terminal.text());
    terminal.press("t");
    terminal.press(TOKEN);
    eventually!(terminal.shows("admin.token: *********_"), "{}", terminal.text());
    terminal.press("\r");
    eventually!(terminal.shows("ai-gateway  Up "), "{}", terminal.text());
    terminal.press("\x03");
    assert_eq!(terminal.exit().await.code(), Some(0));
    assert!(!terminal.written().contains("let-me"), "{:?}", terminal.written());
}

#[tokio::test(flavor = "multi_thread")]
async fn once_is_text_on_a_terminal_too() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut terminal = Terminal::run(&["top", "--once", "--admin", &admin(&gateway)], (80, 24), &[]);
    assert_eq!(terminal.exit().await.code(), Some(0));
    eventually!(terminal.written().contains("ai-gateway  Up  http://"), "{}", terminal.written());
    assert!(!terminal.written().contains('\x1b'), "{:?}", terminal.written());
}
