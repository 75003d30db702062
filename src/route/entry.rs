//! What is asked of an upstream, and what a request gets: a lease of a server, or a wait for one. Both are guards.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::queue::Spot;
use super::server::Server;
use super::tenancy::Tenant;
use super::upstream::Upstream;

/// The beginning of a prompt, a hash for each block; empty where it does not matter.
pub type Prompt = Arc<[u64]>;

/// What is asked of an upstream.
#[derive(Debug, Clone, Copy)]
pub struct Errand<'a> {
    /// As the servers call it.
    pub model: Option<&'a str>,
    /// Whether it takes a slot. What does not waits for its model alone.
    pub slot: bool,
    pub prompt: &'a Prompt,
    pub key: &'a str,
    /// Whose prompts it meets in a KV cache.
    pub tenant: Tenant,
    /// Higher goes first.
    pub priority: i32,
    /// In tokens.
    pub cost: u64,
    /// Any number, to choose among equals.
    pub tie: usize,
    pub now: Duration,
}

/// Why a request gets no server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// No server is up.
    Away,
    /// So many wait already; a slot is likely to be free for another after this long.
    Full { likely: Duration },
}

/// What a request gets.
#[derive(Debug)]
pub enum Entry {
    Lease(Lease),
    Wait(Wait),
}

/// A request in the queue; dropped, it is in it no longer.
#[derive(Debug)]
pub struct Wait {
    pub(super) upstream: Arc<Upstream>,
    pub(super) spot: Spot,
    /// How long it waits for one server alone.
    pub(super) patience: Option<Duration>,
    pub(super) told: oneshot::Receiver<Result<Lease, Turned>>,
}

impl Wait {
    /// Waits for a slot.
    pub async fn lease(&mut self) -> Result<Lease, Turned> {
        (&mut self.told).await.unwrap_or(Err(Turned::Away))
    }

    /// How long it waits for one server alone, if it does; then say so by [`Self::lose_patience`].
    pub fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// From now on any server will do.
    pub fn lose_patience(&mut self) {
        self.patience = None;
        self.upstream.widen(&mut self.spot);
    }

    /// How long it is likely to take until a slot is free for one more.
    pub fn likely(&self) -> Duration {
        self.upstream.likely_wait()
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.upstream.leave(&self.spot);
    }
}

/// A request at a server, counted from when it is chosen until it ends; then the slot goes to whoever is next.
#[derive(Debug)]
pub struct Lease {
    pub(super) server: Arc<Server>,
    /// Which of a router's models works on it.
    pub(super) routed: Option<Arc<str>>,
    /// Blocks of the prompt that the server was thought to hold.
    pub thought: usize,
    /// Its prompt may be found in the KV cache.
    pub reuses: bool,
    /// It is the one request that tries a server whose breaker is half open.
    pub(super) is_trial: bool,
}

impl Lease {
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.server.exit(self.routed.as_deref());
        if self.is_trial {
            self.server.end_trial();
        }
        self.server.dispatch();
    }
}
