//! Which of several servers takes a request: rules over how busy they are, what they weigh, and what they hold.

use std::sync::Arc;

use super::prefix::Prefixes;
use super::server::Server;

/// A match of less, in blocks, counts as none, and so does one of less than this part of the prompt.
const MATCH_BLOCKS_LEAST: usize = 2;
const MATCH_PART: usize = 4;

/// A server that holds a prompt's beginning may be this much busier than another, in parts of its slots.
const BUSIER_MAX: f64 = 0.5;

/// A server at its place in its upstream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) at: usize,
    pub(super) server: &'a Arc<Server>,
    /// At least 1.
    pub(super) weight: u32,
}

impl Place<'_> {
    /// How busy it is: requests over slots, for its weight.
    fn load(&self) -> f64 {
        let room = f64::from(self.server.slots().unwrap_or(1)) * f64::from(self.weight);
        f64::from(self.server.in_flight()) / room
    }
}

/// The least busy; of those that are equal any, by weight.
pub(super) fn least_busy<'a>(choice: &[Place<'a>], tie: usize) -> Option<Place<'a>> {
    any(&idlest(choice), tie)
}

/// The one that most likely holds the longest part of the prompt, unless it is much busier than another; where none
/// holds enough, of the least busy the one that holds the least for its weight.
pub(super) fn by_prefix<'a>(
    choice: &[Place<'a>],
    prefixes: &Prefixes,
    prompt: &[u64],
    tie: usize,
) -> Option<Place<'a>> {
    let least = choice.iter().map(Place::load).min_by(f64::total_cmp)?;
    let near = choice.iter().copied().filter(|place| place.load() <= least + BUSIER_MAX);
    let holding = near.map(|place| (prefixes.held_of(prompt, place.at), place));
    let best =
        holding.max_by(|(one, a), (other, b)| one.cmp(other).then_with(|| b.load().total_cmp(&a.load())));
    if let Some((blocks, place)) = best
        && is_match(blocks, prompt)
    {
        return Some(place);
    }
    let held = |place: &Place| prefixes.held(place.at) as f64 / f64::from(place.weight);
    let idlest = idlest(choice);
    let fewest = idlest.iter().map(held).min_by(f64::total_cmp)?;
    let emptiest: Vec<_> = idlest.into_iter().filter(|place| held(place) <= fewest).collect();
    any(&emptiest, tie)
}

/// Whether so many blocks of a prompt are worth going where they are.
pub(super) fn is_match(blocks: usize, prompt: &[u64]) -> bool {
    blocks >= MATCH_BLOCKS_LEAST.max(prompt.len() / MATCH_PART)
}

/// Those that no other is less busy than.
fn idlest<'a>(choice: &[Place<'a>]) -> Vec<Place<'a>> {
    let least = choice.iter().map(Place::load).min_by(f64::total_cmp).unwrap_or_default();
    choice.iter().copied().filter(|place| place.load() <= least).collect()
}

/// One of them by a number, by weight.
fn any<'a>(choice: &[Place<'a>], tie: usize) -> Option<Place<'a>> {
    let all: usize = choice.iter().map(|place| place.weight as usize).sum();
    let mut turn = tie.checked_rem(all)?;
    choice.iter().copied().find(|place| {
        let is_its = turn < place.weight as usize;
        turn = turn.saturating_sub(place.weight as usize);
        is_its
    })
}

/// What each server of an upstream is owed, so that turns by weight are spread and not bunched: nginx's smooth
/// weighted round robin.
#[derive(Debug, Default)]
pub(super) struct Turns(Vec<i64>);

