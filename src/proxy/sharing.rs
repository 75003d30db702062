//! What replicas share, made from the file: one way to Valkey, and what goes over it.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use crate::cache::Depot;
use crate::config;
use crate::limit::Shared;
use crate::route::Exchange;
use crate::store::{Ledger, Link, PATIENCE, PATIENCE_REQUIRED};

use super::gateway::Gateway;
use super::refusal::Refusal;

/// One process among those that share.
pub(super) struct Sharing {
    link: Arc<Link>,
    prefix: String,
    /// Its name: no other process's, ever.
    replica: String,
    /// Whether nothing goes on without it.
    required: bool,
}

/// Where what keys have used is kept: with those who share, in a file, or in memory.
pub(super) fn ledger(
    sharing: Option<&Sharing>,
    file: Option<&Path>,
    now: Timestamp,
) -> Result<Ledger, String> {
    match (sharing, file) {
        (Some(sharing), _) => Ok(sharing.ledger()),
        (None, Some(path)) => Ledger::open(path, now),
        (None, None) => Ok(Ledger::in_memory()),
    }
}

impl Sharing {
    pub(super) fn new(settings: &config::Shared) -> Self {
        let config::Shared { dial, required, prefix } = settings.clone();
        let patience = if required { PATIENCE_REQUIRED } else { PATIENCE };
        let link = Arc::new(Link::new(dial, format!("{{{prefix}}}:look"), patience));
        let replica = format!("{:016x}{:016x}", fastrand::u64(..), std::process::id());
        Self { link, prefix, replica, required }
    }

    fn ledger(&self) -> Ledger {
        Ledger::shared(Arc::clone(&self.link), &self.prefix, &self.replica)
    }

    /// What replicas know of prompts.
    pub(super) fn exchange(&self) -> Exchange {
        Exchange::new(Arc::clone(&self.link), &self.prefix, self.replica.clone())
    }

    /// The answers that are kept for all.
    pub(super) fn depot(&self) -> Depot {
        Depot::new(Arc::clone(&self.link), &self.prefix, self.replica.clone())
    }

    pub(super) fn limits(self) -> Shared {
        Shared::new(self.link, &self.prefix, self.replica, self.required)
    }
}

impl Gateway {
    /// Whether requests may go on: not where they must not without what replicas share, and that is away.
    pub(super) fn check_shared(&self) -> Result<(), Refusal> {
        if self.shared.as_ref().is_some_and(|shared| shared.is_missing()) {
            Err(Refusal::SharedAway)
        } else {
            Ok(())
        }
    }
}
