//! What an upstream knows of prompts: where they are likely to be held, what servers said of that, and whether one that
//! is held by a busy server waits for it.

use std::sync::Arc;
use std::time::Duration;

use super::balance::{Place, is_match};
use super::entry::{Errand, Prompt};
use super::patience::Prospect;
use super::queue::{Lane, Spot};
use super::server::Server;
use super::spec::Balance;
use super::tenancy::Tenant;
use super::upstream::{Line, Upstream};

/// Blocks that a server may have reused less than was thought, without consequence: templates and rounding.
const SLACK_BLOCKS: usize = 4;

impl Upstream {
    /// Whether it matters where a prompt goes.
    pub fn minds_prompts(&self) -> bool {
        self.spec.balance == Balance::Prefix && self.servers.len() > 1
    }

    pub(super) fn place_of(&self, server: &Server) -> Option<usize> {
        self.servers.iter().position(|own| own.is(server))
    }

    /// Takes in which part of a prompt, that it was `thought` to hold so many blocks of, a server says it reused.
    pub fn note_reused(&self, server: &Server, prompt: &Prompt, thought: usize, part: f64) {
        let heir = self.heir();
        if let Some(place) = heir.place_of(server) {
            let reused = (part.clamp(0.0, 1.0) * prompt.len() as f64).ceil() as usize;
            if thought > 2 * reused + SLACK_BLOCKS {
                // What it has just read it holds now; what it held long before that may be gone as well.
                let mut line = heir.line();
                line.prefixes.shed(place);
                line.prefixes.learn(prompt, place);
            }
        }
    }

    /// Takes in how long a server took to read the part of a prompt that it did not reuse.
    pub fn note_read(&self, prompt: &Prompt, part: f64, took: Duration) {
        let blocks = (part.clamp(0.0, 1.0) * prompt.len() as f64).round() as usize;
        self.heir().line().pace.note_read(blocks, took);
    }

    /// Takes in that a server was away: what it held is gone.
    pub fn forget_prompts(&self, server: &Server) {
        if let Some(place) = self.place_of(server) {
            self.line().prefixes.forget(place);
        }
    }

    /// The busy server that a prompt waits for, and how long at most: one that holds so much more of it than any other
    /// that could take it that waiting costs less than reading that again.
    pub(super) fn patience(&self, line: &Line, lane: &Lane, errand: &Errand<'_>) -> Option<(u64, Duration)> {
        let minds = self.spec.balance == Balance::Prefix && lane.model.is_none() && lane.slot;
        if !minds || matches!(errand.tenant, Tenant::Key(_)) || errand.prompt.is_empty() {
            return None;
        }
        let up: Vec<_> = self.places().filter(|place| place.server.takes_requests()).collect();
        let has_room = |place: &Place<'_>| place.server.has_room(None, true);
        let held = |place: &Place<'_>| line.prefixes.held_of(errand.prompt, place.at);
        let best = up.iter().max_by_key(|place| (held(place), has_room(place)))?;
        if has_room(best) || !is_match(held(best), errand.prompt) {
            return None;
        }
        let others = up.iter().filter(|other| other.at != best.at);
        let with_room = others.clone().filter(|other| has_room(other)).map(held).max();
        let prospect = Prospect {
            held: held(best),
            held_elsewhere: with_room.or_else(|| others.map(held).max())?,
            slots: best.server.slots()?,
            before: line
                .queue
                .lanes()
                .filter(|(lane, ..)| lane.server == Some(best.server.number))
                .map(|lane| lane.1)
                .sum(),
            turn: line.held,
        };
        line.pace.patience(&prospect).map(|patience| (best.server.number, patience))
    }

    /// Lets a request that waited for one server go to any.
    pub(super) fn widen(self: &Arc<Self>, spot: &mut Spot) {
        let mut line = self.line();
        if let Some(heir) = self.successor() {
            drop(line);
            return heir.widen(spot);
        }
        line.queue.widen(spot);
        drop(line);
        self.dispatch();
    }
}