impl Turns {
    pub(super) fn next<'a>(&mut self, choice: &[Place<'a>]) -> Option<Place<'a>> {
        let places = choice.iter().map(|place| place.at + 1).max()?;
        self.0.resize(self.0.len().max(places), 0);
        for place in choice {
            self.0[place.at] += i64::from(place.weight);
        }
        let owed = |place: &&Place| (self.0[place.at], std::cmp::Reverse(place.at));
        let next = choice.iter().max_by_key(owed).copied()?;
        self.0[next.at] -= choice.iter().map(|place| i64::from(place.weight)).sum::<i64>();
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{HealthCheck, Kind, ServerSpec, Slots, SwapBounds};

    /// Servers with slots and with requests.
    fn servers(slots: &[Option<u32>], busy: &[u32]) -> Vec<Arc<Server>> {
        let server = |(slots, busy): (&Option<u32>, &u32)| {
            let url = "http://gpu".parse().expect("a URL");
            let slots = slots.map_or(Slots::Auto, Slots::Fixed);
            let spec = ServerSpec { name: "gpu".to_owned(), url, api_key: None, ca: None, slots, weight: 1 };
            let server = Server::new(spec, Kind::Llama, HealthCheck::default(), SwapBounds::default());
            assert!((0..*busy).all(|_| server.enter(None, false).is_some()));
            Arc::new(server)
        };
        slots.iter().zip(busy).map(server).collect()
    }

    fn places<'a>(servers: &'a [Arc<Server>], weights: &[u32]) -> Vec<Place<'a>> {
        let place =
            |(at, (server, weight)): (usize, (&'a Arc<Server>, &u32))| Place { at, server, weight: *weight };
        servers.iter().zip(weights).enumerate().map(place).collect()
    }

    /// Slots, requests and weights of servers; who is chosen, by ties from 0 on.
    type Case = (&'static [Option<u32>], &'static [u32], &'static [u32], &'static [usize]);

    #[test]
    fn the_least_busy_is_by_slots_and_weight() {
        let cases: [Case; 7] = [
            (&[None, None], &[0, 0], &[1, 1], &[0, 1, 0, 1]),
            (&[None, None], &[0, 0], &[3, 1], &[0, 0, 0, 1, 0]),
            (&[None, None], &[3, 1], &[3, 1], &[0, 0, 0, 1]),
            (&[None, None], &[2, 1], &[3, 1], &[0, 0, 0, 0]),
            (&[Some(4), Some(2)], &[2, 1], &[1, 1], &[0, 1, 0]),
            (&[Some(4), Some(2)], &[2, 1], &[1, 2], &[1, 1, 1]),
            (&[Some(4), Some(2)], &[1, 1], &[1, 1], &[0, 0, 0]),
        ];
        for (slots, busy, weights, chosen) in cases {
            let servers = servers(slots, busy);
            let places = places(&servers, weights);
            let found: Vec<_> =
                (0..chosen.len()).filter_map(|tie| Some(least_busy(&places, tie)?.at)).collect();
            assert_eq!(found, chosen, "{slots:?} {busy:?} {weights:?}");
            let empty = Prefixes::default();
            let found: Vec<_> =
                (0..chosen.len()).filter_map(|tie| Some(by_prefix(&places, &empty, &[], tie)?.at)).collect();
            assert_eq!(found, chosen, "prefix: {slots:?} {busy:?} {weights:?}");
        }
        assert!(least_busy(&[], 7).is_none());
    }

    #[test]
    fn what_is_new_fills_servers_by_their_weight() {
        let servers = servers(&[None, None], &[0, 0]);
        let places = places(&servers, &[2, 1]);
        let mut prefixes = Prefixes::default();
        for prompt in 0..300 {
            let place = by_prefix(&places, &prefixes, &[prompt], 0).expect("one of them");
            prefixes.learn(&[prompt], place.at);
        }
        assert_eq!((prefixes.held(0), prefixes.held(1)), (200, 100));
    }

    #[test]
    fn turns_by_weight_are_spread() {
        let cases: [(&[u32], &[usize]); 4] = [
            (&[1, 1, 1], &[0, 1, 2, 0, 1, 2]),
            (&[1, 2, 1], &[1, 0, 2, 1, 1, 0, 2, 1]),
            (&[5, 1, 1], &[0, 0, 1, 0, 2, 0, 0]),
            (&[], &[]),
        ];
        for (weights, turns) in cases {
            let servers = servers(&vec![None; weights.len()], &vec![0; weights.len()]);
            let places = places(&servers, weights);
            let mut owed = Turns::default();
            let found: Vec<_> =
                turns.iter().filter_map(|_| owed.next(&places)).map(|place| place.at).collect();
            assert_eq!(found, turns, "{weights:?}");
        }
        let servers = servers(&[None, None, None], &[0, 0, 0]);
        let all = places(&servers, &[1, 2, 1]);
        let mut owed = Turns::default();
        let found: Vec<_> =
            [0; 4].iter().filter_map(|_| owed.next(&[all[0], all[2]])).map(|it| it.at).collect();
        assert_eq!(found, [0, 2, 0, 2], "one that is away owes and is owed nothing");
    }
}
