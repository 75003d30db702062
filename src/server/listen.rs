//! The addresses to listen on, tried before anything else starts: Pingora panics on one that is taken.

use std::io;
use std::net::{SocketAddr, TcpListener};

use crate::config::Settings;

/// Where the process listens.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    pub(super) callers: Vec<SocketAddr>,
    pub(super) admin: Option<SocketAddr>,
    pub(super) metrics: Option<SocketAddr>,
}

impl Addresses {
    pub(super) fn all(&self) -> impl Iterator<Item = SocketAddr> {
        self.callers.iter().copied().chain(self.admin).chain(self.metrics)
    }
}

/// Every address as the file says, untried.
pub(super) fn as_written(settings: &Settings) -> Addresses {
    Addresses {
        callers: settings.listen.iter().map(|it| it.address).collect(),
        admin: Some(settings.admin.listen.address),
        metrics: settings.metrics.as_ref().map(|it| it.address),
    }
}

/// Tries every address. An admin address that nobody wrote down is given up if it is taken: a second gateway on one
/// machine should start.
pub(super) fn check(settings: &Settings) -> Result<Addresses, String> {
    let mut addresses = as_written(settings);
    for address in addresses.callers.iter().chain(&addresses.metrics) {
        check_one(*address)?;
    }
    if let Err(error) = attempt(settings.admin.listen.address) {
        let problem = taken(settings.admin.listen.address, &error);
        if settings.admin.named {
            return Err(problem);
        }
        log::warn!("no operator's listener: {problem}");
        addresses.admin = None;
    }
    Ok(addresses)
}

/// Tries one.
pub(super) fn check_one(address: SocketAddr) -> Result<(), String> {
    attempt(address).map_err(|error| taken(address, &error))
}

fn attempt(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

fn taken(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("cannot listen on {address}: another process does; stop it or choose another port")
        }
        _ => format!("cannot listen on {address}: {error}"),
    }
}
