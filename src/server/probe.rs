//! Looks at every server now and then: where is it, is it up, and which model does it have.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use pingora::{Error, ErrorType, Result};
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::proxy::Current;
use crate::proxy::side::Connection;
use crate::route::{Kind, MODELS, Report, Server, Sign, Slots};

/// The listeners, and files that are read later, wait this long, at most, for the first look at every server.
pub(super) const FIRST_LOOK_TIME_MAX: Duration = Duration::from_secs(1);

/// How often a server that stays up is asked for its models again.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// The same of one of another kind: it may be a cloud, which counts what it is asked. Nor is it asked at once again
/// where it did not say.
const REPORT_EVERY_OPENAI: Duration = Duration::from_secs(60);

/// How often a name is followed to its addresses, and how often while that fails or its server is down.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);
const RESOLVE_AGAIN: Duration = Duration::from_secs(1);

/// What servers are complained of in.
const NAME: &str = "name";
const SLOTS: &str = "slots";

/// How often a server that was taken out is looked at for what it still has.
const FINISHED_EVERY: Duration = Duration::from_millis(250);

/// Which servers are looked at from now on, and no others.
pub(super) struct Round {
    pub(super) servers: Vec<Arc<Server>>,
    /// Dropped once each has been looked at.
    pub(super) looked: Option<Sender<()>>,
}

pub(super) struct Prober {
    pub(super) current: Arc<Current>,
    /// Of files that come later.
    pub(super) rounds: Mutex<Option<Receiver<Round>>>,
}

#[async_trait]
impl BackgroundService for Prober {
    async fn start_with_ready_notifier(&self, _shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        let (looked, mut first_looks) = channel::<()>(1);
        let mut running = Vec::new();
        let servers = self.current.load().fleet.servers.clone();
        self.begin(&mut running, Round { servers, looked: Some(looked) });
        // Ends when every probe has dropped its end, after its first look.
        let _ = timeout(FIRST_LOOK_TIME_MAX, first_looks.recv()).await;
        ready.notify_ready();
        let rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut rounds) = rounds else { return };
        // To the process's end: a drain may take long.
        while let Some(round) = rounds.recv().await {
            self.begin(&mut running, round);
        }
    }
}

/// A server that is looked at, until the other half is dropped.
type Running = (Arc<Server>, oneshot::Sender<()>);

impl Prober {
    fn begin(&self, running: &mut Vec<Running>, Round { servers, looked }: Round) {
        let is_out = |it: &Running| !servers.iter().any(|server| Arc::ptr_eq(server, &it.0));
        for (server, goes_on) in running.extract_if(.., |it| is_out(it)) {
            // One that is described anew is looked at by another.
            if !servers.iter().any(|it| it.is(&server)) {
                tokio::spawn(farewell(server, goes_on));
            }
        }
        for server in servers {
            if !running.iter().any(|(known, _)| Arc::ptr_eq(known, &server)) {
                let probe = Probe { current: Arc::clone(&self.current), server: Arc::clone(&server) };
                let (goes_on, ended) = oneshot::channel();
                running.push((server, goes_on));
                tokio::spawn(probe.until(ended, looked.clone()));
            }
        }
    }
}

/// Looks at a server that is in no file any more while somebody waits for it, and says when it has finished.
async fn farewell(server: Arc<Server>, goes_on: oneshot::Sender<()>) {
    while server.is_awaited() {
        sleep(FINISHED_EVERY).await;
    }
    drop(goes_on);
    while server.in_flight() > 0 {
        sleep(FINISHED_EVERY).await;
    }
    let name = &server.spec.name;
    log::info!("server `{name}`, which was taken out of the file, has finished what it had");
}

/// The one that looks at a server, in how many upstreams it may stand, and says what a router loads: so no look is
/// older than what was done to it.
pub(super) struct Probe {
    pub(super) current: Arc<Current>,
    pub(super) server: Arc<Server>,
}

impl Probe {
    async fn until(self, ended: oneshot::Receiver<()>, looked: Option<Sender<()>>) {
        let resolved = self.resolve().await;
        let name = async {
            if self.server.spec.url.host.parse::<IpAddr>().is_err() {
                self.follow_name(resolved).await;
            }
            std::future::pending().await
        };
        tokio::select! {
            () = name => {}
            () = self.look_until(ended, looked) => {}
        }
    }

