//! What was once wrong and must stay right: a play for each finding, named by what must hold.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::stream::protocols;
use crate::support::client::{self, Answer, Request, get, post};
use crate::support::expect::{auth, refused};
use crate::support::gateway::{self, Gateway, chat, chat_stream};
use crate::support::llama::{self, Llama, Script};

/// Lets time pass where time is what the play is about.
async fn passes(time: Duration) {
    let until = Instant::now() + time;
    eventually!(Instant::now() >= until);
}

fn content(answer: &Answer) -> String {
    answer.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
}

/// The server goes and comes back as another, and the gateway has seen both.
async fn restarts(llama: &Llama, gateway: &Gateway, script: Script) {
    llama.becomes(llama::scripted().unhealthy());
    eventually!(gateway.scrape().await.sum("ai_gateway_server_up", &[]) == 0.0);
    llama.becomes(script);
    eventually!(gateway.scrape().await.sum("ai_gateway_server_up", &[]) == 1.0);
}

async fn is_complete(gateway: &Gateway, answer: &Answer) -> bool {
    gateway.line_of(answer.request_id()).await.fields["complete"] == json!(true)
}

async fn stored(gateway: &Gateway) -> f64 {
    gateway.scrape().await.sum("ai_gateway_cache_stored_total", &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_openai_server_that_was_down_comes_back_by_itself() {
    let llama = llama::scripted().start().await;
    llama.dies().await;
    let other = llama::scripted().start().await;
    let health = "kind: openai, balance: round_robin, health: {every: 50ms, timeout: 2s, down_after: 1}";
    let gateway = gateway::before_urls(&[&llama.url(), &other.url()]).upstream(health).start().await;
    assert_eq!((gateway.chat("one").await.status, gateway.chat("two").await.status), (200, 200));
    let up = async || {
        let scrape = gateway.scrape().await;
        scrape.sum("ai_gateway_server_up", &[("server", llama.url().trim_start_matches("http://"))])
    };
    eventually!(up().await == 0.0, "it is taken out");
    llama.comes_back().await;
    eventually!(up().await == 1.0, "it is back");
    eventually!(
        gateway.send(chat("hi").header("cache-control", "no-store")).await.status == 200
            && llama.requests() > 0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_reads_slowly_gets_its_stream_whole() {
    let word = "x".repeat(512 << 10);
    let llama = llama::scripted().streams([word.as_str(); 48]).start().await;
    let gateway = gateway::before(&llama).upstream("timeouts: {between_bytes: 300ms}").start().await;
    let mut stream = gateway.caller().await.begin(chat_stream("hi")).await;
    for _ in 0..3 {
        passes(Duration::from_millis(600)).await;
        assert!(stream.event().await.is_some_and(|event| !event.contains("\"error\"")));
    }
    let (answer, _) = stream.finish().await;
    assert!(answer.whole && answer.body.len() > 48 * word.len(), "{} bytes", answer.body.len());
    assert!(answer.body.ends_with(b"data: [DONE]\n\n"));
    assert!(is_complete(&gateway, &answer).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_differ_in_any_of_their_lines_share_no_entry() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let asked = post("/v1/messages").json(&json!({"messages": [{"role": "user", "content": "hi"}]}));
    let with =
        |betas: &[&str]| betas.iter().fold(asked.clone(), |asked, beta| asked.header("anthropic-beta", beta));
    let lines: [&[&str]; 5] = [&["a", "b"], &["a", "c"], &["a"], &["b"], &[]];
    for cache in ["miss", "hit"] {
        for betas in lines {
            assert_eq!(gateway.send(with(betas)).await.cache(), cache, "{betas:?}");
        }
    }
    assert_eq!(llama.requests(), lines.len());
}

/// A server dies of a request, over a connection that was pooled or is new; another model answers the second try.
async fn another_model_answers(pooled: bool) {
    let known = if pooled { llama::scripted() } else { llama::scripted().header("connection", "close") };
    let llama = known.start().await;
    let gateway = gateway::before(&llama).upstream("health: {every: 50ms, down_after: 9}").start().await;
    eventually!(gateway.chat("known").await.cache() == "hit");
    let seen = llama.requests();
    llama.becomes(llama::scripted().slow_start().half_header());
    let caller = gateway.caller().await.ask(chat("hi")).await;
    eventually!(llama.requests() > seen);
    llama.becomes(llama::scripted().model("other").streams(["Other"]));
    llama.release();
    let answer = caller.answering("POST").await.finish().await.0;
    assert_eq!(content(&answer), "Other", "{answer:?}");
    restarts(&llama, &gateway, llama::scripted()).await;
    eventually!(gateway.chat("known").await.cache() == "hit", "the first model is back");
    let answer = gateway.chat("hi").await;
    assert_eq!((answer.cache(), content(&answer).as_str()), ("miss", "Hello"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_another_model_is_not_kept_as_one_of_the_model_asked() {
    another_model_answers(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_is_it_where_the_first_try_went_over_a_pooled_connection() {
    another_model_answers(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_from_props_is_no_report() {
    for status in [500, 502, 503] {
        let llama = llama::scripted().props(status).start().await;
        let gateway = gateway::before(&llama).start().await;
        let asked = || llama.probes().iter().filter(|probe| probe.path() == "/props").count();
        eventually!(asked() > 1, "it asks until it is told");
        assert_eq!(content(&gateway.chat("hi").await), "Hello");
        restarts(&llama, &gateway, llama::scripted().props(status).streams(["Other"])).await;
        for _ in 0..5 {
            assert_eq!(content(&gateway.chat("hi").await), "Other", "{status}");
        }
        // Once it does report, its answers are kept.
        llama.becomes(llama::scripted());
        eventually!(gateway.chat("hi").await.cache() == "hit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_beyond_all_bounds_break_no_answer() {
    let timings = "\"timings\":{\"prompt_n\":18446744073709551615,\"cache_n\":1}";
    let usage = "\"usage\":{\"input_tokens\":18446744073709551615,\"cache_read_input_tokens\":1}";
    for counts in [timings, usage] {
        let body = format!("{{\"choices\":[],{counts}}}");
        let event = format!("data: {body}\n\ndata: [DONE]\n\n");
        let llama = llama::scripted().answers(body.as_str()).events([event.as_str()]).start().await;
        let gateway = gateway::before(&llama).start().await;
        let mut caller = gateway.caller().await;
        for (asked, expected) in [(chat("hi"), &body), (chat_stream("stream"), &event)] {
            let answer = caller.send(asked).await;
            assert_eq!((answer.status, answer.whole, &answer.text()), (200, true, expected));
            assert!(is_complete(&gateway, &answer).await);
        }
    }
}

/// So many connections of the gateway to its server, all of them idle.
async fn pools(gateway: &Gateway, llama: &Llama, connections: usize) {
    llama.becomes(llama::scripted().holds());
    let mut callers = Vec::new();
    for number in 0..connections {
        callers.push(gateway.caller().await.ask(chat(&format!("warm {number}"))).await);
    }
    eventually!(llama.requests() == connections);
    llama.release_all();
    for caller in callers {
        assert_eq!(caller.answering("POST").await.finish().await.0.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_kills_its_server_is_sent_twice_at_most() {
    for connections in [0, 1, 4] {
        let llama = llama::scripted().start().await;
        let gateway = gateway::before(&llama).unprobed().start().await;
        pools(&gateway, &llama, connections).await;
        llama.becomes(llama::scripted().dies_at_once());
        refused(&gateway.chat("deadly").await, 502, "upstream_error");
        let sent = llama.requests() - connections;
        assert!((1..=2).contains(&sent), "sent {sent} times over {connections} pooled connections");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_died_idle_cost_nobody_an_answer() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).unprobed().start().await;
    pools(&gateway, &llama, 4).await;
    llama.dies().await;
    llama.becomes(llama::scripted());
    llama.comes_back().await;
    let answers = gateway.volley((0..8).map(|number| chat(&number.to_string()))).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
}

fn transcription(model: &str) -> Request {
    let part = format!("--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--x--\r\n");
    post("/v1/audio/transcriptions").header("content-type", "multipart/form-data; boundary=x").body(part)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_models_name_has_256_bytes_at_most() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    let completion = |model: &str| post("/v1/completions").json(&json!({"model": model, "prompt": "a"}));
    for asked in [completion, transcription] {
        assert_eq!(caller.send(asked(&"m".repeat(256))).await.status, 200);
        refused(&caller.send(asked(&"m".repeat(257))).await, 400, "invalid_request");
        refused(&caller.send(asked(&"m".repeat(100_000))).await, 400, "invalid_request");
    }
    assert_eq!(llama.requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_models_name_makes_no_line_of_a_log_in_words() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("log: {format: text}").start().await;
    let body = json!({"model": "a\nforged\r\nforged \u{1b}[31m", "prompt": "a"});
    assert_eq!(gateway.send(post("/v1/completions").json(&body)).await.status, 200);
    assert_eq!(gateway.send(get("/last")).await.status, 404);
    eventually!(gateway.stdout().contains("/last"));
    let written = gateway.stdout();
    assert!(written.contains("forged") && !written.lines().any(|it| it.starts_with("forged")), "{written}");
    assert!(!written.contains(['\u{1b}', '\r']), "{written}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_with_its_connection_and_may_be_whole_passes_whole() {
    let scripted = llama::scripted;
    let large = format!("{{\"text\":\"{}\"}}", "x".repeat(1_600_000));
    for (script, status, body) in [
        (scripted().status(404), 404, "{\"error\":{\"code\":404}}"),
        (scripted().status(404), 404, "{\"error\":"),
        (scripted().content_type("text/plain"), 200, "no JSON"),
        (scripted(), 200, large.as_str()),
    ] {
        let llama = script.answers(body).close_delimited().start().await;
        let gateway = gateway::before(&llama).start().await;
        let answer = gateway.chat("hi").await;
        assert_eq!((answer.status, answer.whole), (status, true), "{answer:?}");
        assert!(answer.text() == body, "{answer:?}");
        assert!(is_complete(&gateway, &answer).await);
        assert_eq!(stored(&gateway).await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_json_that_ends_with_its_connection_does_not_look_whole() {
    for body in ["{\"text\":\"cut", "{\"text\":1", "[1,"] {
        let llama = llama::scripted().answers(body).close_delimited().start().await;
        let gateway = gateway::before(&llama).start().await;
        let answer = gateway.chat("hi").await;
        assert!(!answer.whole || answer.status == 502, "{answer:?}");
        assert!(answer.status == 502 || !is_complete(&gateway, &answer).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_well_without_its_end_mark_ends_in_an_error_event() {
    for (asked, end_mark) in protocols() {
        let llama = llama::scripted().without_end_mark().start().await;
        let gateway = gateway::before(&llama).start().await;
        let answer = gateway.send(asked).await;
        let text = answer.text();
        let last = text.trim_end().rsplit("\n\n").next().unwrap_or_default();
        assert!(last.contains("\"error\"") && last.contains("upstream_error"), "{end_mark}: {text}");
        assert!(text.contains("lo") && !text.contains(end_mark) && answer.whole, "{answer:?}");
        assert!(!is_complete(&gateway, &answer).await);
        assert_eq!(stored(&gateway).await, 0.0);
    }
}

/// A stream whose own last event is this error gets no second one.
async fn one_error_is_enough(asked: Request, event: &str) {
    let llama = llama::scripted().events([": ping\n\n", event]).start().await;
    let gateway = gateway::before(&llama).start().await;
    let answer = gateway.send(asked).await;
    assert_eq!((answer.whole, answer.text()), (true, format!(": ping\n\n{event}")));
    assert!(!is_complete(&gateway, &answer).await);
    assert_eq!(stored(&gateway).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_last_event_is_an_error_gets_no_second_one() {
    let error = "{\"error\":{\"code\":500,\"message\":\"out of memory\",\"type\":\"server_error\"}}";
    for (asked, end_mark) in protocols() {
        let name = if end_mark.starts_with("event:") { "event: error\n" } else { "" };
        one_error_is_enough(asked, &format!("{name}data: {error}\n\n")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_one_that_says_first_that_it_is_an_error() {
    let error = "{\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"out of memory\"}}";
    for (asked, _) in protocols().into_iter().filter(|(_, end_mark)| end_mark.starts_with("event:")) {
        one_error_is_enough(asked, &format!("event: error\ndata: {error}\n\n")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_announced_with_a_length_ends_in_a_whole_error_event_too() {
    let script = llama::scripted().streams(["one", "two", "three"]).with_length();
    let whole = script.clone().start().await;
    let answer = gateway::before(&whole).start().await.send(chat_stream("hi")).await;
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    for script in [script.clone().dies_after(2), script.dies_after_bytes(200)] {
        let llama = script.start().await;
        let gateway = gateway::before(&llama).start().await;
        let answer = gateway.send(chat_stream("hi")).await;
        let text = answer.text();
        let last = text.trim_end().rsplit("\n\n").next().unwrap_or_default();
        let error = last.strip_prefix("data: ").expect("an event has data");
        assert!(serde_json::from_str::<serde_json::Value>(error).is_ok_and(|it| it["error"].is_object()));
        assert!(answer.whole && text.ends_with("\n\n") && !text.contains("[DONE]"), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_a_bound_of_values() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    let tokens =
        |count: usize| post("/v1/completions").body(format!("{{\"prompt\":[{}1]}}", "1,".repeat(count - 1)));
    assert_eq!(caller.send(tokens((1 << 20) - 10)).await.status, 200);
    let answer = caller.send(tokens((1 << 20) + 1)).await;
    refused(&answer, 400, &answer.code());
    assert_eq!(llama.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_says_in_the_gateways_own_headers_does_not_pass() {
    let own = [
        ("cache-status", "elsewhere; hit"),
        ("age", "77"),
        ("x-cache", "hit"),
        ("x-request-id", "elsewhere"),
        ("x-elapsed-ms", "77"),
        ("set-cookie", "a=b"),
        ("x-ratelimit-limit-requests", "77"),
        ("x-ratelimit-remaining-requests", "77"),
        ("x-ratelimit-reset-requests", "77s"),
        ("x-ratelimit-limit-tokens", "77"),
        ("x-ratelimit-remaining-tokens", "77"),
        ("x-ratelimit-reset-tokens", "77s"),
    ];
    let script = own.iter().fold(llama::scripted(), |script, (name, value)| script.header(name, value));
    let llama = script.start().await;
    let gateway = gateway::before(&llama).start().await;
    for cache in ["miss", "hit"] {
        for asked in [chat("hi"), chat_stream("stream")] {
            let answer = gateway.send(asked).await;
            assert_eq!(answer.cache(), cache);
            let passed = |(name, value): &(String, String)| {
                own.iter().any(|(theirs, said)| name.eq_ignore_ascii_case(theirs) && value == said)
            };
            let passed: Vec<_> = answer.headers.iter().filter(|it| passed(it) && it.0 != "x-cache").collect();
            assert!(passed.is_empty(), "{passed:?}");
            assert_eq!(answer.headers.iter().filter(|(name, _)| name == "x-cache").count(), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_body_that_waits_to_be_asked_for_keeps_the_connection() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml(&auth(&[("alice", "sk-alice", "")])).start().await;
    let mut caller = gateway.caller().await;
    for _ in 0..2 {
        let refusal = caller.send_after_continue(chat("hi").key("sk-wrong")).await;
        refused(&refusal, 401, "invalid_api_key");
        assert_ne!(refusal.header("connection"), Some("close"));
        assert_eq!(caller.send_after_continue(chat("hi").key("sk-alice")).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_http_10_gets_no_chunks() {
    for (script, connection) in [
        (llama::scripted(), "close"),
        (llama::scripted(), "keep-alive"),
        (llama::scripted().chunked_as([10]), "close"),
        (llama::scripted().chunked_as([10]), "keep-alive"),
    ] {
        let llama = script.start().await;
        let gateway = gateway::before(&llama).start().await;
        let old = |asked: Request| asked.http_10().header("connection", connection);
        for cache in ["miss", "hit"] {
            let plain = gateway.send(old(chat("plain"))).await;
            assert_eq!((plain.cache(), content(&plain).as_str()), (cache, "Hello"));
            let stream = gateway.send(old(chat_stream("stream"))).await;
            assert_eq!((stream.cache(), stream.status), (cache, 200));
            let text = stream.text();
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
            assert!(text.split_terminator("\n\n").all(|event| event.starts_with("data: ")), "{text}");
            for answer in [plain, stream] {
                assert_eq!(answer.header("transfer-encoding"), None, "{answer:?}");
            }
        }
        refused(&gateway.send(old(get("/nope"))).await, 404, "not_found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    for second in ["INT", "TERM"] {
        let llama = llama::scripted().holds().start().await;
        let gateway = gateway::before(&llama).yaml("server: {pre_stop: 30s}").start().await;
        let stream = gateway.caller().await.begin(chat_stream("hi")).await;
        gateway.signal("TERM");
        eventually!(gateway.send(get("/ready")).await.status == 503);
        let signalled = Instant::now();
        gateway.signal(second);
        gateway.exit().await;
        assert!(signalled.elapsed() < Duration::from_secs(3), "it stayed for {:?}", signalled.elapsed());
        assert!(!stream.finish().await.0.text().contains("[DONE]"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_for_concurrency_says_what_is_left_of_requests() {
    let llama = llama::scripted().holds().start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {requests: 60/h, concurrent: 1}")]);
    let gateway = gateway::before(&llama).yaml(&keys).start().await;
    let first = gateway.caller().await.ask(chat("one").key("sk-alice")).await;
    eventually!(llama.requests() == 1);
    let refusal = gateway.send(chat("two").key("sk-alice")).await;
    refused(&refusal, 429, "concurrency_limit");
    assert_eq!(refusal.header("x-ratelimit-limit-requests"), Some("60"), "{refusal:?}");
    assert_eq!(refusal.header("x-ratelimit-remaining-requests"), Some("59"), "it cost nothing");
    assert!(refusal.header("x-ratelimit-reset-requests").is_some(), "{refusal:?}");
    first.leaves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_the_end_cuts_off_has_its_line() {
    let llama = llama::scripted().holds().start().await;
    let gateway = gateway::before(&llama).yaml("server: {grace_period_seconds: 1}").start().await;
    let stream = gateway.caller().await.begin(chat_stream("one").header("x-request-id", "stream")).await;
    let plain = gateway.caller().await.ask(chat("two").header("x-request-id", "plain")).await;
    eventually!(llama.requests() == 2);
    gateway.signal("TERM");
    gateway.exit().await;
    for id in ["stream", "plain"] {
        let line = gateway.line_of(id).await;
        assert_eq!(line.fields["complete"], json!(false), "{line:?}");
        assert_eq!(gateway.lines().iter().filter(|line| line.text("request_id") == id).count(), 1);
    }
    drop((stream, plain));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_body_is_complete() {
    for status in [200, 204] {
        let llama = llama::scripted().status(status).answers("").start().await;
        let gateway = gateway::before(&llama).start().await;
        let mut caller = gateway.caller().await;
        for _ in 0..2 {
            let answer = caller.send(chat("hi")).await;
            assert_eq!((answer.status, answer.body.len()), (status, 0));
            assert!(is_complete(&gateway, &answer).await, "{status}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hop_with_a_port_names_its_address() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("trusted_proxies: [127.0.0.0/8]").start().await;
    for (hop, address) in [
        ("1.2.3.4", "1.2.3.4"),
        ("1.2.3.4:567", "1.2.3.4"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("5.6.7.8, [2001:db8::1]:80, 127.0.0.1:9", "2001:db8::1"),
    ] {
        let answer = gateway.send(chat("hi").header("x-forwarded-for", hop)).await;
        assert_eq!(gateway.line_of(answer.request_id()).await.text("client_ip"), address, "{hop}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_at_the_signal_is_answered_with_a_close() {
    let llama = llama::scripted().slow_start().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut callers = Vec::new();
    for asked in [chat("plain"), chat_stream("stream")] {
        callers.push(gateway.caller().await.ask(asked).await);
    }
    eventually!(llama.requests() == 2);
    gateway.signal("TERM");
    eventually!(client::try_connect(gateway.address()).await.is_none());
    llama.release_all();
    for caller in callers {
        let (answer, mut caller) = caller.answering("POST").await.finish().await;
        assert!(answer.whole && answer.status == 200, "{answer:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
        assert!(caller.is_closed().await);
    }
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_slowly_but_never_stops_is_heard() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("body: {idle: 1s}").start().await;
    let mut caller = gateway.caller().await;
    let body = r#"{"prompt":"slowly"}"#;
    let head = format!("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    caller.send_raw(head.as_bytes()).await;
    for byte in body.bytes() {
        passes(Duration::from_millis(150)).await;
        caller.send_raw(&[byte]).await;
    }
    assert_eq!(caller.answering("POST").await.finish().await.0.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_whole_from_its_end_mark_on() {
    // A role, a word, a finish, the mark; then the connection dies.
    let llama = llama::scripted().streams(["Hello"]).dies_after(4).start().await;
    let gateway = gateway::before(&llama).start().await;
    let first = gateway.send(chat_stream("hi")).await;
    assert!(first.text().ends_with("data: [DONE]\n\n"), "{first:?}");
    assert!(is_complete(&gateway, &first).await);
    let again = gateway.send(chat_stream("hi")).await;
    assert_eq!((again.cache(), &again.body), ("hit", &first.body));
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_are_none_are_told_so() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    for chunks in ["zz\r\n{}\r\n0\r\n\r\n", "-1\r\n{}\r\n0\r\n\r\n"] {
        let mut caller = gateway.caller().await;
        let head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        caller.send_raw(format!("{head}{chunks}").as_bytes()).await;
        refused(&caller.answering("POST").await.finish().await.0, 400, "invalid_request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_a_server_cannot_bear_take_it_from_nobody() {
    let llama = llama::scripted().dies_at_once().start().await;
    let gateway = gateway::before(&llama).upstream("health: {every: 60s, down_after: 1}").start().await;
    for text in ["one", "two", "three", "four"] {
        refused(&gateway.chat(text).await, 502, "upstream_error");
    }
    llama.becomes(llama::scripted());
    assert_eq!(gateway.chat("five").await.status, 200);
}
