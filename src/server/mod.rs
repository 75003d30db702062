//! The process: listeners, services, signals, and the way out.

mod drain;
mod journal;
mod keys;
mod listen;
mod probe;
mod reload;
mod swap;
mod usage;
mod watch;

use std::sync::{Arc, Mutex};

use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;
use pingora::services::listening::Service;
use tokio::sync::mpsc::channel;

use crate::admin::{Admin, MetricsPage};
use crate::config::{Loaded, Settings};
use crate::proxy::{Current, Gateway, Proxy, trust};

use self::drain::{Drain, Signals};
use self::probe::Prober;
use self::reload::Reload;
use self::usage::Bookkeeper;

pub use self::reload::Origin;

/// Tries that Pingora makes for one request at most: those of the gateway have bounds of their own (`route/retry.rs`),
/// by the file in force, and must not meet this one.
const TRIES_MAX: usize = 1 << 20;

/// How the process was started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Launch {
    pub daemon: bool,
    /// Takes the listening sockets over from a running process.
    pub upgrade: bool,
}

/// Runs a gateway until it is told to stop. Returns only where it could not start, with the reason. `origin`: the file
/// that is read again when it changes.
pub fn run(loaded: Loaded, origin: Option<Origin>, launch: Launch) -> Result<(), String> {
    let Loaded { settings, warnings } = loaded;
    journal::start(settings.log.level);
    for warning in &warnings {
        log::warn!("{warning}");
    }
    let conf = pingora_conf(&settings, launch)?;
    // The sockets that are handed over are bound already.
    let addresses = if launch.upgrade { listen::as_written(&settings) } else { listen::check(&settings)? };
    if settings.keys.is_none() {
        log::warn!(
            "the gateway is open: no key is asked for (name `auth.keys` in the file, or set GATEWAY_KEY)"
        );
    }

    let gateway = Arc::new(Current::new(Gateway::new(settings, conf.ca_file.clone())?));
    let folder = std::env::current_dir().map_err(|error| format!("no working folder: {error}"))?;
    let mut server = Server::new_with_opt_and_conf(
        Some(Opt { upgrade: launch.upgrade, daemon: launch.daemon, ..Opt::default() }),
        conf,
    );
    server.bootstrap();

    let (rounds, later) = channel(1);
    let prober = Prober { current: Arc::clone(&gateway), rounds: Mutex::new(Some(later)) };
    let prober = server.add_service(background_service("prober", prober));
    server.add_service(background_service("drain", Drain(Arc::clone(&gateway))));
    server.add_service(background_service("bookkeeper", Bookkeeper(Arc::clone(&gateway))));
    let reload = Reload { current: Arc::clone(&gateway), rounds, origin, folder };
    server.add_service(background_service("reload", reload));

    let mut callers = pingora_proxy::http_proxy_service(&server.configuration, Proxy(Arc::clone(&gateway)));
    for address in &addresses.callers {
        callers.add_tcp(&address.to_string());
        log::info!("serving on http://{address}");
    }
    // The first look at the servers comes first, so that the first request knows their models.
    server.add_service(callers).add_dependency(&prober);

    if let Some(address) = addresses.admin {
        let mut admin = Service::new("admin".to_owned(), Admin(Arc::clone(&gateway)));
        admin.threads = Some(1);
        admin.add_tcp(&address.to_string());
        server.add_service(admin);
        log::info!("for operators: http://{address}");
    }
    if let Some(address) = addresses.metrics {
        let mut page = Service::new("metrics".to_owned(), MetricsPage(Arc::clone(&gateway)));
        page.threads = Some(1);
        page.add_tcp(&address.to_string());
        server.add_service(page);
        log::info!("for Prometheus: http://{address}/metrics");
    }
    server.run(RunArgs { shutdown_signal: Box::new(Signals(Arc::clone(&gateway))) });
    drain::leave_nothing_behind(&gateway.load());
    Ok(())
}

fn pingora_conf(settings: &Settings, launch: Launch) -> Result<ServerConf, String> {
    let server = &settings.server;
    let mut conf =
        ServerConf::from_yaml(&server.pingora).map_err(|error| format!("`server` of the file: {error}"))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    conf.threads = if server.threads == 0 { cores } else { server.threads };
    conf.grace_period_seconds = Some(server.grace_period.as_secs());
    conf.ca_file = trust::roots(&settings.upstreams, conf.ca_file.take())?;
    conf.max_retries = conf.max_retries.max(TRIES_MAX);
    conf.daemon |= launch.daemon;
    Ok(conf)
}
