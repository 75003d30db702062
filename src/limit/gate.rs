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
    /// `models`: by the rule's place. `key_places`: the same of keys with each model; empty where none is limited so.
    pub fn new(gateway: Allowance, models: &[ModelShare], key_places: Vec<usize>, ip: Option<Rate>) -> Self {
        let quota = |_, allowance| Arc::new(Quota::new(allowance));
        let shield = ip.map(|rate| Arc::new(Shield::new(rate)));
        Self::made((Arc::new(Quota::new(gateway)), shield), models, key_places, ip, quota)
    }

    /// The same under other limits: what was used stays used. `places`: by a rule's place, the one it had here.
    pub fn regranted(
        &self,
        gateway: Allowance,
        models: &[ModelShare],
        key_places: Vec<usize>,
        ip: Option<Rate>,
        places: &[Option<usize>],
        now: Duration,
    ) -> Self {
        let own = |place: usize| match self.shares.get(place)? {
            ModelShare::Own(_) => self.models.get(place)?.as_ref(),
            // Its quota is another's.
            ModelShare::Of(_) => None,
        };
        let quota = |place: usize, allowance| {
            let old = places.get(place).copied().flatten().and_then(own);
            old.map_or_else(|| Arc::new(Quota::new(allowance)), |old| old.succeeded(allowance, now))
        };
        let shield = match &self.addresses {
            Some(shield) if self.ip == ip => Some(Arc::clone(shield)),
            _ => ip.map(|rate| Arc::new(Shield::new(rate))),
        };
        Self::made((self.gateway.succeeded(gateway, now), shield), models, key_places, ip, quota)
    }

    fn made(
        (gateway, addresses): (Arc<Quota>, Option<Arc<Shield>>),
        shares: &[ModelShare],
        key_places: Vec<usize>,
        ip: Option<Rate>,
        quota: impl Fn(usize, Allowance) -> Arc<Quota>,
    ) -> Self {
        let own = |(place, model): (usize, &ModelShare)| match model {
            ModelShare::Own(allowance) if *allowance != Allowance::default() => {
                Some(quota(place, *allowance))
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
            shares: shares.to_vec(),
            models: quotas,
            addresses,
        }
    }

    /// Admits by address, before anything is known of the caller.
    pub fn admit_address(&self, address: IpAddr) -> Result<(), Refused> {
        self.addresses.as_ref().map_or(Ok(()), |shield| shield.admit(address))
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

/// Where a model's limit is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelShare {
    Own(Allowance),
    /// An alias: with the model that it means, at this place.
    Of(usize),
}
