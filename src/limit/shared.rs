//! Limits that several processes share, in Valkey: the same buckets, decided there, all of one request in one step.
//!
//! Valkey only says whether it admits and how the buckets stand then; what a refusal says (which limit, how long) is
//! worked out from that by the rules that stand here too. How the buckets stand is also noted in those of this process,
//! which decide where Valkey cannot be asked. What is given back later is told in batches (`outbox`), and nobody waits
//! for that.

mod ahead;
mod late;
mod outbox;
mod reserve;
mod share;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::store::{Link, Script, Unanswered};

use super::bucket::{Bucket, SharedShape};
use super::name::{Kind, Limit, Scope};
use super::quota::Quota;
use super::subjects::{Allows, Permit, Refused, Subjects, refusal, tightest};

use self::ahead::{Ahead, micros};
use self::late::Missed;
use self::outbox::Outbox;
use self::wire::{Call, Gone, Part};

pub(super) use self::late::Owed;
pub(super) use self::outbox::{FarLoan, Lease};
pub use self::share::Share;

/// A place is let for so long, and renewed three times within it: so long after a process was killed, its places are
/// free.
const LENT: Duration = Duration::from_secs(10);

/// By the server's clock.
const ITS_OWN: Option<Duration> = None;

/// What processes share of limits.
pub struct Shared {
    link: Arc<Link>,
    admit: Script,
    outbox: Outbox,
    /// Names this process's places, with a number.
    replica: String,
    next: AtomicU64,
    /// Begins every key; in braces, so that all are in one slot of a Cluster and one script may see them.
    prefix: String,
    lent: Duration,
    /// Whether nothing goes on without an answer.
    required: bool,
    ahead: Arc<Ahead>,
}

/// How long one request has waited for what replicas share.
#[derive(Debug, Default)]
pub struct Waited {
    pub time: Duration,
    /// It had no answer in time once, and asks no more.
    pub in_vain: bool,
}

/// Why a request is not admitted.
#[derive(Debug, Clone, Copy)]
pub enum Unruled {
    Refused(Refused),
    /// Nobody answered, and nothing goes on without.
    Away,
}

/// What Valkey said: the buckets as they stand, by its time.
struct Said<'a> {
    now: Duration,
    /// 0: admitted; -1: a bucket or a budget did not; n: the n-th set is full.
    verdict: i64,
    buckets: Vec<(Scope, &'a Quota, Box<Bucket>)>,
    parts: Vec<Part>,
    gone: Option<Gone>,
}

impl Shared {
    /// `replica`: no other process's, ever. `required`: whether nothing goes on without an answer.
    pub fn new(link: Arc<Link>, prefix: &str, replica: String, required: bool) -> Self {
        let (prefix, ahead) = (format!("{{{prefix}}}"), Arc::new(Ahead::unknown()));
        let mark = format!("{prefix}:replica:{replica}");
        Self {
            outbox: Outbox::new(Arc::clone(&link), Arc::clone(&ahead), mark, LENT),
            admit: link.script(&wire::admit()),
            link,
            replica,
            next: AtomicU64::new(0),
            prefix,
            lent: LENT,
            required,
            ahead,
        }
    }

    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Whether nothing goes on: Valkey is away, and the file says that nothing goes on without.
    pub fn is_missing(&self) -> bool {
        self.required && !self.link.is_up()
    }

    /// Admits a request by its limits of requests, with what it holds already; where it does not take, the buckets are
    /// only looked at. Without an answer in time it is ruled here, as the buckets stood when there last was one.
    pub async fn admit(
        self: &Arc<Self>,
        subjects: &Subjects,
        held: Permit,
        takes: bool,
        waited: &mut Waited,
        clock: impl Fn() -> Duration,
    ) -> Result<Permit, Unruled> {
        let asked_at = clock();
        let (held, missed) = if waited.in_vain {
            (held, Missed::not_asked())
        } else {
            let ruled = self.admit_at(subjects, held, takes, asked_at, ITS_OWN).await;
            waited.time += clock().saturating_sub(asked_at);
            match ruled {
                Ok(ruled) => return ruled.map_err(Unruled::Refused),
                Err(unruled) => unruled,
            }
        };
        waited.in_vain = true;
        if self.required {
            late::requests(self, subjects, missed, false);
            return Err(Unruled::Away);
        }
        let now = clock();
        let ruled = if takes { subjects.admit_with(held, now) } else { subjects.enter_with(held, now) };
        if takes {
            late::requests(self, subjects, missed, ruled.is_ok());
        }
        ruled.map_err(Unruled::Refused)
    }

