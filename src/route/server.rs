//! One server: where it is, whether it is up, what it works on, what it reports of its model.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use foldhash::fast::RandomState;
use tokio::sync::Notify;

use super::addresses::Addresses;
use super::health::{Breaker, Health, Opening, Sign, Turn};
use super::report::Report;
use super::residents::Residents;
use super::spec::{HealthCheck, Kind, ServerSpec, Slots, SwapBounds};
use super::tenancy::Tenancy;
use super::upstream::Upstream;

/// Shared by all upstreams that name it: its slots are counted, and its health is known, once. What is known of it is
/// shared with whom it succeeds, where a file describes it anew.
#[derive(Debug, Clone)]
pub struct Server {
    /// No other server has it. It stays where the server is described anew.
    pub(super) number: u64,
    /// As the first upstream that names it has it; the others say the same but for its weight.
    pub spec: ServerSpec,
    /// What the `host` header says to it.
    host: Arc<str>,
    pub kind: Kind,
    check: HealthCheck,
    pub(super) swap: SwapBounds,
    health: Arc<Mutex<Health>>,
    in_flight: Arc<AtomicU32>,
    draining: Arc<AtomicBool>,
    /// What the server says of its slots; 0: nothing. Kept when the rest of its report no longer counts.
    told_slots: Arc<AtomicU32>,
    tenancy: Arc<Tenancy>,
    /// `None` until the server has been asked, and again after a fault: it may come back as another.
    report: Arc<ArcSwapOption<Report>>,
    /// Endpoints that it was asked for and does not have.
    lacking: Arc<Mutex<HashSet<&'static str, RandomState>>>,
    /// Its models, where it is a router of several.
    pub(super) residents: Arc<Residents>,
    /// Rings when it may be time to load another.
    pub(super) wanting: Arc<Notify>,
    addresses: Arc<Addresses>,
    /// What is complained of, by its topic, so that the log has it once.
    complaints: Arc<Mutex<HashMap<&'static str, String>>>,
    /// Whose requests it takes.
    upstreams: Arc<ArcSwap<Belonging>>,
    /// Which of them is told first of a free slot.
    turn: Arc<AtomicUsize>,
}

/// The upstreams that have a server.
#[derive(Debug, Default)]
pub(super) struct Belonging {
    pub(super) current: Vec<Weak<Upstream>>,
    /// Those of files before, which nobody has succeeded: requests that began under them may wait there.
    pub(super) former: Vec<Weak<Upstream>>,
}

/// How many servers there have been.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Where every kind lists its models.
pub const MODELS: &str = "/v1/models";

impl Server {
    pub(super) fn new(spec: ServerSpec, kind: Kind, check: HealthCheck, swap: SwapBounds) -> Self {
        // Up without having been seen, where no probe will tell.
        let trusted = check.path.is_none();
        Self {
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            host: spec.url.host_header().into(),
            spec,
            kind,
            check,
            swap,
            health: Arc::new(Mutex::new(Health::new(trusted))),
            in_flight: Arc::default(),
            draining: Arc::default(),
            told_slots: Arc::default(),
            tenancy: Arc::new(Tenancy::unknown()),
            report: Arc::default(),
            lacking: Arc::default(),
            residents: Arc::default(),
            wanting: Arc::default(),
            addresses: Arc::default(),
            complaints: Arc::default(),
            upstreams: Arc::default(),
            turn: Arc::default(),
        }
    }

    /// The same server as a file describes it now.
    pub(super) fn described_anew(&self, spec: ServerSpec, check: HealthCheck, swap: SwapBounds) -> Self {
        Self { spec, check, swap, ..self.clone() }
    }

    /// Whether that is what this one runs by. Its weight is each upstream's own.
    pub(super) fn is_described_by(&self, spec: &ServerSpec, check: &HealthCheck, swap: SwapBounds) -> bool {
        let weighed = ServerSpec { weight: spec.weight, ..self.spec.clone() };
        *spec == weighed && *check == self.check && swap == self.swap
    }

    /// Whether it is the same server, however it was described.
    pub fn is(&self, other: &Self) -> bool {
        self.number == other.number
    }

