//! A named group of servers: which of them takes the next request, and who waits until one can.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::prefix::Prefixes;
use super::queue::{Queue, Spot};
use super::server::Server;
use super::spec::{Balance, Kind, UpstreamSpec};

/// A match of less, in blocks, counts as none, and so does one of less than this part of the prompt.
const MATCH_BLOCKS_LEAST: usize = 2;
const MATCH_PART: usize = 4;

/// A server that holds a prompt's beginning may be this much busier than another, in parts of its slots.
const BUSIER_MAX: f64 = 0.5;

/// Blocks that a server may have reused less than was thought, without consequence: templates and rounding.
const SLACK_BLOCKS: usize = 4;

#[derive(Debug)]
pub struct Upstream {
    pub spec: UpstreamSpec,
    pub servers: Vec<Arc<Server>>,
    turn: AtomicUsize,
    line: Mutex<Line>,
    /// Milliseconds: until then plain answers are asked for plainly, whatever the file says.
    plain_until_ms: AtomicU64,
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
    teller: oneshot::Sender<Result<Lease, Turned>>,
}

/// The beginning of a prompt, a hash for each block; empty where it does not matter.
pub type Prompt = Arc<[u64]>;

/// What is asked of an upstream.
#[derive(Debug, Clone, Copy)]
pub struct Errand<'a> {
    pub prompt: &'a Prompt,
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
    /// Blocks of the prompt that the server was thought to hold.
    pub thought: usize,
}

impl Lease {
    fn new(server: Arc<Server>, upstream: Arc<Upstream>, thought: usize) -> Self {
        server.enter();
        Self { server, upstream, thought }
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

/// A server and its place in its upstream.
type Place<'a> = (usize, &'a Arc<Server>);

/// By requests over slots, for the weight; any of those that are equal.
fn least_busy<'a>(choice: &[Place<'a>], tie: usize) -> Option<Place<'a>> {
    let least = choice.iter().map(|(_, server)| server.load()).min_by(f64::total_cmp)?;
    let equals: Vec<_> = choice.iter().copied().filter(|(_, server)| server.load() <= least).collect();
    equals.get(tie.checked_rem(equals.len())?).copied()
}

/// The one that most likely holds the longest part of the prompt, unless it is much busier than another; where none
/// holds enough, of the least busy the one that holds the least.
fn by_prefix<'a>(
    choice: &[Place<'a>],
    prefixes: &Prefixes,
    prompt: &Prompt,
    tie: usize,
) -> Option<Place<'a>> {
    let least = choice.iter().map(|(_, server)| server.load()).min_by(f64::total_cmp)?;
    let near = choice.iter().copied().filter(|(_, server)| server.load() <= least + BUSIER_MAX);
    let holding = near.map(|place| (prefixes.held_of(prompt, place.0), place));
    let best =
        holding.max_by(|(one, a), (other, b)| one.cmp(other).then_with(|| b.1.load().total_cmp(&a.1.load())));
    if let Some((blocks, place)) = best
        && blocks >= MATCH_BLOCKS_LEAST.max(prompt.len() / MATCH_PART)
    {
        return Some(place);
    }
    let equals: Vec<_> = choice.iter().copied().filter(|(_, server)| server.load() <= least).collect();
    let fewest = equals.iter().map(|(place, _)| prefixes.held(*place)).min()?;
    let emptiest: Vec<_> = equals.into_iter().filter(|(place, _)| prefixes.held(*place) == fewest).collect();
    emptiest.get(tie.checked_rem(emptiest.len())?).copied()
}

