//! What is told afterwards: what loans have used, which places are free, and which are still held.
//!
//! It is told in batches, one after the other, each with a number: a batch whose answer was lost is told again with the
//! same number, and counts once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::store::{Link, Script};

use super::super::bucket::SharedShape;
use super::Shared;
use super::ahead::Ahead;
use super::wire::{self, Part, time};

/// Beyond it the oldest are forgotten: places end by themselves, and what a loan did not use fills up.
const POSTS_MAX: usize = 64 << 10;

const BATCH_POSTS_MAX: usize = 256;

/// What a share has used is told by the ledger too, within a second of its answer, and Valkey remembers for ten that it
/// was (open.lua): what comes after that would count a second time.
const SHARE_TIME_MAX: Duration = Duration::from_secs(5);

/// After a batch that was not answered.
const PAUSE: Duration = Duration::from_millis(100);

/// One thing to be told: of which key, and the seven fields of it.
#[derive(Debug, Clone)]
pub(super) struct Post {
    key: String,
    fields: [String; 7],
    made: Instant,
}

pub(super) struct Outbox {
    link: Arc<Link>,
    ahead: Arc<Ahead>,
    script: Script,
    /// Under it stands the last batch that counted.
    mark: String,
    lent: Duration,
    /// After it a share's post is not told any more.
    pub(super) share_time_max: Duration,
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    posts: VecDeque<Post>,
    /// What was admitted while nobody answered, by bucket.
    charges: HashMap<String, (SharedShape, u64)>,
    /// What each place holds.
    held: BTreeMap<String, Held>,
    /// The batch that is being told, and its number.
    batch: Vec<Post>,
    number: u64,
}

/// What a place holds, as it is told again and again.
#[derive(Default)]
pub(super) struct Held {
    posts: Vec<Post>,
    /// Whether it was.
    pub(super) is_told: bool,
}

/// As it is told.
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) keys: Vec<String>,
    pub(super) arguments: Vec<String>,
}

/// A request's places in sets that processes share; left on drop.
#[derive(Debug)]
pub(in super::super) struct Lease {
    shared: Arc<Shared>,
    place: String,
}

/// Tokens taken from buckets that processes share.
#[derive(Debug)]
pub(in super::super) struct FarLoan {
    shared: Arc<Shared>,
    parts: Vec<Part>,
    tokens: u64,
}

