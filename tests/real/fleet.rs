//! Several real llama-servers: where a conversation goes, and what its server finds of it in its KV cache.

use super::caller::post;
use super::stage::{Gateway, Llama, Model};
use super::{CHAT, Value, json};

/// Conversations of several turns, each beginning with a long text of its own, one turn of each after the other. The
/// part of all prompt tokens that the servers found in their KV caches.
fn reused(balance: &str) -> f64 {
    const CONVERSATIONS: usize = 4;
    const TURNS: usize = 5;
    // More slots than there are conversations, on all servers together: what is not sent astray is held.
    let servers = [0; 3].map(|_| Llama::with_slots(Model::Tiny, 2));
    let urls = servers.each_ref().map(|server| format!("{{url: \"http://{}\"}}", server.at)).join(", ");
    let yaml = format!("upstreams: {{local: {{servers: [{urls}], balance: {balance}}}}}\n");
    let gateway = Gateway::of(&yaml);
    let mut conversations: Vec<Vec<Value>> = (0..CONVERSATIONS)
        .map(|number| {
            let text = format!("the harbour number {number} and its lighthouse ").repeat(40);
            vec![json!({"role": "system", "content": text})]
        })
        .collect();
    let (mut prompt, mut cached) = (0.0, 0.0);
    for turn in 0..TURNS {
        for messages in &mut conversations {
            messages.push(json!({"role": "user", "content": format!("question {turn}")}));
            let body = json!({"messages": messages, "max_tokens": 8, "temperature": 0});
            let answer = post(gateway.at, CHAT, &body.to_string());
            assert_eq!((answer.status, answer.header("x-cache")), (200, "miss"), "{}", answer.body);
            let answer = answer.json();
            messages.push(answer["choices"][0]["message"].clone());
            prompt += answer["usage"]["prompt_tokens"].as_f64().expect("a number");
            cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_f64().expect("a number");
        }
    }
    cached / prompt
}

#[test]
fn a_conversation_finds_itself_in_the_kv_cache_of_its_server() {
    let (by_prefix, in_turn) = (reused("prefix"), reused("round_robin"));
    println!("of all prompt tokens reused: prefix {by_prefix:.3}, round_robin {in_turn:.3}");
    // The first turn of each has nothing to find: four fifths of the tokens are what there is.
    assert!(by_prefix > 0.7 && in_turn < by_prefix, "{by_prefix} {in_turn}");
}
