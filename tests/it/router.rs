//! llama-server in router mode: which of its models are loaded, and who waits for one that is not.

use serde_json::{Value, json};

use crate::support::client::{Caller, Request, get, post};
use crate::support::expect::refused;
use crate::support::gateway::{self, Gateway, HEALTH};
use crate::support::llama::{Llama, Script, scripted};

const MODELS: [&str; 3] = ["alpha", "beta", "gamma"];

/// Nothing has to stay, and nobody waits long enough for it to matter.
const AT_EASE: &str = "swap: {least_residency: 0s, longest_wait: 50s}";

async fn before(script: Script, upstream: &str) -> (Llama, Gateway) {
    let llama = script.start().await;
    let gateway = gateway::before(&llama).upstream(&format!("{HEALTH}, {upstream}")).start().await;
    (llama, gateway)
}

fn ask(model: &str, text: &str) -> Request {
    let messages = json!([{"role": "user", "content": text}]);
    post("/v1/chat/completions").json(&json!({"model": model, "messages": messages}))
}

async fn asks(gateway: &Gateway, model: &str, text: &str) -> Caller {
    gateway.caller().await.ask(ask(model, text)).await
}

async fn answered(callers: impl IntoIterator<Item = Caller>) {
    for caller in callers {
        let (answer, _) = caller.answering("POST").await.finish().await;
        assert_eq!((answer.status, answer.whole), (200, true), "{answer:?}");
    }
}

async fn waiting(gateway: &Gateway, count: f64) {
    let queued = async || gateway.scrape().await.sum("ai_gateway_queue_requests", &[]);
    eventually!(queued().await == count);
}

/// What the operator sees of one of the models.
async fn row(gateway: &Gateway, model: &str) -> Value {
    let stats = gateway.admin(get("/stats")).await.json();
    let rows = stats["servers"][0]["router"].as_array().cloned().unwrap_or_default();
    rows.into_iter().find(|row| row["model"] == model).unwrap_or_default()
}

async fn swaps(gateway: &Gateway) -> f64 {
    gateway.scrape().await.sum("ai_gateway_model_swaps_total", &[("upstream", "local")])
}