impl Upstream {
    pub(super) fn new(spec: UpstreamSpec) -> Self {
        let trusted = spec.kind == Kind::OpenAi;
        let server = |server: &_| Arc::new(Server::new(Clone::clone(server), spec.health.clone(), trusted));
        let servers = spec.servers.iter().map(server).collect();
        Self {
            servers,
            spec,
            turn: AtomicUsize::new(0),
            line: Mutex::default(),
            plain_until_ms: AtomicU64::new(0),
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
            && let Some(lease) = self.pick(&mut line.prefixes, errand.prompt, errand.tie)
        {
            return Ok(Entry::Lease(lease));
        }
        if line.queue.len() >= self.spec.queue.waiting_max as usize {
            return Err(Turned::Full { likely: self.likely(&line) });
        }
        let (teller, told) = oneshot::channel();
        let waiter = Waiter { prompt: Arc::clone(errand.prompt), teller };
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
            let Some(Waiter { prompt, teller }) = line.queue.next() else { return };
            let given = match self.pick(&mut line.prefixes, &prompt, fastrand::usize(..)) {
                Some(lease) => Ok(lease),
                None => Err(Turned::Away),
            };
            drop(line);
            // Whoever has left meanwhile drops it: the slot is free for the next.
            let _ = teller.send(given);
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
    pub fn again(self: &Arc<Self>, tried: &[Arc<Server>], tie: usize) -> Option<Lease> {
        let up: Vec<_> = self.places().filter(|(_, server)| server.takes_requests()).collect();
        let is_tried = |server: &Arc<Server>| tried.iter().any(|tried| Arc::ptr_eq(tried, server));
        let fresh: Vec<_> = up.iter().copied().filter(|(_, server)| !is_tried(server)).collect();
        let choice = if fresh.is_empty() { up } else { fresh };
        let (_, chosen) = match self.spec.balance {
            Balance::RoundRobin => self.in_turn(&choice)?,
            Balance::LeastBusy | Balance::Prefix => least_busy(&choice, tie)?,
        };
        Some(Lease::new(Arc::clone(chosen), Arc::clone(self), 0))
    }

    fn places(&self) -> impl Iterator<Item = Place<'_>> {
        self.servers.iter().enumerate()
    }

    /// The server with a free slot for a prompt, counted from now on.
    fn pick(self: &Arc<Self>, prefixes: &mut Prefixes, prompt: &Prompt, tie: usize) -> Option<Lease> {
        let choice: Vec<_> =
            self.places().filter(|(_, server)| server.takes_requests() && server.has_room()).collect();
        let (place, chosen) = match self.spec.balance {
            Balance::RoundRobin => self.in_turn(&choice)?,
            Balance::LeastBusy => least_busy(&choice, tie)?,
            Balance::Prefix => by_prefix(&choice, prefixes, prompt, tie)?,
        };
        let thought = prefixes.held_of(prompt, place);
        if self.spec.balance == Balance::Prefix {
            prefixes.learn(prompt, place);
        }
        Some(Lease::new(Arc::clone(chosen), Arc::clone(self), thought))
    }

    /// By weight.
    fn in_turn<'a>(&self, choice: &[Place<'a>]) -> Option<Place<'a>> {
        let all: usize = choice.iter().map(|(_, server)| server.spec.weight as usize).sum();
        let mut turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(all)?;
        choice.iter().copied().find(|(_, server)| {
            let weight = server.spec.weight as usize;
            let is_its = turn < weight;
            turn = turn.saturating_sub(weight);
            is_its
        })
    }

    /// Whether it matters where a prompt goes.
    pub fn minds_prompts(&self) -> bool {
        self.spec.balance == Balance::Prefix && self.servers.len() > 1
    }

    /// Takes in which part of a prompt, that it was `thought` to hold so many blocks of, a server says it reused.
    pub fn note_reused(&self, server: &Server, prompt: &Prompt, thought: usize, part: f64) {
        let place = self.places().find(|(_, own)| std::ptr::eq(own.as_ref(), server));
        if let Some((place, _)) = place {
            let reused = (part.clamp(0.0, 1.0) * prompt.len() as f64).ceil() as usize;
            if thought > reused + SLACK_BLOCKS {
                // What it has just read it holds now; what it held long before that is likely to be gone as well.
                let mut line = self.line();
                line.prefixes.halve(place);
                line.prefixes.learn(prompt, place);
            }
        }
    }

    /// Takes in that a server was away: what it held is gone.
    pub fn forget_prompts(&self, server: &Server) {
        let place = self.places().find(|(_, own)| std::ptr::eq(own.as_ref(), server));
        if let Some((place, _)) = place {
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
