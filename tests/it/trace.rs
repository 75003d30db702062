//! Traces: what a collector is told of a request, and that it costs a request nothing.

use serde_json::json;

use crate::support::address::Loopback;
use crate::support::client::post;
use crate::support::collector::{self, Collector, Span, collector};
use crate::support::expect::auth;
use crate::support::gateway::{self, Gateway, Plan, chat, chat_stream};
use crate::support::llama;
use crate::support::tls::Authority;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn traced(asked: crate::support::client::Request, flags: &str) -> crate::support::client::Request {
    asked.header("traceparent", &format!("00-{TRACE}-{CALLER}-{flags}")).header("tracestate", "vendor=a")
}

fn told(plan: Plan, url: &str) -> Plan {
    plan.yaml(&format!("telemetry: {{otlp: \"{url}\"}}"))
}

async fn sent(gateway: &Gateway, result: &str) -> f64 {
    gateway.scrape().await.sum("ai_gateway_trace_spans_total", &[("result", result)])
}

fn has(span: &Span, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(span.has(name), Some(*value), "{name} of {span:#?}");
    }
}

async fn tells(collector: &Collector, url: &str) {
    let llama = llama::scripted().streams(["a", "b", "c"]).start().await;
    let keys = auth(&[("alice", "sk-alice", "")]);
    let models = "models: {tiny: {upstream: local, as: real}}\n";
    let gateway = told(gateway::before(&llama), url).yaml(&(keys + models)).start().await;
    let asked = json!({"model": "tiny", "messages": [{"role": "user", "content": "a secret prompt"}]});
    let asked = post("/v1/chat/completions").json(&asked).key("sk-alice");
    let answer = gateway.send(traced(asked, "01")).await;
    assert_eq!(answer.status, 200);
    let spans = collector.trace(TRACE).await;
    let [request, attempt] = &spans[..] else { panic!("two spans: {spans:#?}") };
    assert_eq!(
        (request.name.as_str(), request.parent.as_str(), request.failed),
        ("chat real", CALLER, false)
    );
    let line = gateway.line_of(answer.request_id()).await;
    has(
        request,
        &[
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.request.model", "tiny"),
            ("gen_ai.response.model", "real"),
            ("gen_ai.request.stream", "false"),
            ("gen_ai.response.finish_reasons", "stop"),
            ("gen_ai.usage.input_tokens", &line.number("prompt_tokens").to_string()),
            ("gen_ai.usage.output_tokens", &line.number("completion_tokens").to_string()),
            ("gen_ai.usage.cache_read.input_tokens", &line.number("cached_prompt_tokens").to_string()),
            ("http.request.method", "POST"),
            ("http.route", "/v1/chat/completions"),
            ("http.response.status_code", "200"),
            ("ai_gateway.key", "alice"),
            ("ai_gateway.cache", "miss"),
            ("ai_gateway.request_id", answer.request_id()),
        ],
    );
    let (host, port) = (llama.address().ip().to_string(), llama.address().port().to_string());
    assert_eq!((attempt.name.as_str(), attempt.kind, &attempt.parent), ("chat real", 3, &request.id));
    has(
        attempt,
        &[
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.provider.name", "llama_cpp"),
            ("gen_ai.request.model", "real"),
            ("server.address", &host),
            ("server.port", &port),
            ("http.response.status_code", "200"),
            ("ai_gateway.upstream", "local"),
        ],
    );
    assert!(attempt.is_within(request), "{spans:#?}");
    assert_eq!(request.resource.get("service.name").map(String::as_str), Some("ai-gateway"));
    // The server goes on under the try, not under the caller.
    let arrived = llama.last();
    assert_eq!(arrived.header("traceparent"), Some(&*format!("00-{TRACE}-{}-01", attempt.id)));
    assert_eq!(arrived.header("tracestate"), Some("vendor=a"));
    assert_eq!(line.text("trace_id"), TRACE);
    for secret in ["secret prompt", "sk-alice"] {
        assert!(!collector.heard(secret), "{secret} was told");
    }
    eventually!(sent(&gateway, "sent").await == 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_span_and_its_try_another_over_grpc() {
    let collector = collector().await;
    tells(&collector, &collector.grpc()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_span_and_its_try_another_over_http() {
    let collector = collector().await;
    tells(&collector, &collector.http()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_may_ask_for_tls_and_a_key() {
    let authority = Authority::new();
    let collector = collector::start(|at| Some(authority.at(at.ip()))).await;
    let folder = gateway::Folder::new("collector");
    let ca = folder.file("ca.crt", &authority.pem());
    for (number, url) in [collector.grpc(), collector.http()].into_iter().enumerate() {
        let llama = llama::scripted().start().await;
        let yaml = format!(
            "telemetry: {{otlp: \"{url}\", ca: {}, headers: {{Authorization: Basic c2VjcmV0}}, service_name: edge}}",
            ca.display()
        );
        let gateway = gateway::before(&llama).yaml(&yaml).start().await;
        let answer = gateway.chat("hi").await;
        let id = gateway.line_of(answer.request_id()).await.text("trace_id").to_owned();
        let spans = collector.trace(&id).await;
        assert_eq!(spans[0].resource.get("service.name").map(String::as_str), Some("edge"));
        assert_eq!(spans[0].parent, "", "the trace begins here");
        assert_eq!(collector.header("authorization").len(), number + 1);
        assert!(!gateway.stderr().contains("c2VjcmV0"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_try_is_a_span() {
    let collector = collector().await;
    let nobody = Loopback::claim();
    let (good, dead) = (llama::scripted().start().await, nobody.port(8080));
    let plan = gateway::before_urls(&[&format!("http://{dead}"), &good.url()]).unprobed();
    let gateway = told(plan.upstream("balance: round_robin"), &collector.grpc()).start().await;
    // One of the first two comes to the dead server first.
    for number in 0..2 {
        assert_eq!(gateway.chat(&format!("request {number}")).await.status, 200);
    }
    let of_requests = || collector.spans().into_iter().filter(|span| span.kind == 2).count();
    eventually!(of_requests() >= 2);
    let spans = collector.spans();
    let failed: Vec<_> = spans.iter().filter(|span| span.has("error.type").is_some()).collect();
    let [failed] = &failed[..] else { panic!("one failed: {spans:#?}") };
    has(failed, &[("error.type", "connect"), ("server.address", &dead.ip().to_string())]);
    let again = spans.iter().find(|span| span.parent == failed.parent && span.id != failed.id);
    let again = again.unwrap_or_else(|| panic!("another try of the same request: {spans:#?}"));
    has(again, &[("http.request.resend_count", "1"), ("http.response.status_code", "200")]);
    assert!(failed.failed && !again.failed && failed.ended <= again.began, "{spans:#?}");
    assert!(
        good.last().header("traceparent").is_some_and(|it| spans.iter().any(|span| it.contains(&span.id)))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_in_the_queue_is_a_span() {
    let collector = collector().await;
    let llama = llama::scripted().slots(1).holds().start().await;
    let gateway = told(gateway::before(&llama).upstream("retries: 2"), &collector.grpc()).start().await;
    let first = gateway.caller().await.ask(chat("first")).await;
    eventually!(llama.requests() == 1);
    let second = gateway.caller().await.ask(traced(chat_stream("second"), "01")).await;
    let queued = async || gateway.scrape().await.sum("ai_gateway_queue_requests", &[]);
    eventually!(queued().await == 1.0);
    llama.release_all();
    for caller in [first, second] {
        assert_eq!(caller.answering("POST").await.finish().await.0.status, 200);
    }
    let spans = collector.trace(TRACE).await;
    let [request, wait, attempt] = &spans[..] else { panic!("three spans: {spans:#?}") };
    assert_eq!((wait.name.as_str(), wait.kind, &wait.parent), ("queue", 1, &request.id));
    has(wait, &[("ai_gateway.upstream", "local")]);
    assert!(
        wait.is_within(request) && attempt.is_within(request) && wait.ended <= attempt.began,
        "{spans:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_wrong_is_told_and_a_hit_counts_no_tokens() {
    let collector = collector().await;
    let llama = llama::scripted().streams(["one", "two", "three"]).start().await;
    let gateway = told(gateway::before(&llama), &collector.http()).start().await;
    let mut ids = Vec::new();
    for asked in [chat("hi"), chat("hi"), post("/v1/nothing"), chat_stream("broken")] {
        if ids.len() == 3 {
            llama.becomes(llama::scripted().streams(["one", "two", "three"]).dies_after(2));
        }
        let answer = gateway.send(asked).await;
        ids.push(gateway.line_of(answer.request_id()).await.text("trace_id").to_owned());
    }
    let miss = collector.trace(&ids[0]).await;
    assert!(miss[0].has("gen_ai.usage.output_tokens").is_some() && miss.len() == 2, "{miss:#?}");
    let hit = collector.trace(&ids[1]).await;
    has(&hit[0], &[("ai_gateway.cache", "hit"), ("http.response.status_code", "200")]);
    assert!(hit[0].has("gen_ai.usage.output_tokens").is_none() && hit.len() == 1, "{hit:#?}");
    let lost = collector.trace(&ids[2]).await;
    assert_eq!((lost[0].name.as_str(), lost[0].failed), ("POST", false));
    has(&lost[0], &[("error.type", "not_found"), ("http.response.status_code", "404")]);
    let broken = collector.trace(&ids[3]).await;
    has(&broken[0], &[("error.type", "upstream_error"), ("ai_gateway.complete", "false")]);
    has(&broken[1], &[("error.type", "broken")]);
    assert!(broken.iter().all(|span| span.failed), "{broken:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caller_decides_and_else_the_share() {
    let collector = collector().await;
    let llama = llama::scripted().start().await;
    let yaml = format!("telemetry: {{otlp: \"{}\", sample: 0}}", collector.grpc());
    let gateway = gateway::before(&llama).yaml(&yaml).start().await;
    for number in 0..20 {
        assert_eq!(gateway.chat(&format!("request {number}")).await.status, 200);
    }
    let unsampled = llama.last().header("traceparent").expect("the trace goes on").to_owned();
    assert!(unsampled.ends_with("-00"), "{unsampled}");
    gateway.send(traced(chat("not this"), "00")).await;
    gateway.send(traced(chat("this"), "01")).await;
    assert_eq!(collector.trace(TRACE).await.len(), 2);
    assert_eq!(collector.spans().len(), 2, "{:#?}", collector.spans());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_spans_and_no_request() {
    let llama = llama::scripted().start().await;
    let nobody = Loopback::claim();
    let gateway = told(gateway::before(&llama), &format!("http://{}", nobody.port(4317))).start().await;
    for number in 0..50 {
        assert_eq!(gateway.chat(&format!("request {number}")).await.status, 200);
    }
    eventually!(sent(&gateway, "failed").await == 100.0, "{}", gateway.stderr());
    assert_eq!(gateway.stderr().matches("traces do not reach").count(), 1, "{}", gateway.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_sent_before_the_process_ends() {
    let collector = collector().await;
    let llama = llama::scripted().start().await;
    let gateway = told(gateway::before(&llama), &collector.grpc()).start().await;
    gateway.send(traced(chat("last words"), "01")).await;
    gateway.signal("TERM");
    assert_eq!(collector.trace(TRACE).await.len(), 2);
    eventually!(gateway.exited().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_begins_and_ends_traces() {
    let collector = collector().await;
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    gateway.send(traced(chat("untold"), "01")).await;
    assert_eq!(llama.last().header("traceparent"), Some(&*format!("00-{TRACE}-{CALLER}-01")), "as it came");
    let file = std::fs::read_to_string(gateway.config()).expect("the file");
    let change = |text: &str| std::fs::write(gateway.config(), text).expect("it is written");
    change(&format!("{file}\ntelemetry: {{otlp: \"{}\"}}\n", collector.grpc()));
    eventually!(gateway.stderr().contains("is taken"));
    gateway.send(traced(chat("told"), "01")).await;
    change(&file);
    eventually!(gateway.stderr().matches("is taken").count() == 2);
    gateway.send(traced(chat("untold again"), "01")).await;
    assert_eq!(collector.trace(TRACE).await.len(), 2);
    assert_eq!(collector.spans().len(), 2);
}
