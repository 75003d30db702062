//! What happened: one line for each request, and counters that add up.

use serde_json::json;

use crate::support::client::{get, post};
use crate::support::expect::auth;
use crate::support::gateway::{self, chat, chat_stream};
use crate::support::llama;

const FIELDS: [&str; 31] = [
    "ts",
    "request_id",
    "trace_id",
    "key",
    "user",
    "method",
    "path",
    "model_requested",
    "model",
    "upstream",
    "server",
    "attempts",
    "status",
    "upstream_status",
    "error_code",
    "limit",
    "cache",
    "stream",
    "complete",
    "finish_reason",
    "queue_ms",
    "ttft_ms",
    "prefill_ms",
    "generation_ms",
    "duration_ms",
    "prompt_tokens",
    "completion_tokens",
    "cached_prompt_tokens",
    "bytes_in",
    "bytes_out",
    "client_ip",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_line_tells_the_whole_story() {
    let llama = llama::scripted().start().await;
    let models = "models: {tiny: {upstream: local, as: real}}\n";
    let keys = auth(&[("alice", "sk-alice", "")]);
    let gateway = gateway::before(&llama).yaml(&(keys + models)).start().await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let traced = |asked: crate::support::client::Request| {
        asked.key("sk-alice").header("traceparent", &format!("00-{trace}-b7ad6b7169203331-01"))
    };
    for (asked, stream) in [(chat("plain"), false), (chat_stream("stream"), true)] {
        let answer = gateway.send(traced(asked)).await;
        let line = gateway.line_of(answer.request_id()).await;
        for field in FIELDS {
            assert!(line.fields.get(field).is_some(), "{field} is missing in {line:?}");
        }
        let expected = json!({"trace_id": trace, "key": "alice", "method": "POST", "path": "/v1/chat/completions",
            "model_requested": "tiny", "model": "real", "upstream": "local", "attempts": 1, "status": 200,
            "upstream_status": 200, "error_code": null, "limit": null, "cache": "miss", "stream": stream,
            "complete": true, "finish_reason": "stop", "bytes_out": answer.body.len()});
        for (field, value) in expected.as_object().expect("an object") {
            assert_eq!(&line.fields[field], value, "{field} in {line:?}");
        }
        assert!(line.text("client_ip").starts_with("127."), "{line:?}");
        assert!(line.number("bytes_in") > 50 && line.fields["duration_ms"].is_number(), "{line:?}");
        assert!(line.text("ts").parse::<jiff::Timestamp>().is_ok(), "{line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_as_the_server_counts_them() {
    let llama = llama::scripted().streams(["a", "b", "c"]).start().await;
    let gateway = gateway::before(&llama).start().await;
    let usage = json!({"include_usage": true});
    let with_usage =
        json!({"stream": true, "stream_options": usage, "messages": [{"role": "user", "content": "x"}]});
    let asked = [chat("hi"), post("/v1/chat/completions").json(&with_usage)];
    for (number, asked) in asked.into_iter().enumerate() {
        let answer = gateway.send(asked).await;
        let line = gateway.line_of(answer.request_id()).await;
        let counted =
            ["prompt_tokens", "completion_tokens", "cached_prompt_tokens"].map(|it| line.number(it));
        assert_eq!(counted, [8, 3, 2], "request {number}: {line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_line_for_each_request_whatever_came_of_it() {
    let llama = llama::scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {requests: 1/h, burst: 2}")]);
    let gateway = gateway::before(&llama).yaml(&keys).start().await;
    let asked = [
        (chat("hi").key("sk-alice"), 200, "", "miss"),
        (chat("hi").key("sk-alice"), 200, "", "hit"),
        (chat("hi").key("sk-alice"), 429, "rate_limit_exceeded", ""),
        (chat("hi").key("sk-wrong"), 401, "invalid_api_key", ""),
        (get("/nope"), 404, "not_found", ""),
        (get("/completion"), 405, "method_not_allowed", ""),
    ];
    for (asked, status, code, cache) in asked {
        let answer = gateway.send(asked).await;
        let line = gateway.line_of(answer.request_id()).await;
        assert_eq!((line.number("status"), line.text("error_code")), (status, code), "{line:?}");
        assert!(cache.is_empty() || line.text("cache") == cache, "{line:?}");
        let same = gateway.lines().iter().filter(|it| it.text("request_id") == answer.request_id()).count();
        assert_eq!(same, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_left_is_a_499() {
    let llama = llama::scripted().holds().start().await;
    let gateway = gateway::before(&llama).start().await;
    let stream = gateway.caller().await.begin(chat_stream("hi").header("x-request-id", "leaver")).await;
    stream.leaves();
    let line = gateway.line_of("leaver").await;
    assert_eq!((line.number("status"), &line.fields["complete"]), (499, &json!(false)), "{line:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_no_prompt_and_no_answer_is_ever_written() {
    let llama = llama::scripted().streams(["the-", "answer"]).api_key("sk-of-the-server").start().await;
    let server = format!("{{url: {}, api_key: sk-of-the-server}}", llama.url());
    let upstreams = format!("upstreams: {{local: {{servers: [{server}]}}}}\nlog: {{level: trace}}\n");
    let keys = auth(&[("alice", "sk-of-alice", "")]);
    let gateway = gateway::before(&llama).yaml(&(keys + &upstreams)).start().await;
    for asked in [chat("the-prompt"), chat("the-prompt"), chat_stream("the-prompt")] {
        assert_eq!(gateway.send(asked.key("sk-of-alice")).await.status, 200);
    }
    let refused = gateway.send(chat("the-prompt").key("sk-mistyped")).await;
    gateway.line_of(refused.request_id()).await;
    let written = gateway.stdout() + &gateway.stderr();
    for secret in ["sk-of-alice", "sk-of-the-server", "sk-mistyped", "the-prompt", "the-answer", "the-"] {
        assert!(!written.contains(secret), "{secret} in {written}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_goes_where_the_file_says() {
    let llama = llama::scripted().start().await;
    let silent = gateway::before(&llama).yaml("log: {access: none}").start().await;
    assert_eq!(silent.chat("hi").await.status, 200);
    let plan = gateway::before(&llama).yaml("log: {access: access.log}");
    let gateway = plan.start().await;
    assert_eq!(gateway.send(chat("hi").header("x-request-id", "in-a-file")).await.status, 200);
    let file = gateway.folder().join("access.log");
    eventually!(
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains("in-a-file")),
        "{}",
        gateway.stderr()
    );
    assert_eq!((silent.stdout(), gateway.stdout()), (String::new(), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_is_there_from_the_start() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let scrape = gateway.scrape().await;
    let families = [
        "requests_total",
        "request_duration_seconds",
        "time_to_first_token_seconds",
        "time_per_output_token_seconds",
        "queue_duration_seconds",
        "queue_requests",
        "requests_in_flight",
        "tokens_total",
        "cached_tokens_total",
        "cache_hits_total",
        "cache_misses_total",
        "cache_shared_total",
        "cache_stored_total",
        "cache_evicted_total",
        "cache_bytes",
        "limit_refusals_total",
        "retries_total",
        "client_disconnects_total",
        "server_up",
        "server_slots",
        "config_reloads_total",
        "config_last_reload_successful",
        "build_info",
    ];
    for family in families {
        assert!(scrape.has_family(&format!("ai_gateway_{family}")), "ai_gateway_{family} is not there");
    }
    assert!(
        scrape.has("ai_gateway_cache_hits_total", &[]) && scrape.has("ai_gateway_requests_in_flight", &[])
    );
    assert!(scrape.has("ai_gateway_limit_refusals_total", &[]), "known labels are there at 0");
    assert!(scrape.has("ai_gateway_server_up", &[("upstream", "local")]));
    assert_eq!(scrape.sum("ai_gateway_config_last_reload_successful", &[]), 1.0);
    assert_eq!(scrape.sum("ai_gateway_build_info", &[]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_counters_add_up() {
    let llama = llama::scripted().start().await;
    let limits = "limits: {gateway: {requests: 1/h, burst: 4}}\n";
    let models = "models: {tiny: {upstream: local}}\n";
    let gateway = gateway::before(&llama).yaml(&format!("{limits}{models}")).start().await;
    for text in ["one", "two", "one", "two", "refused"] {
        gateway.chat(text).await;
    }
    let scrape = gateway.scrape().await;
    let requests = |labels: &[(&str, &str)]| scrape.sum("ai_gateway_requests_total", labels);
    assert_eq!(
        requests(&[("model", "tiny"), ("status", "200"), ("upstream", "local"), ("cache", "miss")]),
        2.0
    );
    assert_eq!(requests(&[("status", "200"), ("cache", "hit")]), 2.0);
    assert_eq!(requests(&[("status", "429")]), 1.0);
    assert_eq!(scrape.sum("ai_gateway_request_duration_seconds_count", &[("cache", "hit")]), 2.0);
    assert_eq!(scrape.sum("ai_gateway_tokens_total", &[("type", "input")]), 16.0);
    assert_eq!(scrape.sum("ai_gateway_tokens_total", &[("type", "output")]), 4.0);
    // A request ends with its connection's last byte, a moment after its answer is whole.
    eventually!(gateway.scrape().await.sum("ai_gateway_requests_in_flight", &[]) == 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_are_those_in_flight() {
    let llama = llama::scripted().holds().start().await;
    let gateway = gateway::before(&llama).start().await;
    let stream = gateway.caller().await.begin(chat_stream("hi")).await;
    assert_eq!(gateway.scrape().await.sum("ai_gateway_requests_in_flight", &[]), 1.0);
    llama.release_all();
    assert!(stream.finish().await.0.whole);
    eventually!(gateway.scrape().await.sum("ai_gateway_requests_in_flight", &[]) == 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_callers_invent_are_not_labels() {
    let llama = llama::scripted().start().await;
    let models = "models: {\"*\": {upstream: local}}";
    let gateway = gateway::before(&llama).yaml(models).start().await;
    for number in 0..50 {
        let body = json!({"model": format!("invented-{number}"), "prompt": "a"});
        assert_eq!(gateway.send(post("/v1/completions").json(&body)).await.status, 200);
    }
    let text = gateway.admin(get("/metrics")).await.text();
    let invented = (0..50).filter(|number| text.contains(&format!("\"invented-{number}\""))).count();
    assert!(invented < 50, "labels are bounded");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_listener_answers() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    for path in ["/live", "/ready", "/stats"] {
        assert_eq!(gateway.admin(get(path)).await.status, 200, "{path}");
    }
    let metrics = gateway.admin(get("/metrics")).await;
    assert!(metrics.header("content-type").is_some_and(|it| it.starts_with("text/plain")), "{metrics:?}");
    assert_eq!(gateway.admin(get("/nope")).await.status, 404);
    let stats = gateway.admin(get("/stats")).await.text();
    assert!(stats.contains(&llama.address().to_string()), "per server: {stats}");
    assert!(
        !gateway.stats().await.to_string().contains(&llama.address().to_string()),
        "callers see totals only"
    );
}

/// `scripts/test` fetches it and names it.
fn promtool() -> Option<std::path::PathBuf> {
    let own = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/prometheus/usr/bin/promtool");
    let named = std::env::var_os("PROMTOOL").map(Into::into);
    let found = || Some(own).filter(|own| own.exists());
    named.or_else(found).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join("promtool")).find(|it| it.exists())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_finds_nothing_to_complain_of() {
    let Some(promtool) = promtool() else {
        println!("NOT RUN: there is no promtool (Debian's package prometheus); scripts/test fetches it");
        return;
    };
    let llama = llama::scripted().start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {requests: 1/h, burst: 6}"), ("b\\\"ob", "sk-bob", "")]);
    let models = "models: {tiny: {upstream: local}, \"*\": {upstream: local}}\n";
    let gateway = gateway::before(&llama).yaml(&(keys + models)).start().await;
    for asked in [chat("one"), chat("one"), chat_stream("two"), chat_stream("three"), chat("four")] {
        assert_eq!(gateway.send(asked.clone().key("sk-alice")).await.status, 200);
        assert_eq!(gateway.send(asked.key("sk-bob")).await.status, 200);
    }
    for _ in 0..3 {
        gateway.send(chat("refused").key("sk-alice")).await;
    }
    gateway.send(get("/nope").key("sk-wrong")).await;
    let page = gateway.admin(get("/metrics")).await;
    let mut check = std::process::Command::new(promtool);
    check.args(["check", "metrics"]).stdin(std::process::Stdio::piped());
    check.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut check = check.spawn().expect("promtool runs");
    let mut input = check.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut input, &page.body).expect("it reads");
    drop(input);
    let output = check.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}{}", page.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tokens_of_a_plain_answer_are_not_made_in_no_time() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    assert_eq!(gateway.chat("hi").await.status, 200);
    let scrape = gateway.scrape().await;
    let per_token = |part: &str| scrape.sum(&format!("ai_gateway_time_per_output_token_seconds_{part}"), &[]);
    // Nothing is told, or what the server says.
    assert!(per_token("count") == 0.0 || per_token("sum") / per_token("count") > 0.0001, "{scrape:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_caller_that_leaves_is_counted_once() {
    let llama = llama::scripted().holds().start().await;
    let gateway = gateway::before(&llama).start().await;
    let left = async || gateway.scrape().await.sum("ai_gateway_client_disconnects_total", &[]);
    let following = async || gateway.scrape().await.sum("ai_gateway_flight_followers", &[]);
    let mut all = Vec::new();
    for number in 0..3 {
        all.push(gateway.caller().await.begin(chat_stream("hi")).await);
        eventually!(following().await == f64::from(number));
    }
    // A follower, then who asked first, whose answer goes on; then the last.
    all.remove(1).leaves();
    eventually!(left().await == 1.0);
    all.remove(0).leaves();
    eventually!(following().await == 1.0);
    all.remove(0).leaves();
    eventually!(gateway.scrape().await.sum("ai_gateway_requests_total", &[("status", "499")]) == 3.0);
    assert_eq!(left().await, 3.0);
}
