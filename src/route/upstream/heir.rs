//! An upstream that another has succeeded: a file has come after its own. Requests that began under it are sent on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Server, Upstream};

impl Upstream {
    /// The one that requests go to now, where files have come after this one's.
    pub(in crate::route) fn heir(&self) -> &Self {
        let mut last = self;
        while let Some(next) = last.successor.get() {
            last = next;
        }
        last
    }

    /// Hands all that it knows and all who wait over to the upstream of its name in the file that comes after. Nobody
    /// has asked that one for anything yet.
    pub(in crate::route) fn hand_over(&self, heir: &Arc<Self>) {
        let mut line = self.line();
        let mut theirs = heir.line();
        let places: Vec<_> = self.servers.iter().map(|server| heir.place_of(server)).collect();
        theirs.queue = std::mem::take(&mut line.queue);
        theirs.prefixes = std::mem::take(&mut line.prefixes).moved(&places);
        theirs.pace = std::mem::take(&mut line.pace);
        theirs.held = line.held;
        heir.plain_until_ms.store(self.plain_until_ms.load(Ordering::Relaxed), Ordering::Relaxed);
        *heir.budget() = std::mem::take(&mut *self.budget());
        // Whoever holds the lock next sees it.
        let _ = self.successor.set(Arc::clone(heir));
    }

    /// Ask it under the lock of the line, or it may come in between.
    pub(in crate::route) fn successor(&self) -> Option<&Arc<Self>> {
        self.successor.get()
    }

    /// Whether a server is left that takes requests and is none of these.
    pub fn has_left(&self, tried: &[Arc<Server>]) -> bool {
        let is_tried = |server: &Arc<Server>| tried.iter().any(|tried| tried.is(server));
        self.heir().servers.iter().any(|server| server.takes_requests() && !is_tried(server))
    }
}
