//! One entry, both forms: what was made as a stream answers a plain request and the other way round; and where there
//! is no rendering, each form has its own answer.

use serde_json::{Value, json};

use crate::support::client::{Answer, Request, post};
use crate::support::expect::refused;
use crate::support::gateway::{self, Gateway, chat, chat_stream};
use crate::support::llama::{self, Llama, scripted};

/// Where an answer has several forms.
const GENERATED: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/completion"];

fn asked(path: &str, form: &Value) -> Request {
    let mut body = json!({"model": "tiny", "max_tokens": 16, "prompt": "x", "input": "x",
        "messages": [{"role": "user", "content": "x"}]});
    body.as_object_mut().expect("an object").extend(form.as_object().expect("an object").clone());
    post(path).json(&body)
}

fn forms() -> [Value; 3] {
    let usage = json!({"stream": true, "stream_options": {"include_usage": true}});
    [json!({"stream": false}), json!({"stream": true}), usage]
}

/// Everything that a stream says in words, in whatever pieces.
fn words(stream: &str) -> String {
    let events = stream.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
    let said = |event: Value| {
        let choice = &event["choices"][0];
        let places =
            [&choice["delta"]["content"], &choice["text"], &event["delta"]["text"], &event["content"]];
        let found = places.into_iter().chain([&event["delta"]]).find_map(Value::as_str);
        found.unwrap_or_default().to_owned()
    };
    events.map(said).collect()
}

/// Without what llama-server tells in streams alone, unless it is asked to (`return_tokens`).
fn untokened(mut answer: Value) -> Value {
    answer.as_object_mut().expect("an object").remove("tokens");
    answer
}