#[tokio::test(flavor = "multi_thread")]
async fn its_models_are_found_and_told() {
    let (llama, gateway) = before(scripted().routes(MODELS, 2), AT_EASE).await;
    let list = gateway.send(get("/v1/models")).await;
    let models = list.json()["data"].as_array().cloned().expect("a list");
    assert_eq!(models.iter().map(|model| model["id"].clone()).collect::<Vec<_>>(), MODELS);
    assert!(!list.text().contains(".gguf"), "its command lines are not for callers: {list:?}");
    assert_eq!(row(&gateway, "alpha").await["state"], "unloaded");
    for model in ["alpha", "beta-alias"] {
        assert_eq!(gateway.send(ask(model, "hi")).await.status, 200);
    }
    eventually!(row(&gateway, "alpha").await["state"] == "loaded");
    let expected = json!({"model": "beta", "state": "loaded", "in_flight": 0, "slots": 2, "waiting": 0});
    eventually!(row(&gateway, "beta").await == expected);
    let again = async || gateway.send(ask("alpha", "hi")).await.cache() == "hit";
    eventually!(again().await, "its answers are kept whatever is loaded");
    assert!(!gateway.stderr().contains("unknown number of slots"), "{}", gateway.stderr());
    assert_eq!(gateway.send(ask("gamma", "hi")).await.status, 200);
    assert!(again().await, "they stay as it goes");
    assert_eq!((llama.unloads(), llama.evictions().len()), (vec!["alpha".to_owned()], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_model_waits_together_and_it_is_loaded_once() {
    let (llama, gateway) = before(scripted().routes(MODELS, 1).holds(), AT_EASE).await;
    let first = asks(&gateway, "alpha", "first").await;
    eventually!(llama.requests() == 1);
    let mut others = Vec::new();
    for number in 0..3 {
        others.push(asks(&gateway, "gamma", &number.to_string()).await);
        waiting(&gateway, f64::from(number + 1)).await;
    }
    assert_eq!(row(&gateway, "gamma").await["waiting"], 3);
    assert_eq!((llama.requests(), llama.unloads().len()), (1, 0));
    llama.release();
    answered([first]).await;
    eventually!(llama.requests() == 3, "as many as it has slots");
    waiting(&gateway, 1.0).await;
    llama.release_all();
    answered(others).await;
    assert_eq!(
        (llama.loads(), llama.unloads()),
        (vec!["alpha".into(), "gamma".into()], vec!["alpha".into()])
    );
    assert_eq!((swaps(&gateway).await, llama.evictions().len()), (1.0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_at_work_is_not_unloaded_under_its_callers() {
    let (llama, gateway) = before(scripted().routes(MODELS, 2).holds(), AT_EASE).await;
    let alpha = asks(&gateway, "alpha", "1").await;
    eventually!(llama.requests() == 1);
    let beta = asks(&gateway, "beta", "2").await;
    eventually!(llama.requests() == 2);
    let gamma = asks(&gateway, "gamma", "3").await;
    waiting(&gateway, 1.0).await;
    let tokens = post("/tokenize").json(&json!({"model": "gamma", "content": "x"}));
    let counted = gateway.caller().await.ask(tokens).await;
    waiting(&gateway, 2.0).await;
    let looks = llama.looks();
    eventually!(llama.looks() > looks + 3, "it goes on being asked, and there is nothing to be done");
    assert_eq!(llama.loads(), ["alpha", "beta"]);
    llama.release();
    answered([alpha]).await;
    eventually!(llama.requests() == 4);
    assert_eq!((llama.unloads(), llama.evictions().len()), (vec!["alpha".to_owned()], 0));
    llama.release_all();
    answered([beta, gamma, counted]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_model_that_is_loaded_does_not_wait_for_others() {
    let script = scripted().routes(MODELS, 1).slots_each(3).holds();
    let (llama, gateway) = before(script, &format!("queue: {{waiting: 2, wait: 60s}}, {AT_EASE}")).await;
    let first = asks(&gateway, "alpha", "1").await;
    eventually!(llama.requests() == 1);
    let gamma = asks(&gateway, "gamma", "2").await;
    waiting(&gateway, 1.0).await;
    let second = asks(&gateway, "alpha", "3").await;
    eventually!(llama.requests() == 2, "there is room in the queue, and it goes by");
    let beta = asks(&gateway, "beta", "4").await;
    waiting(&gateway, 2.0).await;
    let third = asks(&gateway, "alpha", "5").await;
    eventually!(llama.requests() == 3, "the queue is full, but not of those who wait for this one");
    refused(&gateway.send(ask("beta", "6")).await, 503, "queue_full");
    llama.release_all();
    answered([first, second, third, gamma, beta]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_came_lately_stays() {
    let swap = "queue: {waiting: 9, wait: 1s}, swap: {least_residency: 1h, longest_wait: 100ms}";
    let (llama, gateway) = before(scripted().routes(MODELS, 1), swap).await;
    answered([asks(&gateway, "alpha", "1").await]).await;
    refused(&gateway.send(ask("gamma", "2")).await, 503, "queue_timeout");
    answered([asks(&gateway, "alpha", "3").await]).await;
    assert_eq!((llama.loads(), llama.unloads().len()), (vec!["alpha".to_owned()], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_waited_too_long_goes_before_further_requests_for_what_is_loaded() {
    let swap = "swap: {least_residency: 0s, longest_wait: 100ms}";
    let (llama, gateway) = before(scripted().routes(MODELS, 1).holds(), swap).await;
    let alpha = asks(&gateway, "alpha", "1").await;
    eventually!(llama.requests() == 1);
    let gamma = asks(&gateway, "gamma", "2").await;
    eventually!(row(&gateway, "alpha").await["state"] == "draining");
    let later = asks(&gateway, "alpha", "3").await;
    waiting(&gateway, 2.0).await;
    llama.release();
    answered([alpha]).await;
    eventually!(llama.requests() == 2);
    assert!(llama.last().text().contains("gamma"), "{:?}", llama.last());
    llama.release_all();
    answered([gamma, later]).await;
    assert_eq!((llama.loads().len(), llama.evictions().len()), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_model_is_open_again_when_who_waited_has_left() {
    let swap = "swap: {least_residency: 0s, longest_wait: 100ms}";
    let (llama, gateway) = before(scripted().routes(MODELS, 1).holds(), swap).await;
    let alpha = asks(&gateway, "alpha", "1").await;
    eventually!(llama.requests() == 1);
    let gamma = asks(&gateway, "gamma", "2").await;
    eventually!(row(&gateway, "alpha").await["state"] == "draining");
    let later = asks(&gateway, "alpha", "3").await;
    waiting(&gateway, 2.0).await;
    gamma.leaves();
    eventually!(llama.requests() == 2);
    llama.release_all();
    answered([alpha, later]).await;
    assert_eq!(llama.loads(), ["alpha"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_unloaded_who_waits_is_told_and_the_rest_goes_on() {
    let keeps = || scripted().routes(MODELS, 1).keeps_all();
    let swap = "queue: {waiting: 9, wait: 1s}, swap: {least_residency: 0s, longest_wait: 100ms}";
    let (llama, gateway) = before(keeps(), swap).await;
    answered([asks(&gateway, "alpha", "1").await]).await;
    refused(&gateway.send(ask("gamma", "2")).await, 503, "queue_timeout");
    let told = "`alpha` makes no room for `gamma`: `/models/unload` answers 500";
    assert_eq!(gateway.stderr().matches(told).count(), 1, "{}", gateway.stderr());
    answered([asks(&gateway, "alpha", "3").await]).await;
    llama.becomes(keeps().works_elsewhere());
    refused(&gateway.send(ask("gamma", "4")).await, 503, "queue_timeout");
    assert!(gateway.stderr().contains("a slot of it is at work, for no request of this gateway"));
    llama.becomes(scripted().routes(MODELS, 1));
    eventually!(gateway.send(ask("gamma", "5")).await.status == 200);
    assert_eq!((llama.loads(), llama.evictions().len()), (vec!["alpha".into(), "gamma".into()], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_tells_its_slots_late_gets_one_request_until_then() {
    let (llama, gateway) = before(scripted().routes(MODELS, 1).tells_no_slots().holds(), AT_EASE).await;
    let callers = [
        asks(&gateway, "alpha", "1").await,
        asks(&gateway, "alpha", "2").await,
        asks(&gateway, "alpha", "3").await,
    ];
    eventually!(row(&gateway, "alpha").await["slots"] == 2);
    eventually!(llama.requests() == 2);
    waiting(&gateway, 1.0).await;
    llama.release_all();
    answered(callers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_routers_load_a_model_once_for_one_request() {
    let (one, two) = (scripted().routes(MODELS, 1).start().await, scripted().routes(MODELS, 1).start().await);
    let plan = gateway::before_urls(&[&one.url(), &two.url()]);
    let gateway = plan.upstream(&format!("{HEALTH}, {AT_EASE}")).start().await;
    for number in 0..6 {
        answered([asks(&gateway, MODELS[number % 2], &number.to_string()).await]).await;
    }
    let mut loads = [one.loads(), two.loads()].concat();
    loads.sort();
    assert_eq!((loads, swaps(&gateway).await), (vec!["alpha".into(), "beta".into()], 0.0));
    for model in ["gamma", "alpha", "beta", "gamma"] {
        answered([asks(&gateway, model, "again").await]).await;
    }
    let looks = one.looks() + two.looks();
    eventually!(one.looks() + two.looks() > looks + 6, "they are asked, and there is nothing to be done");
    let unloads = [one.unloads(), two.unloads()].concat();
    assert_eq!(unloads.len(), [one.loads(), two.loads()].concat().len() - 2, "one goes for each that comes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_loads_nothing_by_itself_is_asked_all_the_same() {
    let (llama, gateway) = before(scripted().routes(MODELS, 1).loads_nothing(), AT_EASE).await;
    answered([asks(&gateway, "alpha", "1").await, asks(&gateway, "unheard-of", "2").await]).await;
    assert_eq!((llama.requests(), llama.unloads().len()), (2, 0));
}
