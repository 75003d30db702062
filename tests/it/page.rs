//! The operator's page: its parts hold no data and reach for nothing, and what it shows comes as events, to whom it may.

use serde_json::{Value, json};

use crate::support::client::{self, Answering, Request, get, post, request};
use crate::support::expect::auth;
use crate::support::gateway::{self, Gateway, chat, chat_stream};
use crate::support::llama;

const LIVE: &str = "/dashboard/live";
const PAGES_MAX: usize = 16;

/// As a browser asks that has opened the page under a name of this machine.
fn live() -> Request {
    get(LIVE).header("host", "localhost:9002").header("sec-fetch-site", "same-origin")
}

async fn open(gateway: &Gateway, asked: Request) -> Answering {
    client::connect(gateway.admin_address()).await.begin(asked).await
}

async fn told(page: &mut Answering) -> Value {
    told_while_open(page).await.expect("the page is told for ever")
}

/// `None`: its connection has closed.
async fn told_while_open(page: &mut Answering) -> Option<Value> {
    let event = page.event().await?;
    Some(serde_json::from_str(event.strip_prefix("data: ").expect("data").trim_end()).expect("JSON"))
}

/// The request of that id, as soon as the page is told of it.
async fn told_of(page: &mut Answering, id: &str) -> Value {
    for _ in 0..20 {
        let requests = told(page).await["requests"].as_array().cloned().unwrap_or_default();
        if let Some(found) = requests.into_iter().find(|it| it["request_id"] == id) {
            return found;
        }
    }
    panic!("the page is not told of {id}");
}

