//! Servers of every kind: by TLS, behind a name, of another kind than llama-server, in two upstreams at once.

use serde_json::json;

use crate::support::client::{self, get, post};
use crate::support::expect::{auth, refused};
use crate::support::gateway::{self, Gateway, HEALTH, Plan, UNPROBED, chat, chat_stream};
use crate::support::llama::{Llama, Script, scripted};

const CA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/ca.pem");

/// Before one upstream, as the file has it between its braces.
fn before(llama: &Llama, upstream: &str) -> Plan {
    gateway::before(llama).yaml(&format!("upstreams: {{local: {{{upstream}}}}}"))
}

async fn up(gateway: &Gateway) -> f64 {
    gateway.scrape().await.sum("ai_gateway_server_up", &[])
}

/// How often its log says this.
fn said(gateway: &Gateway, what: &str) -> usize {
    gateway.stderr().matches(what).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_reached_by_tls_and_verified_by_a_bundle_or_by_the_systems_roots() {
    let llama = scripted().tls().slots(3).start().await;
    let by_bundle = format!("servers: [{{url: \"https://llama.invalid:8080\", ca: {CA}}}], {HEALTH}");
    let by_roots = format!("servers: [{{url: \"https://llama.invalid:8080\"}}], {HEALTH}");
    let tokens = "limits: {key: {tokens: 1000/min}}\n".to_owned() + &auth(&[("alice", "sk-alice", "")]);
    for upstream in [by_bundle, by_roots] {
        let plan = before(&llama, &upstream).hosts(&llama.is_called("llama.invalid")).yaml(&tokens);
        let gateway = plan.env("SSL_CERT_FILE", CA).start().await;
        eventually!(up(&gateway).await == 1.0, "{}", gateway.stderr());
        eventually!(gateway.scrape().await.sum("ai_gateway_server_slots", &[]) == 3.0);
        let counted = llama.counted();
        for asked in [chat("plain"), chat_stream("streamed")] {
            let answer = gateway.send(asked.key("sk-alice")).await;
            assert_eq!(answer.status, 200, "{answer:?} {}", gateway.stderr());
        }
        assert_eq!(llama.counted(), counted + 2, "tokens are counted by TLS too");
        assert_eq!(llama.last().header("host"), Some("llama.invalid:8080"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_finds_the_roots_that_its_file_names_where_it_was_started() {
    let llama = scripted().tls().start().await;
    let folder = gateway::Folder::new("roots of a daemon");
    let hosts = folder.file("hosts", &llama.is_called("llama.invalid"));
    let gateway = before(&llama, "servers: [{url: \"https://llama.invalid:8080\"}], health: {every: 1h}")
        .yaml("server: {pid_file: gateway.pid, daemon: true, error_log: daemon.log, ca_file: roots.pem}")
        .env("GATEWAY_HOSTS_FILE", hosts.to_str().expect("temporary paths are UTF-8"))
        .env("ROOTS", CA)
        .after("cp $ROOTS roots.pem")
        .spawn();
    assert_eq!(gateway.exit().await.code(), Some(0), "{}", gateway.stderr());
    eventually!(gateway.serving().is_some() && client::try_connect(gateway.address()).await.is_some());
    let answer = gateway.chat("hi").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    gateway.signal("TERM");
    eventually!(gateway.serving().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_nobody_vouches_for_is_a_502_and_one_try() {
    let llama = scripted().tls().start().await;
    let ca = format!("ca: {CA}");
    // Another authority, another name.
    for (host, ca, why) in
        [("llama.invalid", "", "UnknownIssuer"), ("other.invalid", &*ca, "not valid for name")]
    {
        let upstream = |health| format!("servers: [{{url: \"https://{host}:8080\", {ca}}}], {health}");
        let roots = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/server.pem");
        let plan = |health| {
            let plan = before(&llama, &upstream(health)).hosts(&llama.is_called(host));
            plan.env("SSL_CERT_FILE", roots)
        };
        let gateway = plan("health: {every: 1h}").start().await;
        let mut caller = gateway.caller().await;
        for number in 1..3 {
            let answer = caller.send(chat("hi")).await;
            refused(&answer, 502, "upstream_error");
            assert!(answer.text().contains("certificate"), "{answer:?}");
            let line = gateway.line_of(answer.request_id()).await;
            assert_eq!(line.number("attempts"), 1, "request {number}");
        }
        assert_eq!(llama.requests(), 0);
        assert_eq!(said(&gateway, "cannot be reached by TLS"), 1, "{}", gateway.stderr());
        assert!(gateway.stderr().contains(why), "{why}: {}", gateway.stderr());

        let probed = plan(HEALTH).start().await;
        eventually!(said(&probed, "is down: ") == 1 && probed.stderr().contains(why), "{}", probed.stderr());
        refused(&probed.chat("hi").await, 503, "no_upstream");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_server_is_not_trusted_the_next_is_asked() {
    let (evil, llama) = (scripted().tls().start().await, scripted().start().await);
    let upstream = format!(
        "servers: [{{url: \"https://other.invalid:8080\", ca: {CA}}}, {{url: \"{}\"}}], {UNPROBED}, balance: round_robin",
        llama.url()
    );
    let gateway = before(&evil, &upstream).hosts(&evil.is_called("other.invalid")).start().await;
    for number in 0..4 {
        assert_eq!(gateway.chat(&number.to_string()).await.status, 200);
    }
    assert_eq!((evil.requests(), llama.requests()), (0, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_roots_the_gateway_says_what_is_missing() {
    let llama = scripted().tls().start().await;
    let plan = before(&llama, "servers: [{url: \"https://llama.invalid\"}]");
    let gateway = plan.env("SSL_CERT_FILE", "/nowhere.pem").spawn();
    assert_eq!(gateway.exit().await.code(), Some(1));
    eventually!(gateway.stderr().contains("name a bundle as its `ca`"), "{}", gateway.stderr());
    // One that needs none reads none.
    let plain = scripted().start().await;
    let gateway = gateway::before(&plain).env("SSL_CERT_FILE", "/nowhere.pem").start().await;
    assert_eq!(gateway.chat("hi").await.status, 200);
}

fn compatible(script: Script) -> Script {
    script.base("/openai/v1").model("cloud-1").api_key("sk-cloud").does_not_count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compatible_server_is_asked_under_its_base_with_its_own_key_and_for_nothing_of_llamas() {
    let llama = compatible(scripted()).start().await;
    let upstream = format!(
        "servers: [{{url: \"{}/openai/v1\", api_key: sk-cloud}}], kind: openai, health: {{every: 50ms}}",
        llama.url()
    );
    let more = "limits: {key: {tokens: 10000/min}}\n".to_owned() + &auth(&[("alice", "sk-alice", "")]);
    let gateway = before(&llama, &upstream).yaml(&more).start().await;
    assert_eq!(gateway.send(get("/health")).await.status, 200, "it is taken as up");
    let listed = async || gateway.send(get("/v1/models").key("sk-alice")).await.text();
    eventually!(listed().await.contains("cloud-1"));
    let ask = |path: &str, stream: bool| {
        let text = format!("{path} {stream}");
        let body =
            json!({"model": "cloud-1", "stream": stream, "messages": [text], "prompt": text, "input": text});
        post(path).key("sk-alice").json(&body)
    };
    for (path, arrives) in [
        ("/v1/chat/completions", "/openai/v1/chat/completions"),
        ("/chat/completions", "/openai/v1/chat/completions"),
        ("/v1/completions", "/openai/v1/completions"),
        ("/v1/embeddings", "/openai/v1/embeddings"),
        ("/v1/messages", "/openai/v1/messages"),
    ] {
        for stream in [false, true] {
            let asked = gateway.send(ask(path, stream)).await;
            assert_eq!(asked.status, 200, "{path} {asked:?}");
            let last = llama.last();
            assert_eq!((last.path(), last.header("authorization")), (arrives, Some("Bearer sk-cloud")));
            // Tokens are limited here, and these streams do not tell what they cost unasked.
            let counted = stream && path.ends_with("completions");
            assert_eq!(last.text().contains("include_usage"), counted, "{path}: {}", last.text());
        }
    }
    for path in ["/completion", "/infill", "/tokenize", "/detokenize", "/apply-template", "/embedding"] {
        let asked = gateway.send(ask(path, false)).await;
        refused(&asked, 404, "not_found");
        assert!(asked.text().contains("llama.cpp's own"), "{asked:?}");
    }
    assert_eq!(llama.requests(), 10, "none of them got there");
    refused(&gateway.send(get("/slots")).await, 404, "not_found");
    let asked: Vec<_> = llama.probes().iter().map(|probe| probe.path().to_owned()).collect();
    assert!(asked.iter().all(|path| path == "/openai/v1/models"), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compatible_server_has_no_slots_unless_the_file_says_so() {
    let llama = compatible(scripted()).slots(1).holds().start().await;
    for (slots, arrive) in [("", 4), (", slots: 2", 2)] {
        let upstream = format!(
            "servers: [{{url: \"{}/openai/v1\", api_key: sk-cloud{slots}}}], kind: openai, {UNPROBED}",
            llama.url()
        );
        let gateway = before(&llama, &upstream).start().await;
        let (before, mut callers) = (llama.requests(), Vec::new());
        for number in 0..4 {
            callers.push(gateway.caller().await.ask(chat(&format!("{slots}{number}"))).await);
        }
        eventually!(llama.requests() == before + arrive);
        let queued = async || gateway.scrape().await.sum("ai_gateway_queue_requests", &[]);
        eventually!(queued().await == (4 - arrive) as f64);
        assert_eq!(llama.requests(), before + arrive);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compatible_servers_health_is_what_requests_meet_or_what_the_file_names() {
    // Every GET is a 503, and nobody asks where nothing is named.
    let (one, two) = (compatible(scripted().unhealthy()).start().await, compatible(scripted()).start().await);
    let servers = format!(
        "servers: [{{url: \"{}/openai/v1\", api_key: sk-cloud}}, {{url: \"{}/openai/v1\", api_key: sk-cloud}}]",
        one.url(),
        two.url()
    );
    let health = "every: 50ms, timeout: 2s, down_after: 2";
    let plan = |health: &str| {
        before(&one, &format!("{servers}, kind: openai, balance: round_robin, health: {{{health}}}"))
    };
    let gateway = plan(health).start().await;
    for number in 0..4 {
        assert_eq!(gateway.chat(&number.to_string()).await.status, 200);
    }
    assert_eq!((one.requests(), two.requests(), up(&gateway).await), (2, 2, 2.0));
    one.dies().await;
    for number in 10..18 {
        assert_eq!(gateway.chat(&number.to_string()).await.status, 200);
    }
    assert_eq!(up(&gateway).await, 1.0, "two requests met that it was away");
    one.becomes(compatible(scripted()));
    one.comes_back().await;
    eventually!(up(&gateway).await == 2.0, "then it is asked for its models, until it answers");

    one.becomes(compatible(scripted().unhealthy()));
    let gateway = plan(&format!("path: /openai/v1/models, {health}")).start().await;
    eventually!(up(&gateway).await == 1.0 && said(&gateway, "is down: it says it is not ready") == 1);
    one.becomes(compatible(scripted()));
    eventually!(up(&gateway).await == 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_address_of_a_name_is_tried() {
    let (one, two) = (scripted().start().await, scripted().start().await);
    let both = one.is_called("gpu.invalid") + &two.is_called("gpu.invalid");
    let upstream = format!("servers: [{{url: \"http://gpu.invalid:8080\"}}], retries: 0, {UNPROBED}");
    let gateway = before(&one, &upstream).hosts(&both).start().await;
    let looked = |llama: &Llama| llama.probes().iter().any(|probe| probe.path() == "/v1/models");
    eventually!(looked(&one) || looked(&two));
    // The one in use is gone, and nobody looks: the request finds the other, in its one try.
    let (gone, left) = if looked(&one) { (&one, &two) } else { (&two, &one) };
    gone.dies().await;
    for number in 0..4 {
        let answer = gateway.chat(&number.to_string()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(gateway.line_of(answer.request_id()).await.number("attempts"), 1);
    }
    assert_eq!((left.requests(), said(&gateway, "is down")), (4, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_moves_is_followed() {
    let (old, new) = (scripted().start().await, scripted().start().await);
    let upstream = format!("servers: [{{url: \"http://gpu.invalid:8080\"}}], {HEALTH}");
    let gateway = before(&old, &upstream).hosts(&old.is_called("gpu.invalid")).start().await;
    assert_eq!((gateway.chat("one").await.status, old.requests()), (200, 1));
    gateway.hosts(&new.is_called("gpu.invalid"));
    old.dies().await;
    eventually!(gateway.chat("two").await.status == 200, "{}", gateway.stderr());
    assert_eq!(new.requests(), 1);
    eventually!(said(&gateway, "has other addresses") == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_is_a_server_that_is_down_until_it_does() {
    for (kind, health) in [("llama", HEALTH), ("openai", "health: {every: 50ms}")] {
        let llama = scripted().start().await;
        let upstream = format!("servers: [{{url: \"http://gpu.invalid:8080\"}}], kind: {kind}, {health}");
        let gateway = before(&llama, &upstream).hosts("").start().await;
        let down = "is down: its name `gpu.invalid` does not resolve";
        eventually!(said(&gateway, down) == 1, "{}", gateway.stderr());
        refused(&gateway.chat("hi").await, 503, "no_upstream");
        assert_eq!(gateway.send(get("/health")).await.status, 503);
        gateway.hosts(&llama.is_called("gpu.invalid"));
        eventually!(up(&gateway).await == 1.0, "{}", gateway.stderr());
        assert_eq!(gateway.chat("hi").await.status, 200);
        assert_eq!((said(&gateway, down), said(&gateway, "resolves again")), (1, 1));
        // One that has been found is not lost with the resolver.
        gateway.hosts("");
        assert_eq!((gateway.chat("there").await.status, up(&gateway).await), (200, 1.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_two_upstreams_is_one_server() {
    let llama = scripted().slots(1).holds().start().await;
    let upstream =
        |name: &str| format!("  {name}: {{servers: [{{url: {}, name: gpu}}], {UNPROBED}}}\n", llama.url());
    let yaml = format!(
        "upstreams:\n{}{}models: {{one: {{upstream: one}}, two: {{upstream: two}}}}\n",
        upstream("one"),
        upstream("two")
    );
    let gateway = gateway::before(&llama).yaml(&yaml).start().await;
    eventually!(llama.probes().iter().any(|probe| probe.path() == "/v1/models"));
    let health = llama.probes().iter().filter(|probe| probe.path() == "/health").count();
    assert_eq!(health, 1, "one server, one probe");
    let ask =
        |model: &str, prompt: &str| post("/v1/completions").json(&json!({"model": model, "prompt": prompt}));
    let first = gateway.caller().await.ask(ask("one", "a")).await;
    eventually!(llama.requests() == 1);
    let second = gateway.caller().await.ask(ask("two", "a")).await;
    let queued = async || gateway.scrape().await.sum("ai_gateway_queue_requests", &[]);
    eventually!(queued().await == 1.0);
    assert_eq!(llama.requests(), 1, "its one slot is taken, by the other upstream");
    llama.release();
    assert_eq!(first.answering("POST").await.finish().await.0.status, 200);
    eventually!(llama.requests() == 2, "who waits in the other upstream is told of the free slot");
    llama.release();
    assert_eq!(second.answering("POST").await.finish().await.0.status, 200);
    let drained = gateway.admin(post("/servers/gpu/drain")).await.json();
    assert_eq!((&drained["in_flight"], gateway.send(ask("one", "b")).await.status), (&json!(0), 503));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_tell_its_slots_is_unbounded_and_the_log_says_so_once() {
    for (script, why) in [
        (scripted().props(404), "serves no `/props`"),
        (scripted().props(403), "serves no `/props`"),
        (scripted().props(501), "serves no `/props`"),
        (scripted().says_of_itself("<html>"), "serves no `/props` that is JSON"),
        (scripted().says_of_itself("[4]"), "`/props` does not say"),
        (scripted().says_of_itself("{\"total_slots\": -1}"), "`/props` does not say"),
        (scripted().says_of_itself("{\"total_slots\": 99999999999}"), "`/props` does not say"),
        (scripted().slots(0), "`/props` says 0"),
    ] {
        let llama = script.holds().start().await;
        let gateway = gateway::before(&llama).start().await;
        eventually!(said(&gateway, why) == 1, "{why}: {}", gateway.stderr());
        let mut callers = Vec::new();
        for number in 0..5 {
            callers.push(gateway.caller().await.ask(chat(&number.to_string())).await);
        }
        eventually!(llama.requests() == 5);
        // It is asked again after a fault, and nothing more is said.
        llama.dies().await;
        eventually!(up(&gateway).await == 0.0);
        let asked = llama.probes().len();
        llama.comes_back().await;
        eventually!(llama.probes()[asked..].iter().filter(|probe| probe.path() == "/props").count() == 1);
        eventually!(up(&gateway).await == 1.0);
        assert_eq!(said(&gateway, "unknown number of slots"), 1, "{why}: {}", gateway.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_counted_where_they_are_listed_if_nothing_else_tells_them() {
    for script in [scripted().props(501), scripted().slots(0), scripted().says_of_itself("{}")] {
        let llama = script.lists_slots(3).holds().start().await;
        let gateway = gateway::before(&llama).start().await;
        eventually!(gateway.scrape().await.sum("ai_gateway_server_slots", &[]) == 3.0);
        let mut callers = Vec::new();
        for number in 0..5 {
            callers.push(gateway.caller().await.ask(chat(&number.to_string())).await);
        }
        eventually!(gateway.scrape().await.sum("ai_gateway_queue_requests", &[]) == 2.0);
        eventually!(llama.requests() == 3);
        assert_eq!(said(&gateway, "unknown number of slots"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_servers_down_then_up() {
    let (one, two) = (scripted().start().await, scripted().start().await);
    let gateway = gateway::before_urls(&[&one.url(), &two.url()]).start().await;
    eventually!(up(&gateway).await == 2.0);
    one.dies().await;
    two.dies().await;
    eventually!(up(&gateway).await == 0.0);
    refused(&gateway.chat("away").await, 503, "no_upstream");
    refused(&gateway.send(chat_stream("away")).await, 503, "no_upstream");
    assert_eq!(gateway.send(get("/health")).await.status, 503);
    two.comes_back().await;
    eventually!(up(&gateway).await == 1.0);
    assert_eq!((gateway.chat("back").await.status, two.requests()), (200, 1));
    one.comes_back().await;
    eventually!(up(&gateway).await == 2.0);
    assert_eq!(gateway.send(get("/health")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_leaves_the_servers_in_the_right_state() {
    for script in [scripted().garbage(), scripted().half_header(), scripted().dies_at_once()] {
        let (bad, good) = (script.start().await, scripted().start().await);
        let plan = gateway::before_urls(&[&bad.url(), &good.url()]);
        let gateway = plan.upstream("balance: round_robin, health: {every: 1h, down_after: 2}").start().await;
        for number in 0..6 {
            assert_eq!(gateway.chat(&number.to_string()).await.status, 200, "the other answers");
        }
        assert_eq!((up(&gateway).await, bad.requests()), (1.0, 2), "it is out after two faults");
        assert_eq!(said(&gateway, "is down: it "), 1, "{}", gateway.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_wrong_reaches_no_other_request() {
    let llama = scripted().more_than_its_length().start().await;
    let gateway = gateway::before(&llama).unprobed().start().await;
    let mut caller = gateway.caller().await;
    for number in 0..4 {
        let answer = caller.send(chat(&number.to_string())).await;
        assert_eq!((answer.status, answer.whole), (200, true));
        assert_eq!(answer.json()["choices"][0]["message"]["content"], "Hello", "what follows is nobody's");
    }
    llama.becomes(scripted().wrong_length());
    let cut = caller.send(chat("short")).await;
    assert!(!cut.whole || cut.status == 502, "{cut:?}");
    llama.becomes(scripted());
    // Until the server has been asked again nothing is kept or looked for.
    let whole = gateway.chat("short").await;
    assert_eq!((whole.status, whole.whole, up(&gateway).await), (200, true, 1.0));
    assert_ne!(whole.cache(), "hit", "nothing of it is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_the_body_of_a_200_passes_and_is_not_kept() {
    let body = r#"{"error":{"code":500,"message":"out of memory","type":"server_error"}}"#;
    let llama = scripted().answers(body).start().await;
    let gateway = gateway::before(&llama).start().await;
    eventually!(llama.probes().iter().any(|probe| probe.path() == "/v1/models"));
    for _ in 0..2 {
        let answer = gateway.chat("hi").await;
        assert_eq!((answer.status, answer.text(), answer.cache()), (200, body.to_owned(), "miss"));
    }
    assert_eq!((llama.requests(), up(&gateway).await), (2, 1.0));
}
