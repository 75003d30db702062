//! What a router has loaded and works on, model by model: its own word, and what the gateway has sent it since.
//!
//! The router's word is old by the time that it is read, so what the gateway knows better goes before it: a model that
//! was let in is there, whatever a report says, while a request for it is under way.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::report::{LoadState, Router};
use super::spec::SwapBounds;
use super::swap::{Act, Resident, Ruling, Wanted, rule};

/// The models of one server; none while it is no router.
#[derive(Debug, Default)]
pub(super) struct Residents {
    /// So that other servers cost no lock.
    routes: AtomicBool,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    places: Option<usize>,
    autoloads: bool,
    models: BTreeMap<Arc<str>, Model>,
    /// By every name that the router knows.
    names: HashMap<String, Arc<str>>,
    uses: u64,
}

#[derive(Debug, Clone)]
struct Model {
    state: LoadState,
    /// The gateway lets requests go to it, loaded or not: the first loads it.
    let_in: bool,
    /// It is about to be let in.
    coming: bool,
    sealed: bool,
    slots: Option<u32>,
    /// It has been asked for its slots.
    asked: bool,
    in_flight: u32,
    since: Duration,
    used: u64,
    spared_until: Duration,
}

impl Model {
    fn is_resident(&self) -> bool {
        self.let_in || matches!(self.state, LoadState::Loading | LoadState::Loaded)
    }

    /// Until it has told its slots, which it does once it is loaded, one request goes to it: that loads it.
    fn has_room(&self) -> bool {
        let slots = self.slots.or((!self.asked).then_some(1));
        slots.is_none_or(|slots| self.in_flight < slots)
    }
}

/// One model of a router, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub model: Arc<str>,
    pub state: &'static str,
    pub in_flight: u32,
    pub slots: Option<u32>,
}

impl Residents {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn routes(&self) -> bool {
        self.routes.load(Ordering::Acquire)
    }

    /// Takes in what the server says of itself; `None`: it is no router.
    pub(super) fn set(&self, router: Option<&Router>, now: Duration) {
        let mut held = self.held();
        self.routes.store(router.is_some(), Ordering::Release);
        let Some(router) = router else { return };
        held.places = router.loaded_max;
        held.autoloads = router.autoloads;
        held.names.clear();
        let mut before = std::mem::take(&mut held.models);
        for told in &router.models {
            let id: Arc<str> = told.id.as_str().into();
            for name in told.aliases.iter().chain([&told.id]) {
                held.names.insert(name.clone(), Arc::clone(&id));
            }
            let model = before
                .remove(&id)
                .map_or_else(|| Model::new(told.state), |model| Model { state: told.state, ..model });
            let was_loaded = model.since > Duration::ZERO;
            let mut model = Model { slots: told.slots.or(model.slots), ..model };
            match told.state {
                LoadState::Loaded if !was_loaded => model.since = now.max(Duration::from_nanos(1)),
                LoadState::Loaded => {}
                _ => model.since = Duration::ZERO,
            }
            if told.state == LoadState::Unloaded && model.in_flight == 0 {
                model.let_in = false;
                model.sealed = false;
            }
            held.models.insert(id, model);
        }
        // One that is listed no longer may still be at work.
        held.models.extend(before.into_iter().filter(|(_, model)| model.in_flight > 0));
    }

    /// What the router calls the model of that name; `None`: it knows none.
    pub(super) fn id_of(&self, name: &str) -> Option<Arc<str>> {
        if self.routes() { self.held().names.get(name).cloned() } else { None }
    }

    /// Whether a request for that model may go there now: what the router does not know is not the gateway's to hold.
    pub(super) fn takes(&self, id: Option<&str>, slot: bool) -> bool {
        let Some(id) = id.filter(|_| self.routes()) else { return true };
        self.held().takes(id, slot)
    }

    pub(super) fn is_resident(&self, id: &str) -> bool {
        self.held().models.get(id).is_some_and(|model| model.is_resident() || model.coming)
    }

    /// Counts one more request for it, if that may go there.
    pub(super) fn enter(&self, id: Option<&str>, slot: bool) -> bool {
        let Some(id) = id else { return true };
        let mut held = self.held();
        if !held.takes(id, slot) {
            return false;
        }
        held.count(id, |in_flight| in_flight.saturating_add(1));
        true
    }

    pub(super) fn exit(&self, id: Option<&str>) {
        if let Some(id) = id {
            self.held().count(id, |in_flight| in_flight.saturating_sub(1));
        }
    }

