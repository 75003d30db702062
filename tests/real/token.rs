//! Tokens as a real llama-server counts them: what is reserved is what it reads, and what is estimated is near.

use std::fs;
use std::path::Path;

use ai_gateway::wire::{Target, demand, find, parse};

use super::caller::{get, post};
use super::stage::{Gateway, Llama, Model};
use super::{CHAT, Value, chat, json, protocols, with};

fn left(gateway: &Gateway) -> u64 {
    let answer = get(gateway.at, "/v1/models");
    answer.header("x-ratelimit-remaining-tokens").parse().expect("tokens are limited")
}

#[test]
fn the_prompt_that_is_reserved_is_the_one_that_the_server_reads() {
    let llama = Llama::start(Model::Smol);
    let gateway = Gateway::under(&llama, "limits: {gateway: {tokens: 20000/day}}\n");
    for (path, body) in protocols() {
        let bound = json!({"max_tokens": 8, "n_predict": 8, "max_output_tokens": 8});
        let body: Value = serde_json::from_str(&with(body, bound)).expect("an object");
        for stream in [false, true] {
            let before = left(&gateway);
            let answer =
                post(gateway.at, path, &with(body.clone(), json!({"stream": stream, "seed": stream as u8})));
            assert_eq!(answer.status, 200, "{path}: {}", answer.body);
            let reserved =
                before - answer.header("x-ratelimit-remaining-tokens").parse::<u64>().expect("a number");
            let used = before - left(&gateway);
            // It ends at its bound, or before it where the model does.
            assert!(
                (reserved - 8..=reserved).contains(&used) && used > 1,
                "{path}: {reserved} reserved, {used} used"
            );
        }
    }
}

#[test]
fn n_choices_are_all_reserved_and_all_charged() {
    let llama = Llama::with_slots(Model::Tiny, 2);
    let gateway = Gateway::under(&llama, "limits: {gateway: {tokens: 20000/day}}\n");
    for stream in [false, true] {
        let body = with(
            chat("hi"),
            json!({"n": 2, "max_tokens": 20, "stream": stream, "seed": u8::from(stream), "ignore_eos": true}),
        );
        let before = left(&gateway);
        let answer = post(gateway.at, CHAT, &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let reserved =
            before - answer.header("x-ratelimit-remaining-tokens").parse::<u64>().expect("a number");
        let used = before - left(&gateway);
        assert_eq!(reserved, used, "twice 20 tokens, stream: {stream}");
        assert!(used > 40, "{used}");
    }
}

#[test]
fn an_estimate_is_near_the_truth_in_any_script() {
    let llama = Llama::start(Model::Smol);
    let read = |name: &str| {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("the file is there")
    };
    let page = read("docs/LIMITS.md");
    let german = "Der schnelle braune Fuchs springt über den faulen Hund, während die Gemeinde darüber nachdenkt, ob \
                  größere Straßen nötig wären. Früher hörte man abends die Vögel; heute übertönt sie der Verkehr.";
    let russian = "Быстрая коричневая лиса перепрыгивает через ленивую собаку, пока деревня решает, нужны ли ей новые \
                   дороги. Раньше по вечерам слышали птиц, а теперь их заглушает шум машин.";
    let chinese = "敏捷的棕色狐狸跳过了懒狗，村民们正在讨论是否需要更宽的道路。从前晚上可以听到鸟叫，如今车声盖过了一切。";
    let japanese = "素早い茶色の狐がのろまな犬を飛び越える。村では道路を広げるべきか議論が続いている。";
    for (what, text) in [
        ("English prose", read("docs/ARCHITECTURE.md")),
        ("Rust code", read("src/proxy/forward.rs")),
        ("JSON", read("tests/captures/chat_tools.plain.txt")),
        ("German", german.to_owned()),
        ("Russian", russian.to_owned()),
        ("Chinese", chinese.to_owned()),
        ("Japanese", japanese.to_owned()),
    ] {
        let Ok(Target::Server(endpoint)) = find(&http::Method::POST, "/completion") else {
            panic!("an endpoint")
        };
        let body = parse(&json!({"prompt": text}).to_string().into()).expect("an object").members;
        let estimate = demand(endpoint, &body, false).estimate as f64;
        let tokens = post(llama.at, "/tokenize", &json!({"content": text}).to_string()).json();
        let tokens = tokens["tokens"].as_array().map_or(0, Vec::len) as f64;
        let ratio = estimate / tokens;
        println!("| {what} | {ratio:.2} |");
        // The texts of the repository grow, and what they are estimated by does not.
        let row =
            page.lines().find_map(|line| line.strip_prefix(&format!("| {what} | "))?.strip_suffix(" |"));
        let told: f64 =
            row.and_then(|ratio| ratio.parse().ok()).unwrap_or_else(|| panic!("no row of {what}"));
        assert!((ratio - told).abs() < 0.1, "{what}: {estimate} for {tokens}, the page says {told}");
    }
}
