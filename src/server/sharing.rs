//! Keeps the way to what replicas share, and tells there what is told afterwards.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use tokio::runtime::Builder;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::proxy::{Current, Gateway};
use crate::route::Read;

/// The listeners wait this long, at most, for the first answer.
const FIRST_ANSWER_TIME_MAX: Duration = Duration::from_secs(1);

/// How often it is looked whether that has come.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Soon enough for the next turn of a conversation.
const EXCHANGE_EVERY: Duration = Duration::from_millis(100);

/// The last that is told may take this long.
const TELL_TIME_MAX: Duration = Duration::from_secs(1);

/// As long as the process lives, through its drain too: streams that end are settled. On a thread that is not
/// Pingora's, which ends its own before the last requests have been counted where it is to end at once.
pub(super) struct Sharing(pub(super) Arc<Current>);

#[async_trait]
impl BackgroundService for Sharing {
    async fn start_with_ready_notifier(&self, _shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        if self.0.load().shared.is_none() {
            return ready.notify_ready();
        }
        let current = Arc::clone(&self.0);
        let keep = move || match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(keep(&current, ready)),
            Err(error) => log::error!("nothing is shared: {error}"),
        };
        if let Err(error) = std::thread::Builder::new().name("valkey".to_owned()).spawn(keep) {
            log::error!("nothing is shared: its thread did not start: {error}");
        }
    }
}

async fn keep(current: &Arc<Current>, ready: ServiceReadyNotifier) {
    // A new file changes none of these.
    let gateway = current.load();
    let sharing = (gateway.shared.clone(), gateway.depot.clone(), gateway.exchange.clone());
    let (Some(shared), Some(depot), Some(exchange)) = sharing else { return };
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
            let gateway = current.load();
            // What keys have used of their budgets elsewhere; the bookkeeper says where it fails.
            let _ = spawn_blocking(move || gateway.ledger.flush(gateway.clock.wall())).await;
        }
        ready.notify_ready();
    };
    let prompts = async {
        let mut read = Read::default();
        loop {
            exchange.round(&current.load().fleet, &mut read).await;
            sleep(EXCHANGE_EVERY).await;
        }
    };
    let answers = depot.keep(&purges, || clock.now(), || store.clear());
    tokio::join!(shared.link().keep(), shared.keep(), begin, prompts, answers);
}

/// Tells what there is to tell, as far as that is answered: what others wait for, too. Blocks, wherever it is called.
pub(super) fn tell_all(gateway: &Gateway) {
    let (Some(shared), Some(depot)) = (&gateway.shared, &gateway.depot) else { return };
    let tell = || {
        let Ok(runtime) = Builder::new_current_thread().enable_time().build() else { return };
        runtime.block_on(async {
            let all = async { tokio::join!(shared.tell_all(), depot.is_written()) };
            let _ = timeout(TELL_TIME_MAX, all).await;
        });
    };
    let told = std::thread::scope(|scope| scope.spawn(tell).join());
    if told.is_err() {
        log::error!("what replicas share of the last requests is not told");
    }
}
