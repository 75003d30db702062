//! One server: where it is, whether it is up, what it works on, what it reports of its model.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::health::{Health, Sign, Turn};
use super::spec::{HealthCheck, ServerSpec, Slots};

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

#[derive(Debug)]
pub struct Server {
    pub spec: ServerSpec,
    check: HealthCheck,
    health: Mutex<Health>,
    in_flight: AtomicU32,
    draining: AtomicBool,
    /// What the server says of its slots; 0: nothing. Kept when the rest of its report no longer counts.
    told_slots: AtomicU32,
    /// `None` until the server has been asked, and again after a fault: it may come back as another.
    report: ArcSwapOption<Report>,
    addresses: ArcSwap<Vec<SocketAddr>>,
    /// The address that answered last.
    address: AtomicUsize,
}

impl Server {
    /// `trusted`: up without having been seen, where no probe will tell.
    pub(super) fn new(spec: ServerSpec, check: HealthCheck, trusted: bool) -> Self {
        Self {
            spec,
            check,
            health: Mutex::new(Health::new(trusted)),
            in_flight: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            told_slots: AtomicU32::new(0),
            report: ArcSwapOption::empty(),
            addresses: ArcSwap::default(),
            address: AtomicUsize::new(0),
        }
    }

    pub fn check(&self) -> &HealthCheck {
        &self.check
    }

    /// Whether requests are sent to it.
    pub fn is_up(&self) -> bool {
        self.health().up
    }

    /// Whether it gets anything new.
    pub fn takes_requests(&self) -> bool {
        self.is_up() && !self.is_draining()
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
        health.up && health.seen
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a probe or a request met.
    pub fn note(&self, sign: Sign) -> Option<Turn> {
        if matches!(sign, Sign::Fault | Sign::NotReady) {
            self.forget_report();
        }
        self.health().note(sign, &self.check)
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

    /// How busy it is: requests over slots, for its weight.
    pub(super) fn load(&self) -> f64 {
        let room = f64::from(self.slots().unwrap_or(1)) * f64::from(self.spec.weight);
        f64::from(self.in_flight()) / room
    }

    pub(super) fn enter(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
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
        let addresses = self.addresses.load();
        let at = self.address.load(Ordering::Relaxed).checked_rem(addresses.len())?;
        addresses.get(at).copied()
    }

    /// Sets what its name resolves to. IPv4 comes first: llama-server listens there by default.
    pub fn set_addresses(&self, mut addresses: Vec<SocketAddr>) {
        addresses.sort_by_key(SocketAddr::is_ipv6);
        if !addresses.is_empty() && **self.addresses.load() != addresses {
            self.addresses.store(Arc::new(addresses));
        }
    }

    /// Turns to its next address, after one that could not be connected to.
    pub fn next_address(&self) {
        self.address.fetch_add(1, Ordering::Relaxed);
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
