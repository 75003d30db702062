//! What goes through goes through byte for byte; what must not go through does not.

use serde_json::json;

use crate::support::client::{get, post};
use crate::support::gateway::{self, chat};
use crate::support::llama;

#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_unchanged_in_both_directions() {
    let answer =
        "{ \"z\":1,\n\t\"a\" : [1.0, 1e0, -0, 1E+2], \"unknown\":{\"b\":null} , \"text\":\"\\u00e9é\" }";
    let llama = llama::scripted().answers(answer).start().await;
    let gateway = gateway::before(&llama).start().await;
    let asked = "  {\"z\" : 1.0 ,\r\n\"messages\":[ {\"content\":\"\\u0041\\/\u{1F600}\"} ],\"a\":1e3 }\n";
    let got = gateway.send(post("/v1/chat/completions").body(asked)).await;
    assert_eq!((got.status, got.text()), (200, answer.to_owned()));
    assert_eq!(llama.last().text(), asked);
    assert_eq!(got.header("content-type"), Some("application/json; charset=utf-8"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_reaches_its_path() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let paths = [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/completions", "/v1/completions"),
        ("/v1/responses", "/v1/responses"),
        ("/v1/embeddings", "/v1/embeddings"),
        ("/v1/rerank", "/v1/rerank"),
        ("/rerank", "/v1/rerank"),
        ("/v1/messages", "/v1/messages"),
        ("/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/v1/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"),
        ("/completion", "/completion"),
        ("/infill", "/infill"),
        ("/tokenize", "/tokenize"),
        ("/detokenize", "/detokenize"),
        ("/apply-template", "/apply-template"),
        ("/embedding", "/embedding"),
    ];
    let mut caller = gateway.caller().await;
    for (path, at_server) in paths {
        let answer = caller.send(post(path).json(&json!({"prompt": path, "messages": []}))).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let arrived = llama.last().target().to_owned();
        // Two names of one endpoint of llama-server are one; two forms of an answer are not.
        assert!(arrived == at_server || format!("/v1{arrived}") == at_server, "{path} arrived at {arrived}");
    }
    assert_eq!(llama.requests(), paths.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn native_forms_are_not_taken_for_openai_ones() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let native = gateway.send(post("/completions").json(&json!({"prompt": "a"}))).await;
    if native.status != 404 {
        assert_eq!(
            native.json()["content"],
            "Hello",
            "llama-server's /completions is its native /completion"
        );
    }
    let native = gateway.send(post("/embeddings").json(&json!({"content": "a"}))).await;
    if native.status != 404 {
        assert!(native.json().is_array(), "llama-server's /embeddings is its native /embedding");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_callers_send_along_stays_with_the_gateway() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let withheld = [
        ("authorization", "Bearer sk-caller"),
        ("x-api-key", "sk-caller"),
        ("proxy-authorization", "Basic c2s6Y2FsbGVy"),
        ("cookie", "session=1"),
        ("accept-encoding", "gzip"),
        ("x-conversation-id", "conversation"),
        ("te", "trailers"),
        ("keep-alive", "timeout=5"),
        ("upgrade", "h2c"),
    ];
    let asked = withheld.iter().fold(chat("hi"), |request, (name, value)| request.header(name, value));
    let asked = asked.header("connection", "keep-alive, x-hop").header("x-hop", "by hop");
    assert_eq!(gateway.send(asked).await.status, 200);
    for name in withheld.map(|(name, _)| name).into_iter().chain(["x-hop", "expect", "transfer-encoding"]) {
        assert_eq!(llama.last().header(name), None, "{name} arrived");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_the_protocols_arrive() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let asked = post("/v1/messages")
        .json(&json!({"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}))
        .header("anthropic-version", "2023-06-01")
        .header("anthropic-beta", "tools-2024-04-04")
        .header("traceparent", traceparent);
    assert_eq!(gateway.send(asked).await.status, 200);
    let arrived = llama.last();
    assert_eq!(arrived.header("anthropic-version"), Some("2023-06-01"));
    assert_eq!(arrived.header("anthropic-beta"), Some("tools-2024-04-04"));
    // The gateway may be a span of its own, of the same trace.
    assert!(
        arrived.header("traceparent").is_some_and(|it| it.starts_with(&traceparent[..36])),
        "{arrived:?}"
    );
    assert_eq!(arrived.header("host"), Some(llama.address().to_string().as_str()));
    assert_eq!(arrived.header("content-type"), Some("application/json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_presents_its_own_key() {
    let llama = llama::scripted().api_key("sk-server").start().await;
    let server = format!("{{url: {}, api_key: \"${{SERVER_KEY}}\"}}", llama.url());
    let upstreams = format!("upstreams: {{local: {{servers: [{server}]}}}}");
    let gateway = gateway::before(&llama).yaml(&upstreams).env("SERVER_KEY", "sk-server").start().await;
    let answer = gateway.send(chat("hi").key("sk-caller")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(llama.last().header("authorization"), Some("Bearer sk-server"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_changes_the_models_name_and_nothing_else() {
    let llama = llama::scripted().start().await;
    let models = "models: {mini: {upstream: local, as: \"qwen \\\"3b\\\"\"}}";
    let gateway = gateway::before(&llama).yaml(models).start().await;
    let body = |model: &str| {
        format!(
            "{{ \"tools\":[{{\"model\":\"mini\"}}], \"prompt\" : \"mini\",\n \"model\" :  {model} , \"n\":1.0}}"
        )
    };
    let answer = gateway.send(post("/v1/completions").body(body("\"m\\u0069ni\""))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(llama.last().text(), body("\"qwen \\\"3b\\\"\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_the_server_keep_their_headers_but_not_its_hops() {
    let llama = llama::scripted().header("X-Own", "kept").start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut caller = gateway.caller().await;
    let answer = caller.send(chat("hi")).await;
    assert_eq!(answer.header("x-own"), Some("kept"));
    assert_eq!(answer.header("keep-alive"), None, "the server's keep-alive is not ours");
    let names = answer.headers.iter().map(|(name, _)| name.to_ascii_lowercase());
    let mut names: Vec<String> = names.collect();
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all, "no header comes twice: {answer:?}");
    assert_eq!(caller.send(chat("hi again")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transcription_goes_by_the_model_of_its_part_and_is_never_kept() {
    let llama = llama::scripted().start().await;
    let models = "models: {whisper: {upstream: local}}";
    let gateway = gateway::before(&llama).yaml(models).start().await;
    let form = |model: &str| {
        let body = format!(
            "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n\0\u{1}RIFF\r\n\
             --x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--x--\r\n"
        );
        post("/v1/audio/transcriptions").header("content-type", "multipart/form-data; boundary=x").body(body)
    };
    for _ in 0..2 {
        let answer = gateway.send(form("whisper")).await;
        assert_eq!((answer.status, answer.cache()), (200, "bypass"), "{answer:?}");
    }
    assert_eq!(llama.requests(), 2);
    assert_eq!(llama.last().header("content-type"), Some("multipart/form-data; boundary=x"));
    assert_eq!(gateway.send(form("other")).await.refusal(), (404, "model_not_found".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_who_and_how() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let answer = gateway.send(chat("hi").header("x-request-id", "my-own-1")).await;
    assert_eq!(answer.request_id(), "my-own-1");
    assert!(answer.header("cache-status").is_some_and(|it| it.contains("fwd=")), "{answer:?}");
    let insane = gateway.send(chat("hi").header("x-request-id", &"<b>\"".repeat(100))).await;
    assert!(insane.request_id().len() < 100 && !insane.request_id().contains('<'), "{insane:?}");
    assert!(
        insane.header("x-elapsed-ms").is_some_and(|it| it.parse::<f64>().is_ok()),
        "a hit knows its total"
    );
    let (one, other) = (gateway.chat("one").await, gateway.send(get("/nowhere")).await);
    assert_ne!(one.request_id(), other.request_id());
}
