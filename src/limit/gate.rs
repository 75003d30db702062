//! The limits of one gateway, and what of them a request is subject to.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::account::Account;
use super::name::Scope;
use super::quota::Quota;
use super::rate::{Allowance, Rate};
use super::shield::Shield;
use super::subjects::{Refused, Subjects};

/// All limits that are not a key's own.
pub struct Gate {
    gateway: Arc<Quota>,
    ip: Option<Rate>,
    /// By the model rule's place, as are the quotas.
    shares: Vec<ModelShare>,
    models: Vec<Option<Arc<Quota>>>,
    /// Under which rule's place a key's requests are counted, by the rule's place.
    key_places: Vec<usize>,
    /// Whether requests are limited by model too.
    by_model: bool,
    addresses: Option<Arc<Shield>>,
}

impl Gate {
    pub fn new(terms: Terms) -> Self {
        let shield = terms.ip.map(|rate| Arc::new(Shield::new(rate)));
        let gateway = Arc::new(Quota::new("gateway", terms.gateway));
        Self::made((gateway, shield), terms, |_, full| Arc::new(full))
    }

    /// The same under other limits: what was used stays used. `places`: by a rule's place, the one it had here.
    pub fn regranted(&self, terms: Terms, places: &[Option<usize>], now: Duration) -> Self {
        let own = |place: usize| match self.shares.get(place)? {
            ModelShare::Own(_) => self.models.get(place)?.as_ref(),
            // Its quota is another's.
            ModelShare::Of(_) => None,
        };
        let quota = |place: usize, full: Quota| {
            let old = places.get(place).copied().flatten().and_then(own);
            match old {
                Some(old) => old.succeeded(*full.allowance(), now),
                None => Arc::new(full),
            }
        };
        let shield = match &self.addresses {
            Some(shield) if self.ip == terms.ip => Some(Arc::clone(shield)),
            _ => terms.ip.map(|rate| Arc::new(Shield::new(rate))),
        };
        Self::made((self.gateway.succeeded(terms.gateway, now), shield), terms, quota)
    }

    /// `quota`: what becomes of a full one at a rule's place.
    fn made(
        (gateway, addresses): (Arc<Quota>, Option<Arc<Shield>>),
        Terms { models: shares, patterns, key_places, ip, .. }: Terms,
        quota: impl Fn(usize, Quota) -> Arc<Quota>,
    ) -> Self {
        let own = |(place, model): (usize, &ModelShare)| match model {
            ModelShare::Own(allowance) if *allowance != Allowance::default() => {
                let pattern = patterns.get(place).map_or("", String::as_str);
                Some(quota(place, Quota::new(format!("model:{pattern}"), *allowance)))
            }
            _ => None,
        };
        let mut quotas: Vec<Option<Arc<Quota>>> = shares.iter().enumerate().map(own).collect();
        for (place, model) in shares.iter().enumerate() {
            // Its model may stand before it or after.
            if let ModelShare::Of(meant) = model {
                quotas[place] = quotas.get(*meant).cloned().flatten();
            }
        }
        Self {
            gateway,
            ip,
            by_model: !key_places.is_empty() || quotas.iter().any(Option::is_some),
            key_places,
            shares,
            models: quotas,
            addresses,
        }
    }

    /// Admits by address, before anything is known of the caller.
    pub fn admit_address(&self, address: IpAddr, now: Duration) -> Result<(), Refused> {
        self.addresses.as_ref().map_or(Ok(()), |shield| shield.admit(address, now))
    }

    /// What a request is subject to before its model is known. `account`: the caller's; `None` where no keys are asked
    /// for.
    pub fn subjects(&self, account: Option<&Account>, user: Option<&str>, now: Duration) -> Subjects {
        let mut subjects = Subjects::default();
        subjects.add(Scope::Gateway, Arc::clone(&self.gateway));
        if let Some(account) = account {
            subjects.add(Scope::Key, Arc::clone(account.own()));
            if let Some(quota) = user.and_then(|user| account.user(user, now)) {
                subjects.add(Scope::User, quota);
            }
        }
        subjects
    }

    /// Of all callers together.
    pub fn own(&self) -> &Arc<Quota> {
        &self.gateway
    }

    /// Of each model that has one of its own, by the rule's place.
    pub fn models(&self) -> impl Iterator<Item = (usize, &Arc<Quota>)> {
        let own = |place: &usize| matches!(self.shares.get(*place), Some(ModelShare::Own(_)));
        let quota = |place: usize| Some((place, self.models.get(place)?.as_ref()?));
        (0..self.models.len()).filter(own).filter_map(quota)
    }

    /// Whether a request must not be admitted before its model is known.
    pub fn limits_models(&self) -> bool {
        self.by_model
    }

    /// Makes a request subject to the limits of its model too.
    pub fn add_model(&self, subjects: &mut Subjects, account: Option<&Account>, rule: Option<usize>) {
        let Some(rule) = rule else { return };
        if let Some(Some(quota)) = self.models.get(rule) {
            subjects.add(Scope::Model, Arc::clone(quota));
        }
        let place = self.key_places.get(rule);
        if let Some(quota) = place.and_then(|place| account?.model(*place)) {
            subjects.add(Scope::KeyModel, Arc::clone(quota));
        }
    }
}

/// What the limits of a gateway are made from.
#[derive(Debug, Default)]
pub struct Terms {
    pub gateway: Allowance,
    /// By the rule's place, as are the patterns of their rules.
    pub models: Vec<ModelShare>,
    pub patterns: Vec<String>,
    /// The same of keys with each model; empty where none is limited so.
    pub key_places: Vec<usize>,
    pub ip: Option<Rate>,
}

/// Where a model's limit is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelShare {
    Own(Allowance),
    /// An alias: with the model that it means, at this place.
    Of(usize),
}
