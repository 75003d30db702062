//! A running gateway is replaced by another: no connection refused, no request failed, no stream cut, nothing that was
//! used forgotten.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixDatagram, UnixListener};
use tokio::time::Instant;

use crate::support::client::{self, Request, get, post};
use crate::support::expect::{auth, refused};
use crate::support::gateway::{self, Folder, Gateway, chat, chat_stream};
use crate::support::llama;

const PID_FILE: &str = "server: {pid_file: gateway.pid}";

/// Whether a process is there; one that has ended and that nobody has asked after is not.
fn runs(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

fn to_model(model: &str, text: &str, stream: bool) -> Request {
    let messages = json!([{"role": "user", "content": text}]);
    post("/v1/chat/completions").json(&json!({"model": model, "stream": stream, "messages": messages}))
}

/// Sends requests, each on a connection of its own or all on one as long as it lasts, until it is told to stop.
async fn keep_asking(
    gateway: Arc<Gateway>,
    caller: usize,
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
) -> Vec<String> {
    let (mut failures, mut kept, mut number) = (Vec::new(), None, 0_u32);
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let connection = match kept.take() {
            Some(connection) => connection,
            None => match client::try_connect(gateway.address()).await {
                Some(connection) => connection,
                None => {
                    failures.push("a connection was refused".to_owned());
                    continue;
                }
            },
        };
        let text = format!("caller {caller} asks {number}");
        let (answer, connection) =
            connection.begin(to_model("tiny", &text, number.is_multiple_of(2))).await.finish().await;
        asked.fetch_add(1, Ordering::Relaxed);
        if answer.status != 200 || !answer.whole {
            failures.push(format!("{answer:?}"));
        }
        let goes_on = answer.header("connection") != Some("close");
        kept = (caller.is_multiple_of(2) && goes_on).then_some(connection);
    }
    failures
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_upgrades_under_load_drop_nothing() {
    let (tiny, slow) = (llama::scripted().start().await, llama::scripted().holds().start().await);
    let gateway = gateway::before(&tiny)
        .yaml(&format!(
            "upstreams: {{local: '{}', slow: '{}'}}\nmodels: {{tiny: local, slow: slow}}",
            tiny.url(),
            slow.url()
        ))
        .yaml("limits: {gateway: {requests: 1/h, burst: 1000000}}")
        .yaml(PID_FILE)
        .start()
        .await;
    let gateway = Arc::new(gateway);
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..6)
        .map(|caller| {
            tokio::spawn(keep_asking(Arc::clone(&gateway), caller, Arc::clone(&stop), Arc::clone(&asked)))
        })
        .collect();
    let (mut streams, mut before) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        for _ in 0..20 {
            let stream = to_model("slow", &format!("stream {}", streams.len()), true);
            streams.push(gateway.caller().await.begin(stream).await);
        }
        before.push(gateway.upgraded().await);
    }
    assert!(before.iter().all(|process| runs(*process)), "each has streams to finish");
    stop.store(true, Ordering::Relaxed);
    for caller in load {
        assert_eq!(caller.await.expect("no panic"), Vec::<String>::new());
    }
    slow.release_all();
    for stream in streams {
        let (answer, _) = stream.finish().await;
        assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    }
    let used = asked.load(Ordering::Relaxed) + 200;
    let mut more = 0;
    let mut left = async || {
        more += 1;
        let answer = gateway.chat("how much is left").await;
        let left: usize =
            answer.header("x-ratelimit-remaining-requests").and_then(|it| it.parse().ok()).expect("a limit");
        (left, 1_000_000 - used - more)
    };
    eventually!(
        {
            let (left, expected) = left().await;
            left == expected
        },
        "no request is forgotten, and none counts twice"
    );
    eventually!(!before.iter().any(|process| runs(*process)), "each ends when it has finished");
    assert!(used > 300, "{used} requests are no load");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_and_what_is_kept_survives() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama)
        .yaml(&auth(&[("alice", "sk-alice", "")]))
        .yaml("limits: {key: {requests: 1/h, burst: 50}}")
        .yaml(PID_FILE)
        .start()
        .await;
    let ask = |text: &str| chat(text).key("sk-alice");
    for text in ["one", "two"] {
        assert_eq!(gateway.send(ask(text)).await.cache(), "miss");
    }
    assert_eq!(gateway.admin(client::request("DELETE", "/cache")).await.status, 200);
    assert_eq!(gateway.send(ask("one")).await.cache(), "miss");
    gateway.upgraded().await;
    let again = gateway.send(ask("one")).await;
    assert_eq!((again.cache(), again.header("x-ratelimit-remaining-requests")), ("hit", Some("46")));
    assert!(again.header("age").is_some(), "{again:?}");
    assert_eq!(gateway.send(ask("two")).await.cache(), "miss", "what was purged stays so");
    eventually!(
        gateway.send(get("/v1/usage").key("sk-alice")).await.json()["used"]["day"]["requests"] == 5,
        "three before and two after"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_process_before_still_holds_counts_until_it_ends() {
    let llama = llama::scripted().slots(2).holds().start().await;
    let gateway = gateway::before(&llama)
        .yaml(&auth(&[("alice", "sk-alice", ""), ("bob", "sk-bob", "")]))
        .yaml("limits: {key: {concurrent: 1, tokens: 1000/h}}")
        .yaml(PID_FILE)
        .start()
        .await;
    let bound = |text: &str, key: &str| {
        let messages = json!([{"role": "user", "content": text}]);
        post("/v1/chat/completions")
            .key(key)
            .json(&json!({"model": "tiny", "stream": true, "max_tokens": 900, "messages": messages}))
    };
    let stream = gateway.caller().await.begin(bound("long", "sk-alice")).await;
    gateway.upgraded().await;
    refused(&gateway.send(bound("more", "sk-alice")).await, 429, "concurrency_limit");
    // One of the server's two slots is taken.
    let one = gateway.caller().await.begin(bound("one", "sk-bob")).await;
    eventually!(gateway.scrape().await.sum("ai_gateway_server_slots", &[("state", "idle")]) == 0.0);
    one.leaves();
    llama.release_all();
    let (answer, _) = stream.finish().await;
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    // Of what was reserved before, what was not used has come back.
    eventually!(gateway.send(bound("again", "sk-alice")).await.status == 200);
    eventually!(gateway.scrape().await.sum("ai_gateway_server_slots", &[("state", "idle")]) == 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_has_said_stays_said() {
    let (one, two) = (llama::scripted().start().await, llama::scripted().start().await);
    let gateway = gateway::before_urls(&[&one.url(), &two.url()]).yaml(PID_FILE).start().await;
    let name = one.url().trim_start_matches("http://").to_owned();
    let drain = client::post(&format!("/servers/{name}/drain"));
    assert_eq!(gateway.admin(drain).await.status, 200);
    gateway.upgraded().await;
    for number in 0..6 {
        assert_eq!(gateway.chat(&number.to_string()).await.status, 200);
    }
    assert_eq!((one.requests(), two.requests()), (0, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_cannot_serve_changes_nothing() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml(PID_FILE).start().await;
    let (before, file) = (gateway.serving(), std::fs::read_to_string(gateway.config()).expect("a file"));
    let serves_on = async |text: &str| {
        assert_eq!(
            (gateway.serving(), gateway.chat(text).await.status),
            (before, 200),
            "{}",
            gateway.stderr()
        );
    };

    std::fs::write(gateway.config(), "cache: {ttl: 5 minutes}\n").expect("the folder is ours");
    let output = gateway.upgrade().await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(said(&output).contains("gateway.yaml:1:14"), "{output:?}");
    serves_on("a wrong file").await;

    // An address that the successor is to listen on belongs to somebody else.
    let taken = std::net::TcpListener::bind((gateway.address().ip(), 9077)).expect("a free port");
    let address = taken.local_addr().expect("it is bound");
    std::fs::write(gateway.config(), format!("metrics: {{listen: {address}}}\n{file}"))
        .expect("the folder is ours");
    let output = gateway.upgrade().await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said(&output).contains(&format!("cannot listen on {address}")), "{output:?}");
    assert!(said(&output).contains("serves as before"), "{output:?}");
    serves_on("an address that is taken").await;

    drop(taken);
    gateway.upgraded().await;
    let metrics = client::connect(address).await.send(get("/metrics")).await;
    assert_eq!(metrics.status, 200, "the address is listened on as the file says now");
}

/// A binary that is none, or hangs up, as the running gateway meets it.
#[tokio::test(flavor = "multi_thread")]
async fn a_binary_that_is_none_changes_nothing() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml(PID_FILE).start().await;
    let socket = gateway.folder().join("gateway.pid.upgrade");
    for (binary, why) in [("/bin/false", "it ended at once"), ("/nowhere", "cannot start")] {
        let operator = UnixListener::bind(&socket).expect("a free path");
        gateway.signal("QUIT");
        let (stream, _) = operator.accept().await.expect("it comes");
        drop(operator);
        std::fs::remove_file(&socket).expect("it is there");
        let (reader, mut writer) = stream.into_split();
        let upgrade = json!({"upgrade": {"binary": binary, "file": gateway.config()}});
        writer.write_all(format!("{upgrade}\n").as_bytes()).await.expect("it listens");
        let answer = BufReader::new(reader).lines().next_line().await.expect("it answers").expect("a line");
        assert!(answer.contains("failed") && answer.contains(why), "{answer}");
        assert_eq!(gateway.chat(binary).await.status, 200);
    }
    gateway.upgraded().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigquit_without_a_successor_changes_nothing() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml(PID_FILE).start().await;
    gateway.signal("QUIT");
    eventually!(gateway.stderr().contains("no successor is found"), "{}", gateway.stderr());
    assert_eq!(gateway.chat("hi").await.status, 200);
    gateway.signal("TERM");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

/// As it was done before there was a command: the successor is started first, by whoever, and then the signal is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_waits_takes_over_on_sigquit() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("server: {upgrade_sock: meet.sock}").start().await;
    gateway.chat("hi").await;
    let mut successor = gateway::command(&["run", "--upgrade", "--config", "gateway.yaml"]);
    let mut successor = successor.current_dir(gateway.folder()).spawn().expect("the binary runs");
    eventually!(gateway.folder().join("meet.sock").exists());
    assert!(gateway.exited().is_none());
    gateway.signal("QUIT");
    assert_eq!(gateway.exit().await.code(), Some(0), "{}", gateway.stderr());
    assert_eq!(gateway.chat("hi").await.cache(), "hit");
    assert!(!gateway.folder().join("meet.sock").exists());
    successor.kill().expect("it runs");
    successor.wait().expect("it is our child");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pid_file_names_who_serves() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml(PID_FILE).start().await;
    assert_eq!(gateway.serving(), Some(gateway.id()));
    // Another gateway does not take it from one that runs.
    let rival = gateway::before(&llama)
        .yaml(&format!("server: {{pid_file: {}}}", gateway.folder().join("gateway.pid").display()));
    let rival = rival.spawn();
    assert_eq!(rival.exit().await.code(), Some(1));
    assert!(rival.stderr().contains("a gateway that runs"), "{}", rival.stderr());
    drop(rival);
    let before = gateway.upgraded().await;
    assert_eq!(before, gateway.id());
    gateway.exit().await;
    let successor = gateway.serving().expect("it still names the successor");
    assert!(runs(successor));
    gateway.signal("TERM");
    eventually!(!runs(successor));
    assert_eq!(gateway.serving(), None, "it is removed at the end");
    let none = gateway.upgrade().await;
    assert!(none.status.code() == Some(1) && said(&none).contains("no gateway runs"), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pid_file_of_a_dead_process_is_nobodys() {
    let llama = llama::scripted().start().await;
    for dead in ["999999999", "1"] {
        let folder = Folder::new(&format!("dead-{dead}"));
        let file = folder.file("gateway.pid", dead);
        let gateway =
            gateway::before(&llama).yaml(&format!("server: {{pid_file: {}}}", file.display())).start().await;
        let named = std::fs::read_to_string(&file).expect("a pid file");
        assert_eq!(named.trim(), gateway.id().to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_is_replaced_by_one() {
    let llama = llama::scripted().holds().start().await;
    let gateway =
        gateway::before(&llama).yaml("server: {pid_file: gateway.pid, daemon: true, error_log: daemon.log}");
    let gateway = gateway.spawn();
    assert_eq!(gateway.exit().await.code(), Some(0), "{}", gateway.stderr());
    eventually!(gateway.serving().is_some() && client::try_connect(gateway.address()).await.is_some());
    let stream = gateway.caller().await.begin(chat_stream("hi")).await;
    let before = gateway.upgraded().await;
    assert!(runs(before), "it has a stream to finish");
    llama.release_all();
    assert!(stream.finish().await.0.whole);
    eventually!(!runs(before));
    let log = std::fs::read_to_string(gateway.folder().join("daemon.log")).expect("it has a log");
    let successor = gateway.serving().expect("a pid file");
    assert!(log.contains(&format!("taking over from process {before}")), "{log}");
    assert_eq!(gateway.chat("hi").await.cache(), "hit");
    let left: Vec<_> =
        std::fs::read_dir(gateway.folder()).expect("a folder").flatten().map(|it| it.file_name()).collect();
    assert_eq!(left.len(), 3, "the file, the log and the pid file: {left:?}");
    gateway.signal("TERM");
    eventually!(!runs(successor) && gateway.serving().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_waited_for_serves_when_it_is_there() {
    let llama = llama::scripted().start().await;
    let daemon = "server: {pid_file: gateway.pid, daemon: true, daemon_wait_for_ready: true}";
    let gateway = gateway::before(&llama).yaml(daemon).spawn();
    assert_eq!(gateway.exit().await.code(), Some(0), "{}", gateway.stderr());
    eventually!(client::try_connect(gateway.address()).await.is_some());
    assert!(gateway.serving().is_some_and(|process| runs(process) && process != gateway.id()));
    gateway.upgraded().await;
    assert_eq!(gateway.chat("hi").await.status, 200);
}

/// A second SIGTERM is for those who do not want to wait.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_been_replaced_ends_when_it_is_told_to() {
    let llama = llama::scripted().holds().start().await;
    let gateway = gateway::before(&llama).yaml(PID_FILE).start().await;
    let stream = gateway.caller().await.begin(chat_stream("hi")).await;
    let before = gateway.upgraded().await;
    let signal = |name: &str| {
        let sent = std::process::Command::new("sh").args(["-c", &format!("kill -{name} {before}")]).status();
        sent.expect("there is a shell").success()
    };
    assert!(signal("QUIT") && runs(before));
    // Signals of one kind that come together are one.
    eventually!(!runs(before) || !signal("TERM"));
    assert!(gateway.exit().await.code() == Some(1));
    assert!(!stream.finish().await.0.text().contains("[DONE]"));
    assert_eq!(gateway.send(get("/live")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_who_serves() {
    let llama = llama::scripted().start().await;
    let folder = Folder::new("notify");
    let socket = folder.file("socket", "");
    std::fs::remove_file(&socket).expect("it was just made");
    let systemd = UnixDatagram::bind(&socket).expect("a free path");
    let gateway = gateway::before(&llama)
        .yaml(PID_FILE)
        .env("NOTIFY_SOCKET", socket.to_str().expect("UTF-8"))
        .start()
        .await;
    let hears = async || {
        let mut message = [0; 256];
        let heard = tokio::time::timeout(Duration::from_secs(10), systemd.recv(&mut message)).await;
        String::from_utf8_lossy(&message[..heard.expect("in time").expect("a message")]).into_owned()
    };
    assert_eq!(hears().await.trim(), format!("READY=1\nMAINPID={}", gateway.id()));
    gateway.upgraded().await;
    let successor = gateway.serving().expect("a pid file");
    let mut told = vec![hears().await.trim().to_owned(), hears().await.trim().to_owned()];
    told.sort();
    assert_eq!(told, [format!("MAINPID={successor}"), format!("READY=1\nMAINPID={successor}")]);
    gateway.exit().await;
    gateway.signal("TERM");
    assert_eq!(hears().await.trim(), "STOPPING=1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_does_not_hold_the_process_before_for_long() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml(PID_FILE).start().await;
    let mut idle = gateway.caller().await;
    assert_eq!(idle.send(chat("hi")).await.status, 200);
    let before = gateway.upgraded().await;
    let replaced = Instant::now();
    assert!(runs(before), "somebody may be about to ask");
    // The command returns as the process before begins to close its listeners.
    eventually!({
        let answer = idle.send(chat("hi")).await;
        assert_eq!(answer.status, 200);
        answer.header("connection") == Some("close")
    });
    eventually!(!runs(before));
    assert!(replaced.elapsed() < Duration::from_secs(5), "{:?}", replaced.elapsed());
}
