//! `listen`, `admin`, `metrics` and `connections`: where the gateway can be reached, and how long a caller may take
//! to begin.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::section::{Field, Section};
use super::settings::{Admin, Connections, Listener, is_loopback};
use super::{tls, value};
use crate::route::Secret;

const CALLERS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9001);
const OPERATOR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9002);

/// What the file says of listeners so far.
#[derive(Default)]
pub(super) struct Taken {
    /// Each with its path: two listeners cannot share one.
    addresses: Vec<(SocketAddr, String)>,
    /// Whether callers are asked for a certificate somewhere, be it by what cannot be read.
    pub(super) certificates_asked: bool,
}

impl Taken {
    fn address(&mut self, field: &Field) -> Option<SocketAddr> {
        let address = field.value(value::address)?;
        match self.addresses.iter().find(|(taken, _)| *taken == address) {
            Some((_, by)) => field.fault(format!("{address} is the address of `{by}` already; name another")),
            None => self.addresses.push((address, field.path.clone())),
        }
        Some(address)
    }
}

/// The callers' listeners.
pub(super) fn callers(file: &mut Section, taken: &mut Taken) -> Vec<Listener> {
    let Some(listen) = file.take("listen") else { return vec![Listener { address: CALLERS, tls: None }] };
    let items = listen
        .some_items("name at least one address, such as `- address: 127.0.0.1:9001`, or take `listen` out");
    let mut listener = |listener: &mut Section| {
        let address = listener.take("address");
        if address.is_none() {
            listener.missing("address", "name it as `host:port`");
        }
        let tls = listener.take("tls");
        taken.certificates_asked |= tls.as_ref().is_some_and(|tls| tls.names("client_ca"));
        let tls = tls.and_then(|field| tls::read(&field, None));
        Some(Listener { address: taken.address(&address?)?, tls })
    };
    let mut read = |item: &Field| {
        if item.is_scalar() {
            item.fault("expected a mapping: write `address:` before it, as `- address: 127.0.0.1:9001`");
            return None;
        }
        item.section(&mut listener).flatten()
    };
    items.iter().filter_map(&mut read).collect()
}

/// The operator's listener. What it can do to the gateway, only this machine, a token or a certificate may ask for.
pub(super) fn admin(file: &mut Section, taken: &mut Taken) -> Admin {
    let [listen, token, client_ca, tls] =
        file.section("admin", |admin| ["listen", "token", "client_ca", "tls"].map(|key| admin.take(key)));
    let named_within = tls.as_ref().is_some_and(|tls| tls.names("client_ca"));
    let guarded = token.is_some() || client_ca.is_some() || named_within;
    let token = token.and_then(|field| field.value(value::text)).map(Secret);
    if let Some(field) = client_ca.as_ref().filter(|_| tls.is_none() || named_within) {
        field.fault(match named_within {
            true => "`admin.tls.client_ca` says the same: keep one of them",
            false => "certificates are shown by TLS alone: name `admin.tls` too",
        });
    }
    let tls = tls.and_then(|field| tls::read(&field, client_ca.filter(|_| !named_within)));
    let named = listen.is_some();
    let address = listen.and_then(|field| {
        let address = taken.address(&field)?;
        if !guarded && !is_loopback(address.ip()) {
            field.fault(format!(
                "{address} is reachable from other machines: set `admin.token` or `admin.tls.client_ca`, or listen \
                 on 127.0.0.1"
            ));
        }
        Some(address)
    });
    let listener = Listener { address: address.unwrap_or(OPERATOR), tls };
    Admin { listen: listener, named, token }
}

/// The listener for `/metrics` alone.
pub(super) fn metrics(file: &mut Section, taken: &mut Taken) -> Option<Listener> {
    let (listen, tls) = file.section("metrics", |metrics| (metrics.take("listen"), metrics.take("tls")));
    let tls = tls.and_then(|field| {
        if listen.is_none() {
            field.fault("there is no listener to use it: name `metrics.listen` too, or take it out");
        }
        tls::read(&field, None)
    });
    let address = listen.and_then(|field| taken.address(&field))?;
    Some(Listener { address, tls })
}

/// What every listener grants a caller.
pub(super) fn connections(section: &mut Section) -> Connections {
    const HANDSHAKE: Duration = Duration::from_secs(10);
    const HEAD: Duration = Duration::from_secs(30);
    const IDLE: Duration = Duration::from_secs(60);
    Connections {
        handshake: section.value("handshake", value::period).unwrap_or(HANDSHAKE),
        head: section.value("head", value::period).unwrap_or(HEAD),
        idle: section.value("idle", value::period).unwrap_or(IDLE),
    }
}
