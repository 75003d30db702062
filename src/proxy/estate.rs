//! What a process leaves to the one that succeeds it: what was used of limits and budgets, the answers that are kept,
//! the last hour, what operators have said, and, as long as it finishes what it has, what becomes of that.
//!
//! Said in items, each complete in itself, so that a successor of another version takes what it understands and passes
//! over the rest. Limits are named as the file names them: what the successor's file does not have is dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cache::{Answer, Entry, Form, Key, Purge, Worth};
use crate::limit::{Movement, Quota, Standing};
use crate::observe::Past;
use crate::route::Server;
use crate::store::{Counts, Filter, Row};

use super::clock::BEGINNING;
use super::current::Current;
use super::gateway::Gateway;

/// One thing that is left.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    /// Which answers are not to be found any more.
    Purges { last: u64, all: u64, named: Vec<(Purge, u64)> },
    /// A server that an operator has taken out, by its URL.
    Drained(String),
    /// What a subject has used, and holds.
    Stands(Subject, Standing),
    /// What it has used more, or got back, since.
    Moved(Subject, Movement),
    /// Of a key's budgets: requests under way and their tokens; more, or fewer.
    Reserved { key: String, requests: i64, tokens: i64 },
    /// Requests at a server, by its URL; more, or fewer.
    Busy { server: String, requests: i32 },
    /// What a key has used, where that is in no file.
    Used(Row),
    /// Ten seconds of the last hour, the oldest first.
    Past(Box<Past>),
    /// An answer that is kept; its body comes after it.
    Answer(Kept),
}

/// Whose quota it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    Gateway,
    /// By the pattern of the file.
    Model(String),
    Key(String),
    /// Of a key.
    User(String, String),
    /// All users of a key beyond those that are told apart.
    Crowd(String),
    /// A key with a model.
    KeyModel(String, String),
}

/// What is to be known of an answer beside its body.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    /// The SHA-256, in hexadecimal digits.
    key: String,
    /// Its place among all.
    form: usize,
    content_type: String,
    completion_tokens: u64,
    made_in_ms: u64,
    age_ms: u64,
    /// Of the body.
    pub bytes: usize,
}

/// What has been told to the successor.
pub struct Testament {
    current: Arc<Current>,
    moved: HashMap<Subject, Movement>,
    reserved: HashMap<String, (u64, u64)>,
    busy: HashMap<String, u32>,
    used: HashMap<(jiff::civil::Date, String, String, String), Counts>,
    /// Answers that were made until then are told.
    made_at: Duration,
}

impl Testament {
    pub fn new(current: Arc<Current>) -> Self {
        let (moved, reserved, busy, used) = Default::default();
        Self { current, moved, reserved, busy, used, made_at: Duration::ZERO }
    }

    /// All that there is, first what is large. Blocks on the usage store for a moment.
    pub fn all(&mut self, tell: &mut impl FnMut(Item, Bytes) -> std::io::Result<()>) -> std::io::Result<()> {
        let gateway = self.current.load();
        let (last, all, named) = gateway.purges.numbers();
        tell(Item::Purges { last, all, named }, Bytes::new())?;
        for server in gateway.fleet.servers.iter().filter(|server| server.is_draining()) {
            tell(Item::Drained(server.spec.url.to_string()), Bytes::new())?;
        }
        for past in gateway.hour.past(gateway.clock.now(), &gateway.metrics.totals()) {
            tell(Item::Past(Box::new(past)), Bytes::new())?;
        }
        self.answers(&gateway, tell)?;
        self.used(&gateway, tell)?;
        // Last what changes with each request.
        for (subject, quota) in quotas(&gateway) {
            let (standing, movement) = quota.standing(gateway.clock.now());
            self.moved.insert(subject.clone(), movement);
            if !standing.is_fresh() {
                tell(Item::Stands(subject, standing), Bytes::new())?;
            }
        }
        self.held(&gateway, tell)
    }

    /// What has changed since.
    pub fn changes(
        &mut self,
        tell: &mut impl FnMut(Item, Bytes) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let gateway = self.current.load();
        self.answers(&gateway, tell)?;
        self.used(&gateway, tell)?;
        for (subject, quota) in quotas(&gateway) {
            let movement = quota.movement();
            let earlier = self.moved.insert(subject.clone(), movement).unwrap_or_default();
            let since = movement.since(earlier);
            if !since.is_none() {
                tell(Item::Moved(subject, since), Bytes::new())?;
            }
        }
        self.held(&gateway, tell)
    }

