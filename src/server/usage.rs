//! Writes down now and then what keys have used, off the threads of requests.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::proxy::Current;

/// What a power cut or a SIGKILL may take: with the time that a flush itself takes, less than a second's use.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

/// The same where others see what is told, and a machine that is busy with all of them may take its time.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// Flushes the ledger as long as the process lives, through its drain too; the last flush is the drain's.
pub(super) struct Bookkeeper(pub(super) Arc<Current>);

#[async_trait]
impl BackgroundService for Bookkeeper {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let mut failing = false;
        loop {
            let every = if self.0.load().shared.is_some() { TELL_EVERY } else { FLUSH_EVERY };
            sleep(every).await;
            let gateway = self.0.load();
            let flush = move || gateway.ledger.flush(gateway.clock.wall());
            let Ok(flushed) = spawn_blocking(flush).await else { return };
            let failed = flushed.is_err();
            // Once when it begins, once when it is over.
            if failed != std::mem::replace(&mut failing, failed) {
                match flushed {
                    Ok(()) => log::info!("what keys use is written again, and nothing of it was lost"),
                    Err(why) => log::error!("what keys use is held in memory until it can be written: {why}"),
                }
            }
        }
    }
}
