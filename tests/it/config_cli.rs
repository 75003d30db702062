//! The command line and the file: right ones work, wrong ones say where and why.

use std::io::Write;
use std::process::Output;

use crate::support::client::get;
use crate::support::expect::sha256;
use crate::support::gateway::{self, Folder, chat, command, run};
use crate::support::{address::Loopback, llama};

const GOOD: &str = "upstreams: {local: http://127.0.0.1:8080}\n";

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ends by itself")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What `check` says of this file, and how it ends.
fn check(name: &str, yaml: &str) -> (i32, String) {
    let folder = Folder::new(name);
    let file = folder.file("gateway.yaml", yaml);
    let output = run(&["check", file.to_str().expect("UTF-8")]);
    (code(&output), said(&output))
}

#[test]
fn a_good_file_passes() {
    let full = "listen: [{address: 127.0.0.1:9001}]\nupstreams: {local: {servers: [{url: http://127.0.0.1:8080}]}}\n\
                models: {a: {upstream: local}}\nlimits: {gateway: {requests: 5/s, burst: 10}}\n\
                cache: {ttl: 5m, size: 64MiB, entry: 1MiB, scope: gateway}\nserver: {threads: 2}\n";
    for (name, yaml) in [("good-short", GOOD), ("good-full", full)] {
        let (code, said) = check(name, yaml);
        assert_eq!(code, 0, "{said}");
    }
}

#[test]
fn a_wrong_file_says_where_and_what_was_expected() {
    let cases = [
        ("cache:\n  ttl: 5 minutes\n", "2:8", "cache.ttl"),
        ("cache: {size: 64XB}\n", "1:15", "cache.size"),
        ("limits:\n  gateway: {requests: 5/fortnight}\n", "2:23", "limits.gateway.requests"),
        ("listen:\n  - address: nonsense\n", "2:14", "listen"),
        ("models: {a: {upstream: nowhere}}\n", "1:24", "models.a.upstream"),
        ("auth: {keys: [{name: a, sha256: abc}]}\n", "1:33", "auth.keys"),
        ("cache: {ttl: [1]}\n", "1:14", "cache.ttl"),
        ("cache:\n\tttl: 5m\n", "2:", ""),
        ("cache: {ttl: 5m}\ncache: {ttl: 6m}\n", "2:1", "cache"),
    ];
    for (number, (yaml, place, path)) in cases.into_iter().enumerate() {
        // The fault stands in the first lines, whatever follows.
        let (code, said) = check(&format!("wrong-{number}"), &format!("{yaml}{GOOD}"));
        assert_eq!(code, 2, "{yaml}: {said}");
        assert!(said.contains(&format!("gateway.yaml:{place}")), "{yaml} at {place}: {said}");
        assert!(said.contains(path), "{yaml} at {path}: {said}");
    }
}

#[test]
fn an_unknown_key_is_refused_with_a_suggestion() {
    for (number, (yaml, meant)) in [
        ("cach: {ttl: 5m}\n", "cache"),
        ("cache: {tlt: 5m}\n", "ttl"),
        ("limits: {gateway: {request: 5/s}}\n", "requests"),
    ]
    .into_iter()
    .enumerate()
    {
        let (code, said) = check(&format!("unknown-{number}"), &format!("{yaml}{GOOD}"));
        assert!(code == 2 && said.contains(&format!("`{meant}`")), "{yaml}: {said}");
    }
}

#[test]
fn all_faults_are_said_at_once() {
    let yaml = "cache: {ttl: soon}\nlimits: {gateway: {requests: lots}}\nbody: {max: big}\nnonsense: 1\n";
    let (code, said) = check("all-faults", &format!("{yaml}{GOOD}"));
    assert_eq!(code, 2);
    for line in 1..=4 {
        assert!(said.contains(&format!("gateway.yaml:{line}:")), "line {line}: {said}");
    }
}

#[test]
fn a_wrong_file_does_not_run_and_a_missing_one_neither() {
    let folder = Folder::new("does-not-run");
    let file = folder.file("gateway.yaml", "cache: {ttl: soon}\n");
    let wrong = run(&["run", "--config", file.to_str().expect("UTF-8")]);
    assert!(code(&wrong) == 2 && said(&wrong).contains("gateway.yaml:1:14"), "{}", said(&wrong));
    let missing = run(&["run", "--config", "/nowhere/gateway.yaml"]);
    assert!(code(&missing) == 2 && said(&missing).contains("/nowhere/gateway.yaml"), "{}", said(&missing));
}

#[test]
fn the_schema_is_the_committed_one() {
    let committed = include_bytes!("../../conf/schema.json");
    let output = run(&["schema"]);
    assert!(code(&output) == 0 && output.stdout == committed, "`ai-gateway schema` prints conf/schema.json");
}

#[test]
fn a_wrong_command_line_is_a_2() {
    for arguments in [&["--nonsense"][..], &["run", "--confg", "x"], &["no-such-command"], &["check"]] {
        assert_eq!(code(&run(arguments)), 2, "{arguments:?}");
    }
    let help = run(&["--help"]);
    assert!(code(&help) == 0 && said(&help).contains("check"), "{}", said(&help));
}

