//! Which model, which upstream, which server.

use serde_json::{Value, json};

use crate::support::address::Loopback;
use crate::support::client::{get, post};
use crate::support::expect::{auth, refused};
use crate::support::gateway::{self, HEALTH, Plan, chat};
use crate::support::llama::{self, Llama, scripted};

/// Two upstreams of one server each.
fn before_two(one: &Llama, two: &Llama, models: &str) -> Plan {
    let upstream =
        |name: &str, llama: &Llama| format!("  {name}: {{servers: [{{url: {}}}], {HEALTH}}}\n", llama.url());
    let yaml = format!("upstreams:\n{}{}{models}", upstream("one", one), upstream("two", two));
    gateway::before(one).yaml(&yaml)
}

fn ids(models: &Value) -> Vec<&str> {
    let mut ids: Vec<&str> =
        models["data"].as_array().expect("a list").iter().filter_map(|model| model["id"].as_str()).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_found_by_name_or_by_its_longest_pattern() {
    let (one, two) = (llama::scripted().start().await, llama::scripted().start().await);
    let models = "models:\n  exact: {upstream: one}\n  \"*\": {upstream: one}\n  \"ex*\": {upstream: two}\n  \
                  \"exa*t-long*\": {upstream: one}\n  alias: {upstream: two, as: real}\n";
    let gateway = before_two(&one, &two, models).start().await;
    let cases = [
        ("exact", &one, "exact"),
        ("ex", &two, "ex"),
        ("exactly", &two, "exactly"),
        ("exact-longer", &one, "exact-longer"),
        ("other", &one, "other"),
        ("alias", &two, "real"),
    ];
    for (model, llama, at_server) in cases {
        let seen = llama.requests();
        let answer =
            gateway.send(post("/v1/completions").json(&json!({"model": model, "prompt": "a"}))).await;
        assert_eq!((answer.status, llama.requests()), (200, seen + 1), "{model}");
        let arrived: Value = serde_json::from_str(&llama.last().text()).expect("JSON");
        assert_eq!(arrived["model"], at_server);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_model_is_a_404_and_no_model_is_the_first() {
    let (one, two) = (llama::scripted().start().await, llama::scripted().start().await);
    let gateway =
        before_two(&one, &two, "models:\n  b: {upstream: two}\n  a: {upstream: one}\n").start().await;
    refused(&gateway.chat("hi").await, 404, "model_not_found");
    let answer = gateway.send(post("/v1/completions").json(&json!({"prompt": "a"}))).await;
    assert_eq!((answer.status, one.requests(), two.requests()), (200, 0, 1));
    let answer = gateway.send(post("/tokenize").json(&json!({"content": "a"}))).await;
    assert_eq!((answer.status, one.requests(), two.requests()), (200, 0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_models_the_servers_say_which_they_have() {
    let one = llama::scripted().model("first").start().await;
    let two = llama::scripted().model("second").start().await;
    let gateway = before_two(&one, &two, "").start().await;
    eventually!(ids(&gateway.send(get("/v1/models")).await.json()) == ["first", "second"]);
    for (model, arrived) in [("second", (0, 1)), ("first", (1, 1)), ("unheard-of", (2, 1))] {
        let answer =
            gateway.send(post("/v1/completions").json(&json!({"model": model, "prompt": "a"}))).await;
        assert_eq!((answer.status, (one.requests(), two.requests())), (200, arrived), "{model}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_sees_the_models_it_may_use() {
    let llama = llama::scripted().model("reported").start().await;
    let models = "models: {tiny: {upstream: local}, large: {upstream: local}}\n";
    let keys = auth(&[("alice", "sk-alice", "models: [tiny]"), ("bob", "sk-bob", "")]);
    let gateway = gateway::before(&llama).yaml(&(keys + models)).start().await;
    let mut caller = gateway.caller().await;
    let list = caller.send(get("/v1/models").key("sk-alice")).await.json();
    assert_eq!((&list["object"], ids(&list)), (&json!("list"), vec!["tiny"]));
    let all = caller.send(get("/v1/models").key("sk-bob")).await.json();
    assert!(["large", "tiny"].iter().all(|model| ids(&all).contains(model)), "{all}");
    let one = caller.send(get("/v1/models/tiny").key("sk-alice")).await.json();
    assert_eq!((&one["id"], &one["object"]), (&json!("tiny"), &json!("model")));
    refused(&caller.send(get("/v1/models/nope").key("sk-alice")).await, 404, "model_not_found");
    let forbidden = caller.send(get("/v1/models/large").key("sk-alice")).await;
    assert!(matches!(forbidden.status, 403 | 404), "{forbidden:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_server_is_dead_the_other_answers() {
    let (nobody, llama) = (Loopback::claim(), llama::scripted().start().await);
    let dead = format!("http://{}", nobody.port(8080));
    let plan = gateway::before_urls(&[&dead, &llama.url()]);
    let gateway = plan.upstream("balance: round_robin, health: {every: 1h}").start().await;
    let mut attempts = Vec::new();
    for number in 0..4 {
        let answer = gateway.chat(&number.to_string()).await;
        assert_eq!(answer.status, 200);
        attempts.push(gateway.line_of(answer.request_id()).await.number("attempts"));
    }
    assert!(attempts.contains(&2), "nobody was sent to the dead server: {attempts:?}");
    assert!(gateway.scrape().await.sum("ai_gateway_retries_total", &[]) >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_gets_nothing_until_it_is_up() {
    let (one, two) = (llama::scripted().unhealthy().start().await, llama::scripted().start().await);
    let plan = gateway::before_urls(&[&one.url(), &two.url()]);
    let gateway = plan.upstream(&format!("balance: round_robin, {HEALTH}")).start().await;
    eventually!(gateway.scrape().await.sum("ai_gateway_server_up", &[]) == 1.0);
    for number in 0..6 {
        assert_eq!(gateway.chat(&number.to_string()).await.status, 200);
    }
    assert_eq!((one.requests(), two.requests()), (0, 6));
    one.becomes(llama::scripted());
    eventually!(gateway.scrape().await.sum("ai_gateway_server_up", &[]) == 2.0);
    for number in 10..16 {
        assert_eq!(gateway.chat(&number.to_string()).await.status, 200);
    }
    assert_eq!((one.requests(), two.requests()), (3, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_asks_for_some_server_not_for_all() {
    let (one, two) = (llama::scripted().unhealthy().start().await, llama::scripted().start().await);
    let gateway = gateway::before_urls(&[&one.url(), &two.url()]).start().await;
    eventually!(gateway.scrape().await.sum("ai_gateway_server_up", &[]) == 1.0);
    assert_eq!(gateway.send(get("/health")).await.status, 200);
    two.becomes(llama::scripted().unhealthy());
    eventually!(gateway.send(get("/health")).await.status == 503);
    refused(&gateway.send(chat("hi")).await, 503, "no_upstream");
}

/// A question that goes on from what was said before, in a conversation of this system prompt.
fn turn(system: &str, turns: usize) -> crate::support::client::Request {
    let mut messages = vec![json!({"role": "system", "content": system.repeat(600)})];
    for number in 0..turns {
        messages.push(json!({"role": "user", "content": format!("question {number} {}", "x".repeat(300))}));
    }
    post("/v1/chat/completions").json(&json!({"model": "tiny", "messages": messages}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_stays_where_its_beginning_is_held() {
    let servers = [scripted().start().await, scripted().start().await, scripted().start().await];
    let urls = servers.each_ref().map(Llama::url);
    let gateway =
        gateway::before_urls(&urls.each_ref().map(String::as_str)).upstream("balance: prefix").start().await;
    let server_of = async |asked| {
        let answer = gateway.send(asked).await;
        assert_eq!((answer.status, answer.cache()), (200, "miss"));
        gateway.line_of(answer.request_id()).await.text("server").to_owned()
    };
    let mut homes = Vec::new();
    for system in ["a", "b", "c"] {
        let home = server_of(turn(system, 1)).await;
        for turns in 2..6 {
            assert_eq!(server_of(turn(system, turns)).await, home, "turn {turns} of {system}");
        }
        homes.push(home);
    }
    homes.sort();
    homes.dedup();
    assert_eq!(homes.len(), 3, "what is new goes to the server that holds the least");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_goes_elsewhere_where_its_server_is_full_or_away() {
    let busy = scripted().slots(1).holds().start().await;
    let other = scripted().slots(1).holds().start().await;
    let gateway =
        gateway::before_urls(&[&busy.url(), &other.url()]).upstream("balance: prefix").start().await;
    let first = gateway.caller().await.ask(turn("a", 1)).await;
    eventually!(busy.requests() + other.requests() == 1);
    let second = gateway.caller().await.ask(turn("a", 2)).await;
    eventually!(busy.requests() == 1 && other.requests() == 1);
    busy.release_all();
    other.release_all();
    for caller in [first, second] {
        assert_eq!(caller.answering("POST").await.finish().await.0.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_drained_finishes_what_it_has_and_gets_nothing_new() {
    let (one, two) = (scripted().holds().start().await, scripted().holds().start().await);
    let servers = format!("[{{url: {}, name: one}}, {{url: {}, name: two}}]", one.url(), two.url());
    let yaml = format!("upstreams: {{local: {{servers: {servers}, balance: least_busy}}}}");
    let gateway = gateway::before(&one).yaml(&yaml).start().await;
    let both = [gateway.caller().await.ask(chat("1")).await, gateway.caller().await.ask(chat("2")).await];
    eventually!(one.requests() == 1 && two.requests() == 1);
    let turn = async |what: &str| gateway.admin(post(&format!("/servers/{what}"))).await;
    let drained = turn("one/drain").await;
    assert_eq!(drained.json(), json!({"server": "one", "draining": true, "in_flight": 1}));
    one.release_all();
    two.release_all();
    for caller in both {
        assert_eq!(caller.answering("POST").await.finish().await.0.status, 200, "what it has it finishes");
    }
    for number in 3..8 {
        assert_eq!(gateway.chat(&number.to_string()).await.status, 200);
    }
    assert_eq!((one.requests(), two.requests()), (1, 6));
    assert_eq!(turn("two/drain").await.status, 200);
    refused(&gateway.chat("nobody").await, 503, "no_upstream");
    assert_eq!(turn("one/undrain").await.json()["draining"], false);
    assert_eq!((gateway.chat("back").await.status, one.requests()), (200, 2));
    assert_eq!(turn("three/drain").await.refusal(), (404, "server_not_found".to_owned()));
    assert_eq!(gateway.admin(get("/servers/one/drain")).await.status, 405);
    let foreign = gateway.admin(post("/servers/one/drain").header("origin", "http://evil.example")).await;
    assert_eq!((foreign.status, gateway.chat("still").await.status), (403, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_name_their_server_and_their_model_where_that_is_asked_for() {
    let llama = scripted().start().await;
    let yaml = "models: {tiny: {upstream: local}, größe: {upstream: local, as: tiny}}\nanswer_headers: [server, model]\n";
    let gateway = gateway::before(&llama).yaml(yaml).start().await;
    let ask = async || {
        let body = json!({"model": "größe", "messages": []});
        let answer = gateway.send(post("/v1/chat/completions").json(&body)).await;
        let header = |name| answer.header(name).map(str::to_owned);
        (header("x-cache"), header("x-ai-gateway-model"), header("x-ai-gateway-server"))
    };
    let (server, tiny) = (Some(llama.address().to_string()), Some("tiny".to_owned()));
    assert_eq!(ask().await, (Some("miss".to_owned()), tiny.clone(), server));
    assert_eq!(ask().await, (Some("hit".to_owned()), tiny, None), "no server was asked");
    // Nobody who did not ask for it is told, not even by the server.
    let llama = scripted().header("x-ai-gateway-server", "inner").start().await;
    let answer = gateway::before(&llama).start().await.chat("x").await;
    assert!(answer.header("x-ai-gateway-server").is_none() && answer.header("x-ai-gateway-model").is_none());
}
