//! Which model of a router makes room for which other, and when: one rule.
//!
//! To load a model costs seconds, and a server that has room for two and is asked for three in turn may do nothing
//! else. So requests for a model that is not loaded wait together. A model that works for anybody never makes room; one
//! that is idle does once it has stayed for `least_residency`, the least recently used first. Where all of them are
//! at work and somebody has waited for `longest_wait`, the one that has stayed longest gets nothing new, so that it
//! falls idle. (llama.cpp issue 21678, llama-swap issue 612.)

use std::sync::Arc;
use std::time::Duration;

use super::spec::SwapBounds;

/// A model that is loaded, or being loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resident {
    pub(super) id: Arc<str>,
    pub(super) is_loaded: bool,
    pub(super) in_flight: u32,
    /// Since when it has been there.
    pub(super) since: Duration,
    /// Higher: used later.
    pub(super) used: u64,
    /// It gets nothing new.
    pub(super) sealed: bool,
    /// Until then it is let be: it would not go, or works for somebody else.
    pub(super) spared_until: Duration,
}

/// A model that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) id: Arc<str>,
    /// Since when the first of them has waited.
    pub(super) since: Duration,
    /// Another server has it: nothing makes room for it here, but it may have a free place.
    pub(super) elsewhere: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    Nothing,
    /// There is a free place for this one.
    Load(Arc<str>),
    /// The victim makes room for the other.
    Swap {
        victim: Arc<str>,
        id: Arc<str>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    pub act: Act,
    /// The model that gets nothing new.
    pub(super) sealed: Option<Arc<str>>,
    /// When the rule is to be asked again, if nothing happens before.
    pub again: Option<Duration>,
}

