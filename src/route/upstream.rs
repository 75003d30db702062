//! A named group of servers: which of them takes the next request, and who waits until one can.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::balance::{Place, Turns, by_prefix, least_busy};
use super::prefix::Prefixes;
use super::queue::{Queue, Spot};
use super::retry::{Grant, RetryBudget};
use super::server::Server;
use super::spec::{Balance, UpstreamSpec};
use super::tenancy::{Tenant, fitting};

/// Blocks that a server may have reused less than was thought, without consequence: templates and rounding.
const SLACK_BLOCKS: usize = 4;

#[derive(Debug)]
pub struct Upstream {
    pub spec: UpstreamSpec,
    /// In the order of `spec.servers`; other upstreams may have them too.
    pub servers: Vec<Arc<Server>>,
    turns: Mutex<Turns>,
    line: Mutex<Line>,
    /// Milliseconds: until then plain answers are asked for plainly, whatever the file says.
    plain_until_ms: AtomicU64,
    retries: Mutex<RetryBudget>,
}

/// Who waits, and how long a slot is held on the whole.
#[derive(Debug, Default)]
struct Line {
    queue: Queue<Waiter>,
    prefixes: Prefixes,
    /// A moving average.
    held: Duration,
}

/// Whom to tell, and what of.
#[derive(Debug)]
struct Waiter {
    prompt: Prompt,
    tenant: Option<Tenant>,
    teller: oneshot::Sender<Result<Lease, Turned>>,
}

/// The beginning of a prompt, a hash for each block; empty where it does not matter.
pub type Prompt = Arc<[u64]>;

/// What is asked of an upstream.
#[derive(Debug, Clone, Copy)]
pub struct Errand<'a> {
    pub prompt: &'a Prompt,
    pub key: &'a str,
    /// Whose it is, where keys must not meet in one KV cache.
    pub tenant: Option<Tenant>,
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
    /// Blocks of the prompt that the server was thought to hold.
    pub thought: usize,
    /// Its prompt may be found in the KV cache.
    pub reuses: bool,
    /// It is the one request that tries a server whose breaker is half open.
    is_trial: bool,
}

impl Lease {
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.server.exit();
        if self.is_trial {
            self.server.end_trial();
        }
        self.server.dispatch();
    }
}

impl Upstream {
    /// `servers`: those of `spec`, in its order.
    pub(super) fn new(spec: UpstreamSpec, servers: Vec<Arc<Server>>) -> Self {
        Self {
            servers,
            spec,
            turns: Mutex::default(),
            line: Mutex::default(),
            plain_until_ms: AtomicU64::new(0),
            retries: Mutex::default(),
        }
    }

    /// Whether a plain answer is asked for as a stream.
    pub fn streams_always(&self, now: Duration) -> bool {
        self.spec.streamed && now.as_millis() >= u128::from(self.plain_until_ms.load(Ordering::Relaxed))
    }

