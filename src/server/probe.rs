//! Looks at every server now and then: where is it, is it up, and which model does it have.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use pingora::{Error, ErrorType, Result};
use serde_json::Value;
use tokio::sync::mpsc::{Sender, channel};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::proxy::Gateway;
use crate::route::{Kind, MODELS, Report, Server, Sign, Slots};

/// The listeners wait this long, at most, for the first look at every server.
const FIRST_LOOK_TIME_MAX: Duration = Duration::from_secs(1);

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

pub(super) struct Prober(pub(super) Arc<Gateway>);

#[async_trait]
impl BackgroundService for Prober {
    async fn start_with_ready_notifier(&self, mut shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        let (looked, mut first_looks) = channel::<()>(1);
        for server in &self.0.fleet.servers {
            let probe = Probe { gateway: Arc::clone(&self.0), server: Arc::clone(server) };
            tokio::spawn(probe.forever(looked.clone()));
        }
        drop(looked);
        // Ends when every probe has dropped its end, after its first look.
        let _ = timeout(FIRST_LOOK_TIME_MAX, first_looks.recv()).await;
        ready.notify_ready();
        let _ = shutdown.changed().await;
    }
}

/// The one that looks at a server, in how many upstreams it may stand, and says what a router loads: so no look is
/// older than what was done to it.
#[derive(Clone)]
pub(super) struct Probe {
    pub(super) gateway: Arc<Gateway>,
    pub(super) server: Arc<Server>,
}

impl Probe {
    async fn forever(self, looked: Sender<()>) {
        let mut looked = Some(looked);
        let mut asked: Option<Instant> = None;
        let resolved = self.resolve().await;
        if self.server.spec.url.host.parse::<IpAddr>().is_err() {
            tokio::spawn(self.clone().follow_name(resolved));
        }
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
            }
        }
    }

    async fn follow_name(self, mut resolved: bool) {
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
        match self.gateway.names.look_up(&server.spec.url).await {
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
                    self.gateway.note(server, Sign::NotReady, &why);
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
        self.gateway.note(&self.server, sign, &why);
        sign == Sign::GoodProbe
    }

    /// Asks which models it has.
    pub(super) async fn report(&self) -> Result<()> {
        let props = match self.server.kind {
            Kind::Llama => self.json("/props").await?,
            Kind::OpenAi => None,
        };
        let models = self.json(&self.server.path_of(MODELS)).await?;
        let report = Report::read(props.as_ref(), models.as_ref());
        report.model_ids().for_each(|id| self.gateway.metrics.know_model(id));
        self.check_slots(props.as_ref(), report.slots);
        self.server.set_report(report, self.gateway.clock.now());
        self.ask_slots().await;
        // It may have more slots than before.
        self.server.dispatch();
        Ok(())
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
        self.gateway.side.ask(&self.gateway.trust, &self.server, path, None, within).await
    }
}
