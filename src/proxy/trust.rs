//! How a server is connected to: in plain text or by TLS, and whom its certificate must come from.
//!
//! Pingora verifies by the roots that its connectors were made with, or by a list that a peer brings along: that is how
//! each server may have a bundle of its own. The name that is verified, and asked for (SNI), is the URL's host.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::protocols::tls::CaType;
use pingora::tls::{RootCertStore, load_ca_file_into_store, load_platform_certs_incl_env_into_store};
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{WrappedX509, parse_x509};
use pingora::{Error, ErrorType};

use crate::route::{CaBundle, Server, ServerSpec, UpstreamSpec};

/// The file of roots of those who need none.
const NOBODY: &str = "/dev/null";

/// The bundles of all servers that are there, as Pingora wants them, by where each stands in memory: two files may be
/// in force for a while, and one bundle may be read again with other certificates in it.
#[derive(Default)]
pub struct Trust {
    bundles: ArcSwap<HashMap<usize, Bundle>>,
    groups: AtomicU64,
}

#[derive(Clone)]
struct Bundle {
    /// Holds the place in memory.
    of: Arc<CaBundle>,
    certificates: Arc<CaType>,
    /// Connections that one bundle has vouched for are not used where another must.
    group: u64,
}

fn place(bundle: &Arc<CaBundle>) -> usize {
    Arc::as_ptr(bundle).addr()
}

impl Trust {
    /// Takes in the bundles of these servers, and forgets those that no server has any more.
    pub fn learn<'a>(&self, servers: impl Iterator<Item = &'a Arc<Server>>) {
        let mut bundles = HashMap::clone(&self.bundles.load());
        // Here and in the table before.
        bundles.retain(|_, bundle| Arc::strong_count(&bundle.of) > 2);
        for bundle in servers.filter_map(|server| server.spec.ca.as_ref()) {
            bundles.entry(place(bundle)).or_insert_with(|| {
                let wrap = |raw: &Vec<u8>| WrappedX509::new(raw.clone(), parse_x509);
                Bundle {
                    of: Arc::clone(bundle),
                    certificates: bundle.certificates.iter().map(wrap).collect(),
                    group: self.groups.fetch_add(1, Ordering::Relaxed) + 1,
                }
            });
        }
        self.bundles.store(Arc::new(bundles));
    }

    /// The peer that a server is at one of its addresses.
    pub fn peer(&self, server: &Server, address: SocketAddr) -> HttpPeer {
        let spec = &server.spec;
        if !spec.url.tls {
            return HttpPeer::new(address, false, String::new());
        }
        let mut peer = HttpPeer::new(address, true, spec.url.host.clone());
        let bundles = self.bundles.load();
        if let Some(bundle) = spec.ca.as_ref().and_then(|ca| bundles.get(&place(ca))) {
            peer.options.ca = Some(Arc::clone(&bundle.certificates));
            peer.group_key = bundle.group;
        }
        peer
    }
}

fn servers(upstreams: &[UpstreamSpec]) -> impl Iterator<Item = &ServerSpec> {
    upstreams.iter().flat_map(|upstream| &upstream.servers)
}

/// The first server that is verified by the roots.
pub(super) fn needs_roots(upstreams: &[UpstreamSpec]) -> Option<&ServerSpec> {
    servers(upstreams).find(|server| server.url.tls && server.ca.is_none())
}

fn read_roots(named: Option<&str>) -> Result<(), String> {
    let mut store = RootCertStore::empty();
    let read = match named {
        Some(file) => load_ca_file_into_store(file, &mut store),
        None => load_platform_certs_incl_env_into_store(&mut store),
    };
    match read {
        Err(error) => Err(format!("they cannot be read ({error})")),
        Ok(()) if store.is_empty() => Err("there are none".to_owned()),
        Ok(()) => Ok(()),
    }
}

/// Pingora's way to servers, and why it knows no roots if it knows none: Pingora panics over those that it cannot read.
/// Servers that bring a bundle along are reached all the same.
pub(super) fn connector(mut options: ConnectorOptions) -> (TransportConnector, Option<String>) {
    let whose = options.ca_file.as_deref().unwrap_or("the system");
    let why =
        read_roots(options.ca_file.as_deref()).err().map(|why| format!("the roots of {whose}, and {why}"));
    if why.is_some() {
        options.ca_file = Some(NOBODY.to_owned());
    }
    (TransportConnector::new(Some(options)), why)
}

/// Whether a connection came about, but no TLS on it: the certificate is not trusted, or nobody speaks TLS there.
pub(super) fn is_distrust(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert)
}