#[test]
fn a_wrong_environment_is_a_2() {
    let cases = [
        ("GATEWAY_PORT", "http"),
        ("GATEWAY_PORT", "70000"),
        ("GATEWAY_HOST", "not an address"),
        ("LLM_URL", "ftp://127.0.0.1"),
        ("LLM_URL", "127.0.0.1"),
    ];
    for (name, value) in cases {
        let output = command(&[]).env(name, value).output().expect("the binary runs");
        assert_eq!(code(&output), 2, "{name}={value}: {}", said(&output));
        assert!(said(&output).contains(name), "{name}={value}: {}", said(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_come_from_the_environment_and_from_files() {
    let llama = llama::scripted().api_key("sk-in-a-file").start().await;
    let folder = Folder::new("from-files");
    let secret = folder.file("key", "sk-in-a-file\n");
    let server = format!("{{url: \"${{SERVER}}\", api_key: {{file: {}}}}}", secret.display());
    let yaml = format!("upstreams: {{local: {{servers: [{server}]}}}}\ncache: {{ttl: \"${{TTL:-7s}}\"}}\n");
    let gateway = gateway::before(&llama).yaml(&yaml).env("SERVER", &llama.url()).start().await;
    let answer = gateway.chat("hi").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let (code, said) = check("no-such-variable", "upstreams: {local: \"${NO_SUCH_VARIABLE}\"}\n");
    assert!(code == 2 && said.contains("NO_SUCH_VARIABLE") && said.contains("gateway.yaml:1:"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_file_the_file_is_what_counts() {
    let llama = llama::scripted().start().await;
    let plan = gateway::before(&llama).env("GATEWAY_KEY", "sk-env").env("LLM_URL", "http://127.0.0.1:1");
    let gateway = plan.env("GATEWAY_PORT", "1").start().await;
    assert_eq!(gateway.chat("hi").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_a_1() {
    let taken = Loopback::claim();
    let _listener = std::net::TcpListener::bind(taken.port(9001)).expect("the address is ours");
    let llama = llama::scripted().start().await;
    let yaml = format!("listen: [{{address: {}}}]", taken.port(9001));
    let gateway = gateway::before(&llama).yaml(&yaml).spawn();
    assert_eq!(gateway.exit().await.code(), Some(1), "{}", gateway.stderr());
    eventually!(gateway.stderr().contains(&taken.port(9001).to_string()), "{}", gateway.stderr());
}

/// The token of the text whose hash is this one.
fn key_of(text: &str, hash: &str) -> Option<String> {
    let trim = |token: &str| token.trim_matches(|it: char| !it.is_ascii_alphanumeric()).to_owned();
    text.split_whitespace().map(trim).find(|token| sha256(token) == hash)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_shown_once_and_its_stanza_holds_only_the_hash() {
    let output = run(&["key", "new", "--name", "alice"]);
    let said = said(&output);
    let hex = |token: &&str| token.len() == 64 && token.bytes().all(|it| it.is_ascii_hexdigit());
    let hash = said.split([' ', '\n', '"', ',']).find(hex).expect("the stanza has a hash").to_owned();
    let key = key_of(&said, &hash).unwrap_or_else(|| panic!("no key of this hash in {said}"));
    assert!(code(&output) == 0 && key.len() >= 32 && said.contains("name: alice"), "{said}");
    let stanza: Vec<&str> = said.lines().skip_while(|line| !line.contains("- name: alice")).collect();
    assert!(stanza.join(" ").contains(&hash) && !stanza.join(" ").contains(&key), "{said}");
    let llama = llama::scripted().start().await;
    let keys = format!("auth: {{keys: [{{name: alice, sha256: {hash}}}]}}");
    let gateway = gateway::before(&llama).yaml(&keys).start().await;
    assert_eq!(gateway.send(chat("hi").key(&key)).await.status, 200);
    assert!(!self::said(&run(&["key", "new", "--name", "alice"])).contains(&key), "keys are random");
}

#[test]
fn a_key_is_hashed_from_standard_input() {
    let mut child =
        command(&["key", "hash"]).stdin(std::process::Stdio::piped()).spawn().expect("the binary runs");
    child.stdin.take().expect("a pipe").write_all(b"sk-alice\n").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(code(&output) == 0 && said(&output).contains(&sha256("sk-alice")), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_asks_the_running_gateway() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let config = gateway.config();
    let arguments = ["health", "--config", config.to_str().expect("UTF-8")];
    assert_eq!(code(&run(&arguments)), 0);
    llama.becomes(llama::scripted().unhealthy());
    eventually!(gateway.send(get("/health")).await.status == 503);
    gateway.signal("TERM");
    gateway.exit().await;
    assert_eq!(code(&run(&arguments)), 1, "nobody is there");
    llama.becomes(llama::scripted());
    let bare = gateway::bare(&llama.url()).start().await;
    let ip = bare.address().ip().to_string();
    let output = command(&["health"]).env("GATEWAY_HOST", ip).env("GATEWAY_PORT", "9001").output();
    assert_eq!(code(&output.expect("the binary runs")), 0);
}
