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
    /// By the model rule's place.
    models: Vec<Option<Arc<Quota>>>,
    /// Under which rule's place a key's requests are counted, by the rule's place.
    key_places: Vec<usize>,
    /// Whether requests are limited by model too.
    by_model: bool,
    addresses: Option<Shield>,
}

impl Gate {
    /// `models`: by the rule's place. `key_places`: the same of keys with each model; empty where none is limited so.
    pub fn new(gateway: Allowance, models: &[ModelShare], key_places: Vec<usize>, ip: Option<Rate>) -> Self {
        let own = |model: &ModelShare| match model {
            ModelShare::Own(allowance) if *allowance != Allowance::default() => {
                Some(Arc::new(Quota::new(*allowance)))
            }
            _ => None,
        };
        let mut quotas: Vec<Option<Arc<Quota>>> = models.iter().map(own).collect();
        for (place, model) in models.iter().enumerate() {
            // Its model may stand before it or after.
            if let ModelShare::Of(meant) = model {
                quotas[place] = quotas.get(*meant).cloned().flatten();
            }
        }
        Self {
            gateway: Arc::new(Quota::new(gateway)),
            by_model: !key_places.is_empty() || quotas.iter().any(Option::is_some),
            key_places,
            models: quotas,
            addresses: ip.map(Shield::new),
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
