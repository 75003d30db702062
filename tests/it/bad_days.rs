//! Bad days: a file that is none, a port in use, a full disk, a reader that goes away. A clear line, the right exit
//! code (2 for the file, 1 for the rest), and a gateway that runs goes on.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::address::Loopback;
use crate::support::client::{self, get};
use crate::support::gateway::{self, Folder, Gateway, Plan, chat, command};
use crate::support::llama;

const GOOD: &str = "upstreams: {local: http://127.0.0.1:8080}\n";

/// How the binary ends, and what it says to standard error.
async fn ends(command: &mut Command) -> (Option<i32>, String) {
    let mut child = command.spawn().expect("the binary runs");
    eventually!(child.try_wait().expect("the child is ours").is_some());
    let output = child.wait_with_output().expect("it has ended");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().expect("there is mkfifo").success());
}

/// Files that are none, each as what makes it at a path, and what is said of it.
type BadFile = (&'static str, fn(&Path), &'static str);

const BAD_FILES: [BadFile; 11] = [
    ("empty", |path| fs::write(path, "").unwrap_or_default(), ":1:1: the file is empty"),
    (
        "half",
        |path| fs::write(path, "upstreams:\n  local: {servers: [{url: http://12").unwrap_or_default(),
        ":2:21: this is not YAML",
    ),
    ("prose", |path| fs::write(path, "all is well\n").unwrap_or_default(), ":1:1: expected a mapping"),
    (
        "binary",
        |path| fs::write(path, [0x7f, b'E', b'L', b'F', 0xff]).unwrap_or_default(),
        ":1:5: expected UTF-8 text",
    ),
    ("zeros", |path| fs::write(path, [0; 4096]).unwrap_or_default(), ":1:1: this is not YAML"),
    (
        "large",
        |path| fs::write(path, GOOD.repeat(26_000)).unwrap_or_default(),
        ": expected at most 1024 KiB, found more",
    ),
    ("folder", |path| fs::create_dir(path).unwrap_or_default(), ": expected a file, found a folder"),
    (
        "dangling",
        |path| symlink("nowhere", path).unwrap_or_default(),
        ": cannot be read: No such file or directory",
    ),
    (
        "endless",
        |path| symlink("/dev/zero", path).unwrap_or_default(),
        ": expected a file, found a pipe, a socket or a device",
    ),
    (
        "unreadable",
        |path| symlink("/proc/self/mem", path).unwrap_or_default(),
        ": cannot be read: Input/output error",
    ),
    ("pipe", |path| pipe(path), ": expected a file, found a pipe, a socket or a device"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_none_is_a_2_and_says_so_in_one_line() {
    let folder = Folder::new("no-files");
    for (name, make, says) in BAD_FILES {
        let path = folder.file("nothing", "").with_file_name(name);
        make(&path);
        let path = path.to_str().expect("UTF-8");
        for arguments in [&["run", "--config", path][..], &["check", path], &["health", "--config", path]] {
            let (code, said) = ends(&mut command(arguments)).await;
            assert_eq!(code, Some(2), "{arguments:?}: {said}");
            assert!(
                said.starts_with(&format!("{path}{says}")) && said.lines().count() == 1,
                "{name}: {said}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_gateway_is_unharmed_by_a_file_that_is_none() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let good = fs::read_to_string(gateway.config()).expect("the folder is ours");
    for (number, (name, make, says)) in BAD_FILES.into_iter().enumerate() {
        let beside = gateway.folder().join(name);
        make(&beside);
        // A folder is not put over a file in one step.
        if name == "folder" {
            fs::remove_file(gateway.config()).expect("the folder is ours");
        }
        fs::rename(&beside, gateway.config()).expect("the folder is ours");
        gateway.signal("HUP");
        let refused = || gateway.stderr().matches("gateway.yaml is not taken").count();
        eventually!(refused() > number, "{name}: {}", gateway.stderr());
        assert!(gateway.stderr().contains(&format!("gateway.yaml{says}")), "{name}: {}", gateway.stderr());
        assert_eq!(gateway.chat(name).await.status, 200);
        if name == "folder" {
            fs::remove_dir(gateway.config()).expect("the folder is ours");
        }
    }
    let beside = gateway.folder().join("good");
    fs::write(&beside, good).expect("the folder is ours");
    fs::rename(&beside, gateway.config()).expect("the folder is ours");
    eventually!(gateway.stderr().contains("gateway.yaml is taken"), "{}", gateway.stderr());
    // Counted a moment after it is said.
    eventually!(gateway.scrape().await.sum("ai_gateway_config_last_reload_successful", &[]) == 1.0);
}

/// Starts it where it cannot run, and gives its last line.
async fn cannot_start(plan: Plan) -> String {
    let gateway = plan.spawn();
    assert_eq!(gateway.exit().await.code(), Some(1), "{}", gateway.stderr());
    eventually!(gateway.stderr().contains("ai-gateway: "), "{}", gateway.stderr());
    assert!(!gateway.stderr().contains("panicked"), "{}", gateway.stderr());
    gateway.stderr().lines().last().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_a_1_whichever_it_is() {
    let taken = Loopback::claim();
    let _listener = std::net::TcpListener::bind(taken.port(9001)).expect("the address is ours");
    let address = taken.port(9001);
    for yaml in [
        format!("listen: [{{address: {address}}}]"),
        format!("admin: {{listen: {address}}}"),
        format!("metrics: {{listen: {address}}}"),
    ] {
        let said = cannot_start(gateway::before_urls(&["http://127.0.0.1:1"]).yaml(&yaml)).await;
        let expected = format!("ai-gateway: cannot listen on {address}: another process does");
        assert!(said.starts_with(&expected), "{yaml}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_is_to_write_is_tried_first() {
    let folder = Folder::new("unwritable");
    let there = folder.file("nothing", "x");
    let at = |name: &str| there.with_file_name(name).display().to_string();
    pipe(&there.with_file_name("pipe"));
    let text = folder.file("text", &"no database\n".repeat(1000));
    let (nowhere, nothing, folder) =
        (at("nowhere/file"), there.display(), there.parent().expect("a folder").display());
    for (yaml, says) in [
        (format!("usage: {{path: {nowhere}}}"), "the usage store"),
        (format!("usage: {{path: {folder}}}"), "is a folder: name a file in it"),
        (format!("usage: {{path: {}}}", text.display()), "is no SQLite database: move it away"),
        (format!("usage: {{path: {}}}", at("pipe")), "is a pipe, a socket or a device"),
        (format!("usage: {{path: {nothing}/x}}"), "the usage store"),
        (format!("log: {{access: {nowhere}}}"), "nowhere: make it, or name another"),
        (format!("log: {{access: {folder}}}"), "cannot be opened: Is a directory"),
        (format!("server: {{daemon: true, pid_file: {nowhere}}}"), "`server.pid_file`"),
        (
            format!("server: {{daemon: true, pid_file: {}, error_log: {nowhere}}}", at("pid")),
            "`server.error_log`",
        ),
        (format!("server: {{pid_file: {folder}}}"), "is not the file of a process's number"),
        (format!("server: {{pid_file: {}}}", at("pipe")), "is not the file of a process's number"),
        (format!("server: {{pid_file: {}}}", text.display()), "is not the file of a process's number"),
    ] {
        let said = cannot_start(gateway::before_urls(&["http://127.0.0.1:1"]).yaml(&yaml)).await;
        assert!(said.starts_with("ai-gateway: ") && said.contains(says), "{yaml}: {said}");
    }
    assert!(!Path::new(&at("pid")).exists(), "a try leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pid_file_of_a_dead_process_stops_nobody() {
    let mut dead = Command::new("true").spawn().expect("there is true");
    dead.wait().expect("it ends");
    let folder = Folder::new("dead-pid");
    let llama = llama::scripted().start().await;
    // A process that lives and is no gateway has got the number of one; and a full disk left nothing of a number.
    for (name, number) in [
        ("dead", dead.id().to_string()),
        ("other", std::os::unix::process::parent_id().to_string()),
        ("none", String::new()),
    ] {
        let file = folder.file(name, &number);
        let yaml = format!("server: {{pid_file: {}}}", file.display());
        let gateway = gateway::before(&llama).yaml(&yaml).start().await;
        assert_eq!(gateway.chat(name).await.status, 200);
        let names = || fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
        eventually!(names() == gateway.id().to_string(), "{name}: {}", gateway.stderr());
    }
}

/// Requests, each with a line, until so many lines have been dropped.
async fn goes_on_until_dropped(gateway: &Gateway) {
    let dropped = async || gateway.scrape().await.sum("ai_gateway_log_lines_dropped_total", &[]);
    let mut caller = gateway.caller().await;
    eventually!(
        {
            for _ in 0..50 {
                assert_eq!(caller.send(get("/v1/nothing").header("x-long", "x")).await.status, 404);
            }
            caller = gateway.caller().await;
            dropped().await > 0.0
        },
        "{}",
        gateway.stderr()
    );
    assert_eq!(gateway.chat("hi").await.status, 200);
    assert_eq!(
        gateway.stderr().matches("the access log cannot be written").count(),
        1,
        "{}",
        gateway.stderr()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_log_costs_lines_and_no_request() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("log: {access: /dev/full}").start().await;
    goes_on_until_dropped(&gateway).await;
    assert!(gateway.stderr().contains("No space left on device"), "{}", gateway.stderr());
    gateway.signal("TERM");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_goes_away_costs_lines_and_no_request() {
    let llama = llama::scripted().start().await;
    let plan = gateway::before(&llama).after("mkfifo lines; head -n 1 lines >first & exec >lines");
    let gateway = plan.start().await;
    goes_on_until_dropped(&gateway).await;
    assert!(gateway.stderr().contains("Broken pipe"), "{}", gateway.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_may_be_the_log_and_its_readers_come_and_go() {
    let llama = llama::scripted().start().await;
    let folder = Folder::new("log-pipe");
    let lines = folder.file("nothing", "").with_file_name("lines");
    pipe(&lines);
    let yaml = format!("log: {{access: {}}}", lines.display());
    let gateway = gateway::before(&llama).yaml(&yaml).start().await;
    for number in 0..2 {
        let answer = gateway.chat(&format!("nobody listens {number}")).await;
        let mut head = Command::new("grep");
        head.args(["-m", "1", answer.request_id()]).arg(&lines).stdout(Stdio::piped());
        let mut reader = head.spawn().expect("there is grep");
        eventually!(reader.try_wait().expect("the child is ours").is_some(), "{}", gateway.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_stalls_holds_up_nobody() {
    let llama = llama::scripted().start().await;
    let folder = Folder::new("log-stalls");
    let lines = folder.file("nothing", "").with_file_name("lines");
    pipe(&lines);
    let yaml = format!("log: {{access: {}}}", lines.display());
    let gateway = gateway::before(&llama).yaml(&yaml).start().await;
    // Some six hundred lines are more than the pipe and the buffer take.
    for _ in 0..12 {
        let mut caller = gateway.caller().await;
        for _ in 0..50 {
            assert_eq!(caller.send(get("/v1/nothing")).await.status, 404);
        }
    }
    assert_eq!(gateway.chat("hi").await.status, 200);
    gateway.signal("TERM");
    assert_eq!(gateway.exit().await.code(), Some(0), "it waits two seconds for the log, and goes");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_need_read_what_it_says_of_itself() {
    let llama = llama::scripted().start().await;
    for before in ["exec 2>&-", "exec 2>/dev/full", "mkfifo said; head -n 1 said >first & exec 2>said"] {
        let gateway = gateway::before(&llama).after(before).start().await;
        for _ in 0..20 {
            gateway.signal("HUP");
            assert_eq!(gateway.chat("hi").await.status, 200, "{before}");
        }
        let reloads = || async {
            let scrape = gateway.scrape().await;
            scrape.sum("ai_gateway_config_reloads_total", &[("result", "success")])
        };
        eventually!(reloads().await != 0.0, "{before}");
        gateway.signal("TERM");
        assert_eq!(gateway.exit().await.code(), Some(0), "{before}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_file_descriptors_it_waits_and_serves_again() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("server: {threads: 1}").after("ulimit -n 64").start().await;
    let mut callers = Vec::new();
    for _ in 0..80 {
        callers.push(gateway.caller().await);
    }
    eventually!(gateway.stderr().contains("Too many open files"), "{}", gateway.stderr());
    callers.truncate(10);
    let mut caller = callers.pop().expect("there are ten");
    eventually!(caller.send(chat("hi")).await.status == 200, "who is connected is served");
    drop(callers);
    eventually!(client::connect(gateway.address()).await.send(chat("again")).await.status == 200);
    // It looks again once a second, and does not spin.
    let tries = gateway.stderr().matches("Accept() failed").count();
    assert!(tries < 50, "{tries} tries");
}
