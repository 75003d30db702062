//! What other replicas have of an answer: kept, or in the making. Asked once this process has neither, by whoever leads
//! its flight here; twins that joined wait for what that finds.
//!
//! What another replica makes is waited for, not followed live: a stream whose beginning was passed on can be ended by
//! no other generation, so the death of that replica, or of Valkey, would break off streams here. A caller that has had
//! nothing yet gets an answer all the same: the lease ends, and one of those who waited makes it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::time::sleep;

use crate::cache::{Claim, Depot, Entry, Follower, Found, Head, Key, Landing, Leader, Look, Store};

use super::ask;
use super::clock::Clock;
use super::context::Keep;
use super::gateway::Gateway;
use super::refusal::Refusal;

/// Between two looks at an answer in the making: a part of what was waited for, within bounds.
const LOOK_PART: u32 = 8;
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Where an answer comes from that this process does not have.
pub(super) enum Elsewhere {
    /// Another replica had kept it; now it is kept here too.
    Kept(Arc<Entry>),
    /// Another replica is making it.
    Made(Follower<Refusal>),
    /// From here.
    Here(Leader<Refusal>),
}

/// Asks the other replicas. `age_max`: an older answer will not do.
pub(super) async fn ask(
    gateway: &Gateway,
    depot: &Arc<Depot>,
    mut leader: Leader<Refusal>,
    keep: &Keep,
    age_max: Option<Duration>,
) -> Elsewhere {
    let mut claim = depot.claim(&keep.key, false).await;
    if let Claim::Kept(found) = claim {
        if let Some(entry) = adopt(&gateway.store, &keep.key, found, gateway.clock.now(), age_max) {
            return Elsewhere::Kept(entry);
        }
        claim = depot.claim(&keep.key, true).await;
    }
    match claim {
        Claim::Kept(_) | Claim::Alone => Elsewhere::Here(leader),
        Claim::Ours(lease) => {
            leader.hold(lease);
            Elsewhere::Here(leader)
        }
        Claim::Theirs => {
            let follower = leader.follow();
            let (store, depot, clock) = (Arc::clone(&gateway.store), Arc::clone(depot), gateway.clock);
            tokio::spawn(Watch { store, depot, clock, keep: *keep, age_max }.relay(leader));
            Elsewhere::Made(follower)
        }
    }
}

/// The answer that another replica has kept, whoever makes it.
pub(super) async fn kept(gateway: &Gateway, key: &Key, age_max: Option<Duration>) -> Option<Arc<Entry>> {
    match gateway.depot.as_ref()?.look(key).await {
        Look::Kept(found) => adopt(&gateway.store, key, found, gateway.clock.now(), age_max),
        Look::Held | Look::Gone | Look::Late => None,
    }
}

fn adopt(
    store: &Store,
    key: &Key,
    found: Found,
    now: Duration,
    age_max: Option<Duration>,
) -> Option<Arc<Entry>> {
    store.adopt(*key, found.answer, found.age, now, age_max)
}

/// An answer that another replica makes.
struct Watch {
    store: Arc<Store>,
    depot: Arc<Depot>,
    clock: Clock,
    keep: Keep,
    age_max: Option<Duration>,
}

impl Watch {
    /// Lands the flight of all that wait here: with the answer, or so that one of them makes it.
    async fn relay(self, leader: Leader<Refusal>) {
        let flight = Arc::clone(leader.flight());
        // Nobody leads it here: when the last of those who wait leaves, nothing is waited for.
        if !flight.leader_leaves() {
            return;
        }
        let entry = tokio::select! {
            biased;
            () = flight.abandoned() => return,
            entry = self.entry() => entry,
        };
        let body = match entry {
            None => None,
            Some(entry) if entry.form == flight.form() => Some(entry.body.clone()),
            Some(entry) => {
                ask::rendered(self.keep.dialect, entry.form, entry.body.clone(), flight.form()).await
            }
        };
        let Some(body) = body else { return leader.land(Landing::Declined(None)) };
        let content_type = Bytes::from_static(flight.form().content_type().as_bytes());
        leader.head(Head { status: StatusCode::OK, content_type, instead: None });
        leader.push(&body);
        leader.land(Landing::Whole);
    }

    /// `None`: it will not come.
    async fn entry(&self) -> Option<Arc<Entry>> {
        let begun = self.clock.now();
        loop {
            let waited = self.clock.now().saturating_sub(begun);
            sleep((waited / LOOK_PART).clamp(PAUSE_MIN, PAUSE_MAX)).await;
            match self.depot.look(&self.keep.key).await {
                Look::Kept(found) => {
                    let now = self.clock.now();
                    // One that was made since will do for anybody.
                    let age_max = self.age_max.map(|most| most.max(now.saturating_sub(begun)));
                    let entry = adopt(&self.store, &self.keep.key, found, now, age_max);
                    if entry.is_some() {
                        return entry;
                    }
                    // It is in the way of seeing whether another is made.
                    if !self.depot.is_being_made(&self.keep.key).await {
                        return None;
                    }
                }
                Look::Held | Look::Late => {}
                Look::Gone => return None,
            }
        }
    }
}
