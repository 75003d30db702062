//! The files of listeners' certificates, read again when one of them changes: taken whole or not at all.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use crate::config::{self, Settings, TlsFiles};
use crate::proxy::Gateway;

use super::reload::log_faults;
use super::tls::Listeners;
use super::watch::Watch;

/// The files of one listener.
pub(super) struct CertificateFiles {
    name: String,
    address: SocketAddr,
    files: TlsFiles,
    watches: Vec<Watch>,
}

impl CertificateFiles {
    /// `folder`: the process's own at start, since a daemon changes it.
    pub(super) fn of(settings: &Settings, folder: &Path) -> Vec<Self> {
        let with_tls = settings.listeners().filter_map(|(name, listener)| {
            let files = listener.tls.as_ref()?.files.from(folder);
            let watches = files.paths().map(|file| Watch::new(file, config::read_pem_text, None)).collect();
            Some(Self { name, address: listener.address, files, watches })
        });
        with_tls.collect()
    }

    /// Takes the files if one of them has changed. A certificate comes in a file of its own, so one of two may be
    /// there before the other: then the two do not fit, and the second change is taken.
    pub(super) fn look(&mut self, listeners: &Listeners, gateway: &Gateway) {
        let changed = self.watches.iter_mut().filter_map(Watch::look).count();
        if changed == 0 {
            return;
        }
        let Self { name, files, .. } = self;
        let cert = files.cert.display();
        match files.read() {
            Ok(identity) => {
                let identity = Arc::new(identity);
                match listeners.show(self.address, &identity) {
                    Ok(true) => {
                        log::info!("{cert} is taken for `{name}`: good until {}", identity.not_after);
                        gateway.metrics.certificate_ends(name, Some(identity.not_after));
                        gateway.metrics.reloaded(true);
                    }
                    Ok(false) => {}
                    Err(why) => log::error!("{cert} is not taken for `{name}`: {why}"),
                }
            }
            Err(faults) => {
                let refused = format!("{cert} is not taken for `{name}`");
                log_faults(&faults, &refused, "its listener goes on with the certificate that it has");
                gateway.metrics.reloaded(false);
            }
        }
    }
}
