//! A server that is a router of several models: what is to be loaded there for those who wait, step by step.
//!
//! The steps are taken by whoever talks to it (`server/swap.rs`): ask what is to be done, claim it, do it, and say what
//! came of it.

use std::sync::Arc;
use std::time::Duration;

use super::residents::Row;
use super::server::Server;
use super::swap::{Ruling, Wanted};
use super::upstream::Upstream;

impl Server {
    /// Whether it is llama-server in router mode.
    pub fn is_router(&self) -> bool {
        self.residents.routes()
    }

    /// What its models are at; `None`: it is no router.
    pub fn rows(&self) -> Option<Vec<Row>> {
        self.residents.rows()
    }

    /// Requests that wait for one of its models.
    pub fn waiting_for(&self, model: &str) -> usize {
        self.all_upstreams().map(|upstream| upstream.waiting_for(self, model)).sum()
    }

    fn wanted(&self) -> Vec<Wanted> {
        self.all_upstreams().flat_map(|upstream| upstream.wanted_of(self)).collect()
    }

    /// Whether somebody waits for a model that is not there.
    pub fn is_wanting(&self) -> bool {
        !self.wanted().is_empty()
    }

    /// What is to be done for those who wait. Who waits is looked up first: no lock is held while another is taken.
    pub fn next_swap(&self, now: Duration) -> Ruling {
        let (ruling, freed) = self.residents.rule(&self.wanted(), self.swap, now);
        if freed {
            self.dispatch();
        }
        ruling
    }

    /// Takes it on to load a model, for this upstream; not if another server of those who wait for it has just done so.
    pub fn claim(&self, id: &str) -> Option<Arc<Upstream>> {
        self.all_upstreams().find(|upstream| upstream.claim(self, id))
    }

    /// The model is there, or comes with the first request: they may go.
    pub fn let_in(&self, id: &str) {
        self.residents.let_in(id);
        self.dispatch();
    }

    /// The victim would not go, or must not; it takes requests again, and is let be until then.
    pub fn give_up(&self, victim: &str, id: &str, until: Duration) {
        self.residents.spare(victim, until);
        self.residents.set_coming(id, false);
        self.dispatch();
    }

    pub fn has_gone(&self, id: &str) -> bool {
        self.residents.has_gone(id)
    }

    /// Those of its loaded models that have not said how many slots they have.
    pub fn unasked(&self) -> Vec<Arc<str>> {
        self.residents.unasked()
    }

    /// Takes in what one of them says; `None`: nothing.
    pub fn set_slots_of(&self, id: &str, slots: Option<u32>) {
        self.residents.set_slots(id, slots);
    }

    /// Rings for whoever takes the steps.
    pub(super) fn ring(&self) {
        if self.is_router() {
            self.wanting.notify_one();
        }
    }

    /// Waits until it may be time for a step.
    pub async fn rings(&self) {
        self.wanting.notified().await;
    }
}