    /// What is to be done for those who wait; from now on the model that is to go gets nothing new. True: one that was
    /// to go does so again.
    pub(super) fn rule(&self, wanted: &[Wanted], bounds: SwapBounds, now: Duration) -> (Ruling, bool) {
        let mut held = self.held();
        if !held.autoloads {
            return (Ruling { act: Act::Nothing, sealed: None, again: None }, false);
        }
        let residents: Vec<_> = held.residents().collect();
        let ruling = rule(&residents, held.places, wanted, bounds, now);
        let mut freed = false;
        for (id, model) in &mut held.models {
            let sealed = ruling.sealed.as_ref() == Some(id);
            freed |= model.sealed && !sealed;
            model.sealed = sealed;
        }
        (ruling, freed)
    }

    /// Says that it is about to be let in, or not after all.
    pub(super) fn set_coming(&self, id: &str, coming: bool) {
        self.held().change(id, |model| model.coming = coming);
    }

    pub(super) fn is_coming(&self, id: &str) -> bool {
        self.held().models.get(id).is_some_and(|model| model.coming)
    }

    /// Requests for it go there from now on.
    pub(super) fn let_in(&self, id: &str) {
        self.held().change(id, |model| {
            (model.let_in, model.coming, model.sealed) = (true, false, false);
        });
    }

    /// It stays, and is not asked to go again before then.
    pub(super) fn spare(&self, id: &str, until: Duration) {
        self.held().change(id, |model| (model.sealed, model.spared_until) = (false, until));
    }

    /// Whether the router says that it has gone.
    pub(super) fn has_gone(&self, id: &str) -> bool {
        self.held().models.get(id).is_none_or(|model| model.state == LoadState::Unloaded)
    }

    /// Those that are loaded and have not said how many slots they have.
    pub(super) fn unasked(&self) -> Vec<Arc<str>> {
        let held = self.held();
        let unasked =
            |model: &Model| model.state == LoadState::Loaded && model.slots.is_none() && !model.asked;
        held.models.iter().filter(|(_, model)| unasked(model)).map(|(id, _)| Arc::clone(id)).collect()
    }

    /// `None`: it does not say.
    pub(super) fn set_slots(&self, id: &str, slots: Option<u32>) {
        self.held().change(id, |model| (model.slots, model.asked) = (slots.filter(|it| *it > 0), true));
    }

    /// Of all models that are there; `None` where there is none, or while one of them has not said.
    pub(super) fn slots(&self) -> Option<u32> {
        let held = self.held();
        let there = held.models.values().filter(|model| model.is_resident());
        there.map(|model| model.slots).sum::<Option<u32>>().filter(|slots| *slots > 0)
    }

    pub(super) fn rows(&self) -> Option<Vec<Row>> {
        let row = |(id, model): (&Arc<str>, &Model)| Row {
            model: Arc::clone(id),
            state: match model.state {
                _ if model.sealed => "draining",
                LoadState::Loaded => "loaded",
                LoadState::Unloaded if !model.let_in => "unloaded",
                LoadState::Loading | LoadState::Unloaded => "loading",
                LoadState::Elsewhere => "other",
            },
            in_flight: model.in_flight,
            slots: model.slots,
        };
        self.routes().then(|| self.held().models.iter().map(row).collect())
    }
}

impl Model {
    fn new(state: LoadState) -> Self {
        Self {
            state,
            let_in: false,
            coming: false,
            sealed: false,
            slots: None,
            asked: false,
            in_flight: 0,
            since: Duration::ZERO,
            used: 0,
            spared_until: Duration::ZERO,
        }
    }
}

impl Held {
    fn takes(&self, id: &str, slot: bool) -> bool {
        let Some(model) = self.models.get(id) else { return true };
        // Where the router loads nothing by itself, it says so to the caller.
        let open = model.is_resident() || model.state == LoadState::Elsewhere || !self.autoloads;
        open && !model.sealed && (!slot || model.has_room())
    }

    fn residents(&self) -> impl Iterator<Item = Resident> {
        self.models.iter().filter(|(_, model)| model.is_resident()).map(|(id, model)| Resident {
            id: Arc::clone(id),
            is_loaded: model.state == LoadState::Loaded,
            in_flight: model.in_flight,
            since: model.since,
            used: model.used,
            sealed: model.sealed,
            spared_until: model.spared_until,
        })
    }

    fn count(&mut self, id: &str, by: impl FnOnce(u32) -> u32) {
        self.uses += 1;
        if let Some(model) = self.models.get_mut(id) {
            model.in_flight = by(model.in_flight);
            model.used = self.uses;
        }
    }