impl Outbox {
    pub(super) fn new(link: Arc<Link>, ahead: Arc<Ahead>, mark: String, lent: Duration) -> Self {
        let (script, state, news) = (link.script(&wire::post()), Mutex::default(), Notify::new());
        Self { link, ahead, script, mark, lent, share_time_max: SHARE_TIME_MAX, state, news }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn charge(&self, key: String, shape: SharedShape, amount: u64) {
        let mut state = self.state();
        let (of, sum) = state.charges.entry(key).or_insert((shape, 0));
        (*of, *sum) = (shape, sum.saturating_add(amount));
        drop(state);
        self.news.notify_one();
    }

    pub(super) async fn keep(&self) {
        let mut renewed = false;
        // Three times within the time that a place is let for, whatever else there is to tell.
        let every = self.lent / 3;
        let mut renewed_at = Instant::now();
        loop {
            let _ = timeout(every.saturating_sub(renewed_at.elapsed()), self.news.notified()).await;
            let due = renewed_at.elapsed() >= every;
            if due || !renewed {
                renewed_at = Instant::now();
                self.renew();
                renewed = true;
            }
            while !self.deliver(None).await {
                renewed = false;
                sleep(PAUSE).await;
            }
        }
    }

    /// Says which places are held; also as soon as there is an answer again.
    pub(super) fn renew(&self) {
        let mut state = self.state();
        let State { posts, held, .. } = &mut *state;
        for held in held.values_mut() {
            held.is_told = true;
            posts.extend(held.posts.iter().map(Post::again));
        }
    }

    /// Tells all that is to be told, by the time `at` or Valkey's own; whether it was answered.
    pub(super) async fn deliver(&self, at: Option<Duration>) -> bool {
        loop {
            let Some(Batch { number, keys, arguments }) = self.batch(at) else { return true };
            match self.link.run_at_leisure::<i64>(&self.script, &keys, &arguments).await {
                Ok(0 | 1) => self.delivered(number),
                // It came too late, or the clock is not where it was seen last.
                Ok(then) => self.ahead.saw(then),
                Err(_) => return false,
            }
        }
    }

    /// That batch counts, whoever else may be telling the next.
    pub(super) fn delivered(&self, number: u64) {
        let mut state = self.state();
        if state.number == number {
            state.batch.clear();
        }
    }

    /// Takes in what a place holds; `is_told`: whether Valkey knows of it.
    pub(super) fn hold(&self, place: &str, posts: Vec<Post>, is_told: bool) {
        let mut state = self.state();
        let held = state.held.entry(place.to_owned()).or_default();
        held.posts.extend(posts);
        held.is_told |= is_told;
    }

    /// A place holds nothing more.
    pub(super) fn free(&self, place: &str) -> Option<Held> {
        self.state().held.remove(place)
    }

    pub(super) fn post(&self, post: Post) {
        self.state().post(post);
        self.news.notify_one();
    }

    /// The batch that was not answered, or the next.
    pub(super) fn batch(&self, at: Option<Duration>) -> Option<Batch> {
        let mut state = self.state();
        let is_due = |post: &Post| !post.is_of_share() || post.made.elapsed() < self.share_time_max;
        state.batch.retain(is_due);
        if state.batch.is_empty() {
            let due = std::iter::from_fn(|| state.posts.pop_front()).filter(is_due);
            let mut batch: Vec<Post> = due.take(BATCH_POSTS_MAX).collect();
            let charged: Vec<String> = state.charges.keys().take(BATCH_POSTS_MAX).cloned().collect();
            for key in charged {
                if let Some((shape, amount)) = state.charges.remove(&key) {
                    let (holds, per) = (shape.holds(), shape.per.to_string());
                    let numbers = [shape.count, amount, holds.0, holds.1].map(|it| it.to_string());
                    batch.push(Post::of(
                        &key,
                        "c",
                        [&numbers[0], &per, &numbers[1], &numbers[2], &numbers[3]],
                    ));
                }
            }
            if batch.is_empty() {
                return None;
            }
            state.batch = batch;
            state.number += 1;
        }
        let mut keys = vec![self.mark.clone()];
        let valid = at.map_or_else(|| self.ahead.valid(), |_| None);
        let mut arguments =
            vec![time(at), time(valid), state.number.to_string(), self.lent.as_micros().to_string()];
        for post in &state.batch {
            keys.push(post.key.clone());
            arguments.extend(post.fields.iter().cloned());
        }
        Some(Batch { number: state.number, keys, arguments })
    }
}

impl State {
    fn post(&mut self, post: Post) {
        if self.posts.len() >= POSTS_MAX {
            self.posts.pop_front();
        }
        self.posts.push_back(post);
    }
}

impl Post {
    pub(super) fn of<const N: usize>(key: &str, kind: &str, fields: [&str; N]) -> Self {
        let mut all: [String; 7] = std::array::from_fn(|_| String::new());
        kind.clone_into(&mut all[0]);
        for (place, field) in fields.into_iter().enumerate() {
            field.clone_into(&mut all[place + 1]);
        }
        Self { key: key.to_owned(), fields: all, made: Instant::now() }
    }

    /// The same, said now.
    fn again(&self) -> Self {
        Self { made: Instant::now(), ..self.clone() }
    }

    /// Says what a request has of budgets.
    fn is_of_share(&self) -> bool {
        self.fields[0] == "h"
    }
}

impl Lease {
    pub(super) fn new(shared: &Arc<Shared>, place: String) -> Self {
        Self { shared: Arc::clone(shared), place }
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Takes in that it stands in these sets.
    pub(super) fn holds(&mut self, sets: &[String]) {
        let posts = sets.iter().map(|set| Post::of(set, "k", [&self.place])).collect();
        self.shared.outbox.hold(&self.place, posts, true);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.shared.outbox.state();
        for Post { key, .. } in state.held.remove(&self.place).unwrap_or_default().posts {
            state.post(Post::of(&key, "l", [&self.place]));
        }
        drop(state);
        self.shared.outbox.news.notify_one();
    }
}

impl FarLoan {
    pub(super) fn new(shared: &Arc<Shared>, parts: Vec<Part>, tokens: u64) -> Self {
        Self { shared: Arc::clone(shared), parts, tokens }
    }

    /// Where no bucket applies.
    pub(super) fn nothing(shared: &Arc<Shared>) -> Self {
        Self::new(shared, Vec::new(), 0)
    }

    /// Charges what was used in place of what was lent.
    pub(in super::super) fn settle(self, used: u64) {
        if self.parts.is_empty() || used == self.tokens {
            return;
        }
        let mut state = self.shared.outbox.state();
        for Part { key, shape, epoch, taken, .. } in &self.parts {
            let numbers = [shape.count, self.tokens, *taken, *epoch, used].map(|it| it.to_string());
            let [count, lent, taken, epoch, used] = &numbers;
            state.post(Post::of(key, "s", [count, &shape.per.to_string(), lent, taken, epoch, used]));
        }
        drop(state);
        self.shared.outbox.news.notify_one();
    }
}