    fn answers(
        &mut self,
        gateway: &Gateway,
        tell: &mut impl FnMut(Item, Bytes) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let now = gateway.clock.now();
        for (key, entry) in gateway.store.made_after(self.made_at, now) {
            self.made_at = entry.made_at;
            tell(Item::Answer(Kept::new(&key, &entry, now)), entry.body.clone())?;
        }
        Ok(())
    }

    fn used(
        &mut self,
        gateway: &Gateway,
        tell: &mut impl FnMut(Item, Bytes) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        if gateway.ledger.is_kept() {
            return match gateway.ledger.flush(gateway.clock.wall()) {
                // This process goes on telling it, as long as its streams last.
                Err(why) if gateway.shared.is_some() => {
                    log::warn!("what keys used of late is not told yet: {why}");
                    Ok(())
                }
                flushed => flushed.map_err(std::io::Error::other),
            };
        }
        for row in gateway.ledger.report(&Filter::default()).map_err(std::io::Error::other)? {
            let of = (row.day, row.key.clone(), row.user.clone(), row.model.clone());
            let counts = row.counts.without(self.used.insert(of, row.counts).unwrap_or_default());
            if counts != Counts::default() {
                tell(Item::Used(Row { counts, ..row }), Bytes::new())?;
            }
        }
        Ok(())
    }

    /// What is given back when it ends.
    fn held(
        &mut self,
        gateway: &Gateway,
        tell: &mut impl FnMut(Item, Bytes) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        for server in &gateway.fleet.servers {
            let (url, now) = (server.spec.url.to_string(), server.in_flight());
            let before = self.busy.insert(url.clone(), now).unwrap_or_default();
            if now != before {
                let requests = i32::try_from(i64::from(now) - i64::from(before)).unwrap_or_default();
                tell(Item::Busy { server: url, requests }, Bytes::new())?;
            }
        }
        for member in gateway.roster().iter().flat_map(|roster| roster.members()) {
            let (requests, tokens) = member.account.reserved();
            if (requests, tokens) == (0, 0) && !self.reserved.contains_key(&member.name) {
                continue;
            }
            let before = self.reserved.insert(member.name.clone(), (requests, tokens)).unwrap_or_default();
            if before != (requests, tokens) {
                let (requests, tokens) = (difference(requests, before.0), difference(tokens, before.1));
                tell(Item::Reserved { key: member.name.clone(), requests, tokens }, Bytes::new())?;
            }
        }
        Ok(())
    }
}

fn difference(now: u64, before: u64) -> i64 {
    i64::try_from(i128::from(now) - i128::from(before)).unwrap_or_default()
}

/// Every quota of a gateway that somebody may have used.
fn quotas(gateway: &Gateway) -> Vec<(Subject, Arc<Quota>)> {
    let pattern = |place: usize| gateway.settings.models.get(place).map(|model| model.rule.pattern.clone());
    let mut quotas = vec![(Subject::Gateway, Arc::clone(gateway.gate.own()))];
    for (place, quota) in gateway.gate.models() {
        quotas.extend(pattern(place).map(|pattern| (Subject::Model(pattern), Arc::clone(quota))));
    }
    for member in gateway.roster().iter().flat_map(|roster| roster.members()) {
        let (key, account) = (&member.name, &member.account);
        quotas.push((Subject::Key(key.clone()), Arc::clone(account.own())));
        quotas.push((Subject::Crowd(key.clone()), Arc::clone(account.crowd())));
        let user = |(user, quota)| (Subject::User(key.clone(), user), quota);
        quotas.extend(account.known_users().into_iter().map(user));
        for (place, quota) in account.models().iter().enumerate() {
            let of = pattern(place).map(|pattern| Subject::KeyModel(key.clone(), pattern));
            quotas.extend(of.map(|subject| (subject, Arc::clone(quota))));
        }
    }
    quotas
}

impl Kept {
    fn new(key: &Key, entry: &Entry, now: Duration) -> Self {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            key: hex::encode(key),
            form: entry.form.index(),
            content_type: String::from_utf8_lossy(&entry.content_type).into_owned(),
            completion_tokens: entry.worth.completion_tokens,
            made_in_ms: milliseconds(entry.worth.time),
            age_ms: milliseconds(entry.age(now)),
            bytes: entry.body.len(),
        }
    }

    fn answer(&self, body: Bytes) -> Option<(Key, Answer)> {
        let mut key = Key::default();
        hex::decode_to_slice(&self.key, &mut key).ok()?;
        let worth =
            Worth { completion_tokens: self.completion_tokens, time: Duration::from_millis(self.made_in_ms) };
        let (form, content_type) = (*Form::ALL.get(self.form)?, Bytes::from(self.content_type.clone()));
        Some((key, Answer { form, content_type, body, worth }))
    }
}