    /// Ends between two looks: no step at a router is left half done.
    async fn look_until(&self, mut ended: oneshot::Receiver<()>, mut looked: Option<Sender<()>>) {
        let mut asked: Option<Instant> = None;
        let (again, every) = match self.server.kind {
            Kind::Llama => (Duration::ZERO, REPORT_EVERY),
            Kind::OpenAi => (REPORT_EVERY, REPORT_EVERY_OPENAI),
        };
        let mut look = Instant::now();
        loop {
            if look <= Instant::now() {
                let every = if self.server.is_router() { Duration::ZERO } else { every };
                let pause = if self.server.report().is_none() { again } else { every };
                if self.is_well().await && asked.is_none_or(|at| at.elapsed() >= pause) {
                    asked = Some(Instant::now());
                    if self.report().await.is_err() {
                        // It is asked again; until then nothing is answered from what it said before.
                        self.server.forget_report();
                    }
                }
                drop(looked.take());
                look = Instant::now() + self.server.check().every;
            }
            let next = self.swap(&mut asked).await.map_or(look, |pause| look.min(Instant::now() + pause));
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.server.rings() => {}
                _ = &mut ended => {
                    // What it was rung for, another must hear.
                    self.server.dispatch();
                    return;
                }
            }
        }
    }

    async fn follow_name(&self, mut resolved: bool) {
        let mut last = Instant::now();
        loop {
            sleep(RESOLVE_AGAIN).await;
            if !resolved || !self.server.is_up() || last.elapsed() >= RESOLVE_EVERY {
                resolved = self.resolve().await;
                last = Instant::now();
            }
        }
    }

    /// Follows a name to its addresses, as they are now. While it has none the server is down; one that had some keeps
    /// them, since a resolver that is away takes no server with it.
    async fn resolve(&self) -> bool {
        let (server, name) = (&self.server, &self.server.spec.name);
        match self.current.load().names.look_up(&server.spec.url).await {
            Ok(found) => {
                let told = format!("{found:?}");
                let was_known = server.address().is_some();
                if server.set_addresses(found) && was_known {
                    log::info!("server `{name}` has other addresses: {told}");
                }
                if server.is_relief(NAME) {
                    log::info!("server `{name}`: its name resolves again: {told}");
                }
                true
            }
            Err(why) => {
                if server.address().is_none() {
                    self.current.load().note(server, Sign::NotReady, &why);
                    server.is_news(NAME, &why);
                } else if server.is_news(NAME, &why) {
                    log::warn!("server `{name}` stays at the addresses it had: {why}");
                }
                false
            }
        }
    }

    /// Asks for its health. Any answer but "not yet" (503, while a model loads) is one of a server that is up. A kind
    /// without a health endpoint is taken as up until a request says otherwise; then any answer brings it back.
    async fn is_well(&self) -> bool {
        let Some(address) = self.server.address() else { return false };
        let Some(path) = self.server.health_path() else { return true };
        let asked = self.get(&path).await;
        let refused = asked.as_ref().is_err_and(|error| *error.etype() == ErrorType::ConnectRefused);
        let (sign, why) = match asked {
            Ok((StatusCode::SERVICE_UNAVAILABLE, _)) => {
                (Sign::NotReady, "it says it is not ready".to_owned())
            }
            Ok(_) => (Sign::GoodProbe, String::new()),
            Err(error) => (Sign::BadProbe, error.to_string()),
        };
        if sign == Sign::BadProbe {
            self.server.address_failed(address);
        }
        // A name with several addresses may be several processes, of which this tells of one.
        if (sign == Sign::NotReady || refused) && self.server.addresses() == 1 {
            self.server.note_new_process();
        }
        self.current.load().note(&self.server, sign, &why);
        sign == Sign::GoodProbe
    }

    /// Asks which models it has.
    pub(super) async fn report(&self) -> Result<()> {
        let props = match self.server.kind {
            Kind::Llama => self.json("/props").await?,
            Kind::OpenAi => None,
        };
        let models = self.json(&self.server.path_of(MODELS)).await?;
        let mut report = Report::read(props.as_ref(), models.as_ref());
        if self.server.kind == Kind::Llama
            && report.router.is_none()
            && matches!(report.slots, None | Some(0))
        {
            report.slots = self.listed_slots().await.or(report.slots);
        }
        report.model_ids().for_each(|id| self.current.load().metrics.know_model(id));
        self.check_slots(props.as_ref(), report.slots);
        self.server.set_report(report, self.current.load().clock.now());
        self.ask_slots().await;
        // It may have more slots than before.
        self.server.dispatch();
        Ok(())
    }

    /// How many slots it lists, which it may where `/props` is switched off or kept from the gateway.
    async fn listed_slots(&self) -> Option<u32> {
        let slots = self.json("/slots").await.ok().flatten()?;
        slots.as_array()?.len().try_into().ok().filter(|slots| *slots > 0)
    }

    /// Says, once, that nobody knows how much a llama-server can bear.
    fn check_slots(&self, props: Option<&Value>, slots: Option<u32>) {
        let server = &self.server;
        let why = match (props, slots) {
            _ if server.kind != Kind::Llama || server.spec.slots != Slots::Auto => return,
            // A router's models have theirs.
            (Some(props), _) if props["role"] == "router" => return,
            (_, Some(1..)) => {
                server.is_relief(SLOTS);
                return;
            }
            (_, Some(0)) => "`/props` says 0",
            (Some(_), None) => "`/props` does not say",
            (None, _) => "it serves no `/props` that is JSON",
        };
        if server.is_news(SLOTS, why) {
            let name = &server.spec.name;
            log::warn!(
                "server `{name}` has an unknown number of slots ({why}) and gets any number of requests at \
                        once; write its `slots: N`"
            );
        }
    }

    /// A document of the server's; `None` where it serves none. An error, for now, says nothing of either.
    pub(super) async fn json(&self, path: &str) -> Result<Option<Value>> {
        let (status, body) = self.get(path).await?;
        match status {
            StatusCode::OK => Ok(serde_json::from_slice(&body).ok()),
            status if status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED => Ok(None),
            status => Error::e_explain(ErrorType::HTTPStatus(status.as_u16()), path.to_owned()),
        }
    }

    /// One GET, within the check's timeout.
    async fn get(&self, path: &str) -> Result<(StatusCode, Bytes)> {
        let within = self.server.check().timeout;
        let gateway = self.current.load();
        gateway.side.ask(&gateway.trust, &self.server, path, None, within, Connection::Fresh).await
    }
}
