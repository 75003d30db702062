//! The process: listeners, services, signals, and the way out.

mod announce;
mod certificates;
mod chores;
mod daemon;
mod door;
mod drain;
mod front;
mod gather;
mod handover;
mod head;
mod journal;
mod keys;
mod listen;
mod pid;
mod probe;
mod reload;
mod sharing;
mod supervisor;
mod swap;
mod tick;
mod tls;
mod usage;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;
use pingora::services::listening::Service;
use tokio::sync::mpsc::channel;

use crate::admin::{Admin, MetricsPage};
use crate::config::{Loaded, Settings};
use crate::proxy::{Current, Gateway, Phases, Proxy};

use self::chores::Chores;
use self::door::Doors;
use self::drain::{Drain, Impatience, Signals};
use self::front::{Connections, Front};
use self::handover::{Handover, Meeting, Succession};
use self::pid::PidFile;
use self::probe::Prober;
use self::reload::Reload;
use self::sharing::Sharing;
use self::tick::Ticker;
use self::tls::Listeners;
use self::usage::Bookkeeper;

pub use self::handover::orphan::start_orphan;
pub use self::handover::request::{Upgraded, upgrade};
pub use self::pid::running;
pub use self::reload::Origin;

/// How the process was started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Launch {
    pub daemon: bool,
    /// Takes over from a running process.
    pub upgrade: bool,
    /// It was started by the process that it succeeds, and is in the background already if that is.
    pub in_place: bool,
}

