//! A named group of servers: which of them takes the next request, and who waits until one can.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::queue::{Queue, Spot};
use super::server::Server;
use super::spec::{Balance, Kind, UpstreamSpec};

#[derive(Debug)]
pub struct Upstream {
    pub spec: UpstreamSpec,
    pub servers: Vec<Arc<Server>>,
    turn: AtomicUsize,
    line: Mutex<Line>,
}

/// Who waits, and how long a slot is held on the whole.
#[derive(Debug, Default)]
struct Line {
    queue: Queue<oneshot::Sender<Result<Lease, Turned>>>,
    /// A moving average.
    held: Duration,
}

/// What is asked of an upstream.
#[derive(Debug, Clone, Copy)]
pub struct Errand<'a> {
    pub key: &'a str,
    /// Higher goes first.
    pub priority: i32,
    /// In tokens.
    pub cost: u64,
    /// Any number, to choose among equals.
    pub tie: usize,
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
    upstream: Arc<Upstream>,
    spot: Spot,
    told: oneshot::Receiver<Result<Lease, Turned>>,
}

impl Wait {
    /// Waits for a slot.
    pub async fn lease(&mut self) -> Result<Lease, Turned> {
        (&mut self.told).await.unwrap_or(Err(Turned::Away))
    }

    /// How long it is likely to take until a slot is free for one more.
    pub fn likely(&self) -> Duration {
        let line = self.upstream.line();
        self.upstream.likely(&line)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.upstream.line().queue.leave(self.spot);
    }
}

/// A request at a server, counted from when it is chosen until it ends; then the slot goes to whoever is next.
#[derive(Debug)]
pub struct Lease {
    server: Arc<Server>,
    upstream: Arc<Upstream>,
}

impl Lease {
    fn new(server: Arc<Server>, upstream: Arc<Upstream>) -> Self {
        server.enter();
        Self { server, upstream }
    }

    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.server.exit();
        self.upstream.dispatch();
    }
}

impl Upstream {
    pub(super) fn new(spec: UpstreamSpec) -> Self {
        let trusted = spec.kind == Kind::OpenAi;
        let server = |server: &_| Arc::new(Server::new(Clone::clone(server), spec.health.clone(), trusted));
        let servers = spec.servers.iter().map(server).collect();
        Self { servers, spec, turn: AtomicUsize::new(0), line: Mutex::default() }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a request a server with a free slot, or a place in the queue.
    pub fn enter(self: &Arc<Self>, errand: Errand<'_>) -> Result<Entry, Turned> {
        let mut line = self.line();
        if !self.servers.iter().any(|server| server.is_up()) {
            return Err(Turned::Away);
        }
        if line.queue.len() == 0
            && let Some(lease) = self.pick(&[], errand.tie, Server::has_room)
        {
            return Ok(Entry::Lease(lease));
        }
        if line.queue.len() >= self.spec.queue.waiting_max as usize {
            return Err(Turned::Full { likely: self.likely(&line) });
        }
        let (teller, told) = oneshot::channel();
        let spot = line.queue.join(errand.key, errand.priority, errand.cost, teller);
        drop(line);
        // A slot may have become free in between, or a server have come up: nobody else would tell.
        self.dispatch();
        Ok(Entry::Wait(Wait { upstream: Arc::clone(self), spot, told }))
    }

    /// Gives free slots to whoever is next. Call it after whatever may have made one free.
    pub fn dispatch(self: &Arc<Self>) {
        loop {
            let mut line = self.line();
            if line.queue.len() == 0 {
                return;
            }
            let given = if self.servers.iter().any(|server| server.is_up()) {
                let Some(lease) = self.pick(&[], fastrand::usize(..), Server::has_room) else { return };
                Ok(lease)
            } else {
                Err(Turned::Away)
            };
            let next = line.queue.next();
            drop(line);
            // Whoever has left meanwhile drops it: the slot is free for the next.
            if let Some(next) = next {
                let _ = next.send(given);
            }
        }
    }

    /// Requests that wait here.
    pub fn waiting(&self) -> usize {
        self.line().queue.len()
    }

    /// Takes in for how long a slot was held.
    pub fn note_held(&self, took: Duration) {
        let mut line = self.line();
        line.held = if line.held.is_zero() { took } else { (line.held * 7 + took) / 8 };
    }

    /// How long it is likely to take until a slot is free for one more.
    fn likely(&self, line: &Line) -> Duration {
        let slots: u32 =
            self.servers.iter().filter(|server| server.is_up()).filter_map(|server| server.slots()).sum();
        let before = u32::try_from(line.queue.len() + 1).unwrap_or(u32::MAX);
        line.held.saturating_mul(before) / slots.max(1)
    }

    /// A server for another try, whatever it works on already: one that is up, not among `tried` if another is there.
    pub fn again(self: &Arc<Self>, tried: &[Arc<Server>], tie: usize) -> Option<Lease> {
        self.pick(tried, tie, |_| true)
    }

    /// One that is up and `fits`, not among `tried` if another is there, and works on the least for its slots and its
    /// weight; counted from now on.
    fn pick(
        self: &Arc<Self>,
        tried: &[Arc<Server>],
        tie: usize,
        fits: impl Fn(&Server) -> bool,
    ) -> Option<Lease> {
        let up: Vec<_> = self.servers.iter().filter(|server| server.is_up() && fits(server)).collect();
        let is_tried = |server: &Arc<Server>| tried.iter().any(|tried| Arc::ptr_eq(tried, server));
        let fresh: Vec<_> = up.iter().copied().filter(|server| !is_tried(server)).collect();
        let choice = if fresh.is_empty() { up } else { fresh };
        let chosen = match self.spec.balance {
            Balance::RoundRobin => {
                let all: usize = choice.iter().map(|server| server.spec.weight as usize).sum();
                let mut turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(all)?;
                choice.into_iter().find(|server| {
                    let weight = server.spec.weight as usize;
                    let is_its = turn < weight;
                    turn = turn.saturating_sub(weight);
                    is_its
                })
            }
            Balance::LeastBusy | Balance::Prefix => {
                let least = choice.iter().map(|server| server.load()).min_by(f64::total_cmp)?;
                let equals: Vec<_> = choice.into_iter().filter(|server| server.load() <= least).collect();
                equals.get(tie.checked_rem(equals.len())?).copied()
            }
        };
        chosen.map(|server| Lease::new(Arc::clone(server), Arc::clone(self)))
    }

    /// One that is up and works on the least, for a question that takes no slot.
    pub fn some_server(&self) -> Option<Arc<Server>> {
        let up = self.servers.iter().filter(|server| server.is_up());
        up.min_by_key(|server| server.in_flight()).cloned()
    }

    /// What the servers that are up report of their models, together; `None` while one of them has not been asked.
    pub fn fingerprint(&self) -> Option<[u8; 32]> {
        let up = self.servers.iter().filter(|server| server.is_up());
        let mut prints = up
            .map(|server| server.report().map(|report| report.fingerprint))
            .collect::<Option<Vec<_>>>()
            .filter(|prints| !prints.is_empty())?;
        prints.sort_unstable();
        prints.dedup();
        Some(Sha256::digest(prints.concat()).into())
    }

    pub(super) fn reports(&self, model: &str) -> bool {
        self.servers
            .iter()
            .filter_map(|server| server.report())
            .any(|report| report.model_ids().any(|id| id == model))
    }
}
