//! How a server is connected to: in plain text or by TLS, and whom its certificate must come from.
//!
//! Pingora verifies by the roots that its connectors were made with, or by a list that a peer brings along: that is how
//! each server may have a bundle of its own. The name that is verified, and asked for (SNI), is the URL's host.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use pingora::protocols::tls::CaType;
use pingora::tls::{RootCertStore, load_ca_file_into_store, load_platform_certs_incl_env_into_store};
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{WrappedX509, parse_x509};
use pingora::{Error, ErrorType};

use crate::route::{Server, ServerSpec, UpstreamSpec};

/// The roots of a gateway that needs none.
const NOBODY: &str = "/dev/null";

/// The bundles that the file names, as Pingora wants them.
pub struct Trust(HashMap<PathBuf, Bundle>);

struct Bundle {
    certificates: Arc<CaType>,
    /// Connections that one bundle has vouched for are not used where another must.
    group: u64,
}

impl Trust {
    pub fn new(upstreams: &[UpstreamSpec]) -> Self {
        let mut bundles = HashMap::new();
        for bundle in servers(upstreams).filter_map(|server| server.ca.as_ref()) {
            let group = bundles.len() as u64 + 1;
            bundles.entry(bundle.file.clone()).or_insert_with(|| {
                let wrap = |raw: &Vec<u8>| WrappedX509::new(raw.clone(), parse_x509);
                Bundle { certificates: bundle.certificates.iter().map(wrap).collect(), group }
            });
        }
        Self(bundles)
    }

    /// The peer that a server is at one of its addresses.
    pub fn peer(&self, server: &Server, address: SocketAddr) -> HttpPeer {
        let spec = &server.spec;
        if !spec.url.tls {
            return HttpPeer::new(address, false, String::new());
        }
        let mut peer = HttpPeer::new(address, true, spec.url.host.clone());
        if let Some(bundle) = spec.ca.as_ref().and_then(|ca| self.0.get(&ca.file)) {
            peer.options.ca = Some(Arc::clone(&bundle.certificates));
            peer.group_key = bundle.group;
        }
        peer
    }
}

fn servers(upstreams: &[UpstreamSpec]) -> impl Iterator<Item = &ServerSpec> {
    upstreams.iter().flat_map(|upstream| &upstream.servers)
}

/// The file of roots that Pingora's connectors are made with (`None`: the system's), where `named` is the file's own.
/// They are read here first, since Pingora panics over roots that it cannot read; where no server needs any, none are
/// read at all.
pub(crate) fn roots(upstreams: &[UpstreamSpec], named: Option<String>) -> Result<Option<String>, String> {
    let Some(server) = servers(upstreams).find(|server| server.url.tls && server.ca.is_none()) else {
        return Ok(Some(NOBODY.to_owned()));
    };
    let mut store = RootCertStore::empty();
    let read = match &named {
        Some(file) => load_ca_file_into_store(file, &mut store),
        None => load_platform_certs_incl_env_into_store(&mut store),
    };
    let whose = named.as_deref().unwrap_or("the system");
    let failed = |why: &str| {
        format!(
            "server `{}` is verified by the roots of {whose}, and {why}; name a bundle as its `ca`",
            server.name
        )
    };
    match read {
        Err(error) => Err(failed(&format!("they cannot be read ({error})"))),
        Ok(()) if store.is_empty() => Err(failed("there are none")),
        Ok(()) => Ok(named),
    }
}

/// Whether a connection came about, but no TLS on it: the certificate is not trusted, or nobody speaks TLS there.
pub(super) fn is_distrust(error: &Error) -> bool {
    matches!(error.etype(), ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert)
}
