//! The file, read again: taken whole or not at all, and nobody who is under way notices.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use crate::support::address::Loopback;
use crate::support::client::{get, post};
use crate::support::expect::{auth, refused, sha256};
use crate::support::gateway::{self, Folder, Gateway, HEALTH, chat, chat_stream};
use crate::support::llama::{Llama, scripted};

fn count(gateway: &Gateway, what: &str) -> usize {
    gateway.stderr().matches(what).count()
}

/// One upstream of these servers.
fn upstream(servers: &[&Llama], more: &str) -> String {
    let servers: Vec<String> = servers.iter().map(|llama| format!("{{url: {}}}", llama.url())).collect();
    format!("upstreams: {{local: {{servers: [{}], {HEALTH}{more}}}}}\n", servers.join(", "))
}

/// A gateway, and the lines of its file that no play changes.
async fn started(sections: &str) -> (Gateway, String) {
    let plan = gateway::before_urls(&[]).yaml(sections.trim_end());
    let listeners = plan.file().replace(sections, "");
    (plan.start().await, listeners)
}

/// Writes the file anew and waits until it is in force.
async fn taken(gateway: &Gateway, file: &str) {
    let before = count(gateway, "gateway.yaml is taken");
    fs::write(gateway.config(), file).expect("the folder is ours");
    eventually!(count(gateway, "gateway.yaml is taken") > before, "{}", gateway.stderr());
}