    /// Takes in that a stream had no plain form: others may have none either.
    pub fn stream_not_before(&self, then: Duration) {
        self.plain_until_ms.store(u64::try_from(then.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a request a server with a free slot, or a place in the queue.
    pub fn enter(self: &Arc<Self>, errand: Errand<'_>) -> Result<Entry, Turned> {
        let mut line = self.line();
        if !self.servers.iter().any(|server| server.takes_requests()) {
            return Err(Turned::Away);
        }
        if line.queue.len() == 0
            && let Some(lease) = self.pick(&mut line.prefixes, errand.prompt, errand.tenant, errand.tie)
        {
            return Ok(Entry::Lease(lease));
        }
        if line.queue.len() >= self.spec.queue.waiting_max as usize {
            return Err(Turned::Full { likely: self.likely(&line) });
        }
        let (teller, told) = oneshot::channel();
        let waiter = Waiter { prompt: Arc::clone(errand.prompt), tenant: errand.tenant, teller };
        let spot = line.queue.join(errand.key, errand.priority, errand.cost, waiter);
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
            let away = !self.servers.iter().any(|server| server.takes_requests());
            if !away && !self.servers.iter().any(|server| server.takes_requests() && server.has_room()) {
                return;
            }
            let Some(Waiter { prompt, tenant, .. }) = line.queue.first() else { return };
            let (prompt, tenant) = (Arc::clone(prompt), *tenant);
            let given = match self.pick(&mut line.prefixes, &prompt, tenant, fastrand::usize(..)) {
                Some(lease) => Ok(lease),
                None if away => Err(Turned::Away),
                // Another upstream of the same server has got it, and will tell when it is free again.
                None => return,
            };
            let next = line.queue.next();
            drop(line);
            // Whoever has left meanwhile drops it: the slot is free for the next.
            let _ = next.map(|waiter| waiter.teller.send(given));
        }
    }

    /// Takes in a request, whatever comes of it: further tries are a share of them.
    pub fn note_request(&self, now: Duration) {
        self.budget().note_request(now);
    }

    /// Whether another try may be made, and takes it from the budget.
    pub fn may_retry(&self, now: Duration) -> Grant {
        self.budget().take(now)
    }

    fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        self.retries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another server than this one gets any number of requests.
    pub fn has_another(&self, server: &Server) -> bool {
        self.servers.iter().any(|other| !std::ptr::eq(other.as_ref(), server) && other.is_settled())
    }

    /// Where requests have taken out or put on trial all that is left, they get it back: there is no other.
    pub fn keep_one(&self) -> Vec<&Arc<Server>> {
        if self.servers.iter().any(|server| server.is_settled()) {
            return Vec::new();
        }
        self.servers.iter().filter(|server| server.reinstate().is_some()).collect()
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
        let slots: u32 = self
            .servers
            .iter()
            .filter(|server| server.takes_requests())
            .filter_map(|server| server.slots())
            .sum();
        let before = u32::try_from(line.queue.len() + 1).unwrap_or(u32::MAX);
        line.held.saturating_mul(before) / slots.max(1)
    }

    /// A server for another try, whatever it works on already: one that is up, not among `tried` if another is there.
    pub fn again(
        self: &Arc<Self>,
        tried: &[Arc<Server>],
        tenant: Option<Tenant>,
        tie: usize,
    ) -> Option<Lease> {
        let (chosen, is_trial) = self.another(tried, tenant, tie)?;
        let reuses = chosen.server.tenancy().admit(tenant);
        Some(Lease { server: Arc::clone(chosen.server), thought: 0, reuses, is_trial })
    }

    fn another(
        &self,
        tried: &[Arc<Server>],
        tenant: Option<Tenant>,
        tie: usize,
    ) -> Option<(Place<'_>, bool)> {
        let is_tried = |server: &Arc<Server>| tried.iter().any(|tried| Arc::ptr_eq(tried, server));
        // Another request may become the one that tries a server between the look and the count.
        self.servers.iter().find_map(|_| {
            let up: Vec<_> = self.places().filter(|place| place.server.takes_requests()).collect();
            let fresh: Vec<_> = up.iter().copied().filter(|place| !is_tried(place.server)).collect();
            let choice = fitting(if fresh.is_empty() { up } else { fresh }, tenant);
            let chosen = match self.spec.balance {
                Balance::RoundRobin => self.in_turn(&choice)?,
                Balance::LeastBusy | Balance::Prefix => least_busy(&choice, tie)?,
            };
            chosen.server.enter().map(|is_trial| (chosen, is_trial))
        })
    }

    /// A server for what takes no slot and leaves nothing in a KV cache.
    pub fn beside(self: &Arc<Self>, tie: usize) -> Option<Lease> {
        let (chosen, is_trial) = self.another(&[], None, tie)?;
        Some(Lease { server: Arc::clone(chosen.server), thought: 0, reuses: true, is_trial })
    }

    fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let weights = self.spec.servers.iter().map(|spec| spec.weight);
        self.servers.iter().zip(weights).enumerate().map(|(at, (server, weight))| Place {
            at,
            server,
            weight,
        })
    }

    /// The server with a free slot for a prompt, counted from now on.
    fn pick(
        self: &Arc<Self>,
        prefixes: &mut Prefixes,
        prompt: &Prompt,
        tenant: Option<Tenant>,
        tie: usize,
    ) -> Option<Lease> {
        // Another upstream may take the last slot of a server between the look and the count.
        let chosen = self.servers.iter().find_map(|_| {
            let choice: Vec<_> = self
                .places()
                .filter(|place| place.server.takes_requests() && place.server.has_room())
                .collect();
            let choice = fitting(choice, tenant);
            let chosen = match self.spec.balance {
                Balance::RoundRobin => self.in_turn(&choice)?,
                Balance::LeastBusy => least_busy(&choice, tie)?,
                Balance::Prefix => by_prefix(&choice, prefixes, prompt, tie)?,
            };
            chosen.server.try_enter().map(|is_trial| (chosen, is_trial))
        });
        let (chosen, is_trial) = chosen?;
        let thought = prefixes.held_of(prompt, chosen.at);
        if self.spec.balance == Balance::Prefix {
            prefixes.learn(prompt, chosen.at);
        }
        let reuses = chosen.server.tenancy().admit(tenant);
        Some(Lease { server: Arc::clone(chosen.server), thought, reuses, is_trial })
    }

    fn in_turn<'a>(&self, choice: &[Place<'a>]) -> Option<Place<'a>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).next(choice)
    }

    /// Whether it matters where a prompt goes.
    pub fn minds_prompts(&self) -> bool {
        self.spec.balance == Balance::Prefix && self.servers.len() > 1
    }

    fn place_of(&self, server: &Server) -> Option<usize> {
        self.servers.iter().position(|own| std::ptr::eq(own.as_ref(), server))
    }

    /// Takes in which part of a prompt, that it was `thought` to hold so many blocks of, a server says it reused.
    pub fn note_reused(&self, server: &Server, prompt: &Prompt, thought: usize, part: f64) {
        if let Some(place) = self.place_of(server) {
            let reused = (part.clamp(0.0, 1.0) * prompt.len() as f64).ceil() as usize;
            if thought > 2 * reused + SLACK_BLOCKS {
                // What it has just read it holds now; what it held long before that may be gone as well.
                let mut line = self.line();
                line.prefixes.shed(place);
                line.prefixes.learn(prompt, place);
            }
        }
    }

    /// Takes in that a server was away: what it held is gone.
    pub fn forget_prompts(&self, server: &Server) {
        if let Some(place) = self.place_of(server) {
            self.line().prefixes.forget(place);
        }
    }

    /// One that is up and works on the least, for a question that takes no slot.
    pub fn some_server(&self) -> Option<Arc<Server>> {
        let up = self.servers.iter().filter(|server| server.takes_requests());
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