    /// Says who they are, once all of them are made.
    pub(super) fn belongs_to(&self, belonging: Belonging) {
        self.upstreams.store(Arc::new(belonging));
    }

    pub(super) fn belonging(&self) -> Arc<Belonging> {
        self.upstreams.load_full()
    }

    /// Those that name it, each time beginning with another.
    pub fn upstreams(&self) -> impl Iterator<Item = Arc<Upstream>> {
        let all = &self.belonging().current;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (before, from) = all.split_at(turn.checked_rem(all.len()).unwrap_or_default());
        let upstreams: Vec<_> = from.iter().chain(before).filter_map(Weak::upgrade).collect();
        upstreams.into_iter()
    }

    /// Those whose requests may wait for it: others than name it now may be among them.
    pub(super) fn all_upstreams(&self) -> impl Iterator<Item = Arc<Upstream>> {
        let former: Vec<_> = self.belonging().former.iter().filter_map(Weak::upgrade).collect();
        self.upstreams().chain(former)
    }

    /// Whether requests of a file before wait for it, which no upstream has now.
    pub fn is_awaited(&self) -> bool {
        self.all_upstreams().any(|upstream| upstream.waiting() > 0)
    }

    /// Gives its free slots to whoever waits. Call it after whatever may have made one free.
    pub fn dispatch(&self) {
        self.all_upstreams().for_each(|upstream| upstream.dispatch());
    }

    /// What the `host` header says to it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where an endpoint of the table stands on this server.
    pub fn path_of(&self, endpoint: &str) -> String {
        self.spec.url.path_of(self.kind, endpoint)
    }

    /// Where it is asked for its health; `None`: it is not asked while it is up.
    pub fn health_path(&self) -> Option<String> {
        match &self.check.path {
            Some(path) => Some(path.clone()),
            None if self.is_up() => None,
            None => Some(self.path_of(MODELS)),
        }
    }

    /// Whether this is not what was complained of last in this matter.
    pub fn is_news(&self, matter: &'static str, complaint: &str) -> bool {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        complaints.insert(matter, complaint.to_owned()).as_deref() != Some(complaint)
    }

    /// There is nothing to complain of in this matter any more; whether there was.
    pub fn is_relief(&self, matter: &'static str) -> bool {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).remove(matter).is_some()
    }

    /// Whose prompts it may hold.
    pub(super) fn tenancy(&self) -> &Tenancy {
        &self.tenancy
    }

    /// Takes in that its process has ended, or has just begun: it holds no prompts.
    pub fn note_new_process(&self) {
        self.tenancy.renew();
    }

    pub fn check(&self) -> &HealthCheck {
        &self.check
    }

    /// Whether requests are sent to it.
    pub fn is_up(&self) -> bool {
        self.health().is_up()
    }

    /// Whether the next request may go to it.
    pub fn takes_requests(&self) -> bool {
        self.health().takes_requests() && !self.is_draining()
    }

    /// Whether any number of requests may: it is up, and not on trial.
    pub fn is_settled(&self) -> bool {
        self.health().is_settled() && !self.is_draining()
    }

    /// What requests have met of it.
    pub fn breaker(&self) -> Breaker {
        self.health().breaker()
    }