/// What has been taken over, and what of it must come back when the process before has ended.
pub struct Heir {
    current: Arc<Current>,
    at_once: HashMap<Subject, i64>,
    reserved: HashMap<String, (i64, i64)>,
    busy: HashMap<String, i32>,
}

impl Heir {
    pub fn new(current: Arc<Current>) -> Self {
        let (at_once, reserved, busy) = Default::default();
        Self { current, at_once, reserved, busy }
    }

    /// Takes one thing over.
    pub fn take(&mut self, item: Item, body: Bytes) {
        let gateway = self.current.load();
        let now = gateway.clock.now();
        match item {
            Item::Purges { last, all, named } => gateway.purges.assume((last, all, named)),
            Item::Drained(url) => servers(&gateway, &url).for_each(|server| server.set_draining(true)),
            Item::Stands(subject, standing) => {
                if let Some(quota) = find(&gateway, &subject) {
                    quota.assume(&standing, now);
                    *self.at_once.entry(subject).or_default() += i64::from(standing.at_once);
                }
            }
            Item::Moved(subject, by) => {
                if let Some(quota) = find(&gateway, &subject) {
                    quota.shift(&by, now);
                    *self.at_once.entry(subject).or_default() += by.at_once;
                }
            }
            Item::Reserved { key, requests, tokens } => {
                shift_reserved(&gateway, &key, requests, tokens);
                let sum = self.reserved.entry(key).or_default();
                *sum = (sum.0 + requests, sum.1 + tokens);
            }
            Item::Busy { server, requests } => {
                servers(&gateway, &server).for_each(|server| server.shift_in_flight(requests));
                *self.busy.entry(server).or_default() += requests;
            }
            Item::Past(past) => gateway.hour.assume(&past, now),
            Item::Used(row) => gateway.ledger.take_over(row),
            Item::Answer(kept) => {
                if let Some((key, answer)) = kept.answer(body) {
                    // Nothing is older than the clock.
                    let age = Duration::from_millis(kept.age_ms).min(BEGINNING);
                    gateway.store.keep_made_at(key, answer, now.saturating_sub(age), now);
                }
            }
        }
    }

    /// The process before has ended: whatever it held is free.
    pub fn ended(self) {
        let gateway = self.current.load();
        for (subject, at_once) in self.at_once {
            if let (true, Some(quota)) = (at_once != 0, find(&gateway, &subject)) {
                quota.shift(&Movement { at_once: -at_once, ..Movement::default() }, gateway.clock.now());
            }
        }
        for (key, (requests, tokens)) in self.reserved {
            shift_reserved(&gateway, &key, -requests, -tokens);
        }
        for (url, requests) in self.busy {
            servers(&gateway, &url).for_each(|server| server.shift_in_flight(-requests));
        }
    }
}

fn servers<'a>(gateway: &'a Gateway, url: &str) -> impl Iterator<Item = &'a Arc<Server>> {
    gateway.fleet.servers.iter().filter(move |server| server.spec.url.to_string() == url)
}

fn shift_reserved(gateway: &Gateway, key: &str, requests: i64, tokens: i64) {
    let roster = gateway.roster();
    let members = roster.iter().flat_map(|roster| roster.members());
    members.filter(|member| member.name == key).for_each(|it| it.account.shift_reserved(requests, tokens));
}

fn find(gateway: &Gateway, subject: &Subject) -> Option<Arc<Quota>> {
    let place = |pattern: &String| gateway.settings.models.iter().position(|it| it.rule.pattern == *pattern);
    let account = |key: &String| {
        let roster = gateway.roster()?;
        let member = roster.members().iter().find(|member| member.name == *key)?;
        Some(Arc::clone(&member.account))
    };
    match subject {
        Subject::Gateway => Some(Arc::clone(gateway.gate.own())),
        Subject::Model(pattern) => {
            let place = place(pattern)?;
            gateway.gate.models().find(|(at, _)| *at == place).map(|(_, quota)| Arc::clone(quota))
        }
        Subject::Key(key) => Some(Arc::clone(account(key)?.own())),
        Subject::User(key, user) => account(key)?.user(user, gateway.clock.now()),
        Subject::Crowd(key) => Some(Arc::clone(account(key)?.crowd())),
        Subject::KeyModel(key, pattern) => account(key)?.models().get(place(pattern)?).cloned(),
    }
}
