//! `listen`, `admin` and `metrics`: where the gateway can be reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::section::{Field, Section};
use super::settings::{Admin, is_loopback};
use super::value;
use crate::route::Secret;

const CALLERS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9001);
const OPERATOR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9002);

/// Plain text where encryption was asked for would be unsafe, so this is a fault and not a warning.
const NO_TLS: &str = "tls is not built yet in this version; put a TLS proxy in front, or remove it";

/// The addresses that the file names so far, each with its path: two listeners cannot share one.
#[derive(Default)]
pub(super) struct Taken(Vec<(SocketAddr, String)>);

impl Taken {
    fn address(&mut self, field: &Field) -> Option<SocketAddr> {
        let address = field.value(value::address)?;
        match self.0.iter().find(|(taken, _)| *taken == address) {
            Some((_, by)) => field.fault(format!("{address} is the address of `{by}` already; name another")),
            None => self.0.push((address, field.path.clone())),
        }
        Some(address)
    }
}

/// The callers' listeners.
pub(super) fn callers(file: &mut Section, taken: &mut Taken) -> Vec<SocketAddr> {
    let Some(listen) = file.take("listen") else { return vec![CALLERS] };
    let items = listen
        .some_items("name at least one address, such as `- address: 127.0.0.1:9001`, or take `listen` out");
    let mut listener = |listener: &mut Section| {
        let address = listener.take("address");
        if address.is_none() {
            listener.missing("address", "name it as `host:port`");
        }
        refuse_tls(listener.take("tls"));
        taken.address(&address?)
    };
    items.iter().filter_map(|item| item.section(&mut listener).flatten()).collect()
}

/// The operator's listener. What it can do to the gateway, only this machine or a token may ask for.
pub(super) fn admin(file: &mut Section, taken: &mut Taken) -> Admin {
    let (listen, token) = file.section("admin", |admin| {
        let (listen, token) = (admin.take("listen"), admin.take("token"));
        let client_ca = admin.take("client_ca");
        refuse_tls(admin.take("tls"));
        let guarded = token.is_some() || client_ca.is_some();
        refuse_tls(client_ca);
        (listen.map(|field| (field, guarded)), token)
    });
    let token = token.and_then(|field| field.value(value::text)).map(Secret);
    let named = listen.is_some();
    let address = listen.and_then(|(field, guarded)| {
        let address = taken.address(&field)?;
        if !guarded && !is_loopback(address.ip()) {
            field.fault(format!(
                "{address} is reachable from other machines: set `admin.token`, or listen on 127.0.0.1"
            ));
        }
        Some(address)
    });
    Admin { listen: address.unwrap_or(OPERATOR), named, token }
}

/// The listener for `/metrics` alone.
pub(super) fn metrics(file: &mut Section, taken: &mut Taken) -> Option<SocketAddr> {
    let listen = file.section("metrics", |metrics| metrics.take("listen"));
    listen.and_then(|field| taken.address(&field))
}

fn refuse_tls(field: Option<Field>) {
    if let Some(field) = field {
        field.fault(NO_TLS);
    }
}
