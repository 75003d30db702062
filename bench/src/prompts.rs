//! A server chosen for a prompt: its model looked up, its blocks looked up among those that servers hold, and those
//! that are new taken in.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use ai_gateway::route::{
    Balance, Entry, Errand, Fleet, HealthCheck, Kind, Lease, ModelRule, Prompt, QueueBounds, ServerSpec,
    Slots, SwapBounds, Tenant, Timeouts, UpstreamSpec,
};

use crate::{Part, Work, mixed, stride};

/// Of a prompt: 2.5 KiB of text.
const BLOCKS: usize = 10;

pub(crate) fn parts() -> Vec<Part> {
    let mut parts = Vec::new();
    for (name, models) in [("1 model", 1), ("1,000 models", 1000)] {
        for (size, held) in [("10", 10), ("1,000", 1000), ("100,000", 100_000)] {
            let name = |what: &str| format!("prefix/{what}/{name}, {size} blocks");
            parts.push(Part::new(name("held"), 1000, move || choose(models, held, true)));
            // While there is not a tenth more than there was, or a hundred blocks.
            let lasts = (held / 10).max(100) / BLOCKS;
            parts.push(
                Part::new(name("new"), 1000, move || choose(models, held, false)).lasting(lasts as u64),
            );
        }
    }
    parts
}

/// `known`: each prompt has been there before; else each is new.
fn choose(models: usize, held: usize, known: bool) -> Work {
    let names: Vec<_> = (0..models).map(|number| format!("model-{number}")).collect();
    let fleet = fleet(&names);
    let prompts: Vec<Prompt> = (0..held / BLOCKS).map(prompt).collect();
    prompts.iter().for_each(|prompt| drop(enter(&fleet, &names[0], prompt)));
    let fresh: Vec<Prompt> = (0..1000).map(|number| prompt(prompts.len() + number)).collect();
    let (mut at, mut model) = (0, 0);
    Box::new(move || {
        let prompts = if known { &prompts } else { &fresh };
        at = if known { stride(at, prompts.len()) } else { (at + 1) % prompts.len() };
        model = stride(model, models);
        let lease = enter(&fleet, &names[model], black_box(&prompts[at]));
        assert_eq!(lease.thought, if known { BLOCKS } else { 0 });
    })
}

fn prompt(number: usize) -> Prompt {
    (0..BLOCKS).map(|block| mixed((number * BLOCKS + block) as u64)).collect()
}

/// Four servers with room, which no probe has to have seen.
fn fleet(names: &[String]) -> Fleet {
    let server = |number: usize| ServerSpec {
        name: format!("server-{number}"),
        url: format!("http://192.0.2.{number}:8080").parse().expect("a URL"),
        api_key: None,
        ca: None,
        slots: Slots::Fixed(8),
        weight: 1,
    };
    let upstream = UpstreamSpec {
        name: "local".to_owned(),
        servers: (1..=4).map(server).collect(),
        kind: Kind::Llama,
        balance: Balance::Prefix,
        health: HealthCheck { path: None, ..HealthCheck::default() },
        timeouts: Timeouts::default(),
        retries: 2,
        queue: QueueBounds::default(),
        swap: SwapBounds::default(),
        streamed: false,
        isolated: false,
    };
    let rule = |name: &String| ModelRule {
        pattern: name.clone(),
        upstream: upstream.name.clone(),
        rename: None,
        fallback: Vec::new(),
    };
    let rules = names.iter().map(rule).collect();
    Fleet::new(vec![upstream], rules)
}

/// A request from its arrival at the upstream until it has left its server, as long as the lease is held.
fn enter(fleet: &Fleet, model: &str, prompt: &Prompt) -> Lease {
    let resolved = fleet.resolve(Some(model)).expect("the model is there");
    let errand = Errand {
        model: resolved.on_server(),
        slot: true,
        prompt,
        key: "bench",
        tenant: Tenant::Anybody,
        priority: 0,
        cost: 100,
        tie: 0,
        now: Duration::from_secs(1),
    };
    match Arc::clone(&resolved.upstream).enter(errand) {
        Ok(Entry::Lease(lease)) => lease,
        other => unreachable!("there is room: {other:?}"),
    }
}
