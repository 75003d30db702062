//! The callers' connections, counted, and kept while the process finishes what it has.
//!
//! Pingora drops every connection that has no request under way as soon as the listeners are closed, those too that
//! were accepted a moment ago and whose first request is on its way. Here they stay until the process ends: a request
//! that comes is answered, and its answer says that the connection closes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

/// How many connections there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections(Arc<AtomicUsize>);

impl Connections {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn open(&self) -> Open {
        self.0.fetch_add(1, Ordering::AcqRel);
        Open(Arc::clone(&self.0))
    }
}

/// One of them; no more when this is dropped.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An application, in front of which connections are counted.
pub(super) struct Front<A> {
    pub(super) app: Arc<A>,
    pub(super) connections: Connections,
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServerApp for Front<A> {
    /// In a task of its own: Pingora's has room for all that may come before, 6 KiB, as long as it runs.
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let (app, open, shutdown) = (Arc::clone(&self.app), self.connections.open(), shutdown.clone());
        tokio::spawn(async move {
            let _open = open;
            let mut stream = Some(stream);
            while let Some(next) = stream {
                stream = app.process_new(next, &shutdown).await;
            }
        });
        None
    }
}
