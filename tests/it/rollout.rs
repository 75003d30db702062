//! A rolling update, as Kubernetes makes one of `conf/k8s`: the new gateway is ready before the old one is told to go,
//! connections go where `/ready` says so, and no caller notices.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::interval;

use crate::support::address::Loopback;
use crate::support::client::{self, Caller, get};
use crate::support::gateway::{self, PORT, chat, chat_stream};
use crate::support::llama;

/// How often a pod is asked whether it is ready: what it says takes so long to be heard.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Long enough for that, and for those who have a connection to ask once more on it.
const PRE_STOP: &str = "server: {pre_stop: 1s}";

#[derive(Debug)]
struct Pod {
    address: SocketAddr,
    ready: bool,
}

/// Kubelet and Service in one: probes each pod, and hands each new connection to the next one that was ready.
struct Service {
    address: Loopback,
    pods: Arc<Mutex<Vec<Pod>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Service {
    async fn start() -> Self {
        let (address, pods) = (Loopback::claim(), Arc::new(Mutex::new(Vec::new())));
        let listener = TcpListener::bind(address.port(PORT)).await.expect("the address is ours");
        let tasks = vec![
            tokio::spawn(probe(Arc::clone(&pods))),
            tokio::spawn(hand_over(listener, Arc::clone(&pods))),
        ];
        Self { address, pods, tasks }
    }

    /// A pod of the gateway that listens there; it gets its first connection when it has been ready.
    fn knows(&self, address: SocketAddr) {
        self.pods.lock().expect("not poisoned").push(Pod { address, ready: false });
    }

    fn ready(&self) -> Vec<SocketAddr> {
        let pods = self.pods.lock().expect("not poisoned");
        pods.iter().filter(|pod| pod.ready).map(|pod| pod.address).collect()
    }

    fn address(&self) -> SocketAddr {
        self.address.port(PORT)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn probe(pods: Arc<Mutex<Vec<Pod>>>) {
    let mut round = interval(PROBE_EVERY);
    loop {
        round.tick().await;
        let addresses: Vec<SocketAddr> =
            pods.lock().expect("not poisoned").iter().map(|pod| pod.address).collect();
        for address in addresses {
            let ready = match client::try_connect(address).await {
                Some(mut caller) => caller.is_told_200(&get("/ready")).await,
                None => false,
            };
            let mut pods = pods.lock().expect("not poisoned");
            pods.iter_mut().filter(|pod| pod.address == address).for_each(|pod| pod.ready = ready);
        }
    }
}

/// A connection that no pod takes is closed, as a node would: its caller's request fails.
async fn hand_over(listener: TcpListener, pods: Arc<Mutex<Vec<Pod>>>) {
    let mut turn = 0;
    loop {
        let Ok((mut caller, _)) = listener.accept().await else { continue };
        let pod = {
            let pods = pods.lock().expect("not poisoned");
            let ready: Vec<&Pod> = pods.iter().filter(|pod| pod.ready).collect();
            turn += 1;
            (!ready.is_empty()).then(|| ready[turn % ready.len()].address)
        };
        tokio::spawn(async move {
            let Some(pod) = pod else { return };
            let Ok(mut pod) = TcpStream::connect(pod).await else { return };
            drop(copy_bidirectional(&mut caller, &mut pod).await);
        });
    }
}

/// Callers who ask one thing after the other, and fail the play where an answer is not a good one.
struct Callers {
    asked: Arc<AtomicUsize>,
    enough: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Callers {
    /// One who connects for each request, and one who keeps the connection for as long as it is offered.
    fn of(service: &Service) -> Self {
        let (asked, enough, at) = (Arc::default(), Arc::default(), service.address());
        let tasks = [false, true].map(|keeps| {
            let (asked, enough) = (Arc::clone(&asked), Arc::clone(&enough));
            tokio::spawn(async move { ask_on(at, keeps, &asked, &enough).await })
        });
        Self { asked, enough, tasks: tasks.into() }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    async fn end(self) {
        self.enough.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("every request was answered");
        }
    }
}

async fn ask_on(at: SocketAddr, keeps: bool, asked: &AtomicUsize, enough: &AtomicBool) {
    let mut kept: Option<Caller> = None;
    while !enough.load(Ordering::Relaxed) {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        let mut caller = match kept.take() {
            Some(caller) => caller,
            None => client::connect(at).await,
        };
        let answer = caller.send(chat(&format!("question {number}"))).await;
        assert!(answer.status == 200 && answer.whole, "{answer:?}");
        kept = Some(caller).filter(|_| keeps && answer.header("connection") != Some("close"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_fails_no_request_and_cuts_no_stream() {
    let llama = llama::scripted().streams(["one", "two", "three"]).holds().start().await;
    let old = gateway::before(&llama).yaml(PRE_STOP).start().await;
    let service = Service::start().await;
    service.knows(old.address());
    eventually!(service.ready() == [old.address()]);
    let mut stream = client::connect(service.address()).await.begin(chat_stream("a long story")).await;
    llama.release();
    assert!(stream.event().await.is_some());
    llama.becomes(llama::scripted());
    let callers = Callers::of(&service);
    eventually!(callers.asked() > 20);

    let new = gateway::before(&llama).yaml(PRE_STOP).start().await;
    service.knows(new.address());
    eventually!(service.ready() == [old.address(), new.address()]);
    old.signal("TERM");
    eventually!(service.ready() == [new.address()]);
    eventually!(client::try_connect(old.address()).await.is_none());
    let before = callers.asked();
    eventually!(callers.asked() > before + 20);
    assert!(old.exited().is_none(), "the stream is still open");

    llama.release_all();
    let (answer, _) = stream.finish().await;
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
    assert_eq!(old.exit().await.code(), Some(0), "{}", old.stderr());
    callers.end().await;
    let requests = |gateway: &gateway::Gateway| {
        gateway.lines().iter().filter(|line| line.text("path") == "/v1/chat/completions").count()
    };
    eventually!(requests(&old) > 20 && requests(&new) > 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_offered_to_be_kept_takes_one_more_request() {
    let llama = llama::scripted().streams(["one", "two"]).holds().start().await;
    let gateway = gateway::before(&llama).yaml("server: {pre_stop: 30s}").start().await;
    let mut stream = gateway.caller().await.begin(chat_stream("a story")).await;
    llama.release();
    assert!(stream.event().await.is_some());
    gateway.signal("TERM");
    eventually!(gateway.send(get("/ready")).await.status == 503);
    llama.release_all();
    let (answer, mut caller) = stream.finish().await;
    assert!(answer.whole && answer.header("connection") != Some("close"), "{answer:?}");
    let last = caller.send(chat("and another")).await;
    assert_eq!((last.status, last.header("connection")), (200, Some("close")), "{last:?}");
}
