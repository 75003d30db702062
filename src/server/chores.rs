//! What goes on beside requests and blocks nobody: on one thread together, since each thread holds memory of its own,
//! some 80 KiB of stack and allocator, though it hardly ever runs.

use async_trait::async_trait;
use futures_util::future::join_all;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;

pub(super) struct Chores {
    /// The one that is waited for.
    pub(super) first: Box<dyn BackgroundService + Send + Sync>,
    pub(super) others: Vec<Box<dyn BackgroundService + Send + Sync>>,
}

#[async_trait]
impl BackgroundService for Chores {
    async fn start_with_ready_notifier(&self, shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        let others = join_all(self.others.iter().map(|chore| chore.start(shutdown.clone())));
        tokio::join!(self.first.start_with_ready_notifier(shutdown.clone(), ready), others);
    }
}