    /// Whether the operator has taken it out: it finishes what it has.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Whether it is up and has been heard of.
    pub fn is_well(&self) -> bool {
        let health = self.health();
        health.is_up() && health.seen
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a probe or a request met. `jitter`, from 0 to 1, shortens the pause of a breaker that opens.
    pub fn note(&self, sign: Sign, jitter: f64) -> Option<Turn> {
        if matches!(sign, Sign::Fault | Sign::BadProbe | Sign::NotReady) {
            self.forget_report();
        }
        self.health().note(sign, &self.check, jitter)
    }

    /// Takes in that the pause of its breaker is over.
    pub fn pause_ends(&self, opening: Opening) -> Option<Turn> {
        self.health().pause_ends(opening)
    }

    /// Closes its breaker: there is no other server.
    pub fn reinstate(&self) -> Option<Turn> {
        if self.is_draining() { None } else { self.health().reinstate() }
    }

    pub fn report(&self) -> Option<Arc<Report>> {
        self.report.load_full()
    }

    /// What it said before no longer counts.
    pub fn forget_report(&self) {
        self.report.store(None);
        self.lacking().clear();
    }

    /// Whether it said that it does not have this endpoint, and has not been asked of itself since.
    pub fn lacks(&self, endpoint: &str) -> bool {
        self.lacking().contains(endpoint)
    }

    pub fn note_lacking(&self, endpoint: &'static str) {
        self.lacking().insert(endpoint);
    }

    fn lacking(&self) -> MutexGuard<'_, HashSet<&'static str, RandomState>> {
        self.lacking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what it says of itself, at `now`.
    pub fn set_report(&self, report: Report, now: Duration) {
        self.told_slots.store(report.slots.unwrap_or_default(), Ordering::Relaxed);
        self.residents.set(report.router.as_ref(), now);
        self.lacking().clear();
        self.report.store(Some(Arc::new(report)));
    }

    /// On how many requests it works at once; `None`: unknown. One that says 0 counts as one that does not say. A
    /// router works on as many as the models that it has loaded.
    pub fn slots(&self) -> Option<u32> {
        match self.spec.slots {
            Slots::Auto if self.residents.routes() => self.residents.slots(),
            _ => self.slots_bound(),
        }
    }

    /// How many it gets at once, whatever the model; a router has a bound for each model instead.
    fn slots_bound(&self) -> Option<u32> {
        match self.spec.slots {
            Slots::Fixed(slots) => Some(slots),
            Slots::Auto if self.residents.routes() => None,
            Slots::Auto => Some(self.told_slots.load(Ordering::Relaxed)).filter(|slots| *slots > 0),
        }
    }

    /// What it calls a model, where it is a router that knows it.
    pub(super) fn routed(&self, model: Option<&str>) -> Option<Arc<str>> {
        self.residents.id_of(model?)
    }

    /// Whether a request for that model may go to it now, as far as anybody knows: with a free slot, if it takes one.
    pub(super) fn has_room(&self, model: Option<&str>, slot: bool) -> bool {
        let free = || self.slots_bound().is_none_or(|slots| self.in_flight() < slots);
        (!slot || free()) && self.residents.takes(self.routed(model).as_deref(), slot)
    }

    /// Counts one more request, for one of a router's models; if there is a slot for it, where it takes one: of two
    /// upstreams that see the last, one gets it. True: as the one request that tries it.
    pub(super) fn enter(&self, routed: Option<&str>, slot: bool) -> Option<bool> {
        if !self.residents.enter(routed, slot) {
            return None;
        }
        let slots = self.slots_bound().filter(|_| slot).unwrap_or(u32::MAX);
        let more = |in_flight: u32| in_flight.checked_add(1).filter(|more| *more <= slots);
        if self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            self.residents.exit(routed);
            return None;
        }
        let begun = self.health().begin();
        if begun.is_none() {
            self.exit(routed);
        }
        begun
    }

    pub(super) fn end_trial(&self) {
        self.health().end_trial();
    }

    pub(super) fn exit(&self, routed: Option<&str>) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.residents.exit(routed);
    }

    /// Requests sent to it and not yet ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Takes in how many more, or fewer, requests another process has there.
    pub fn shift_in_flight(&self, by: i32) {
        let shifted = |in_flight: u32| Some(in_flight.saturating_add_signed(by));
        let _ = self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shifted);
        if by < 0 {
            self.dispatch();
        }
    }

    /// The address to connect to; `None` while its name has none.
    pub fn address(&self) -> Option<SocketAddr> {
        self.addresses.current()
    }

    /// How many addresses its name has.
    pub fn addresses(&self) -> usize {
        self.addresses.count()
    }

    /// Takes in what its name resolves to; whether that is news.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) -> bool {
        self.addresses.set(addresses)
    }

    /// Turns to its next address, after this one could not be connected to.
    pub fn address_failed(&self, address: SocketAddr) {
        self.addresses.failed(address);
    }
}