#[tokio::test(flavor = "multi_thread")]
async fn its_parts_are_there_for_anybody_and_reach_for_nothing_else() {
    let llama = llama::scripted().start().await;
    let plan = gateway::before(&llama);
    let admin = plan.file().lines().find(|line| line.starts_with("admin:")).expect("it has one").to_owned();
    let gateway = plan.yaml(&admin.replace('}', ", token: let-me-in}")).start().await;
    let page = gateway.admin(get("/dashboard")).await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").expect("a policy").to_owned();
    for rule in ["default-src 'none'", "script-src 'self';", "style-src 'self';", "frame-ancestors 'none'"] {
        assert!(policy.contains(rule), "{policy}");
    }
    let callers = format!("http://{}", gateway.address());
    assert!(policy.contains(&format!("connect-src 'self' {callers};")), "{policy}");
    assert!(page.text().contains(&format!("content=\"{callers}\"")), "the page knows where to try a prompt");
    let text = page.text();
    let parts = text.split(['"']).filter(|it| it.starts_with("/dashboard/"));
    let mut count = 0;
    for part in parts {
        let answer = gateway.admin(get(part)).await;
        assert_eq!(
            (answer.status, answer.header("x-content-type-options")),
            (200, Some("nosniff")),
            "{part}"
        );
        count += 1;
    }
    assert_eq!(count, 4, "two scripts and two style sheets");
    assert_eq!(gateway.admin(post("/dashboard")).await.refusal(), (405, "method_not_allowed".to_owned()));

    assert_eq!(gateway.admin(get(LIVE)).await.refusal(), (401, "invalid_api_key".to_owned()));
    assert_eq!(gateway.admin(get(LIVE).key("let-me-out")).await.status, 401);
    let live = open(&gateway, get(LIVE).key("let-me-in")).await;
    assert_eq!((live.status, live.header("content-type")), (200, Some("text/event-stream; charset=utf-8")));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_told_how_things_stand_and_then_what_is_new() {
    let llama = llama::scripted().slots(3).start().await;
    let keys = auth(&[("alice", "sk-alice", "limits: {requests: 1/h, burst: 2}")]);
    let gateway = gateway::before(&llama).yaml(&keys).start().await;
    let first = gateway.send(chat("the-prompt").key("sk-alice")).await;
    let mut page = open(&gateway, live()).await;
    let whole = told(&mut page).await;
    assert_eq!((&whole["ready"], &whole["well"]), (&json!(true), &json!(true)));
    assert_eq!(whole["servers"][0]["slots"], 3);
    assert_eq!(whole["access"]["asks_for_key"], true);
    let alice = &whole["access"]["keys"][0];
    assert_eq!((&alice["name"], &alice["used"]["day"]["requests"]), (&json!("alice"), &json!(1)));
    assert_eq!(alice["limits"]["requests"]["remaining"], 1);
    let mut known: Vec<Value> = whole["requests"].as_array().cloned().unwrap_or_default();
    if known.is_empty() {
        // Its answer is out before its line is.
        known.push(told_of(&mut page, first.request_id()).await);
    }
    let expected = json!({"key": "alice", "status": 200, "error_code": null, "cache": "miss", "complete": true,
        "path": "/v1/chat/completions", "server": whole["servers"][0]["server"]});
    for (field, value) in expected.as_object().expect("an object") {
        assert_eq!(&known[0][field], value, "{field} in {known:?}");
    }

    let hit = gateway.send(chat_stream("the-prompt").key("sk-alice")).await;
    let of_hit = told_of(&mut page, hit.request_id()).await;
    assert_eq!((&of_hit["cache"], &of_hit["stream"]), (&json!("hit"), &json!(true)));
    let refused = gateway.send(chat("the-prompt").key("sk-alice")).await;
    let of_refused = told_of(&mut page, refused.request_id()).await;
    assert_eq!(of_refused["limit"], "key.requests");
    assert_eq!(of_refused["message"], refused.json()["error"]["message"], "why, as its caller was told");
    let after = told(&mut page).await;
    assert_eq!(after["requests"], json!([]), "each is told once");
    assert_eq!(after["totals"]["requests"], 3);

    let mut second = open(&gateway, live()).await;
    let all = told(&mut second).await;
    let ids: Vec<_> = all["requests"].as_array().into_iter().flatten().map(|it| &it["request_id"]).collect();
    assert_eq!(ids, [first.request_id(), hit.request_id(), refused.request_id()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_no_prompt_and_no_answer_is_shown() {
    let llama = llama::scripted().streams(["the-", "answer"]).api_key("sk-of-the-server").start().await;
    let upstreams = format!(
        "upstreams: {{local: {{servers: [{{url: {}, api_key: sk-of-the-server}}]}}}}\nlog: {{access: none}}\n",
        llama.url()
    );
    let keys = auth(&[("alice", "sk-of-alice", "")]);
    let gateway = gateway::before(&llama).yaml(&(keys + &upstreams)).start().await;
    gateway.send(chat("the-prompt").key("sk-of-alice")).await;
    gateway.send(chat_stream("the-prompt").key("sk-of-alice")).await;
    gateway.send(chat("the-prompt").key("sk-mistyped")).await;
    gateway.send(post("/v1/completions").key("sk-of-alice").body("{\"prompt\": \"the-prompt\", }")).await;
    let wrong = post("/v1/completions").key("sk-of-alice").json(&json!({"model": {"the-prompt": 1}}));
    let last = gateway.send(wrong).await;
    let mut page = open(&gateway, live()).await;
    let mut shown = String::new();
    for _ in 0..20 {
        shown += &told(&mut page).await.to_string();
        if shown.contains(last.request_id()) {
            break;
        }
    }
    assert!(shown.contains("invalid_json") && shown.contains(last.request_id()), "{shown}");
    for secret in ["sk-of-alice", "sk-of-the-server", "sk-mistyped", "the-prompt", "the-answer", "the-"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_sixteen_pages_are_told_and_one_that_leaves_makes_room() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut pages = Vec::new();
    for _ in 0..PAGES_MAX {
        let mut page = open(&gateway, live()).await;
        assert_eq!(page.status, 200);
        told(&mut page).await;
        pages.push(page);
    }
    assert_eq!(gateway.admin(live()).await.refusal(), (503, "too_many_pages".to_owned()));
    assert_eq!(gateway.admin(get("/stats")).await.status, 200, "the rest is there all the same");
    pages.pop().expect("sixteen").leaves();
    eventually!(open(&gateway, live()).await.status == 200);
    for page in &mut pages {
        told(page).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_sites_are_told_nothing_and_change_nothing() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let own = gateway.admin_address().to_string();
    let port = gateway.admin_address().port();
    let rebound = format!("rebound.example:{port}");
    let cross = "cross_site".to_owned();
    let purge = || request("DELETE", "/cache");
    for asked in [
        get(LIVE).header("host", &own).header("sec-fetch-site", "cross-site"),
        get(LIVE).header("host", &own).header("sec-fetch-site", "same-site"),
        get(LIVE).header("host", &own).header("origin", "https://example.com"),
        get(LIVE).header("host", &rebound),
        purge().header("host", &own).header("origin", "https://example.com"),
        purge().header("host", &own).header("origin", "null"),
        purge().header("sec-fetch-site", "same-site"),
        purge().header("host", &rebound).header("origin", &format!("http://{rebound}")),
        post("/servers/any/drain").header("host", &rebound).header("origin", &format!("http://{rebound}")),
    ] {
        let told = format!("{asked:?}");
        assert_eq!(gateway.admin(asked).await.refusal(), (403, cross.clone()), "{told}");
    }
    let same = purge()
        .header("host", &own)
        .header("origin", &format!("http://{own}"))
        .header("sec-fetch-site", "same-origin");
    assert_eq!(gateway.admin(same).await.status, 200);
    assert_eq!(gateway.admin(purge()).await.status, 200, "what is no browser says nothing");
    let named =
        get(LIVE).header("host", &format!("localhost:{port}")).header("sec-fetch-site", "same-origin");
    assert_eq!(open(&gateway, named).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_with_the_process_and_does_not_hold_it() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    let mut page = open(&gateway, live()).await;
    told(&mut page).await;
    gateway.signal("TERM");
    eventually!(gateway.exited().is_some());
    while page.event().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_hands_the_hour_over() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).yaml("server: {pid_file: gateway.pid}").start().await;
    eventually!(gateway.serving().is_some());
    let mut page = open(&gateway, live()).await;
    // Counting begins with the first look.
    while told(&mut page).await["minute"]["seconds"] == 0.0 {}
    for _ in 0..3 {
        gateway.chat("the-prompt").await;
    }
    for _ in 0..2 {
        // From one process to the next, and from that to another.
        gateway.upgraded().await;
        // The process before may have taken the connection as its last.
        let mut whole;
        eventually!({
            let answer = told_while_open(&mut open(&gateway, live()).await).await;
            whole = answer.unwrap_or_default();
            !whole.is_null()
        });
        let steps = whole["steps"].as_array().cloned().unwrap_or_default();
        let sum = |name: &str| steps.iter().filter_map(|step| step[name].as_u64()).sum::<u64>();
        assert_eq!((sum("misses"), sum("hits")), (1, 2), "{whole}");
        assert_eq!(whole["totals"]["hits"], 0, "the process itself has had none");
    }
}
