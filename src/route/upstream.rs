//! A named group of servers: which of them takes the next request, and who waits until one can.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::balance::{Place, Turns, by_prefix, least_busy};
use super::entry::{Entry, Errand, Lease, Prompt, Turned, Wait};
use super::patience::Pace;
use super::prefix::Prefixes;
use super::queue::{Lane, Queue, Spot};
use super::retry::{Grant, RetryBudget};
use super::server::Server;
use super::spec::{Balance, UpstreamSpec};
use super::swap::Wanted;
use super::tenancy::{Tenant, fitting};

mod heir;

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
    /// The upstream of this name in the file that came after; who waits here waits there then.
    successor: OnceLock<Arc<Upstream>>,
}

/// Who waits, and how long a slot is held on the whole.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) queue: Queue<Waiter>,
    pub(super) prefixes: Prefixes,
    pub(super) pace: Pace,
    /// A moving average.
    pub(super) held: Duration,
}

/// Whom to tell, and what of.
#[derive(Debug)]
pub(super) struct Waiter {
    prompt: Prompt,
    tenant: Tenant,
    teller: oneshot::Sender<Result<Lease, Turned>>,
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
            successor: OnceLock::new(),
        }
    }

    /// Whether a plain answer is asked for as a stream.
    pub fn streams_always(&self, now: impl FnOnce() -> Duration) -> bool {
        self.spec.streamed && now().as_millis() >= u128::from(self.plain_until_ms.load(Ordering::Relaxed))
    }

    /// Takes in that a stream had no plain form: others may have none either.
    pub fn stream_not_before(&self, then: Duration) {
        self.plain_until_ms.store(u64::try_from(then.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a request for a model can go.
    fn lane(&self, model: Option<&str>, slot: bool) -> Lane {
        Lane { model: self.servers.iter().find_map(|server| server.routed(model)), slot, server: None }
    }

    /// Gives a request a server with a free slot, or a place in the queue.
    pub fn enter(self: &Arc<Self>, errand: Errand<'_>) -> Result<Entry, Turned> {
        let mut lane = self.lane(errand.model, errand.slot);
        let mut line = self.line();
        if let Some(heir) = self.successor() {
            drop(line);
            return heir.enter(errand);
        }
        if !self.servers.iter().any(|server| server.takes_requests()) {
            return Err(Turned::Away);
        }
        let waiting = line.queue.len();
        let full = waiting >= self.spec.queue.waiting_max as usize;
        let patience = if full { None } else { self.patience(&line, &lane, &errand) };
        if let Some((server, _)) = patience {
            lane.server = Some(server);
        }
        // A queue that is full of those who wait for one model keeps nobody from another that is there.
        if (line.queue.lanes().all(|(lane, ..)| lane.server.is_some())
            || (full && lane.model.is_some() && !line.queue.has(&lane)))
            && let Some(lease) =
                self.pick(&mut line.prefixes, &lane, errand.prompt, errand.tenant, errand.tie)
        {
            return Ok(Entry::Lease(lease));
        }
        if full {
            return Err(Turned::Full { likely: self.likely(&line) });
        }
        let (teller, told) = oneshot::channel();
        let waiter = Waiter { prompt: Arc::clone(errand.prompt), tenant: errand.tenant, teller };
        let spot = line.queue.join(&lane, errand.key, errand.priority, errand.cost, errand.now, waiter);
        drop(line);
        // A slot may have become free in between, or a server have come up: nobody else would tell.
        self.dispatch();
        let patience = patience.map(|(_, patience)| patience);
        Ok(Entry::Wait(Wait { upstream: Arc::clone(self), spot, patience, told }))
    }

    /// Gives free slots to whoever is next of those that can go. Call it after whatever may have made one free.
    pub fn dispatch(self: &Arc<Self>) {
        while self.dispatch_one() {}
        let line = self.line();
        if line.queue.lanes().any(|(lane, ..)| lane.model.is_some()) {
            self.servers.iter().for_each(|server| server.ring());
        }
    }

    /// It looks at the first of each lane and no further: at twice as many as routers have models, and one.
    fn dispatch_one(self: &Arc<Self>) -> bool {
        let mut guard = self.line();
        let line = &mut *guard;
        let away = !self.servers.iter().any(|server| server.takes_requests());
        let mut given = None;
        for (lane, waiter) in line.queue.heads() {
            if away {
                given = Some((lane.clone(), Err(Turned::Away)));
                break;
            }
            // Where another upstream of the same server has got it, that will tell when it is free again.
            let tie = fastrand::usize(..);
            if let Some(lease) = self.pick(&mut line.prefixes, lane, &waiter.prompt, waiter.tenant, tie) {
                given = Some((lane.clone(), Ok(lease)));
                break;
            }
        }
        let Some((lane, given)) = given else { return false };
        let next = line.queue.next(&lane);
        drop(guard);
        // Whoever has left meanwhile drops it: the slot is free for the next.
        next.is_some_and(|waiter| {
            let _ = waiter.teller.send(given);
            true
        })
    }

    /// Takes out a request that waits no longer.
    pub(super) fn leave(&self, spot: &Spot) {
        let mut line = self.line();
        if let Some(heir) = self.successor() {
            drop(line);
            return heir.leave(spot);
        }
        line.queue.leave(spot);
        drop(line);
        if spot.lane().model.is_some() {
            // Nobody may wait for that model any more.
            self.servers.iter().for_each(|server| server.ring());
        }
    }

    /// The models that requests here wait for and that a router has not loaded.
    pub(super) fn wanted_of(&self, router: &Server) -> Vec<Wanted> {
        let line = self.line();
        let others = || self.servers.iter().filter(|other| !other.is(router) && other.takes_requests());
        let wanted = |(lane, _, since): (&Lane, usize, Duration)| {
            let id = router.routed(lane.model.as_deref()).filter(|id| !router.residents.is_resident(id))?;
            let has = |other: &Arc<Server>| match other.routed(lane.model.as_deref()) {
                Some(id) => other.residents.is_resident(&id),
                None => !other.is_router(),
            };
            Some(Wanted { id, since, elsewhere: others().any(has) })
        };
        line.queue.lanes().filter_map(wanted).collect()
    }

    /// Takes it on that a router loads a model that requests here wait for, unless another is about to.
    pub(super) fn claim(&self, router: &Server, id: &str) -> bool {
        let line = self.line();
        let waits =
            line.queue.lanes().any(|(lane, ..)| router.routed(lane.model.as_deref()).as_deref() == Some(id));
        let is_coming =
            |other: &Arc<Server>| other.routed(Some(id)).is_some_and(|id| other.residents.is_coming(&id));
        let claimed = waits && !self.servers.iter().any(is_coming);
        if claimed {
            router.residents.set_coming(id, true);
        }
        claimed
    }

    /// Requests that wait here for one of a router's models.
    pub(super) fn waiting_for(&self, router: &Server, id: &str) -> usize {
        let line = self.line();
        let of_it = |lane: &Lane| router.routed(lane.model.as_deref()).as_deref() == Some(id);
        line.queue.lanes().filter(|(lane, ..)| of_it(lane)).map(|(_, len, _)| len).sum()
    }

    /// Takes in a request, whatever comes of it: further tries are a share of them.
    pub fn note_request(&self, now: Duration) {
        self.heir().budget().note_request(now);
    }

    /// Whether another try may be made, and takes it from the budget.
    pub fn may_retry(&self, now: Duration) -> Grant {
        self.heir().budget().take(now)
    }

    fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        self.retries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another server than this one gets any number of requests.
    pub fn has_another(&self, server: &Server) -> bool {
        self.servers.iter().any(|other| !other.is(server) && other.is_settled())
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
        let mut line = self.heir().line();
        line.held = if line.held.is_zero() { took } else { (line.held * 7 + took) / 8 };
    }

    pub(super) fn likely_wait(&self) -> Duration {
        let heir = self.heir();
        heir.likely(&heir.line())
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

    /// A server for another try, whatever it works on already: one that is up and has the model loaded if it is a
    /// router, not among `tried` if another is there.
    pub fn again(
        self: &Arc<Self>,
        model: Option<&str>,
        tried: &[Arc<Server>],
        tenant: Tenant,
        tie: usize,
    ) -> Option<Lease> {
        let heir = self.heir();
        let is_tried = |server: &Arc<Server>| tried.iter().any(|tried| tried.is(server));
        let may_go = |server: &Server| server.takes_requests() && server.has_room(model, false);
        // Another request may become the one that tries a server between the look and the count.
        let chosen = heir.servers.iter().find_map(|_| {
            let up: Vec<_> = heir.places().filter(|place| may_go(place.server)).collect();
            let fresh: Vec<_> = up.iter().copied().filter(|place| !is_tried(place.server)).collect();
            let choice = fitting(if fresh.is_empty() { up } else { fresh }, tenant);
            let chosen = match heir.spec.balance {
                Balance::RoundRobin => heir.in_turn(&choice)?,
                Balance::LeastBusy | Balance::Prefix => least_busy(&choice, tie)?,
            };
            lease(chosen, model, false, tenant)
        });
        chosen.map(|(_, lease)| lease)
    }

    pub(super) fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let weights = self.spec.servers.iter().map(|spec| spec.weight);
        self.servers.iter().zip(weights).enumerate().map(|(at, (server, weight))| Place {
            at,
            server,
            weight,
        })
    }

    /// The server with a free slot for a prompt, counted from now on.
    fn pick(
        &self,
        prefixes: &mut Prefixes,
        lane: &Lane,
        prompt: &Prompt,
        tenant: Tenant,
        tie: usize,
    ) -> Option<Lease> {
        let (model, slot) = (lane.model.as_deref(), lane.slot);
        let may_go = |server: &Server| server.takes_requests() && server.has_room(model, slot);
        // One that is away is not waited for.
        let is_there = |server: &Arc<Server>, number: u64| server.number == number && server.takes_requests();
        let only = lane.server.filter(|only| self.servers.iter().any(|server| is_there(server, *only)));
        // Another upstream may take the last slot of a server between the look and the count.
        let chosen = self.servers.iter().find_map(|_| {
            let choice: Vec<_> = self
                .places()
                .filter(|place| only.is_none_or(|only| only == place.server.number) && may_go(place.server))
                .collect();
            let choice = fitting(choice, tenant);
            let chosen = match self.spec.balance {
                Balance::RoundRobin => self.in_turn(&choice)?,
                Balance::LeastBusy => least_busy(&choice, tie)?,
                Balance::Prefix => by_prefix(&choice, prefixes, prompt, tie)?,
            };
            lease(chosen, model, slot, tenant)
        });
        let (at, mut lease) = chosen?;
        lease.thought = prefixes.held_of(prompt, at);
        if self.spec.balance == Balance::Prefix {
            prefixes.learn(prompt, at);
        }
        Some(lease)
    }

    fn in_turn<'a>(&self, choice: &[Place<'a>]) -> Option<Place<'a>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).next(choice)
    }

    /// One that is up and works on the least, for a question that takes no slot; a router must have the model loaded.
    pub fn some_server(&self, model: Option<&str>) -> Option<Arc<Server>> {
        let may_ask = |server: &&Arc<Server>| server.takes_requests() && server.has_room(model, false);
        let up = self.heir().servers.iter().filter(may_ask);
        up.min_by_key(|server| server.in_flight()).cloned()
    }

    /// What the servers that are up report of a model, together; `None` while one of them has not been asked.
    pub fn fingerprint(&self, model: Option<&str>) -> Option<[u8; 32]> {
        let up = self.servers.iter().filter(|server| server.is_up());
        let mut prints = up
            .map(|server| server.report().map(|report| report.fingerprint_of(model)))
            .collect::<Option<Vec<_>>>()
            .filter(|prints| !prints.is_empty())?;
        prints.sort_unstable();
        prints.dedup();
        match prints[..] {
            [print] => Some(print),
            _ => Some(Sha256::digest(prints.concat()).into()),
        }
    }

    pub(super) fn reports(&self, model: &str) -> bool {
        self.servers.iter().filter_map(|server| server.report()).any(|report| report.has(model))
    }
}

/// The place of a server, and a request there.
fn lease(chosen: Place<'_>, model: Option<&str>, slot: bool, tenant: Tenant) -> Option<(usize, Lease)> {
    let server = Arc::clone(chosen.server);
    let routed = server.routed(model);
    let is_trial = server.enter(routed.as_deref(), slot)?;
    let reuses = server.tenancy().admit(tenant);
    Some((chosen.at, Lease { server, routed, thought: 0, reuses, is_trial }))
}