    fn change(&mut self, id: &str, change: impl FnOnce(&mut Model)) {
        self.models.get_mut(id).map(change);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::report::Report;
    use super::*;

    const EASY: SwapBounds =
        SwapBounds { least_residency: Duration::ZERO, longest_wait: Duration::from_secs(30) };

    /// A router of two places says how far its models are.
    fn says(residents: &Residents, at: u64, models: &[(&str, &str)]) {
        let model = |(id, state): &(&str, &str)| {
            let status = json!({"value": state, "args": ["--parallel", "2"]});
            json!({"id": id, "aliases": [format!("my-{id}")], "status": status})
        };
        let data: Vec<_> = models.iter().map(model).collect();
        let props = json!({"role": "router", "max_instances": 2});
        let report = Report::read(Some(&props), Some(&json!({"data": data})));
        residents.set(report.router.as_ref(), Duration::from_secs(at));
    }

    fn open(residents: &Residents) -> Vec<&'static str> {
        ["a", "b", "c", "unheard-of"].into_iter().filter(|id| residents.takes(Some(id), true)).collect()
    }

    fn rules(residents: &Residents, at: u64) -> Act {
        let wanted = Wanted { id: "c".into(), since: Duration::ZERO, elsewhere: false };
        residents.rule(&[wanted], EASY, Duration::from_secs(at)).0.act
    }

    #[test]
    fn what_the_gateway_sent_goes_before_what_the_router_said() {
        let residents = Residents::default();
        assert!(residents.takes(Some("a"), true), "no router holds nothing");
        says(&residents, 1, &[("a", "loaded"), ("b", "unloaded"), ("c", "unloaded")]);
        assert_eq!(residents.id_of("my-b").as_deref(), Some("b"));
        assert_eq!(open(&residents), ["a", "unheard-of"]);
        residents.let_in("b");
        assert_eq!(open(&residents), ["a", "b", "unheard-of"]);
        assert!(residents.enter(Some("b"), true) && residents.enter(Some("b"), true));
        assert!(!residents.enter(Some("b"), true), "two slots");
        assert!(residents.enter(Some("b"), false), "but what takes none goes");
        says(&residents, 2, &[("a", "loaded"), ("b", "unloaded"), ("c", "unloaded")]);
        residents.exit(Some("b"));
        residents.exit(Some("b"));
        assert_eq!(open(&residents), ["a", "b", "unheard-of"], "it is on its way");
        residents.exit(Some("b"));
        says(&residents, 3, &[("a", "loaded"), ("b", "unloaded"), ("c", "unloaded")]);
        assert_eq!(open(&residents), ["a", "unheard-of"], "it did not load");
    }

    #[test]
    fn one_that_goes_gets_nothing_new() {
        let residents = Residents::default();
        says(&residents, 1, &[("a", "loaded"), ("b", "loaded"), ("c", "unloaded")]);
        assert!(residents.enter(Some("b"), true));
        let swap = Act::Swap { victim: "a".into(), id: "c".into() };
        assert_eq!((rules(&residents, 2), open(&residents)), (swap.clone(), vec!["b", "unheard-of"]));
        residents.spare("a", Duration::from_secs(5));
        assert_eq!((rules(&residents, 3), open(&residents)), (Act::Nothing, vec!["a", "b", "unheard-of"]));
        assert_eq!(rules(&residents, 5), swap);
        says(&residents, 6, &[("a", "unloaded"), ("b", "loaded"), ("c", "unloaded")]);
        assert!(residents.has_gone("a"));
        assert_eq!(rules(&residents, 6), Act::Load("c".into()));
        residents.set_coming("c", true);
        assert!(residents.is_resident("c") && !residents.takes(Some("c"), true));
        residents.let_in("c");
        assert!(residents.takes(Some("c"), true));
    }

    #[test]
    fn the_least_recently_used_is_by_requests_and_residency_begins_when_it_is_loaded() {
        let residents = Residents::default();
        says(&residents, 1, &[("a", "loaded"), ("b", "loaded"), ("c", "unloaded")]);
        for id in ["b", "a"] {
            assert!(residents.enter(Some(id), true));
            residents.exit(Some(id));
        }
        assert_eq!(rules(&residents, 2), Act::Swap { victim: "b".into(), id: "c".into() });
        let stays = SwapBounds { least_residency: Duration::from_secs(10), ..EASY };
        let wanted = [Wanted { id: "c".into(), since: Duration::ZERO, elsewhere: false }];
        says(&residents, 8, &[("a", "loading"), ("b", "loaded"), ("c", "unloaded")]);
        says(&residents, 9, &[("a", "loaded"), ("b", "loaded"), ("c", "unloaded")]);
        let (ruling, freed) = residents.rule(&wanted, stays, Duration::from_secs(10));
        assert_eq!((ruling.act, ruling.again, freed), (Act::Nothing, Some(Duration::from_secs(11)), true));
    }
}