/// How many reloads were taken and refused, and whether the last one was taken.
async fn reloads(gateway: &Gateway) -> (f64, f64, f64) {
    let scrape = gateway.scrape().await;
    let count = |result| scrape.sum("ai_gateway_config_reloads_total", &[("result", result)]);
    let last = scrape.sum("ai_gateway_config_last_reload_successful", &[]);
    (count("success"), count("failure"), last)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_taken_when_it_is_written_and_the_same_file_when_it_is_asked_for() {
    let llama = scripted().start().await;
    let (gateway, rest) = started(&upstream(&[&llama], "")).await;
    refused(&gateway.send(post("/v1/chat/completions").body("x".repeat(2000))).await, 400, "invalid_json");
    let file = rest + &upstream(&[&llama], "") + "body: {max: 1KiB}\nanswer_headers: [model]\n";
    taken(&gateway, &file).await;
    refused(&gateway.send(post("/v1/chat/completions").body("x".repeat(2000))).await, 413, "body_too_large");
    assert_eq!(gateway.chat("hi").await.header("x-ai-gateway-model"), Some("tiny"));
    assert_eq!(reloads(&gateway).await, (1.0, 0.0, 1.0));
    gateway.signal("HUP");
    eventually!(count(&gateway, "gateway.yaml is taken") == 2, "{}", gateway.stderr());
    assert_eq!(reloads(&gateway).await, (2.0, 0.0, 1.0));
    assert_eq!(gateway.chat("hi").await.cache(), "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_a_file_lives_through_the_signal() {
    let llama = scripted().start().await;
    let gateway = gateway::bare(&llama.url()).start().await;
    gateway.signal("HUP");
    eventually!(count(&gateway, "the gateway runs without a file") == 1);
    assert_eq!(gateway.chat("hi").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_changes_nothing_and_says_where() {
    let llama = scripted().start().await;
    let (gateway, rest) = started(&(upstream(&[&llama], "") + "body: {max: 1KiB}\n")).await;
    let good = rest + &upstream(&[&llama], "");
    let gone = "No such file or directory";
    for (number, (broken, faults)) in [
        (
            Some(good.clone() + "body: {max: 9MiB, idel: 1s}\ncache: {ttl: soon}\n"),
            vec![":4:19: body.idel: unknown key", ":5:14: cache.ttl: expected"],
        ),
        (
            Some(good.clone() + "models: {tiny: {upstream: nowhere}}\n"),
            vec!["models.tiny.upstream: expected an upstream"],
        ),
        (Some(good.replace("}\n", "")), vec!["this is not YAML"]),
        (Some(String::new()), vec!["the file is empty"]),
        (None, vec![gone]),
    ]
    .into_iter()
    .enumerate()
    {
        match &broken {
            Some(text) => fs::write(gateway.config(), text).expect("the folder is ours"),
            None => fs::remove_file(gateway.config()).expect("the folder is ours"),
        }
        eventually!(count(&gateway, "is not taken") == number + 1, "{broken:?} in {}", gateway.stderr());
        for fault in faults {
            assert_eq!(count(&gateway, fault), 1, "{fault} in {}", gateway.stderr());
        }
        let large = post("/v1/chat/completions").body("x".repeat(2000));
        refused(&gateway.send(large).await, 413, "body_too_large");
    }
    assert_eq!(reloads(&gateway).await, (0.0, 5.0, 0.0));
    gateway.signal("HUP");
    eventually!(count(&gateway, gone) == 2, "asked for again, it is said again");
    taken(&gateway, &good).await;
    refused(&gateway.send(post("/v1/chat/completions").body("x".repeat(2000))).await, 400, "invalid_json");
    assert_eq!(reloads(&gateway).await, (1.0, 6.0, 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_as_it_began_while_others_run_under_the_new_file() {
    let (old, new) = (scripted().streams(["one", "two"]).holds().start().await, scripted().start().await);
    let models = "models: {tiny: {upstream: local, as: first}}\nanswer_headers: [model]\n";
    let (gateway, rest) = started(&(upstream(&[&old], "") + models)).await;
    let mut stream = gateway.caller().await.begin(chat_stream("hi")).await;
    old.release();
    assert!(stream.event().await.is_some());
    let models = "models: {tiny: {upstream: local, as: second}}\nanswer_headers: [model]\n";
    taken(&gateway, &(rest + &upstream(&[&new], "") + models)).await;
    let answer = gateway.chat("other").await;
    assert_eq!((answer.status, answer.header("x-ai-gateway-model")), (200, Some("second")));
    assert_eq!((old.requests(), new.requests()), (1, 1));
    let finished =
        format!("server `{}`, which was taken out of the file, has finished what it had", old.address());
    assert_eq!(count(&gateway, &finished), 0);
    old.release_all();
    let (answer, _) = stream.finish().await;
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    assert_eq!(answer.header("x-ai-gateway-model"), Some("first"));
    assert_eq!(gateway.line_of(answer.request_id()).await.text("model"), "first");
    eventually!(count(&gateway, &finished) == 1, "{}", gateway.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_of_a_limit_stays_used() {
    let llama = scripted().start().await;
    let limits = |gateway: &str, key: &str, model: &str| {
        let keys = auth(&[("alice", "sk-alice", ""), ("bob", "sk-bob", "")]);
        let models = "models:\n  other: {upstream: local}\n";
        let tiny = "  tiny: {upstream: local}\n";
        let (one, two) = if model == "1000/h" {
            (models, tiny)
        } else {
            ("models:\n", "  tiny: {upstream: local}\n  other: {upstream: local}\n")
        };
        let limits = format!(
            "limits: {{gateway: {{requests: {gateway}}}, key: {{requests: {key}}}, model: {{requests: {model}}}, key_model: {{requests: {model}}}}}\n"
        );
        keys + one + two + &limits
    };
    let (gateway, rest) = started(&(upstream(&[&llama], "") + &limits("100/h", "10/h", "20/h"))).await;
    let left = async |key| {
        let answer = gateway.send(chat("hi").key(key)).await;
        (answer.status, answer.header("x-ratelimit-remaining-requests").unwrap_or_default().to_owned())
    };
    for number in 1..=4 {
        assert_eq!(left("sk-alice").await, (200, (10 - number).to_string()));
    }
    let file = |limits: String| rest.clone() + &upstream(&[&llama], "") + &limits;
    // The key's bucket is the tightest, of whatever shape; the model's is another's place in the file by now.
    taken(&gateway, &file(limits("100/h", "6/h", "1000/h"))).await;
    assert_eq!(left("sk-alice").await, (200, "1".to_owned()), "5 of 6");
    assert_eq!(left("sk-bob").await, (200, "5".to_owned()), "1 of 6");
    taken(&gateway, &file(limits("7/h", "6/h", "1000/h"))).await;
    assert_eq!(left("sk-bob").await, (200, "0".to_owned()), "7 of the gateway's 7");
    assert_eq!(left("sk-bob").await.0, 429);
    taken(&gateway, &file(limits("100/h", "100/h", "8/h"))).await;
    assert_eq!(left("sk-bob").await, (200, "0".to_owned()), "8 of the model's 8");
    assert_eq!(left("sk-alice").await.0, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_among_those_at_once_is_held_across_files() {
    let llama = scripted().holds().start().await;
    let limits = |most| upstream(&[&llama], "") + &format!("limits: {{gateway: {{concurrent: {most}}}}}\n");
    let (gateway, rest) = started(&limits(2)).await;
    let held = gateway.caller().await.ask(chat("1")).await;
    eventually!(llama.requests() == 1);
    taken(&gateway, &(rest + &limits(1))).await;
    refused(&gateway.chat("2").await, 429, "concurrency_limit");
    llama.release_all();
    assert_eq!(held.answering("POST").await.finish().await.0.status, 200);
    assert_eq!(gateway.chat("2").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_still_answers_by_the_rules_of_the_new_file() {
    let (one, two) = (scripted().start().await, scripted().start().await);
    let (gateway, rest) = started(&(upstream(&[&one], "") + "cache: {ttl: 1h}\n")).await;
    let ask = async || gateway.chat("hi").await.cache().to_owned();
    assert_eq!((ask().await, ask().await), ("miss".to_owned(), "hit".to_owned()));
    let file = |servers: &[&Llama], cache: &str| {
        rest.clone() + &upstream(servers, "") + &format!("cache: {cache}\n")
    };
    // Another server of the same model, another size: nothing is lost.
    taken(&gateway, &file(&[&one, &two], "{ttl: 2h, size: 1MiB}")).await;
    assert_eq!((ask().await.as_str(), &gateway.stats().await["cache_capacity"]), ("hit", &json!(1 << 20)));
    taken(&gateway, &file(&[&one, &two], "{ttl: 1ms}")).await;
    assert_eq!((ask().await.as_str(), &gateway.stats().await["hits"]), ("miss", &json!(2)));
    taken(&gateway, &file(&[&one], "{size: 0B}")).await;
    assert_eq!((ask().await.as_str(), &gateway.stats().await["cache_capacity"]), ("bypass", &json!(0)));
    taken(&gateway, &file(&[&one], "{scope: gateway}")).await;
    assert_eq!((ask().await, ask().await), ("miss".to_owned(), "hit".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_an_answer_follows_it_across_files() {
    let llama = scripted().streams(["one", "two"]).holds().start().await;
    let (gateway, rest) = started(&upstream(&[&llama], "")).await;
    let leader = gateway.caller().await.begin(chat_stream("hi")).await;
    taken(&gateway, &(rest + &upstream(&[&llama], "") + "body: {max: 1MiB}\n")).await;
    let follower = gateway.caller().await.begin(chat_stream("hi")).await;
    llama.release_all();
    let (one, two) = (leader.finish().await.0, follower.finish().await.0);
    assert_eq!((one.cache(), two.cache(), llama.requests()), ("miss", "shared", 1));
    assert_eq!(one.text(), two.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_added_is_asked_at_once_and_one_that_is_taken_out_no_more() {
    let (one, two) = (scripted().start().await, scripted().slots(3).start().await);
    let (gateway, rest) = started(&upstream(&[&one], ", balance: round_robin")).await;
    let servers = async || {
        let stats = gateway.admin(get("/stats")).await.json();
        let servers = stats["servers"].as_array().expect("a list").clone();
        servers
            .iter()
            .map(|it| (it["server"].as_str().unwrap_or_default().to_owned(), it["up"] == true))
            .collect::<Vec<_>>()
    };
    taken(&gateway, &(rest.clone() + &upstream(&[&one, &two], ", balance: round_robin"))).await;
    let names = [&one, &two].map(|llama| llama.address().to_string());
    assert_eq!(servers().await, names.clone().map(|name| (name, true)), "it is known before it is in force");
    for number in 0..4 {
        assert_eq!(gateway.chat(&number.to_string()).await.status, 200);
    }
    assert_eq!((one.requests(), two.requests()), (2, 2));
    taken(&gateway, &(rest + &upstream(&[&two], ", balance: round_robin"))).await;
    assert_eq!(servers().await, [(names[1].clone(), true)]);
    let gone = one.probes().len();
    let asked = two.probes().len();
    eventually!(two.probes().len() > asked + 5);
    // One may have been on its way.
    assert!(one.probes().len() <= gone + 1, "{} after {gone}", one.probes().len());
    let scrape = gateway.scrape().await;
    assert!(!scrape.has("ai_gateway_server_up", &[("server", &names[0])]));
    assert_eq!(scrape.sum("ai_gateway_server_slots", &[("server", &names[1]), ("state", "idle")]), 3.0);
    assert!(
        count(&gateway, "servers in force 2, added 1, removed 0; models 0; keys 0") == 1,
        "{}",
        gateway.stderr()
    );
    assert!(
        count(&gateway, "servers in force 1, added 0, removed 1; models 0; keys 0") == 1,
        "{}",
        gateway.stderr()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_a_server_stays_known() {
    let (one, two) = (scripted().slots(1).holds().start().await, scripted().slots(1).start().await);
    let more = |slots: u32, every: &str| {
        let health = format!("health: {{every: {every}, timeout: 2s, down_after: 2, up_after: 1}}");
        let servers = format!("[{{url: {}, slots: {slots}}}, {{url: {}}}]", one.url(), two.url());
        format!("upstreams: {{local: {{servers: {servers}, {health}}}}}\n")
    };
    let (gateway, rest) = started(&more(1, "50ms")).await;
    assert_eq!(gateway.admin(post(&format!("/servers/{}/drain", two.address()))).await.status, 200);
    let held = gateway.caller().await.ask(chat("1")).await;
    eventually!(one.requests() == 1);
    // It is described anew, and still has one request and one slot for another.
    taken(&gateway, &(rest.clone() + &more(2, "60ms"))).await;
    let second = gateway.caller().await.ask(chat("2")).await;
    eventually!(one.requests() == 2);
    let third = gateway.caller().await.ask(chat("3")).await;
    eventually!(gateway.stats().await["queue"] == 1);
    assert_eq!((one.requests(), two.requests()), (2, 0), "the other is drained");
    let stats = gateway.admin(get("/stats")).await.json();
    assert_eq!(
        (&stats["servers"][0]["in_flight"], &stats["servers"][1]["draining"]),
        (&json!(2), &json!(true))
    );
    one.release_all();
    for caller in [held, second, third] {
        assert_eq!(caller.answering("POST").await.finish().await.0.status, 200);
    }
    assert_eq!(gateway.admin(get("/stats")).await.json()["servers"][0]["in_flight"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_down_is_down_under_the_new_file() {
    let (one, two) = (scripted().start().await, scripted().dies_at_once().start().await);
    let name = two.address();
    let upstream = |health: &str, retries: u32| {
        let servers = format!("[{{url: {}}}, {{url: {}}}]", one.url(), two.url());
        let health = format!("health: {{every: {health}, down_after: 1}}");
        format!(
            "upstreams: {{local: {{servers: {servers}, balance: round_robin, {health}, retries: {retries}}}}}\n"
        )
    };
    let (gateway, rest) = started(&upstream("1h", 2)).await;
    for number in 0..4 {
        assert_eq!(gateway.chat(&number.to_string()).await.status, 200);
    }
    let down = format!("server `{name}` of upstream `local` is down");
    eventually!(count(&gateway, &down) == 1, "{}", gateway.stderr());
    taken(&gateway, &(rest + &upstream("2h", 0))).await;
    let stats = gateway.admin(get("/stats")).await.json();
    let breakers = [0, 1].map(|at| &stats["servers"][at]["breaker"]);
    assert!(*breakers[0] == "closed" && *breakers[1] != "closed", "{breakers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_goes_to_a_server_of_the_new_file() {
    let (old, new) = (scripted().slots(1).holds().start().await, scripted().slots(1).start().await);
    let (gateway, rest) = started(&upstream(&[&old], "")).await;
    let first = gateway.caller().await.ask(chat("1")).await;
    eventually!(old.requests() == 1);
    let second = gateway.caller().await.ask(chat("2")).await;
    let leaver = gateway.caller().await.ask(chat("3")).await;
    eventually!(gateway.stats().await["queue"] == 2);
    // First under another setting alone: they wait on, and one who leaves is gone.
    taken(&gateway, &(rest.clone() + &upstream(&[&old], ", queue: {waiting: 9}"))).await;
    assert_eq!((&gateway.stats().await["queue"], old.requests()), (&json!(2), 1));
    leaver.leaves();
    let waiting = async || gateway.admin(get("/stats")).await.json()["servers"][0]["waiting"].clone();
    eventually!(waiting().await == 1);
    taken(&gateway, &(rest + &upstream(&[&new], ""))).await;
    let (answer, _) = second.answering("POST").await.finish().await;
    assert_eq!((answer.status, old.requests(), new.requests()), (200, 1, 1));
    old.release_all();
    assert_eq!(first.answering("POST").await.finish().await.0.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_at_an_upstream_that_is_gone_is_served_all_the_same() {
    let (old, new) = (scripted().slots(1).holds().start().await, scripted().start().await);
    let (gateway, rest) = started(&upstream(&[&old], "")).await;
    let first = gateway.caller().await.ask(chat("1")).await;
    eventually!(old.requests() == 1);
    let second = gateway.caller().await.ask(chat("2")).await;
    eventually!(gateway.stats().await["queue"] == 1);
    taken(&gateway, &(rest + &upstream(&[&new], "").replace("local", "other"))).await;
    assert_eq!((gateway.chat("3").await.status, new.requests()), (200, 1));
    old.release_all();
    for caller in [first, second] {
        assert_eq!(caller.answering("POST").await.finish().await.0.status, 200);
    }
    assert_eq!((old.requests(), new.requests()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_that_fails_goes_on_to_a_server_of_the_new_file() {
    let (old, new) = (scripted().holds().start().await, scripted().start().await);
    let (gateway, rest) = started(&upstream(&[&old], "")).await;
    let caller = gateway.caller().await.ask(chat("1")).await;
    eventually!(old.requests() == 1);
    taken(&gateway, &(rest + &upstream(&[&new], ""))).await;
    old.dies().await;
    let (answer, _) = caller.answering("POST").await.finish().await;
    assert_eq!((answer.status, new.requests()), (200, 1), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_those_of_the_new_file() {
    let llama = scripted().start().await;
    let folder = Folder::new("reload-keys");
    let stanza = |name: &str, key: &str| format!("- name: {name}\n  sha256: {}\n", sha256(key));
    let keys_file = folder.file("keys.yaml", &stanza("carol", "sk-carol"));
    let (gateway, rest) = started(&(upstream(&[&llama], "") + &auth(&[("alice", "sk-alice", "")]))).await;
    let status = async |key| gateway.send(chat("hi").key(key)).await.status;
    assert_eq!((status("sk-alice").await, status("sk-bob").await), (200, 401));
    let keys = auth(&[("bob", "sk-bob", "")]) + &format!("  keys_file: {}\n", keys_file.display());
    taken(&gateway, &(rest.clone() + &upstream(&[&llama], "") + &keys)).await;
    let all = ["sk-alice", "sk-bob", "sk-carol", "sk-dave"];
    let statuses = async || {
        let mut statuses = Vec::new();
        for key in all {
            statuses.push(status(key).await);
        }
        statuses
    };
    assert_eq!(statuses().await, [401, 200, 200, 401]);
    // The file that the new one names is looked at from now on.
    fs::write(&keys_file, stanza("dave", "sk-dave")).expect("the folder is ours");
    eventually!(statuses().await == [401, 200, 401, 200], "{}", gateway.stderr());
    taken(&gateway, &(rest + &upstream(&[&llama], ""))).await;
    assert_eq!((status("sk-nobody").await, count(&gateway, "no key is asked for any more")), (200, 1));
}

/// As Kubernetes mounts a ConfigMap: the file is a link through a link, and the inner one is exchanged.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_points_elsewhere_is_noticed() {
    let llama = scripted().start().await;
    let (gateway, rest) = started(&upstream(&[&llama], "")).await;
    let folder = gateway.folder();
    let write = |version: &str, text: &str| {
        fs::create_dir(folder.join(version)).expect("the folder is ours");
        fs::write(folder.join(version).join("gateway.yaml"), text).expect("the folder is ours");
    };
    let point = |target: &str, link: &Path| {
        let new = folder.join("new-link");
        symlink(target, &new).and_then(|()| fs::rename(&new, link)).expect("the folder is ours");
    };
    write("v1", &(rest.clone() + &upstream(&[&llama], "")));
    write("v2", &(rest + &upstream(&[&llama], "") + "body: {max: 1KiB}\n"));
    point("v1", &folder.join("..data"));
    point("..data/gateway.yaml", &gateway.config());
    point("v2", &folder.join("..data"));
    let large = || post("/v1/chat/completions").body("x".repeat(2000));
    eventually!(gateway.send(large()).await.status == 413, "{}", gateway.stderr());
    assert_eq!(reloads(&gateway).await, (1.0, 0.0, 1.0), "the same text through a link is no change");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_says_so_and_the_rest_is_taken() {
    let (llama, elsewhere) = (scripted().start().await, Loopback::claim());
    let (gateway, rest) = started(&(upstream(&[&llama], "") + "server: {threads: 2}\n")).await;
    let moved = rest.replace(&gateway.address().to_string(), &elsewhere.port(9001).to_string());
    assert_ne!(moved, rest);
    let file = moved
        + &upstream(&[&llama], "")
        + "server: {threads: 1, pre_stop: 1s}\nlog: {access: none}\nbody: {max: 1KiB}\n";
    taken(&gateway, &file).await;
    for key in ["listen", "server.threads", "log.access"] {
        let warning = format!("`{key}` has changed and stays as it was: it needs a restart");
        assert_eq!(count(&gateway, &warning), 1, "{}", gateway.stderr());
    }
    assert_eq!(count(&gateway, "needs a restart"), 3, "{}", gateway.stderr());
    let large = gateway.send(post("/v1/chat/completions").body("x".repeat(2000))).await;
    assert_eq!(large.status, 413);
    gateway.line_of(large.request_id()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_as_loud_as_the_new_file_says() {
    let llama = scripted().start().await;
    let (gateway, rest) = started(&(upstream(&[&llama], "") + "log: {level: warn}\n")).await;
    assert_eq!(count(&gateway, "serving on"), 0);
    let taken_by =
        |level: &str| rest.clone() + &upstream(&[&llama], "") + &format!("log: {{level: {level}}}\n");
    fs::write(gateway.config(), taken_by("info")).expect("the folder is ours");
    eventually!(count(&gateway, "gateway.yaml is taken") == 1, "{}", gateway.stderr());
    fs::write(gateway.config(), taken_by("off")).expect("the folder is ours");
    eventually!(reloads(&gateway).await.0 == 2.0);
    fs::write(gateway.config(), "nonsense: 1").expect("the folder is ours");
    eventually!(reloads(&gateway).await.1 == 1.0);
    assert_eq!(count(&gateway, "is not taken"), 0);
}

/// Files change all the while, and nobody who asks notices.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_files_change() {
    let servers = [scripted().slots(2).start().await, scripted().slots(2).start().await];
    let file = |turn: usize| {
        let which: &[&Llama] = match turn % 3 {
            0 => &[&servers[0]],
            1 => &[&servers[1]],
            _ => &[&servers[0], &servers[1]],
        };
        upstream(which, &format!(", queue: {{waiting: 100, wait: {}s}}", 20 + turn)) + "cache: {size: 0B}\n"
    };
    let (gateway, rest) = started(&file(0)).await;
    let address = gateway.address();
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ask = |number: usize| {
        let done = std::sync::Arc::clone(&done);
        async move {
            let mut caller = crate::support::client::connect(address).await;
            let mut statuses = Vec::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                statuses.push(caller.send(chat(&format!("{number} {}", statuses.len()))).await.status);
            }
            statuses
        }
    };
    let callers: Vec<_> = (0..6).map(|number| tokio::spawn(ask(number))).collect();
    for turn in 1..7 {
        taken(&gateway, &(rest.clone() + &file(turn))).await;
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for caller in callers {
        let statuses = caller.await.expect("a caller does not panic");
        assert!(statuses.len() > 5 && statuses.iter().all(|status| *status == 200), "{statuses:?}");
    }
}
