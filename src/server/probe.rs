//! Looks at every server now and then: is it up, and which model does it have.

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
use tokio::time::{Instant, sleep, timeout};

use crate::proxy::Gateway;
use crate::route::{Kind, Report, Server, Sign, Upstream};

/// The listeners wait this long, at most, for the first look at every server.
const FIRST_LOOK_TIME_MAX: Duration = Duration::from_secs(1);

/// How often a server that stays up is asked for its models again.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Where every kind lists its models.
const MODELS: &str = "/v1/models";

pub(super) struct Prober(pub(super) Arc<Gateway>);

#[async_trait]
impl BackgroundService for Prober {
    async fn start_with_ready_notifier(&self, mut shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        let (looked, mut first_looks) = channel::<()>(1);
        for (upstream, server) in self.0.fleet.servers() {
            let probe = Probe {
                gateway: Arc::clone(&self.0),
                upstream: Arc::clone(upstream),
                server: Arc::clone(server),
            };
            let looked = looked.clone();
            tokio::spawn(probe.forever(looked));
        }
        drop(looked);
        // Ends when every probe has dropped its end, after its first look.
        let _ = timeout(FIRST_LOOK_TIME_MAX, first_looks.recv()).await;
        ready.notify_ready();
        let _ = shutdown.changed().await;
    }
}

struct Probe {
    gateway: Arc<Gateway>,
    upstream: Arc<Upstream>,
    server: Arc<Server>,
}

impl Probe {
    async fn forever(self, looked: Sender<()>) {
        let mut looked = Some(looked);
        let mut reported: Option<Instant> = None;
        loop {
            self.resolve().await;
            let due = |at: Instant| at.elapsed() >= REPORT_EVERY;
            if self.is_well().await && (self.server.report().is_none() || reported.is_none_or(due)) {
                match self.report().await {
                    Ok(()) => reported = Some(Instant::now()),
                    // It is asked again next time; until then nothing is answered from what it said before.
                    Err(_) => self.server.forget_report(),
                }
            }
            drop(looked.take());
            sleep(self.server.check().every).await;
        }
    }

    /// Follows a name to its addresses, as they are now.
    async fn resolve(&self) {
        let url = &self.server.spec.url;
        let found =
            timeout(self.server.check().timeout, tokio::net::lookup_host((url.host.as_str(), url.port)))
                .await;
        if let Ok(Ok(found)) = found {
            self.server.set_addresses(found.collect());
        }
    }

    /// Asks for its health. Any answer but "not yet" (503, while a model loads) is one of a server that is up. A kind
    /// without a health endpoint is taken as up until a request says otherwise; then any answer brings it back.
    async fn is_well(&self) -> bool {
        let path = match self.upstream.spec.kind {
            Kind::OpenAi if self.server.is_up() => return true,
            Kind::OpenAi => MODELS,
            Kind::Llama => &self.server.check().path,
        };
        let (sign, why) = match self.get(path).await {
            Ok((StatusCode::SERVICE_UNAVAILABLE, _)) => {
                (Sign::NotReady, "it says it is not ready".to_owned())
            }
            Ok(_) => (Sign::GoodProbe, String::new()),
            Err(error) => (Sign::Fault, format!("{:?}", error.etype())),
        };
        if sign == Sign::Fault {
            self.server.next_address();
        }
        self.gateway.note(&self.upstream, &self.server, sign, &why);
        sign == Sign::GoodProbe
    }

    /// Asks which models it has.
    async fn report(&self) -> Result<()> {
        let props = match self.upstream.spec.kind {
            Kind::Llama => self.json("/props").await?,
            Kind::OpenAi => None,
        };
        let models = self.json(MODELS).await?;
        let report = Report::read(props.as_ref(), models.as_ref());
        report.model_ids().for_each(|id| self.gateway.metrics.know_model(id));
        self.server.set_report(report);
        // It may have more slots than before.
        self.upstream.dispatch();
        Ok(())
    }

    /// A document of the server's; `None` where it serves none. An error, for now, says nothing of either.
    async fn json(&self, path: &str) -> Result<Option<Value>> {
        let (status, body) = self.get(path).await?;
        match status {
            StatusCode::OK => Ok(serde_json::from_slice(&body).ok()),
            status if status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED => Ok(None),
            status => Error::e_explain(ErrorType::HTTPStatus(status.as_u16()), path.to_owned()),
        }
    }

    /// One GET, within the check's timeout.
    async fn get(&self, path: &str) -> Result<(StatusCode, Bytes)> {
        self.gateway.side.ask(&self.server, path, None, self.server.check().timeout).await
    }
}
