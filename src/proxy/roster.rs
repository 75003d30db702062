//! The keys in force: who each is, what it may, and what it has used of that. The whole set is exchanged at once; what
//! a key has used stays with its name.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use jiff::Timestamp;

use crate::auth::{ClientCertificate, Keyring, Patterns};
use crate::cache::Answers;
use crate::config::{KeySettings, Limits, ModelSettings};
use crate::limit::{Account, Allowance, Grant};

/// One key.
#[derive(Debug)]
pub struct Member {
    pub name: String,
    /// `None`: every model.
    models: Option<Patterns>,
    pub account: Arc<Account>,
    /// What of its answers is kept, where it is less than elsewhere.
    pub answers: Option<Answers>,
    /// Higher goes first.
    pub priority: i32,
    /// The header that tells its users apart.
    pub user_header: Option<HeaderName>,
}

/// All of them.
#[derive(Debug)]
pub struct Roster {
    keyring: Keyring,
    members: Vec<Arc<Member>>,
}

impl Member {
    pub fn may_use(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.allow(model))
    }
}

impl Roster {
    /// `before`: those whom these succeed, at `now`, with the place that each model's rule had there.
    pub fn new(
        keys: &[KeySettings],
        limits: &Limits,
        models: &[ModelSettings],
        before: Option<(&Self, &[Option<usize>])>,
        now: Duration,
    ) -> Self {
        let places = before.map(|(_, places)| places).unwrap_or_default();
        let known: HashMap<&str, &Arc<Member>> = before
            .iter()
            .flat_map(|(roster, _)| roster.members.iter().map(|member| (member.name.as_str(), member)))
            .collect();
        let moved = places.iter().enumerate().any(|(at, place)| *place != Some(at));
        let by_model: Vec<Allowance> =
            models.iter().map(|model| model.key_limits.or(limits.key_model)).collect();
        let by_model =
            if by_model.iter().all(|it| *it == Allowance::default()) { Vec::new() } else { by_model };
        let patterns: Vec<_> =
            models.iter().take(by_model.len()).map(|model| model.rule.pattern.clone()).collect();
        let member = |settings: &KeySettings| {
            let name = settings.key.name.clone();
            let grant = Grant {
                key: name.clone(),
                own: settings.limits.or(limits.key),
                user: if settings.user_header.is_some() {
                    settings.user_limits.or(limits.user)
                } else {
                    Allowance::default()
                },
                models: by_model.clone(),
                patterns: patterns.clone(),
                budgets: settings.budgets.clone(),
            };
            let account = match known.get(name.as_str()) {
                Some(old) if *old.account.grant() == grant && (!moved || grant.models.is_empty()) => {
                    Arc::clone(&old.account)
                }
                Some(old) => Arc::new(old.account.regranted(grant, places, now)),
                None => Arc::new(Account::new(grant)),
            };
            Arc::new(Member {
                name,
                models: settings.key.models.clone(),
                account,
                answers: settings.answers,
                priority: settings.priority,
                user_header: settings.user_header.clone(),
            })
        };
        Self {
            members: keys.iter().map(member).collect(),
            keyring: Keyring::new(keys.iter().map(|key| key.key.clone()).collect()),
        }
    }

    /// Whose key this is, presented from there; `None` for a wrong, expired or unknown one alike.
    pub fn identify(&self, text: &[u8], from: IpAddr, now: Timestamp) -> Option<Arc<Member>> {
        let caller = self.keyring.identify(text, from, now)?;
        self.members.get(caller.index).cloned()
    }

    /// Whose certificate this is; `None` likewise.
    pub fn identify_certificate(
        &self,
        certificate: &ClientCertificate,
        from: IpAddr,
        now: Timestamp,
    ) -> Option<Arc<Member>> {
        let caller = self.keyring.identify_certificate(certificate, from, now)?;
        self.members.get(caller.index).cloned()
    }

    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    pub fn has(&self, name: &str) -> bool {
        self.members.iter().any(|member| member.name == name)
    }
}