/// `places`: for how many models there is room; `None`: for any number.
pub(super) fn rule(
    residents: &[Resident],
    places: Option<usize>,
    wanted: &[Wanted],
    bounds: SwapBounds,
    now: Duration,
) -> Ruling {
    let nothing = Ruling { act: Act::Nothing, sealed: None, again: None };
    let longest = |all: &mut dyn Iterator<Item = &Wanted>| all.min_by_key(|wanted| wanted.since).cloned();
    if places.is_none_or(|places| residents.len() < places) {
        let load = longest(&mut wanted.iter()).map(|wanted| Act::Load(wanted.id));
        return Ruling { act: load.unwrap_or(Act::Nothing), ..nothing };
    }
    let Some(first) = longest(&mut wanted.iter().filter(|wanted| !wanted.elsewhere)) else { return nothing };
    let ripens = |it: &Resident| it.since.saturating_add(bounds.least_residency).max(it.spared_until);
    let loaded = || residents.iter().filter(|it| it.is_loaded);
    let ripe = || loaded().filter(|it| ripens(it) <= now);
    let idle = ripe().filter(|it| it.in_flight == 0).min_by_key(|it| (!it.sealed, it.used));
    if let Some(victim) = idle.map(|it| Arc::clone(&it.id)) {
        let sealed = Some(Arc::clone(&victim));
        return Ruling { act: Act::Swap { victim, id: first.id }, sealed, again: None };
    }
    let overdue = first.since.saturating_add(bounds.longest_wait);
    // Once sealed it stays so: it would never fall idle where it gets something new in between.
    let sealed = loaded()
        .find(|it| it.sealed)
        .or_else(|| ripe().min_by_key(|it| it.since))
        .filter(|_| overdue <= now)
        .map(|it| Arc::clone(&it.id));
    let again = loaded().map(ripens).chain([overdue]).filter(|then| *then > now).min();
    Ruling { sealed, again, ..nothing }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: SwapBounds =
        SwapBounds { least_residency: Duration::from_secs(10), longest_wait: Duration::from_secs(30) };

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Loaded: its name, its requests, since when, how lately used.
    fn at(id: &str, in_flight: u32, since: u64, used: u64) -> Resident {
        let (sealed, spared_until) = (false, Duration::ZERO);
        Resident { id: id.into(), is_loaded: true, in_flight, since: s(since), used, sealed, spared_until }
    }

    fn sealed(resident: Resident) -> Resident {
        Resident { sealed: true, ..resident }
    }

    fn loading(resident: Resident) -> Resident {
        Resident { is_loaded: false, ..resident }
    }

    fn spared(resident: Resident, until: u64) -> Resident {
        Resident { spared_until: s(until), ..resident }
    }

    fn wants(id: &str, since: u64) -> Wanted {
        Wanted { id: id.into(), since: s(since), elsewhere: false }
    }

    fn told(ruling: Ruling) -> String {
        let act = match ruling.act {
            Act::Nothing => "nothing".to_owned(),
            Act::Load(id) => format!("load {id}"),
            Act::Swap { victim, id } => format!("{victim} for {id}"),
        };
        let sealed = ruling.sealed.map(|id| format!(", {id} sealed")).unwrap_or_default();
        let again = ruling.again.map(|then| format!(", again at {}", then.as_secs())).unwrap_or_default();
        act + &sealed + &again
    }

    #[test]
    fn who_makes_room_and_when() {
        let elsewhere = |wanted: Wanted| Wanted { elsewhere: true, ..wanted };
        type Case = (&'static str, Vec<Resident>, Vec<Wanted>, u64, &'static str);
        let cases: Vec<Case> = vec![
            ("nobody waits", vec![at("a", 0, 0, 1), at("b", 0, 0, 2)], vec![], 99, "nothing"),
            ("a free place", vec![at("a", 1, 0, 1)], vec![wants("c", 1)], 1, "load c"),
            ("who waited longest first", vec![], vec![wants("d", 5), wants("c", 2)], 9, "load c"),
            (
                "the least recently used goes",
                vec![at("a", 0, 0, 7), at("b", 0, 0, 5)],
                vec![wants("c", 20)],
                20,
                "b for c, b sealed",
            ),
            (
                "not one at work",
                vec![at("a", 0, 0, 7), at("b", 1, 0, 5)],
                vec![wants("c", 20)],
                20,
                "a for c, a sealed",
            ),
            (
                "not before it has stayed",
                vec![at("a", 0, 15, 1), at("b", 1, 0, 5)],
                vec![wants("c", 20)],
                20,
                "nothing, again at 25",
            ),
            (
                "then it goes",
                vec![at("a", 0, 15, 1), at("b", 1, 0, 5)],
                vec![wants("c", 20)],
                25,
                "a for c, a sealed",
            ),
            (
                "all at work",
                vec![at("a", 2, 0, 1), at("b", 1, 0, 5)],
                vec![wants("c", 20)],
                20,
                "nothing, again at 50",
            ),
            (
                "too long: the one that stayed longest gets nothing new",
                vec![at("a", 2, 5, 1), at("b", 1, 3, 5)],
                vec![wants("c", 20)],
                50,
                "nothing, b sealed",
            ),
            (
                "and no other in its stead",
                vec![at("a", 2, 3, 1), sealed(at("b", 1, 5, 5))],
                vec![wants("c", 20)],
                60,
                "nothing, b sealed",
            ),
            (
                "until it is idle",
                vec![at("a", 2, 3, 1), sealed(at("b", 0, 5, 5))],
                vec![wants("c", 20)],
                60,
                "b for c, b sealed",
            ),
            (
                "if nobody waits any more it is as before",
                vec![at("a", 2, 3, 1), sealed(at("b", 1, 5, 5))],
                vec![],
                60,
                "nothing",
            ),
            (
                "one that came lately is not sealed either",
                vec![at("a", 1, 45, 1), at("b", 1, 48, 5)],
                vec![wants("c", 20)],
                50,
                "nothing, again at 55",
            ),
            (
                "nor one that is being loaded",
                vec![loading(at("a", 0, 0, 1)), loading(at("b", 0, 0, 2))],
                vec![wants("c", 20)],
                60,
                "nothing",
            ),
            (
                "one that would not go is let be for a while",
                vec![spared(at("a", 0, 0, 1), 61), at("b", 1, 59, 2)],
                vec![wants("c", 40)],
                60,
                "nothing, again at 61",
            ),
            (
                "what another server has makes nobody go",
                vec![at("a", 0, 0, 1), at("b", 0, 0, 2)],
                vec![elsewhere(wants("c", 0))],
                60,
                "nothing",
            ),
            ("but takes a free place", vec![at("a", 0, 0, 1)], vec![elsewhere(wants("c", 0))], 60, "load c"),
        ];
        for (what, residents, wanted, now, expected) in cases {
            assert_eq!(told(rule(&residents, Some(2), &wanted, BOUNDS, s(now))), expected, "{what}");
        }
        assert_eq!(told(rule(&[at("a", 0, 0, 1)], None, &[wants("c", 1)], BOUNDS, s(1))), "load c");
    }
}
