//! Keeps the way to what replicas share, and tells there what is told afterwards.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::proxy::Current;
use crate::route::Read;

/// The listeners wait this long, at most, for the first answer.
const FIRST_ANSWER_TIME_MAX: Duration = Duration::from_secs(1);

/// How often it is looked whether that has come.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Soon enough for the next turn of a conversation.
const EXCHANGE_EVERY: Duration = Duration::from_millis(100);

/// As long as the process lives, through its drain too: streams that end are settled.
pub(super) struct Sharing(pub(super) Arc<Current>);

#[async_trait]
impl BackgroundService for Sharing {
    async fn start_with_ready_notifier(&self, _shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        // A new file changes none of these.
        let gateway = self.0.load();
        let sharing = (gateway.shared.clone(), gateway.depot.clone(), gateway.exchange.clone());
        let (Some(shared), Some(depot), Some(exchange)) = sharing else {
            return ready.notify_ready();
        };
        let (purges, store, clock) = (Arc::clone(&gateway.purges), Arc::clone(&gateway.store), gateway.clock);
        drop(gateway);
        let first = async {
            while !depot.is_open() {
                sleep(LOOK_EVERY).await;
            }
        };
        let begin = async {
            // Without an answer, each replica begins by itself.
            if timeout(FIRST_ANSWER_TIME_MAX, first).await.is_ok() {
                let gateway = self.0.load();
                // What keys have used of their budgets elsewhere; the bookkeeper says where it fails.
                let _ = spawn_blocking(move || gateway.ledger.flush(gateway.clock.wall())).await;
            }
            ready.notify_ready();
        };
        let prompts = async {
            let mut read = Read::default();
            loop {
                exchange.round(&self.0.load().fleet, &mut read).await;
                sleep(EXCHANGE_EVERY).await;
            }
        };
        let answers = depot.keep(&purges, || clock.now(), || store.clear());
        tokio::join!(shared.link().keep(), shared.keep(), begin, prompts, answers);
    }
}