    /// `at`: the time that Valkey is to take it for. An error is what it holds, and what may be known later.
    async fn admit_at(
        self: &Arc<Self>,
        subjects: &Subjects,
        mut held: Permit,
        takes: bool,
        now: Duration,
        at: Option<Duration>,
    ) -> Result<Result<Permit, Refused>, (Permit, Missed)> {
        let is_held = |scope: Scope| held.places.iter().any(|(other, _)| *other == scope);
        let sets: Vec<(Scope, &Quota, u32)> = subjects
            .quotas()
            .filter(|(scope, _)| !is_held(*scope))
            .filter_map(|(scope, quota)| Some((scope, quota.as_ref(), quota.allowance().concurrent?)))
            .collect();
        let names: Vec<String> = sets.iter().map(|(_, quota, _)| self.key("at_once", quota)).collect();
        let mut lease = (held.lease.is_some() || !sets.is_empty())
            .then(|| held.lease.take().unwrap_or_else(|| Lease::new(self, self.place())));
        let call = Call {
            at,
            valid: self.ahead.valid(),
            takes,
            lent: self.lent,
            place: lease.as_ref().map_or("", Lease::place),
            sets: names.iter().map(String::as_str).zip(sets.iter().map(|set| set.2)).collect(),
            purse: None,
        };
        let said = self.ask(subjects, Kind::Requests, 1, call, now).await;
        // Without an answer it may have been entered all the same.
        if let Some(lease) = &mut lease
            && said.as_ref().map_or(true, |said| said.as_ref().is_none_or(|said| said.verdict == 0))
        {
            lease.holds(&names);
        }
        held.lease = lease;
        let said = match said {
            Ok(Some(said)) => said,
            Ok(None) => return Ok(Ok(held)),
            Err(missed) => return Err((held, missed)),
        };
        let level = tightest(&said.buckets, said.now);
        if let Some(full) = usize::try_from(said.verdict - 1).ok().and_then(|place| sets.get(place)) {
            let (limit, allows) = (Limit { scope: full.0, kind: Kind::Concurrent }, Allows::AtOnce(full.2));
            return Ok(Err(Refused { limit, wait: None, allows, level }));
        }
        if said.verdict != 0 {
            return match refusal(&said.buckets, Kind::Requests, 1, said.now) {
                Some(refused) => Ok(Err(refused)),
                None => Err((held, Missed::not_asked())),
            };
        }
        held.level = level;
        held.places.extend(sets.iter().filter_map(|(scope, quota, _)| Some((*scope, quota.enter_anyway()?))));
        Ok(Ok(held))
    }

    /// The same of all buckets, for whoever wants to know how they stand; where nobody answers they stand as before.
    pub async fn look(&self, subjects: &Subjects, waited: &mut Waited, clock: impl Fn() -> Duration) {
        let asked_at = clock();
        if self.ask(subjects, Kind::Requests, 1, Call::look(), asked_at).await.is_ok() {
            // As far as it is answered.
            let _ = self.ask(subjects, Kind::Tokens, 1, Call::look(), asked_at).await;
        }
        waited.time += clock().saturating_sub(asked_at);
    }

    /// Tells what was admitted, or used, without an answer.
    fn charge(&self, buckets: Vec<(String, SharedShape)>, amount: u64) {
        for (key, shape) in buckets {
            if amount > 0 {
                self.outbox.charge(key, shape, amount);
            }
        }
    }

    /// Delivers what is to be told and renews what is held, as long as it is polled.
    pub async fn keep(&self) {
        self.outbox.keep().await;
    }

    /// Delivers what is to be told, if it is answered: before the process ends.
    pub async fn tell_all(&self) {
        let _ = self.outbox.deliver(ITS_OWN).await;
    }

    /// `None`: there is nothing to ask.
    async fn ask<'a>(
        &self,
        subjects: &'a Subjects,
        kind: Kind,
        amount: u64,
        call: Call<'_>,
        now: Duration,
    ) -> Result<Option<Said<'a>>, Missed> {
        let asked: Vec<_> = subjects
            .quotas()
            .filter_map(|(scope, quota)| Some((scope, quota.as_ref(), quota.shared(kind)?)))
            .collect();
        if asked.is_empty() && call.sets.is_empty() && call.purse.is_none() {
            return Ok(None);
        }
        let own_time = call.at.is_none();
        let (keys, arguments, shapes) = call.told(self.buckets(subjects, kind), amount);
        let answer: Vec<i64> = match self.link.run(&self.admit, &keys, &arguments).await {
            Ok(answer) => answer,
            Err(Unanswered::Late(late)) => return Err(Missed::late(late, keys, shapes)),
            Err(Unanswered::Away | Unanswered::No) => return Err(Missed::not_asked()),
        };
        if let [then] = answer[..] {
            // Too late, or its clock is not where it was seen last: the next question goes by where it is now.
            self.ahead.saw(then);
            return Err(Missed::not_asked());
        }
        let (then, verdict, parts, gone) =
            wire::read(&answer, &keys, &shapes).ok_or_else(Missed::not_asked)?;
        if own_time {
            self.ahead.saw(micros(then));
        }
        let buckets: Vec<_> = asked
            .iter()
            .zip(&parts)
            .map(|((scope, quota, shape), part)| (*scope, *quota, Box::new(Bucket::told(shape, part.told))))
            .collect();
        for (_, quota, bucket) in &buckets {
            if let Some(mut own) = quota.lock(kind) {
                own.mirror(bucket, then, now);
            }
        }
        Ok(Some(Said { now: then, verdict, buckets, parts, gone }))
    }

    /// The buckets that a request is subject to, as they are shared.
    fn buckets(&self, subjects: &Subjects, kind: Kind) -> Vec<(String, SharedShape)> {
        let shared = |quota: &Quota| Some((self.bucket_key(kind, quota), quota.shared(kind)?));
        subjects.quotas().filter_map(|(_, quota)| shared(quota)).collect()
    }

    fn place(&self) -> String {
        format!("{}:{}", self.replica, self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn bucket_key(&self, kind: Kind, quota: &Quota) -> String {
        self.key(if kind == Kind::Tokens { "tokens" } else { "requests" }, quota)
    }

    fn key(&self, what: &str, quota: &Quota) -> String {
        format!("{}:{what}:{}", self.prefix, quota.name())
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({})", self.replica)
    }
}

#[cfg(test)]
mod tests;
