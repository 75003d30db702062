//! Answers that came too late for whoever asked: what was ruled here meanwhile is told, and what was taken there and
//! not used is given back. Nothing counts twice or not at all, unless the connection broke under the question.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::store::Late;

use super::super::bucket::SharedShape;
use super::super::name::Kind;
use super::super::subjects::Subjects;
use super::Shared;
use super::outbox::FarLoan;
use super::wire::{self, Part};

/// A question without an answer, and what may be known of it later.
#[derive(Debug)]
pub(super) struct Missed(Option<Asked>);

#[derive(Debug)]
struct Asked {
    late: Late<Vec<i64>>,
    keys: Vec<String>,
    shapes: Vec<SharedShape>,
}

/// What a reservation that was made here owes to buckets that processes share: it says what was used in the end.
#[derive(Debug)]
pub(in super::super) struct Owed(oneshot::Sender<u64>);

impl Missed {
    /// Or asked, and nobody will ever know what came of it.
    pub(super) fn not_asked() -> Self {
        Self(None)
    }

    pub(super) fn late(late: Late<Vec<i64>>, keys: Vec<String>, shapes: Vec<SharedShape>) -> Self {
        Self(Some(Asked { late, keys, shapes }))
    }

    /// Whether it may have been ruled on there.
    pub(super) fn was_asked(&self) -> bool {
        self.0.is_some()
    }

    /// The buckets it was admitted by, if it was.
    async fn admitted(self) -> Option<Vec<Part>> {
        let Asked { late, keys, shapes } = self.0?;
        let (_, verdict, parts, _) = wire::read(&late.answer().await?, &keys, &shapes)?;
        (verdict == 0).then_some(parts)
    }
}

impl Owed {
    pub(in super::super) fn settle(self, used: u64) {
        // The process may be ending.
        let _ = self.0.send(used);
    }
}

/// A request was ruled on here.
pub(super) fn requests(shared: &Arc<Shared>, subjects: &Subjects, missed: Missed, admitted: bool) {
    let (shared, owed) = (Arc::clone(shared), shared.buckets(subjects, Kind::Requests));
    if missed.0.is_none() {
        return shared.charge(owed, u64::from(admitted));
    }
    tokio::spawn(async move {
        match missed.admitted().await {
            Some(parts) if !admitted => FarLoan::new(&shared, parts, 1).settle(0),
            None if admitted => shared.charge(owed, 1),
            _ => {}
        }
    });
}

/// Tokens may have been reserved here; where they were not, what is returned is dropped.
pub(super) fn tokens(shared: &Arc<Shared>, subjects: &Subjects, missed: Missed, tokens: u64) -> Owed {
    let (shared, owed) = (Arc::clone(shared), shared.buckets(subjects, Kind::Tokens));
    let (settle, settled) = oneshot::channel();
    tokio::spawn(async move {
        let admitted = missed.admitted().await;
        let used = settled.await.unwrap_or(0);
        match admitted {
            Some(parts) => FarLoan::new(&shared, parts, tokens).settle(used),
            None => shared.charge(owed, used),
        }
    });
    Owed(settle)
}
