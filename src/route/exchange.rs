//! What replicas tell each other of prompts: which server each was sent to, so that all know where a prompt's beginning
//! is held, whichever of them sent it there.
//!
//! Each tells what is new, several times a second, by a stream in Valkey that the others read; who begins reads what is
//! still there. Nobody waits for that: which server takes a request is decided by what is known here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::store::{Link, Script};

use super::fleet::Fleet;
use super::prefix::Sent;

/// What is told at once. What is new beyond stays for the next time.
const BLOCKS_MAX: usize = 512;

/// What is told, and by whom.
#[derive(Serialize, Deserialize)]
struct News {
    replica: String,
    sent: Vec<Told>,
}

/// Blocks of prompts that were sent to a server.
#[derive(Serialize, Deserialize)]
struct Told {
    upstream: String,
    /// Its URL.
    server: String,
    blocks: Vec<u64>,
}

/// The way to other replicas.
pub struct Exchange {
    link: Arc<Link>,
    script: Script,
    stream: String,
    replica: String,
    learned: AtomicU64,
}

/// Up to where a replica has read.
#[derive(Debug)]
pub struct Read(String);

impl Default for Read {
    fn default() -> Self {
        Self("0-0".to_owned())
    }
}

impl Exchange {
    /// `replica`: no other process's, ever.
    pub fn new(link: Arc<Link>, prefix: &str, replica: String) -> Self {
        let script = link.script(include_str!("exchange.lua"));
        Self {
            link,
            script,
            stream: format!("{{{prefix}:prompts}}:sent"),
            replica,
            learned: AtomicU64::new(0),
        }
    }

    /// Blocks that others told of.
    pub fn learned(&self) -> u64 {
        self.learned.load(Ordering::Relaxed)
    }

    /// Tells what is new, and takes in what others tell.
    pub async fn round(&self, fleet: &Fleet, read: &mut Read) {
        let is_up = self.link.is_up();
        // What is new is gathered, within its bound, from the first time on that this is asked.
        let sent = news(fleet, if is_up { BLOCKS_MAX } else { 0 });
        if !is_up {
            return;
        }
        let text = match sent.is_empty() {
            true => String::new(),
            false => {
                let news = News { replica: self.replica.clone(), sent };
                serde_json::to_string(&news).unwrap_or_default()
            }
        };
        let arguments = [read.0.clone(), text];
        let keys = [self.stream.clone()];
        let rows: Result<Vec<String>, _> = self.link.run_at_leisure(&self.script, &keys, &arguments).await;
        let Ok(rows) = rows else { return };
        for row in rows.chunks_exact(2) {
            read.0.clone_from(&row[0]);
            // What another version tells may not be understood.
            if let Ok(news) = serde_json::from_str::<News>(&row[1])
                && news.replica != self.replica
            {
                news.sent.iter().for_each(|told| self.learn(fleet, told));
            }
        }
    }

    fn learn(&self, fleet: &Fleet, told: &Told) {
        let mut upstreams = fleet.upstreams.iter();
        let upstream =
            upstreams.find(|upstream| upstream.spec.name == told.upstream && upstream.minds_prompts());
        let Some(upstream) = upstream else { return };
        let place = upstream.servers.iter().position(|server| server.spec.url.to_string() == told.server);
        if let Some(place) = place {
            let blocks = &told.blocks[..told.blocks.len().min(BLOCKS_MAX)];
            upstream.line().prefixes.be_told(blocks, place);
            self.learned.fetch_add(blocks.len() as u64, Ordering::Relaxed);
        }
    }
}

fn news(fleet: &Fleet, blocks_max: usize) -> Vec<Told> {
    let mut left = blocks_max;
    let mut all = Vec::new();
    for upstream in fleet.upstreams.iter().filter(|upstream| upstream.minds_prompts()) {
        for Sent { server, blocks } in upstream.line().prefixes.news(left) {
            left -= blocks.len();
            all.extend(upstream.servers.get(server).map(|server| Told {
                upstream: upstream.spec.name.clone(),
                server: server.spec.url.to_string(),
                blocks,
            }));
        }
    }
    all
}
