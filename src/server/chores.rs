//! What goes on beside requests and blocks nobody: on one thread together, since each thread holds memory of its own,
//! some 80 KiB of stack and allocator, though it hardly ever runs. One that panics takes none of the others along.

use std::sync::Arc;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;

type Chore = dyn BackgroundService + Send + Sync;

pub(super) struct Chores {
    /// The one that is waited for.
    pub(super) first: Box<Chore>,
    pub(super) others: Vec<Arc<Chore>>,
}

#[async_trait]
impl BackgroundService for Chores {
    async fn start_with_ready_notifier(&self, shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        let start = |chore: &Arc<Chore>| {
            let (chore, shutdown) = (Arc::clone(chore), shutdown.clone());
            tokio::spawn(async move { chore.start(shutdown).await })
        };
        let others: Vec<_> = self.others.iter().map(start).collect();
        self.first.start_with_ready_notifier(shutdown.clone(), ready).await;
        for other in others {
            // Of one that panicked, the panic has been written.
            let _ = other.await;
        }
    }
}
