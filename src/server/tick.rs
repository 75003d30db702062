//! What is done once a second: how things stand is noted for the last hour of the operator's page, and connections
//! that have waited for long are closed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::time::{MissedTickBehavior, interval};

use crate::proxy::{Current, view};

const EVERY: Duration = Duration::from_secs(1);

pub(super) struct Ticker(pub(super) Arc<Current>);

#[async_trait]
impl BackgroundService for Ticker {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let gateway = self.0.load();
                    view::tick(&gateway);
                    gateway.conduits.sweep(gateway.clock.now());
                }
                _ = shutdown.changed() => return,
            }
        }
    }
}
