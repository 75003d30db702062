//! Keys in a file of their own: written down and taken back by commands, in force within a second.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use tokio::time::Instant;

use crate::support::client::get;
use crate::support::expect::{refused, sha256};
use crate::support::gateway::{self, Folder, Gateway, chat, chat_stream, command, run};
use crate::support::llama::{self, Llama};

/// A change is in force within a second; a busy machine may be late.
const IN_FORCE_MAX: Duration = Duration::from_millis(1500);

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// `ai-gateway key …` with this keys file.
fn key(file: &Path, arguments: &[&str]) -> Output {
    run(&[&["key"], arguments, &["--file", text(file)]].concat())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Adds a key; gives it.
fn add(file: &Path, name: &str) -> String {
    let output = key(file, &["add", "--name", name]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn stanza(name: &str, key: &str) -> String {
    format!("- name: {name}\n  sha256: {}\n", sha256(key))
}

async fn start(llama: &Llama, file: &Path) -> Gateway {
    let auth = format!("auth: {{keys_file: {}}}\ncache: {{size: 0B}}", file.display());
    gateway::before(llama).yaml(&auth).start().await
}

async fn status(gateway: &Gateway, key: &str) -> u16 {
    gateway.send(chat("hi").key(key)).await.status
}

/// Waits until this key is answered so, no longer than a change takes.
async fn soon(gateway: &Gateway, key: &str, expected: u16) {
    let changed = Instant::now();
    eventually!(status(gateway, key).await == expected, "{}", gateway.stderr());
    assert!(changed.elapsed() <= IN_FORCE_MAX, "it took {:?}", changed.elapsed());
}

fn count(gateway: &Gateway, what: &str) -> usize {
    gateway.stderr().matches(what).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_works_once_added_and_no_more_once_revoked() {
    let llama = llama::scripted().streams(["one", "two"]).start().await;
    let folder = Folder::new("keys-added");
    let file = folder.file("keys.yaml", "");
    fs::remove_file(&file).expect("just made");
    let alice = add(&file, "alice");
    let gateway = start(&llama, &file).await;
    assert_eq!(status(&gateway, &alice).await, 200);

    let bob = add(&file, "bob");
    soon(&gateway, &bob, 200).await;
    llama.becomes(llama::scripted().streams(["one", "two"]).holds());
    let mut stream = gateway.caller().await.begin(chat_stream("hi").key(&bob)).await;
    llama.release();
    assert!(stream.event().await.is_some());
    llama.becomes(llama::scripted());
    assert_eq!(key(&file, &["revoke", "--name", "bob"]).status.code(), Some(0));
    soon(&gateway, &bob, 401).await;
    llama.release_all();
    let (answer, _) = stream.finish().await;
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    refused(&gateway.send(chat("hi").key(&bob)).await, 401, "invalid_api_key");
    assert_eq!(status(&gateway, &alice).await, 200);

    assert_eq!(count(&gateway, "keys in force 2, added 1, removed 0, changed 0"), 1, "{}", gateway.stderr());
    assert_eq!(count(&gateway, "keys in force 1, added 0, removed 1, changed 0"), 1, "{}", gateway.stderr());
    let scrape = gateway.scrape().await;
    assert_eq!(scrape.sum("ai_gateway_config_reloads_total", &[("result", "success")]), 2.0);
    assert_eq!(scrape.sum("ai_gateway_config_last_reload_successful", &[]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_key_may_go_and_nobody_may_call() {
    let llama = llama::scripted().start().await;
    let folder = Folder::new("keys-last");
    let file = folder.file("keys.yaml", "# none yet\n");
    let gateway = start(&llama, &file).await;
    eventually!(count(&gateway, "nobody may call until") == 1, "{}", gateway.stderr());
    assert_eq!(status(&gateway, "sk-alice").await, 401);
    let alice = add(&file, "alice");
    soon(&gateway, &alice, 200).await;
    assert_eq!(key(&file, &["revoke", "--name", "alice"]).status.code(), Some(0));
    soon(&gateway, &alice, 401).await;
    assert_eq!(gateway.send(get("/health")).await.status, 200);
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "# none yet\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_changes_nothing_and_says_where() {
    let llama = llama::scripted().start().await;
    let folder = Folder::new("keys-broken");
    let good = stanza("alice", "sk-alice");
    let file = folder.file("keys.yaml", &good);
    let gateway = start(&llama, &file).await;
    for (broken, fault) in [
        (format!("{good}{}  expire: 2027-01-01\n", stanza("bob", "sk-bob")), ":5:3: [1].expire: unknown key"),
        (format!("{good}{}", stanza("alice", "sk-bob")), ":3:9: [1].name: the key at "),
        (format!("{good}- name: bob\n  sha2"), ":5:1: this is not YAML"),
    ] {
        let refusals = count(&gateway, "is not taken");
        fs::write(&file, &broken).expect("the file is ours");
        eventually!(count(&gateway, fault) == 1, "{fault} in {}", gateway.stderr());
        eventually!(count(&gateway, "is not taken") == refusals + 1);
        assert_eq!((status(&gateway, "sk-alice").await, status(&gateway, "sk-bob").await), (200, 401));
    }
    let scrape = gateway.scrape().await;
    assert_eq!(scrape.sum("ai_gateway_config_reloads_total", &[("result", "failure")]), 3.0);
    assert_eq!(scrape.sum("ai_gateway_config_last_reload_successful", &[]), 0.0);
    fs::write(&file, good + &stanza("bob", "sk-bob")).expect("the file is ours");
    soon(&gateway, "sk-bob", 200).await;
    assert_eq!(gateway.scrape().await.sum("ai_gateway_config_last_reload_successful", &[]), 1.0);
    assert_eq!(count(&gateway, "is not taken"), 3, "each is said once");
}

/// As Kubernetes mounts a ConfigMap: the file is a link through a link, and the inner one is exchanged.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_points_elsewhere_is_noticed() {
    let llama = llama::scripted().start().await;
    let folder = Folder::new("keys-links");
    let root = folder.file("mark", "").with_file_name("");
    for (version, key) in [("v1", "sk-alice"), ("v2", "sk-bob")] {
        fs::create_dir(root.join(version)).expect("the folder is ours");
        fs::write(root.join(version).join("keys.yaml"), stanza("alice", key)).expect("the folder is ours");
    }
    symlink("v1", root.join("..data")).expect("the folder is ours");
    symlink("..data/keys.yaml", root.join("keys.yaml")).expect("the folder is ours");
    let gateway = start(&llama, &root.join("keys.yaml")).await;
    assert_eq!(status(&gateway, "sk-alice").await, 200);
    symlink("v2", root.join("..new")).expect("the folder is ours");
    fs::rename(root.join("..new"), root.join("..data")).expect("the folder is ours");
    soon(&gateway, "sk-bob", 200).await;
    assert_eq!(status(&gateway, "sk-alice").await, 401);
    assert_eq!(count(&gateway, "keys in force 1, added 0, removed 0, changed 1"), 1, "{}", gateway.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_leaves_its_keys_and_comes_back() {
    let llama = llama::scripted().start().await;
    let folder = Folder::new("keys-gone");
    let file = folder.file("keys.yaml", &stanza("alice", "sk-alice"));
    let gateway = start(&llama, &file).await;
    fs::remove_file(&file).expect("the file is ours");
    eventually!(count(&gateway, "the keys in force stay as they were") == 1, "{}", gateway.stderr());
    assert_eq!(count(&gateway, "keys.yaml: cannot be read: No such file"), 1, "{}", gateway.stderr());
    assert_eq!(status(&gateway, "sk-alice").await, 200);
    fs::write(&file, stanza("bob", "sk-bob")).expect("the folder is ours");
    soon(&gateway, "sk-bob", 200).await;
    assert_eq!(status(&gateway, "sk-alice").await, 401);
    assert_eq!(count(&gateway, "is not taken"), 1, "it is said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_knows_the_keys_of_the_main_file() {
    let llama = llama::scripted().start().await;
    let folder = Folder::new("keys-main");
    let file = folder.file("keys.yaml", &stanza("bob", "sk-bob"));
    let main = format!("{{name: alice, sha256: {}}}", sha256("sk-alice"));
    let auth = format!("auth: {{keys: [{main}], keys_file: {}}}", file.display());
    let gateway = gateway::before(&llama).yaml(&auth).start().await;
    fs::write(&file, stanza("alice", "sk-carol")).expect("the file is ours");
    let fault = "keys.yaml:1:9: [0].name: the key at auth.keys[0] of the main file is called `alice` too";
    eventually!(count(&gateway, fault) == 1, "{}", gateway.stderr());
    fs::write(&file, stanza("carol", "sk-carol")).expect("the file is ours");
    soon(&gateway, "sk-carol", 200).await;
    assert_eq!((status(&gateway, "sk-alice").await, status(&gateway, "sk-bob").await), (200, 401));

    let config = gateway.config();
    let with_config = |arguments: &[&str]| run(&[&["key"], arguments, &["--config", text(&config)]].concat());
    for name in ["alice", "carol"] {
        let output = with_config(&["add", "--name", name]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(&format!("`{name}` already")), "{}", said(&output));
    }
    let output = with_config(&["add", "--name", "dave", "--hash", &sha256("sk-alice")]);
    assert!(output.status.code() == Some(2) && said(&output).contains("`alice`'s"), "{}", said(&output));
    let output = with_config(&["revoke", "--name", "alice"]);
    assert!(output.status.code() == Some(2) && said(&output).contains("main file"), "{}", said(&output));
    let output = with_config(&["add", "--name", "dave", "--hash", &sha256("sk-dave")]);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", said(&output));
    soon(&gateway, "sk-dave", 200).await;
    let listed = said(&with_config(&["list"]));
    let names: Vec<&str> = listed.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["alice", "carol", "dave"]);
}

#[test]
fn two_who_add_at_once_both_do() {
    let folder = Folder::new("keys-at-once");
    let file = folder.file("keys.yaml", "# ours\n");
    let names: Vec<String> = (0..8).map(|number| format!("key{number}")).collect();
    let arguments = |name| ["key", "add", "--name", name, "--file", text(&file)];
    let children: Vec<_> =
        names.iter().map(|name| command(&arguments(name)).spawn().expect("the binary runs")).collect();
    for child in children {
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    }
    let listed = said(&key(&file, &["list"]));
    assert!(names.iter().all(|name| listed.contains(name.as_str())), "{listed}");
    let rest: Vec<PathBuf> = fs::read_dir(file.with_file_name(""))
        .expect("the folder is ours")
        .map(|entry| entry.expect("readable").path())
        .collect();
    assert_eq!(rest, [file], "nothing is left lying about");
}

#[test]
fn what_is_written_beside_keys_survives() {
    let folder = Folder::new("keys-comments");
    let before = format!("# ours\n\n# the first\n{}  # she left\n# end\n", stanza("alice", "sk-alice"));
    let real = folder.file("real.yaml", &before);
    fs::set_permissions(&real, Permissions::from_mode(0o640)).expect("the file is ours");
    let link = real.with_file_name("keys.yaml");
    symlink("real.yaml", &link).expect("the folder is ours");
    let more = ["--models", "qwen2.5-3b,llama-*", "--expires", "2999-01-01"];
    let output = key(&link, &[&["add", "--name", "bob", "--hash", &sha256("sk-bob")][..], &more].concat());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let bob = format!(
        "- name: \"bob\"\n  sha256: {}\n  models: [qwen2.5-3b, \"llama-*\"]\n  expires: 2999-01-01T00:00:00Z\n",
        sha256("sk-bob")
    );
    assert_eq!(fs::read_to_string(&real).expect("it is there"), format!("{before}{bob}"));
    assert_eq!(key(&link, &["revoke", "--name", "alice"]).status.code(), Some(0));
    assert_eq!(
        fs::read_to_string(&real).expect("it is there"),
        format!("# ours\n\n# the first\n# end\n{bob}")
    );
    assert!(link.is_symlink(), "the link stays");
    assert_eq!(fs::metadata(&real).expect("it is there").mode() & 0o777, 0o640);
    let row =
        format!("bob   {}  qwen2.5-3b, llama-*  2999-01-01T00:00:00Z  anywhere  -", &sha256("sk-bob")[..8]);
    assert!(said(&key(&link, &["list"])).ends_with(&format!("{row}\n")), "{}", said(&key(&link, &["list"])));
}

#[test]
fn a_wrong_command_changes_nothing() {
    let folder = Folder::new("keys-wrong");
    let flow = folder.file("flow.yaml", &format!("[{{name: alice, sha256: {}}}]\n", sha256("sk-alice")));
    let broken = folder.file("broken.yaml", "- name: alice\n");
    let main = folder.file("gateway.yaml", "upstreams: {local: \"${NO_SUCH}\"}\n");
    let [flow, broken, main] = [&flow, &broken, &main].map(|path| text(path));
    for (arguments, code, says) in [
        (vec!["add", "--name", "bob"], 2, "--file"),
        (vec!["add", "--name", "bob", "--file", flow, "--config", main], 2, "--file"),
        (vec!["add", "--name", "bob", "--file", flow], 2, "edit it by hand"),
        (vec!["revoke", "--name", "alice", "--file", flow], 2, "edit it by hand"),
        (vec!["revoke", "--name", "zoe", "--file", flow], 2, "has no key `zoe`"),
        (vec!["revoke", "--name", "zoe", "--file", "/nowhere/keys.yaml"], 2, "/nowhere/keys.yaml"),
        (vec!["list", "--file", "/nowhere/keys.yaml"], 2, "/nowhere/keys.yaml: cannot be read"),
        (vec!["add", "--name", "bob", "--file", "/nowhere/keys.yaml"], 1, "/nowhere/keys.yaml"),
        (vec!["add", "--name", "bob", "--file", broken], 2, "broken.yaml:1:3: [0].sha256: is missing"),
        (vec!["add", "--name", "", "--file", flow], 2, "--name: expected"),
        (vec!["add", "--name", "bob", "--file", flow, "--expires", "soon"], 2, "--expires: expected"),
        (vec!["add", "--name", "bob", "--file", flow, "--hash", "abc"], 2, "64 hexadecimal digits"),
        (vec!["add", "--name", "bob", "--config", main], 2, "names no keys file"),
    ] {
        let output = run(&[&["key"], &arguments[..]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(says), "{arguments:?}: {}", said(&output));
        assert!(output.stdout.is_empty(), "no key is shown that no file has: {}", said(&output));
    }
    assert!(fs::read_to_string(flow).expect("it is there").starts_with("[{name: alice"));
}
