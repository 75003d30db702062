//! One server: where it is, whether it is up, what it works on, what it reports of its model.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::addresses::Addresses;
use super::health::{Breaker, Health, Opening, Sign, Turn};
use super::spec::{HealthCheck, Kind, ServerSpec, Slots};
use super::tenancy::Tenancy;
use super::upstream::Upstream;

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// On how many requests it works at once; `None`: it does not say.
    pub slots: Option<u32>,
    /// Changes when the model behind the same name does.
    pub fingerprint: [u8; 32],
    /// The entries of its `/v1/models`, each with an `id`.
    pub models: Vec<Map<String, Value>>,
}

/// The fields of `/props` that tell one model from another. Others (`is_sleeping`, slot counts) change from day to
/// day without changing an answer.
const TELLING: &[&str] =
    &["model_path", "model_alias", "build_info", "chat_template", "default_generation_settings"];

/// Members of a `/v1/models` entry that change without the model changing.
const FLEETING: &[&str] = &["created", "status", "in_cache"];

impl Report {
    /// From the bodies of `/props` (if it is served) and `/v1/models`.
    pub fn read(props: Option<&Value>, models: Option<&Value>) -> Self {
        let mut hash = Sha256::new();
        for name in TELLING {
            let told = props.and_then(|props| props.get(*name)).cloned().unwrap_or_default();
            hash.update(name);
            hash.update(without_fleeting(told).to_string());
        }
        let list = models.and_then(|models| models.get("data")).and_then(Value::as_array);
        let models: Vec<_> = list
            .into_iter()
            .flatten()
            .filter_map(Value::as_object)
            .filter(|model| model.get("id").is_some_and(Value::is_string))
            .cloned()
            .collect();
        for model in &models {
            hash.update(without_fleeting(Value::Object(model.clone())).to_string());
        }
        let slots = props.and_then(|props| props.get("total_slots")?.as_u64()?.try_into().ok());
        Self { slots, fingerprint: hash.finalize().into(), models }
    }

    pub fn model_ids(&self) -> impl Iterator<Item = &str> {
        self.models.iter().filter_map(|model| model.get("id").and_then(Value::as_str))
    }
}

fn without_fleeting(mut value: Value) -> Value {
    if let Value::Object(members) = &mut value {
        members.retain(|name, _| !FLEETING.contains(&name.as_str()));
    }
    value
}

/// Shared by all upstreams that name it: its slots are counted, and its health is known, once.
#[derive(Debug)]
pub struct Server {
    /// As the first upstream that names it has it; the others say the same but for its weight.
    pub spec: ServerSpec,
    pub kind: Kind,
    check: HealthCheck,
    health: Mutex<Health>,
    in_flight: AtomicU32,
    draining: AtomicBool,
    /// What the server says of its slots; 0: nothing. Kept when the rest of its report no longer counts.
    told_slots: AtomicU32,
    tenancy: Tenancy,
    /// `None` until the server has been asked, and again after a fault: it may come back as another.
    report: ArcSwapOption<Report>,
    addresses: Addresses,
    /// What is complained of, by its topic, so that the log has it once.
    complaints: Mutex<HashMap<&'static str, String>>,
    /// Whose requests it takes.
    upstreams: OnceLock<Vec<Weak<Upstream>>>,
    /// Which of them is told first of a free slot.
    turn: AtomicUsize,
}

/// Where every kind lists its models.
pub const MODELS: &str = "/v1/models";

impl Server {
    pub(super) fn new(spec: ServerSpec, kind: Kind, check: HealthCheck) -> Self {
        // Up without having been seen, where no probe will tell.
        let trusted = check.path.is_none();
        Self {
            spec,
            kind,
            check,
            health: Mutex::new(Health::new(trusted)),
            in_flight: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            told_slots: AtomicU32::new(0),
            tenancy: Tenancy::unknown(),
            report: ArcSwapOption::empty(),
            addresses: Addresses::default(),
            complaints: Mutex::default(),
            upstreams: OnceLock::new(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Says who they are; once, when all of them are made.
    pub(super) fn belongs_to(&self, upstreams: Vec<Weak<Upstream>>) {
        let _ = self.upstreams.set(upstreams);
    }

    /// Those that name it, each beginning with another.
    pub fn upstreams(&self) -> impl Iterator<Item = Arc<Upstream>> {
        let all = self.upstreams.get().map(Vec::as_slice).unwrap_or_default();
        let first = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(all.len()).unwrap_or_default();
        let (before, from) = all.split_at(first);
        from.iter().chain(before).filter_map(Weak::upgrade)
    }

    /// Gives its free slots to whoever waits. Call it after whatever may have made one free.
    pub fn dispatch(&self) {
        self.upstreams().for_each(|upstream| upstream.dispatch());
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
    }

    pub fn set_report(&self, report: Report) {
        self.told_slots.store(report.slots.unwrap_or_default(), Ordering::Relaxed);
        self.report.store(Some(Arc::new(report)));
    }

    /// On how many requests it works at once; `None`: unknown. One that says 0 counts as one that does not say.
    pub fn slots(&self) -> Option<u32> {
        match self.spec.slots {
            Slots::Fixed(slots) => Some(slots),
            Slots::Auto => Some(self.told_slots.load(Ordering::Relaxed)).filter(|slots| *slots > 0),
        }
    }

    /// Whether it has a slot for one more, as far as anybody knows.
    pub fn has_room(&self) -> bool {
        self.slots().is_none_or(|slots| self.in_flight() < slots)
    }

    /// Counts one more request, if there is a slot for it: of two upstreams that see the last, one gets it. True: as
    /// the one request that tries it.
    pub(super) fn try_enter(&self) -> Option<bool> {
        let slots = self.slots().unwrap_or(u32::MAX);
        let more = |in_flight: u32| in_flight.checked_add(1).filter(|more| *more <= slots);
        self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        self.begin()
    }

    /// Counts one more request, whatever it works on already. As above.
    pub(super) fn enter(&self) -> Option<bool> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.begin()
    }

    fn begin(&self) -> Option<bool> {
        let begun = self.health().begin();
        if begun.is_none() {
            self.exit();
        }
        begun
    }

    pub(super) fn end_trial(&self) {
        self.health().end_trial();
    }

    pub(super) fn exit(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests sent to it and not yet ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_fingerprint_changes_with_the_model_and_with_nothing_else() {
        let props =
            json!({"model_path": "a.gguf", "build_info": "b1", "is_sleeping": false, "total_slots": 4});
        let models = json!({"data": [{"id": "a", "created": 1, "meta": {"n_params": 7}}]});
        let base = Report::read(Some(&props), Some(&models)).fingerprint;
        let changed = |name: &str, value: Value| {
            let mut props = props.clone();
            props[name] = value;
            Report::read(Some(&props), Some(&models)).fingerprint
        };
        assert_eq!(changed("is_sleeping", true.into()), base);
        assert_eq!(changed("total_slots", 1.into()), base);
        assert_ne!(changed("model_path", "b.gguf".into()), base);
        assert_ne!(changed("chat_template", "{}".into()), base);
        let later = json!({"data": [{"id": "a", "created": 2, "meta": {"n_params": 7}}]});
        assert_eq!(Report::read(Some(&props), Some(&later)).fingerprint, base);
        let other = json!({"data": [{"id": "a", "created": 1, "meta": {"n_params": 8}}]});
        assert_ne!(Report::read(Some(&props), Some(&other)).fingerprint, base);
    }
}
