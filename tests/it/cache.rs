//! Has this been answered: what is kept, for whom, how long, and what counts as the same.

use serde_json::json;

use super::stream::protocols;
use crate::support::client::{Request, post};
use crate::support::expect::auth;
use crate::support::gateway::{self, Gateway, chat, chat_stream};
use crate::support::llama::{self, Script};

fn completion(body: &str) -> Request {
    post("/v1/completions").body(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_answer_is_replayed_byte_for_byte() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/completion"] {
        let asked = post(path).json(&json!({"prompt": "hi", "input": "hi", "messages": []}));
        let first = caller.send(asked.clone()).await;
        let again = caller.send(asked).await;
        assert_eq!((first.cache(), again.cache()), ("miss", "hit"), "{path}");
        assert_eq!((again.status, &again.body), (first.status, &first.body), "{path}");
        assert_eq!(again.header("content-type"), first.header("content-type"));
        assert_eq!(again.header("content-length"), Some(first.body.len().to_string().as_str()));
        assert!(again.header("age").is_some_and(|it| it.parse::<u64>().is_ok()), "{again:?}");
        assert!(first.header("age").is_none(), "{first:?}");
        assert!(again.header("cache-status").is_some_and(|it| it.contains("hit")), "{again:?}");
    }
    assert_eq!(llama.requests(), 5, "each path has answers of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_computed_is_kept_at_every_endpoint() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("cache: {answers: deterministic}").start().await;
    let mut caller = gateway.caller().await;
    let paths = [
        "/v1/embeddings",
        "/embedding",
        "/v1/rerank",
        "/rerank",
        "/tokenize",
        "/detokenize",
        "/apply-template",
        "/v1/messages/count_tokens",
        "/v1/chat/completions/input_tokens",
    ];
    for path in paths {
        let asked = post(path).json(&json!({"input": "a", "content": "a", "query": "a", "documents": ["b"],
            "tokens": [1], "messages": [{"role": "user", "content": "a"}]}));
        let first = caller.send(asked.clone()).await;
        let again = caller.send(asked).await;
        assert_eq!((first.status, first.cache(), again.cache()), (200, "miss", "hit"), "{path}");
        assert_eq!(again.body, first.body, "{path}");
    }
}

/// Whether an answer to this is kept.
async fn keeps(gateway: &Gateway, asked: &Request) -> bool {
    gateway.send(asked.clone()).await;
    gateway.send(asked.clone()).await.cache() == "hit"
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_a_model_and_a_key_say_what_is_kept_and_the_narrowest_counts() {
    let cases = [
        // Of the file, the model and the key: what is random, what has a seed, what is computed.
        (["all", "all", "all"], [true, true, true]),
        (["deterministic", "all", "all"], [false, true, true]),
        (["all", "deterministic", "all"], [false, true, true]),
        (["all", "all", "deterministic"], [false, true, true]),
        (["none", "all", "deterministic"], [false, false, false]),
        (["all", "none", "all"], [false, false, false]),
        (["deterministic", "all", "none"], [false, false, false]),
    ];
    for ([file, model, key], kept) in cases {
        let llama = llama::scripted().start().await;
        let keys = auth(&[("alice", "sk-alice", &format!("cache: {key}"))]);
        let yaml =
            format!("models: {{tiny: {{upstream: local, cache: {model}}}}}\ncache: {{answers: {file}}}\n");
        let gateway = gateway::before(&llama).yaml(&(keys + &yaml)).start().await;
        let asked = [
            post("/v1/completions").body(r#"{"prompt":"a"}"#),
            post("/v1/completions").body(r#"{"prompt":"a","seed":7}"#),
            post("/v1/embeddings").body(r#"{"input":"a"}"#),
        ];
        for (asked, kept) in asked.into_iter().zip(kept) {
            assert_eq!(keeps(&gateway, &asked.key("sk-alice")).await, kept, "{file}, {model}, {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_replayed_byte_for_byte_as_a_stream() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    for (number, (asked, end_mark)) in protocols().into_iter().enumerate() {
        let first = caller.send(asked.clone()).await;
        let again = caller.send(asked).await;
        assert_eq!(
            (first.cache(), again.cache(), llama.requests()),
            ("miss", "hit", number + 1),
            "{end_mark}"
        );
        assert_eq!(again.header("content-type"), Some("text/event-stream"));
        assert_eq!((again.whole, again.text()), (true, first.text()));
        assert!(again.text().contains(end_mark) && again.header("age").is_some(), "{again:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_form_that_was_asked_for_is_the_form_that_comes() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    for _ in 0..2 {
        assert_eq!(gateway.chat("hi").await.json()["choices"][0]["message"]["content"], "Hello");
        let stream = gateway.send(chat_stream("hi")).await;
        assert_eq!(stream.header("content-type"), Some("text/event-stream"));
        assert!(stream.text().ends_with("data: [DONE]\n\n"), "{stream:?}");
    }
    assert!(llama.requests() <= 2);
    assert_eq!(
        (gateway.chat("hi").await.cache(), gateway.send(chat_stream("hi")).await.cache()),
        ("hit", "hit")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_change_the_answer_does_not_change_the_key() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    let base = r#"{"model":"tiny","prompt":"é","temperature":0.5,"max_tokens":100,"stop":["a","b"]}"#;
    assert_eq!(caller.send(completion(base)).await.cache(), "miss");
    let with = |more: &str| base.replace("}", &format!(",{more}}}"));
    let same = [
        r#"{"stop":["a","b"],"max_tokens":100,"temperature":0.5,"prompt":"é","model":"tiny"}"#.to_owned(),
        base.replace(':', " :\t").replace(',', "\r\n, ") + "\n",
        base.replace("0.5", "5e-1").replace("100", "1.0E2"),
        base.replace("é", "\\u00e9").replace("\"a\"", "\"\\u0061\""),
        with(r#""user":"somebody""#),
        with(r#""metadata":{"any":"thing"}"#),
        with(r#""stream":false"#),
        with(r#""stream_options":null"#),
    ];
    for body in same {
        assert_eq!(caller.send(completion(&body)).await.cache(), "hit", "{body}");
    }
    assert_eq!(caller.send(completion(base).chunked(7)).await.cache(), "hit");
    assert_eq!(caller.send(completion(base).header("user-agent", "another/1.0")).await.cache(), "hit");
    assert_eq!(llama.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_can_change_the_answer_changes_the_key() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    let different = [
        r#"{"model":"tiny","prompt":"a b","n":1,"stop":["a","b"]}"#,
        r#"{"model":"tiny","prompt":"a  b","n":1,"stop":["a","b"]}"#,
        r#"{"model":"tiny","prompt":"A b","n":1,"stop":["a","b"]}"#,
        r#"{"model":"tiny","prompt":"a b ","n":1,"stop":["a","b"]}"#,
        r#"{"model":"tiny","prompt":"a b","n":2,"stop":["a","b"]}"#,
        r#"{"model":"tiny","prompt":"a b","n":1,"stop":["a","b"],"top_k":1}"#,
        r#"{"model":"tiny","prompt":"a b","n":1,"stop":["a","b"],"top_k":"1"}"#,
        r#"{"model":"tiny","prompt":"a b","n":1,"stop":["b","a"]}"#,
        r#"{"model":"tiny","prompt":"a b","n":1,"stop":["a","b",""]}"#,
        r#"{"model":"tiny","prompt":"a b","n":1}"#,
        r#"{"model":"other","prompt":"a b","n":1,"stop":["a","b"]}"#,
        r#"{"model":"tiny","prompt":["a b"],"n":1,"stop":["a","b"]}"#,
        r#"{"model":"tiny","prompt":"a b","n":1,"stop":["a","b"],"unknown":null}"#,
        r#"{"model":"tiny","prompt":"a b","n":1,"stop":["a","b"],"unknown":true}"#,
        r#"{"model":"tiny","prompt":"a b","n":1,"stop":["a","b"],"seed":1}"#,
        r#"{"model":"tiny","prompt":"a b","n":1,"stop":["a","b"],"seed":9007199254740991}"#,
        r#"{"model":"tiny","prompt":"a b","n":1,"stop":["a","b"],"temperature":0.1}"#,
        r#"{"model":"tiny","prompt":"a b","n":1,"stop":["a","b"],"temperature":0.10000000000000002}"#,
        r#"{"model":"tiny","prompt":"a b","n":1,"stop":["a","b"],"extra":{"user":"u"}}"#,
        r#"{"model":"tiny","prompt":"\u00e9","n":1,"stop":["a","b"]}"#,
        r#"{"model":"tiny","prompt":"e\u0301","n":1,"stop":["a","b"]}"#,
    ];
    for body in different {
        assert_eq!(caller.send(completion(body)).await.cache(), "miss", "{body}");
    }
    assert_eq!(llama.requests(), different.len());
    let elsewhere = post("/completion").body(different[0]);
    assert_eq!(caller.send(elsewhere).await.cache(), "miss", "another endpoint");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_nobody_holds_pass_and_share_nothing() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let numbers = ["1152921504606846976.0", "1152921504606847000", "1152921504606847001"];
    for number in numbers {
        let body = format!(r#"{{"prompt":"a","seed":{number}}}"#);
        assert_eq!(gateway.send(completion(&body)).await.cache(), "miss", "{number}");
    }
    for number in ["18446744073709551616", "18446744073709551617", "-9223372036854775809", "1e300"] {
        let body = format!(r#"{{"prompt":"a","seed":{number}}}"#);
        let answer = gateway.send(completion(&body)).await;
        assert_eq!((answer.status, answer.cache()), (200, "bypass"), "{number}");
        assert_eq!(llama.last().text(), body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_passes_and_can_change_the_answer_is_part_of_the_key() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    let ask = || post("/v1/messages").json(&json!({"max_tokens": 1, "messages": []}));
    for (header, value) in
        [("anthropic-beta", "a"), ("anthropic-beta", "b"), ("anthropic-version", "2023-06-01")]
    {
        assert_eq!(caller.send(ask().header(header, value)).await.cache(), "miss", "{header}: {value}");
        assert_eq!(caller.send(ask().header(header, value)).await.cache(), "hit", "{header}: {value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_and_its_model_are_one() {
    let llama = llama::scripted().start().await;
    let models = "models: {tiny: {upstream: local}, mini: {upstream: local, as: tiny}}";
    let gateway = gateway::before(&llama).yaml(models).start().await;
    assert_eq!(gateway.send(completion(r#"{"model":"tiny","prompt":"a"}"#)).await.cache(), "miss");
    assert_eq!(gateway.send(completion(r#"{"model":"mini","prompt":"a"}"#)).await.cache(), "hit");
    assert_eq!(gateway.send(completion(r#"{"prompt":"a"}"#)).await.status, 200);
    assert!(llama.requests() <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_another_keys_answers_unless_the_file_says_so() {
    for (scope, then) in [("key", "miss"), ("gateway", "hit")] {
        let llama = llama::scripted().start().await;
        let keys = auth(&[("alice", "sk-alice", ""), ("bob", "sk-bob", "")]);
        let yaml = keys + &format!("cache: {{scope: {scope}}}\n");
        let gateway = gateway::before(&llama).yaml(&yaml).start().await;
        assert_eq!(gateway.send(chat("hi").key("sk-alice")).await.cache(), "miss");
        assert_eq!(gateway.send(chat("hi").key("sk-bob")).await.cache(), then);
        assert_eq!(gateway.send(chat("hi").key("sk-alice")).await.cache(), "hit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_lives_as_long_as_its_ttl() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("cache: {ttl: 1s}").start().await;
    assert_eq!(gateway.chat("hi").await.cache(), "miss");
    assert_eq!(gateway.chat("hi").await.cache(), "hit");
    eventually!(gateway.chat("hi").await.cache() == "miss");
    assert_eq!(llama.requests(), 2);
}

/// Asks twice, and the second is not answered from the first.
async fn is_not_kept(script: Script, yaml: &str, asked: Request) {
    let llama = script.start().await;
    let gateway = gateway::before(&llama).yaml(yaml).start().await;
    let first = gateway.send(asked.clone()).await;
    let sent = llama.requests();
    let again = gateway.send(asked.clone()).await;
    assert!(llama.requests() > sent, "kept: {first:?}, {again:?}");
    assert!(first.cache() != "hit" && again.cache() != "hit", "{first:?}, {again:?}");
    assert_eq!(gateway.scrape().await.sum("ai_gateway_cache_stored_total", &[]), 0.0);
    assert_eq!(gateway.stats().await["cache_entries"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_not_kept() {
    let long = "x".repeat(5000);
    is_not_kept(llama::scripted().streams([&long]), "cache: {entry: 4KiB}", chat("hi")).await;
    is_not_kept(llama::scripted().streams([&long]), "cache: {entry: 4KiB}", chat_stream("hi")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_whole_good_answer_is_not_kept() {
    let scripted = llama::scripted;
    is_not_kept(scripted().status(500), "", chat("hi")).await;
    is_not_kept(scripted().status(400), "", chat("hi")).await;
    is_not_kept(scripted().status(201), "", chat("hi")).await;
    is_not_kept(scripted().answers("{\"cut\":"), "", chat("hi")).await;
    is_not_kept(scripted().answers("hello"), "", chat("hi")).await;
    is_not_kept(scripted().close_delimited(), "", chat("hi")).await;
    is_not_kept(scripted().wrong_length(), "", chat("hi")).await;
    is_not_kept(scripted().dies_after_bytes(30), "", chat("hi")).await;
    is_not_kept(scripted().chunked_as([10]).dies_after_bytes(30), "", chat("hi")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_its_end_mark_is_not_kept() {
    for (asked, _) in protocols() {
        is_not_kept(llama::scripted().without_end_mark(), "", asked.clone()).await;
        is_not_kept(llama::scripted().dies_after(1), "", asked.clone()).await;
        is_not_kept(llama::scripted().close_delimited(), "", asked).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_within_a_stream_is_not_kept() {
    let error =
        "data: {\"error\":{\"code\":500,\"message\":\"out of memory\",\"type\":\"server_error\"}}\n\n";
    is_not_kept(llama::scripted().events([error]), "", chat_stream("hi")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_of_no_size_is_no_cache() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("cache: {size: 0B}").start().await;
    assert_eq!((gateway.chat("hi").await.cache(), gateway.chat("hi").await.cache()), ("bypass", "bypass"));
    assert_eq!(llama.requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_says_of_the_cache() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let ask = async |control: &str| gateway.send(chat("hi").header("cache-control", control)).await;
    assert_ne!(ask("no-store").await.cache(), "hit");
    let first = gateway.chat("hi").await;
    assert_eq!(first.cache(), "miss", "no-store kept nothing");
    let fresh = ask("no-cache").await;
    assert_ne!((fresh.cache(), &fresh.body), ("hit", &first.body));
    let kept = gateway.chat("hi").await;
    assert_eq!((kept.cache(), &kept.body), ("hit", &fresh.body), "the fresh answer is kept");
    assert_eq!(ask("max-age=3600").await.cache(), "hit");
    eventually!(ask("max-age=1").await.cache() != "hit");
    assert_eq!(llama.requests(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_very_next_request_finds_it() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let (mut one, mut other) = (gateway.caller().await, gateway.caller().await);
    for number in 0..100 {
        let text = format!("question {number}");
        let asked = if number % 2 == 0 { chat(&text) } else { chat_stream(&text) };
        assert_eq!(one.send(asked.clone()).await.cache(), "miss");
        assert_eq!(other.send(asked).await.cache(), "hit", "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bound_of_bytes_holds() {
    let llama = llama::scripted().streams([&"x".repeat(10_000)]).start().await;
    let gateway = gateway::before(&llama).yaml("cache: {size: 256KiB, entry: 64KiB}").start().await;
    let mut caller = gateway.caller().await;
    for number in 0..100 {
        assert_eq!(caller.send(chat(&number.to_string())).await.status, 200);
        let stats = gateway.stats().await;
        assert!(stats["cache_size"].as_u64() <= Some(256 << 10), "{stats}");
    }
    let stats = gateway.stats().await;
    assert!(stats["cache_entries"].as_u64() > Some(5), "{stats}");
    assert!(gateway.scrape().await.sum("ai_gateway_cache_evicted_total", &[]) > 0.0);
    assert!(gateway.scrape().await.sum("ai_gateway_cache_bytes", &[]) <= f64::from(256 << 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_counters_add_up() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    for text in ["one", "two", "one", "one"] {
        gateway.chat(text).await;
    }
    let scrape = gateway.scrape().await;
    let counted =
        ["hits", "misses", "stored"].map(|it| scrape.sum(&format!("ai_gateway_cache_{it}_total"), &[]));
    assert_eq!(counted, [2.0, 2.0, 2.0]);
    assert_eq!(gateway.stats().await["cache_entries"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_does_not_count_until_a_server_that_broke_off_in_an_answer_has_been_asked_again() {
    let server = llama::scripted().start().await;
    let gateway = gateway::before(&server).start().await;
    eventually!(gateway.chat("a").await.cache() == "hit");
    server.becomes(llama::scripted().dies_after(1));
    gateway.send(chat_stream("b")).await;
    server.becomes(llama::scripted().model("other").streams(["other"]));
    let answer = gateway.chat("a").await;
    assert_ne!(answer.cache(), "hit", "{answer:?}");
    assert!(answer.text().contains("other"), "{answer:?}");
    eventually!(gateway.chat("a").await.cache() == "hit");
}
