//! A llama-server that does as it is told: Varnish's `server s1`, on an address of its own.
//!
//! It speaks as the real one does (build 11434, captures in docs/facts), on raw TCP, so that a play can make it stay
//! silent, cut an event in two, die in mid-answer or answer garbage, and then ask what it has seen: every request
//! whole, how many it finished, and when a peer left before the end. It runs no model: an answer's text is its words.

mod router;
mod script;
mod shapes;
mod serve;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::address::Loopback;
use super::http::{Framing, Head, header};
pub(crate) use script::{Script, scripted};

const PORT: u16 = 8080;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

impl Received {
    pub(crate) fn method(&self) -> &str {
        self.head.line.split(' ').next().unwrap_or_default()
    }

    pub(crate) fn target(&self) -> &str {
        self.head.line.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn path(&self) -> &str {
        self.target().split('?').next().unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head.headers, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn sha256(&self) -> String {
        hex::encode(Sha256::digest(&self.body))
    }
}

/// What the server and the play both look at.
struct Stage {
    script: Mutex<Arc<Script>>,
    /// One permit lets one held step go on.
    gate: Semaphore,
    router: Arc<router::Router>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// What callers asked (every POST).
    requests: Vec<Received>,
    /// What the gateway asked for itself: `/health`, `/props`, `/v1/models`, the tokens of a prompt.
    probes: Vec<Received>,
    /// Those that a caller's request came on first.
    connections: usize,
    finished: usize,
    cancelled: Vec<Instant>,
}

/// A running scripted server; it is gone when this is dropped.
pub(crate) struct Llama {
    address: Loopback,
    stage: Arc<Stage>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl Llama {
    async fn start(script: Script) -> Self {
        let address = Loopback::claim();
        let stage = Arc::new(Stage {
            script: Mutex::new(Arc::new(script)),
            gate: Semaphore::new(0),
            router: Arc::default(),
            seen: Mutex::default(),
        });
        let llama = Self { address, stage, accepting: Mutex::default() };
        llama.comes_back().await;
        llama
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address.port(PORT)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// As one line of a hosts file.
    pub(crate) fn is_called(&self, name: &str) -> String {
        format!("{} {name}\n", self.address.ip())
    }

    /// From the next request on, it plays by another script.
    pub(crate) fn becomes(&self, script: Script) {
        *self.stage.script.lock().expect("not poisoned") = Arc::new(script);
    }

    /// One held step goes on.
    pub(crate) fn release(&self) {
        self.stage.gate.add_permits(1);
    }

    /// Nothing is held any more.
    pub(crate) fn release_all(&self) {
        self.stage.gate.add_permits(1 << 20);
    }

    /// The process dies: nothing listens, and every connection breaks.
    pub(crate) async fn dies(&self) {
        let accepting = self.accepting.lock().expect("not poisoned").take();
        if let Some(accepting) = accepting {
            accepting.abort();
            assert!(accepting.await.is_err(), "the server ended before its time");
        }
    }

    pub(crate) async fn comes_back(&self) {
        // A process that another play starts holds every socket of this one until it has become the gateway.
        eventually!(self.listens().await, "the address is ours");
    }

    async fn listens(&self) -> bool {
        let Ok(listener) = TcpListener::bind(self.address()).await else { return false };
        let accepting = tokio::spawn(serve::accept(listener, Arc::clone(&self.stage)));
        *self.accepting.lock().expect("not poisoned") = Some(accepting);
        true
    }

    /// How many requests of callers it has seen, whole.
    pub(crate) fn requests(&self) -> usize {
        self.seen(|seen| seen.requests.len())
    }

    /// Over how many connections they came.
    pub(crate) fn connections(&self) -> usize {
        self.seen(|seen| seen.connections)
    }

    pub(crate) fn probes(&self) -> Vec<Received> {
        self.seen(|seen| seen.probes.clone())
    }

    /// How often it was asked to count the tokens of a prompt.
    pub(crate) fn counted(&self) -> usize {
        self.seen(|seen| seen.probes.iter().filter(|probe| probe.method() == "POST").count())
    }

    /// How many it has answered to the last byte.
    pub(crate) fn finished(&self) -> usize {
        self.seen(|seen| seen.finished)
    }

    /// When peers left before the last byte.
    pub(crate) fn cancelled(&self) -> Vec<Instant> {
        self.seen(|seen| seen.cancelled.clone())
    }

    /// The latest request of a caller.
    pub(crate) fn last(&self) -> Received {
        self.seen(|seen| seen.requests.last().cloned()).expect("no request has arrived")
    }

    /// The models that a router has loaded, in turn.
    pub(crate) fn loads(&self) -> Vec<String> {
        self.stage.router.loads()
    }

    /// Those that it was told to unload.
    pub(crate) fn unloads(&self) -> Vec<String> {
        self.stage.router.unloads()
    }

    /// Those that it unloaded by its own choice, or under their callers.
    pub(crate) fn evictions(&self) -> Vec<String> {
        self.stage.router.evictions()
    }

    /// How often it was asked for its models.
    pub(crate) fn looks(&self) -> usize {
        self.seen(|seen| seen.probes.iter().filter(|probe| probe.path() == "/v1/models").count())
    }

    fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.stage.seen.lock().expect("not poisoned"))
    }
}

impl Drop for Llama {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.lock().expect("not poisoned").take() {
            accepting.abort();
        }
    }
}