/// Runs a gateway until it is told to stop. Returns only where it could not start, with the reason. `origin`: the file
/// that is read again when it changes.
pub fn run(loaded: Loaded, origin: Option<Origin>, launch: Launch) -> Result<(), String> {
    let Loaded { settings, warnings } = loaded;
    journal::start(settings.log.level);
    for warning in &warnings {
        log::warn!("{warning}");
    }
    let mut conf = pingora_conf(&settings, launch)?;
    let folder = std::env::current_dir().map_err(|error| format!("no working folder: {error}"))?;
    let socket = absolute(&settings.server.upgrade_sock)?;
    let pid_file = settings.server.pid_file.as_deref().map(absolute).transpose()?;
    let (meeting, addresses, pid_file) = if launch.upgrade {
        // The sockets that are handed over are bound already.
        let pid_file = pid_file.as_deref().map(PidFile::of);
        (Some(Meeting::at(&socket)?), listen::as_written(&settings), pid_file)
    } else {
        let pid_file = pid_file.as_deref().map(PidFile::claim).transpose()?;
        (None, listen::check(&settings)?, pid_file)
    };
    let is_daemon = conf.daemon || (launch.in_place && settings.server.pingora.contains("\ndaemon: true\n"));
    let error_log =
        conf.error_log.as_deref().filter(|_| is_daemon).map(Path::new).map(absolute).transpose()?;
    let scratch = pid::scratch_of_a_daemon(&mut conf, pid_file.as_ref().filter(|_| !launch.upgrade));
    daemon::check(&conf)?;
    if settings.keys.is_none() {
        log::warn!(
            "the gateway is open: no key is asked for (name `auth.keys` in the file, or set GATEWAY_KEY)"
        );
    }

    // A daemon changes its folder, and reads them there where no server needs them yet.
    if let Some(file) = &mut conf.ca_file {
        *file = absolute(Path::new(file))?.to_string_lossy().into_owned();
    }
    let gateway = Arc::new(Current::new(Gateway::new(settings, &conf)?));
    let listeners = Arc::new(Listeners::new(&gateway.load().settings)?);
    listeners.take(&gateway.load());
    let daemon_waits = conf.daemon && conf.daemon_wait_for_ready;
    let mut server = Server::new_with_opt_and_conf(Some(Opt::default()), conf);

    let (rounds, later) = channel(1);
    let prober = Prober { current: Arc::clone(&gateway), rounds: Mutex::new(Some(later)) };
    let prober = server.add_service(background_service("prober", prober));
    let handover = Arc::new(Handover::new(Arc::clone(&gateway), socket, folder.clone()));
    let connections = Connections::default();
    let impatience = Impatience::new();
    let drain = Drain {
        current: Arc::clone(&gateway),
        handover: Arc::clone(&handover),
        connections: connections.clone(),
        pid_file: pid_file.clone(),
        impatience: impatience.clone(),
        error_log,
    };
    let (bookkeeper, ticker) = (Bookkeeper(Arc::clone(&gateway)), Ticker(Arc::clone(&gateway)));
    let chores = Chores {
        first: Box::new(Sharing(Arc::clone(&gateway))),
        others: vec![Arc::new(drain), Arc::new(bookkeeper), Arc::new(ticker)],
    };
    let chores = server.add_service(background_service("chores", chores));
    let reload =
        Reload { current: Arc::clone(&gateway), rounds, origin, folder, listeners: Arc::clone(&listeners) };
    server.add_service(background_service("reload", reload));
    let succession = server.add_service(Succession {
        current: Arc::clone(&gateway),
        handover: Arc::clone(&handover),
        addresses: addresses.clone(),
        meeting,
        pid_file: pid_file.clone(),
        scratch,
    });
    // The first look at the servers comes first, so that the first request knows their models.
    succession.add_dependency(&prober);
    succession.add_dependency(&chores);
    if daemon_waits {
        // It tells the process that was started that this one serves.
        server.bootstrap_as_a_service().add_dependency(&succession);
    } else {
        server.bootstrap();
    }

    let doors = Doors { listeners, current: Arc::clone(&gateway) };
    let (server_options, h2_options) = doors.http2();
    let phases = Phases { proxy: Proxy(Arc::clone(&gateway)), server_options, h2_options };
    let front = Front { app: Arc::new(doors.before(phases)), connections };
    let mut callers = Service::new("callers".to_owned(), front);
    for address in &addresses.callers {
        doors.open(&mut callers, *address, "serving on ", "");
    }
    server.add_service(callers).add_dependency(&succession);

    if let Some(address) = addresses.admin {
        let door = doors.before(Admin::new(Arc::clone(&gateway)));
        let mut admin = Service::new("admin".to_owned(), door);
        admin.threads = Some(1);
        doors.open(&mut admin, address, "for operators: ", "/dashboard");
        server.add_service(admin).add_dependency(&succession);
    }
    if let Some(address) = addresses.metrics {
        let door = doors.before(MetricsPage(Arc::clone(&gateway)));
        let mut page = Service::new("metrics".to_owned(), door);
        page.threads = Some(1);
        doors.open(&mut page, address, "for Prometheus: ", "/metrics");
        server.add_service(page).add_dependency(&succession);
    }
    let signals = Signals { current: Arc::clone(&gateway), handover, pid_file: pid_file.clone(), impatience };
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    drain::leave_nothing_behind(&gateway.load(), pid_file.as_ref());
    Ok(())
}

/// A path of Pingora's own keys, from the root on: a daemon changes its folder.
fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("`server` of the file: {}: {error}", path.display()))
}

fn pingora_conf(settings: &Settings, launch: Launch) -> Result<ServerConf, String> {
    let server = &settings.server;
    let mut conf =
        ServerConf::from_yaml(&server.pingora).map_err(|error| format!("`server` of the file: {error}"))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    conf.threads = if server.threads == 0 { cores } else { server.threads };
    // A thread that is alone has nobody to take work from, and each request costs it a fifth less.
    if conf.threads == 1 && !server.pingora.contains("\nwork_stealing: ") {
        conf.work_stealing = false;
    }
    conf.grace_period_seconds = Some(server.grace_period.as_secs());
    conf.daemon = (conf.daemon || launch.daemon) && !launch.in_place;
    Ok(conf)
}
