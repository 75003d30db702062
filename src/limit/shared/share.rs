//! What a request has of its key's budgets, where processes share them: reserved before a server is asked, then what it
//! has used, until the ledger has told that; in one step there, so that it never counts twice or not at all.
//!
//! Everything said of it names its place, and counts once however often it is told. Where a process was killed, what it
//! had reserved lapses as its places do.

use std::sync::Arc;

use jiff::civil::Date;

use super::super::account::Account;
use super::Shared;
use super::outbox::Post;
use super::wire::count;

/// A request's share of its key's budgets; let go on drop.
#[derive(Debug)]
pub struct Share {
    shared: Arc<Shared>,
    /// Under which what requests have of the key's budgets stands.
    open: String,
    place: String,
    tokens: u64,
}

impl Shared {
    /// A share that nobody has been told of; `None` where there are no budgets.
    pub(super) fn share(self: &Arc<Self>, account: &Account, tokens: u64) -> Option<Share> {
        let grant = account.grant();
        let open = self.open_key(&grant.key);
        let share = || Share { shared: Arc::clone(self), open, place: self.place(), tokens };
        (!grant.budgets.is_empty()).then(share)
    }

    /// The share of a request that needs no leave, such as a hit: to be settled.
    pub fn share_anyway(self: &Arc<Self>, account: &Account) -> Option<Share> {
        let share = self.share(account, 0)?;
        share.hold(self.link.is_up());
        Some(share)
    }
}

impl Share {
    pub fn place(&self) -> &str {
        &self.place
    }

    fn post(&self, tokens: u64, day: &str) -> Post {
        Post::of(&self.open, "h", [&self.place, "1", &count(tokens), day])
    }

    /// Renewed from now on.
    fn hold(&self, is_told: bool) {
        self.shared.outbox.hold(&self.place, vec![self.post(self.tokens, "")], is_told);
    }

    /// Valkey has it.
    pub(super) fn told(self) -> Self {
        self.hold(true);
        self
    }

    /// It was reserved here; where Valkey was asked in vain it may have it or not, and is told.
    pub(super) fn kept_here(self, was_asked: bool) -> Self {
        self.hold(was_asked);
        if was_asked {
            self.shared.outbox.post(self.post(self.tokens, ""));
        }
        self
    }

    /// It has used so much instead, on that day. Note the use in the ledger first, with the share's place: what that
    /// tells stands instead of this.
    pub fn settle(self, used: u64, day: Date) {
        // Of what Valkey does not know, the ledger tells it the use.
        if self.shared.outbox.free(&self.place).is_some_and(|held| held.is_told) {
            self.shared.outbox.post(self.post(used, &day.to_string()));
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.shared.outbox.free(&self.place).is_some_and(|held| held.is_told) {
            self.shared.outbox.post(Post::of(&self.open, "f", [&self.place]));
        }
    }
}
