//! What one subject may ask: its buckets of requests and tokens, and how many requests at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::bucket::{Bucket, Level, Shape, SharedShape};
use super::name::Kind;
use super::rate::{Allowance, Rate};
use super::standing::{Movement, Standing, moved};

/// The limits of one subject and what it has used of them. A limit that is not named does not exist.
#[derive(Debug)]
pub struct Quota {
    /// Whose it is, in every process the same.
    name: Arc<str>,
    allowance: Allowance,
    /// Shared with those that it succeeded: what was taken from them is settled and given back here.
    requests: Option<Arc<Mutex<Bucket>>>,
    tokens: Option<Arc<Mutex<Bucket>>>,
    at_once: Arc<AtomicU32>,
}

/// A request's place among those at once; returned on drop.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicU32>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Quota {
    /// `name`: whose it is, where processes share it.
    pub fn new(name: impl Into<Arc<str>>, allowance: Allowance) -> Self {
        let full = |shape| Arc::new(Mutex::new(Bucket::full(shape)));
        Self {
            name: name.into(),
            allowance,
            requests: requests(&allowance).map(full),
            tokens: tokens(&allowance).map(full),
            at_once: Arc::default(),
        }
    }

    /// The same subject under another allowance: what it has used stays used.
    pub fn reshaped(&self, allowance: Allowance, now: Duration) -> Self {
        let carry = |old: &Option<Arc<Mutex<Bucket>>>, shape: Option<Shape>| {
            let shape = shape?;
            let Some(old) = old else { return Some(Arc::new(Mutex::new(Bucket::full(shape)))) };
            let mut bucket = old.lock().unwrap_or_else(PoisonError::into_inner);
            if bucket.shape() != shape {
                bucket.reshape(shape, now);
            }
            Some(Arc::clone(old))
        };
        Self {
            name: Arc::clone(&self.name),
            allowance,
            requests: carry(&self.requests, requests(&allowance)),
            tokens: carry(&self.tokens, tokens(&allowance)),
            at_once: Arc::clone(&self.at_once),
        }
    }

    /// As [`Quota::reshaped`]; itself where nothing changes.
    pub(super) fn succeeded(self: &Arc<Self>, allowance: Allowance, now: Duration) -> Arc<Self> {
        if self.allowance == allowance { Arc::clone(self) } else { Arc::new(self.reshaped(allowance, now)) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub fn allowance(&self) -> &Allowance {
        &self.allowance
    }

    /// The rate of a bucket, as the operator wrote it.
    pub(super) fn rate(&self, kind: Kind) -> Option<Rate> {
        match kind {
            Kind::Requests => self.allowance.requests,
            Kind::Tokens => self.allowance.tokens,
            Kind::Concurrent | Kind::Budget => None,
        }
    }

    pub(super) fn lock(&self, kind: Kind) -> Option<MutexGuard<'_, Bucket>> {
        let bucket = match kind {
            Kind::Requests => self.requests.as_ref(),
            Kind::Tokens => self.tokens.as_ref(),
            Kind::Concurrent | Kind::Budget => None,
        };
        bucket.map(|bucket| bucket.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// As processes share it.
    pub(super) fn shared(&self, kind: Kind) -> Option<SharedShape> {
        self.lock(kind).map(|bucket| bucket.shape().shared())
    }

    /// What is left of a bucket; `None` where there is none.
    pub fn level(&self, kind: Kind, now: Duration) -> Option<Level> {
        self.lock(kind).map(|bucket| bucket.level(now))
    }

    /// Requests that are there now.
    pub fn at_once(&self) -> u32 {
        self.at_once.load(Ordering::Relaxed)
    }

    /// A place among the requests at once, where they are limited; an error where there is none left, with how many
    /// there are.
    pub(super) fn enter(&self) -> Result<Option<Place>, u32> {
        let Some(most) = self.allowance.concurrent else { return Ok(None) };
        let within = |now: u32| (now < most).then_some(now + 1);
        let entered = self.at_once.fetch_update(Ordering::AcqRel, Ordering::Relaxed, within);
        entered.map(|_| Some(Place(Arc::clone(&self.at_once)))).map_err(|_| most)
    }

    /// A place where another process has said that there is one.
    pub(super) fn enter_anyway(&self) -> Option<Place> {
        self.allowance.concurrent?;
        self.at_once.fetch_add(1, Ordering::AcqRel);
        Some(Place(Arc::clone(&self.at_once)))
    }

    /// What it has used, for another process to take over, and what it had used in all at that moment.
    pub fn standing(&self, now: Duration) -> (Standing, Movement) {
        let (requests, tokens) = (self.lock(Kind::Requests), self.lock(Kind::Tokens));
        let at_once = self.at_once();
        let debt = |bucket: &Option<MutexGuard<'_, Bucket>>| bucket.as_ref().map(|bucket| bucket.debt(now));
        let balance = |bucket: &Option<MutexGuard<'_, Bucket>>| bucket.as_ref().map_or(0, |it| it.balance());
        let movement =
            Movement { requests: balance(&requests), tokens: balance(&tokens), at_once: i64::from(at_once) };
        (Standing { requests: debt(&requests), tokens: debt(&tokens), at_once }, movement)
    }

    /// Takes over what the same subject has used in another process.
    pub fn assume(&self, standing: &Standing, now: Duration) {
        for (kind, debt) in [(Kind::Requests, standing.requests), (Kind::Tokens, standing.tokens)] {
            if let (Some(debt), Some(mut bucket)) = (debt, self.lock(kind)) {
                bucket.assume(debt, now);
            }
        }
        self.shift_at_once(i64::from(standing.at_once));
    }

    /// What it has used in all.
    pub fn movement(&self) -> Movement {
        let balance = |kind| self.lock(kind).map_or(0, |bucket| bucket.balance());
        Movement {
            requests: balance(Kind::Requests),
            tokens: balance(Kind::Tokens),
            at_once: i64::from(self.at_once()),
        }
    }

    /// Takes in what it has used, or got back, in the other process.
    pub fn shift(&self, by: &Movement, now: Duration) {
        for (kind, by) in [(Kind::Requests, by.requests), (Kind::Tokens, by.tokens)] {
            if let (true, Some(mut bucket)) = (by != 0, self.lock(kind)) {
                bucket.shift(by, now);
            }
        }
        self.shift_at_once(by.at_once);
    }

    fn shift_at_once(&self, by: i64) {
        let shifted = |count: u32| u32::try_from(moved(count.into(), by)).ok();
        let _ = self.at_once.fetch_update(Ordering::AcqRel, Ordering::Relaxed, shifted);
    }

    /// Whether it is as if nobody had ever asked.
    pub(super) fn is_fresh(&self, now: Duration) -> bool {
        let full = |kind| self.level(kind, now).is_none_or(|level| level.reset.is_zero());
        full(Kind::Requests) && full(Kind::Tokens) && self.at_once() == 0
    }
}

fn requests(allowance: &Allowance) -> Option<Shape> {
    allowance.requests.map(|rate| Shape::new(rate, allowance.burst))
}

fn tokens(allowance: &Allowance) -> Option<Shape> {
    allowance.tokens.map(|rate| Shape::new(rate, None))
}
