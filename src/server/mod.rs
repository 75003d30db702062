//! The process: listeners, services, signals, and the way out.

mod drain;
mod listen;
mod probe;
mod reload;
mod swap;
mod usage;

use std::sync::Arc;

use log::LevelFilter;
use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;
use pingora::services::listening::Service;

use crate::admin::{Admin, MetricsPage};
use crate::config::{Loaded, Settings};
use crate::proxy::{Gateway, Proxy, trust};
use crate::route::{ADDRESSES_MAX, UpstreamSpec};

use self::drain::{Drain, Signals};
use self::probe::Prober;
use self::reload::KeysReload;
use self::usage::Bookkeeper;

/// How the process was started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Launch {
    pub daemon: bool,
    /// Takes the listening sockets over from a running process.
    pub upgrade: bool,
}

/// Runs a gateway until it is told to stop. Returns only where it could not start, with the reason.
pub fn run(loaded: Loaded, launch: Launch) -> Result<(), String> {
    let Loaded { settings, warnings } = loaded;
    start_log(settings.log.level);
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

    let gateway = Arc::new(Gateway::new(settings, conf.ca_file.clone())?);
    let keys_reload = KeysReload::new(&gateway).map_err(|error| format!("no working folder: {error}"))?;
    let mut server = Server::new_with_opt_and_conf(
        Some(Opt { upgrade: launch.upgrade, daemon: launch.daemon, ..Opt::default() }),
        conf,
    );
    server.bootstrap();

    let prober = server.add_service(background_service("prober", Prober(Arc::clone(&gateway))));
    server.add_service(background_service("drain", Drain(Arc::clone(&gateway))));
    server.add_service(background_service("bookkeeper", Bookkeeper(Arc::clone(&gateway))));

    if let Some(reload) = keys_reload {
        server.add_service(background_service("keys", reload));
    }

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
    drain::leave_nothing_behind(&gateway);
    Ok(())
}

/// The log of the process itself goes to standard error. Pingora's own share is held at what cannot hold a key:
/// beyond `info` it prints whole requests, their headers included.
fn start_log(level: LevelFilter) {
    let pingora = if level >= LevelFilter::Debug { LevelFilter::Info } else { level.min(LevelFilter::Warn) };
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level).format_target(false);
    for module in ["pingora", "pingora_core", "pingora_proxy", "pingora_pool", "pingora_runtime"] {
        builder.filter_module(module, pingora);
    }
    // A second start in one process, as in a test, keeps the first.
    let _ = builder.try_init();
}

fn pingora_conf(settings: &Settings, launch: Launch) -> Result<ServerConf, String> {
    let server = &settings.server;
    let mut conf =
        ServerConf::from_yaml(&server.pingora).map_err(|error| format!("`server` of the file: {error}"))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    conf.threads = if server.threads == 0 { cores } else { server.threads };
    conf.grace_period_seconds = Some(server.grace_period.as_secs());
    conf.ca_file = trust::roots(&settings.upstreams, conf.ca_file.take())?;
    // Every try that the file allows, at every address, the refuser's, and some to spare.
    let tries = |upstream: &UpstreamSpec| (upstream.retries as usize + 4) * ADDRESSES_MAX;
    let tries = settings.upstreams.iter().map(tries).max();
    // A request may come to any model that others fall back to.
    let falls_back = settings.models.iter().any(|model| !model.rule.fallback.is_empty());
    let models = if falls_back { settings.models.len() } else { 1 };
    conf.max_retries = conf.max_retries.max(tries.unwrap_or_default().saturating_mul(models));
    conf.daemon |= launch.daemon;
    Ok(conf)
}
