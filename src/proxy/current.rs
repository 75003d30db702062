//! The gateway in force. A request asks for it once, when it begins, and ends under it.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::Settings;
use crate::route::Fleet;

use super::gateway::Gateway;

pub struct Current(ArcSwap<Gateway>);

impl Current {
    pub fn new(gateway: Gateway) -> Self {
        Self(ArcSwap::from_pointee(gateway))
    }

    pub fn load(&self) -> Arc<Gateway> {
        self.0.load_full()
    }

    /// Puts another file in force. `fleet`: what the gateway in force has made of the file
    /// ([`Gateway::fleet_after`]). Only one caller replaces gateways and keys.
    pub fn replace(&self, settings: Settings, fleet: Fleet) -> Arc<Gateway> {
        let next = Arc::new(self.load().succeeded(settings, fleet));
        self.0.store(Arc::clone(&next));
        next
    }
}