/// Its numbers of tokens, wherever a stream tells them.
fn tokens(stream: &str) -> bool {
    ["\"completion_tokens\":2", "\"output_tokens\":2", "\"tokens_predicted\":2"]
        .iter()
        .any(|mark| stream.contains(mark))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_given_in_any_form_whichever_it_was_made_in() {
    for path in GENERATED {
        for (made, first) in forms().into_iter().enumerate() {
            let llama = scripted().streams(["Hel", "lo"]).start().await;
            let gateway = gateway::before(&llama).start().await;
            let made_answer = gateway.send(asked(path, &first)).await;
            assert_eq!((made_answer.status, made_answer.cache()), (200, "miss"), "{path}");
            for (wanted, form) in forms().into_iter().enumerate() {
                // What the server itself would have said: the number of its answer is 1 here too.
                let direct = scripted().streams(["Hel", "lo"]).start().await;
                let alone = gateway::before(&direct).start().await;
                let expected = alone.send(asked(path, &form)).await;
                let given = gateway.send(asked(path, &form)).await;
                let what = format!("{path}: made as {made}, wanted as {wanted}: {given:?}");
                assert_eq!((given.status, given.cache(), given.whole), (200, "hit", true), "{what}");
                assert_eq!(given.header("content-type"), expected.header("content-type"), "{what}");
                assert!(given.header("age").is_some(), "{what}");
                if made == wanted {
                    assert_eq!(given.text(), made_answer.text(), "{what}");
                }
                if wanted == 0 {
                    assert_eq!(untokened(given.json()), untokened(expected.json()), "{what}");
                } else {
                    assert_eq!(words(&given.text()), words(&expected.text()), "{what}");
                    assert_eq!(tokens(&given.text()), tokens(&expected.text()), "{what}");
                    assert_eq!(given.text().contains("[DONE]"), expected.text().contains("[DONE]"), "{what}");
                }
            }
            let (stats, scrape) = (gateway.stats().await, gateway.scrape().await);
            assert_eq!(
                (llama.requests(), &stats["cache_entries"], &stats["hits"]),
                (1, &json!(1), &json!(3))
            );
            assert_eq!(scrape.sum("ai_gateway_cache_unrendered_total", &[]), 0.0);
            assert!(scrape.sum("ai_gateway_cache_rendered_total", &[]) >= 1.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_one_form_has_one_entry_whatever_is_asked() {
    let llama = scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let embed = |form: Value| asked("/v1/embeddings", &form);
    let [plain, stream, usage] = forms();
    assert_eq!(gateway.send(embed(stream)).await.cache(), "miss");
    assert_eq!(gateway.send(embed(plain)).await.cache(), "hit");
    assert_eq!(gateway.send(embed(usage)).await.cache(), "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_answer_is_rendered_as_well() {
    let word: &'static str = "x".repeat(400_000).leak();
    let llama = scripted().streams([word, "!"]).start().await;
    let gateway = gateway::before(&llama).start().await;
    gateway.send(chat_stream("hi")).await;
    let plain = gateway.chat("hi").await;
    let said = &plain.json()["choices"][0]["message"]["content"];
    assert_eq!((plain.cache(), said.as_str().map(str::len)), ("hit", Some(400_001)));
}

/// Two answers in one stream of llama.cpp's own.
fn answers_of_a_list() -> [&'static str; 4] {
    [
        "data: {\"index\":0,\"content\":\"one\",\"stop\":false}\n\n",
        "data: {\"index\":0,\"content\":\"\",\"stop\":true}\n\n",
        "data: {\"index\":1,\"content\":\"two\",\"stop\":false}\n\n",
        "data: {\"index\":1,\"content\":\"\",\"stop\":true}\n\n",
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn several_answers_in_one_stream_are_kept_all() {
    for several in [json!({"prompt": ["a", "b"]}), json!({"prompt": "a", "n_cmpl": 2})] {
        let llama = scripted().events(answers_of_a_list()).start().await;
        let gateway = gateway::before(&llama).start().await;
        let stream = || {
            let mut body = several.clone();
            body["stream"] = json!(true);
            post("/completion").json(&body)
        };
        for cache in ["miss", "hit"] {
            let answer = gateway.send(stream()).await;
            assert_eq!((answer.cache(), answer.text()), (cache, answers_of_a_list().concat()), "{several}");
        }
        llama.becomes(scripted().answers("[{},{}]"));
        let plain = gateway.send(post("/completion").json(&several)).await;
        assert_eq!((plain.cache(), plain.text()), ("miss", "[{},{}]".to_owned()), "no form of one of them");
        // The first is whole, the second is not.
        let llama = scripted().events(answers_of_a_list()).dies_after(3).start().await;
        let gateway = gateway::before(&llama).start().await;
        assert!(gateway.send(stream()).await.text().contains("upstream_error"));
        assert_eq!(gateway.stats().await["cache_entries"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_an_end_mark_is_kept_with_it_in_whatever_pieces() {
    let (end, more) = ("data: {\"choices\":[]}\n\ndata: [DONE]\n\n", ": bye\n\n");
    for events in [[end, more], [end, ": b"], [": hi\n\n", "data: [DONE]\n\n: bye\n\n"]] {
        let llama = scripted().events(events).start().await;
        let gateway = gateway::before(&llama).start().await;
        for cache in ["miss", "hit"] {
            let answer = gateway.send(chat_stream("hi")).await;
            assert_eq!((answer.cache(), answer.text()), (cache, events.concat()));
        }
        assert_eq!(gateway.stats().await["cache_entries"], 1);
    }
}

/// A stream that says something of which a plain answer knows nothing, and the other way round.
fn unknown_shapes() -> (Value, [&'static str; 2]) {
    let plain = json!({"object": "chat.completion", "choices": "none that one knows"});
    (plain, ["data: {\"object\":\"chat.completion.chunk\",\"choices\":\"none\"}\n\n", "data: [DONE]\n\n"])
}

async fn unrendered(gateway: &Gateway) -> f64 {
    gateway.scrape().await.sum("ai_gateway_cache_unrendered_total", &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_that_is_not_known_is_served_as_it_was_recorded_and_counted() {
    let (plain, stream) = unknown_shapes();
    let llama = scripted().events(stream).start().await;
    let gateway = gateway::before(&llama).start().await;
    let first = gateway.send(chat_stream("hi")).await;
    llama.becomes(scripted().answers(plain.to_string()));
    let other = gateway.chat("hi").await;
    assert_eq!((first.cache(), other.cache(), llama.requests()), ("miss", "miss", 2));
    for _ in 0..2 {
        let (stream, again) = (gateway.send(chat_stream("hi")).await, gateway.chat("hi").await);
        assert_eq!((stream.cache(), again.cache()), ("hit", "hit"));
        assert_eq!((stream.text(), again.text()), (first.text(), other.text()));
    }
    assert_eq!((llama.requests(), unrendered(&gateway).await), (2, 3.0));
    let usage =
        asked("/v1/chat/completions", &json!({"stream": true, "stream_options": {"include_usage": true}}));
    assert_eq!(gateway.send(usage).await.status, 200, "another question");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_tells_more_than_any_other_form_has_an_entry_of_its_own() {
    let llama = scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    for more in [
        json!({"return_progress": true}),
        json!({"timings_per_token": true}),
        json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true}}),
    ] {
        let mut stream = more.clone();
        stream["stream"] = json!(true);
        let path = "/v1/chat/completions";
        for (form, cache) in [(&more, "miss"), (&stream, "miss"), (&more, "hit"), (&stream, "hit")] {
            let plain_options = form.get("stream_options").is_some() && form.get("stream").is_none();
            // A plain request's `stream_options` mean nothing.
            let cache = if plain_options {
                gateway.send(asked(path, &json!({}))).await;
                "hit"
            } else {
                cache
            };
            assert_eq!(gateway.send(asked(path, form)).await.cache(), cache, "{form}");
        }
    }
}

async fn followers(gateway: &Gateway, count: f64) {
    let aboard = async || gateway.scrape().await.sum("ai_gateway_flight_followers", &[]);
    eventually!(aboard().await == count);
}

/// One generation, begun in one form and asked for in all others while it is made.
async fn together(llama: &Llama, gateway: &Gateway, first: Request, others: Vec<Request>) -> Vec<Answer> {
    let leader = gateway.caller().await.ask(first).await;
    eventually!(llama.requests() == 1);
    let mut waiting = Vec::new();
    for other in others {
        waiting.push(gateway.caller().await.ask(other).await);
    }
    followers(gateway, waiting.len() as f64).await;
    llama.release_all();
    let mut answers = vec![leader.answering("POST").await.finish().await.0];
    for caller in waiting {
        answers.push(caller.answering("POST").await.finish().await.0);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_another_form_share_the_generation_too() {
    for path in GENERATED {
        for first in forms() {
            let llama = scripted().streams(["Hel", "lo"]).holds().start().await;
            let gateway = gateway::before(&llama).start().await;
            let others = forms().into_iter().map(|form| asked(path, &form)).collect();
            let answers = together(&llama, &gateway, asked(path, &first), others).await;
            let [_, plain, stream, usage] = answers.as_slice() else { panic!("four answers") };
            for answer in [plain, stream, usage] {
                assert_eq!(
                    (answer.status, answer.cache(), answer.whole),
                    (200, "shared", true),
                    "{answer:?}"
                );
            }
            assert_eq!(
                (words(&stream.text()), words(&usage.text())),
                ("Hello".into(), "Hello".into()),
                "{path}"
            );
            assert!(plain.text().contains("Hello"), "{plain:?}");
            assert_eq!(llama.requests(), 1);
            assert_eq!(gateway.send(asked(path, &json!({}))).await.text(), plain.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_rendering_those_of_another_form_share_one_of_their_own() {
    let (plain, stream) = unknown_shapes();
    let llama = scripted().events(stream).holds().start().await;
    let gateway = gateway::before(&llama).start().await;
    let leader = gateway.caller().await.begin(chat_stream("hi")).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(gateway.caller().await.ask(chat("hi")).await);
    }
    followers(&gateway, 3.0).await;
    llama.becomes(scripted().answers(plain.to_string()).holds());
    llama.release_all();
    leader.finish().await;
    let mut outcomes = Vec::new();
    for caller in waiting {
        let (answer, _) = caller.answering("POST").await.finish().await;
        assert_eq!((answer.status, answer.text()), (200, plain.to_string()));
        outcomes.push(answer.cache().to_owned());
    }
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "miss").count(), 1, "{outcomes:?}");
    assert_eq!(llama.requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_fails_fails_in_every_form() {
    let llama = llama::scripted().streams(["one", "two", "three"]).holds().dies_after(2).start().await;
    let gateway = gateway::before(&llama).start().await;
    let answers = together(&llama, &gateway, chat_stream("hi"), vec![chat("hi"), chat_stream("hi")]).await;
    assert!(answers[0].text().contains("upstream_error") && answers[2].text().contains("upstream_error"));
    refused(&answers[1], 502, "upstream_error");
    let llama = llama::scripted().status(400).holds().start().await;
    let gateway = gateway::before(&llama).start().await;
    let answers = together(&llama, &gateway, chat("hi"), vec![chat_stream("hi"), chat("hi")]).await;
    for answer in &answers {
        assert_eq!((answer.status, answer.text()), (400, answers[0].text()));
    }
    assert_eq!(llama.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_another_form_may_leave() {
    let llama = scripted().streams(["Hel", "lo"]).holds().start().await;
    let gateway = gateway::before(&llama).start().await;
    let leader = gateway.caller().await.begin(chat_stream("hi")).await;
    let waiting = gateway.caller().await.ask(chat("hi")).await;
    followers(&gateway, 1.0).await;
    leader.leaves();
    llama.release();
    assert_eq!(llama.cancelled().len(), 0);
    waiting.leaves();
    eventually!(llama.cancelled().len() == 1);
    followers(&gateway, 0.0).await;
}
