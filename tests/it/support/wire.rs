//! A network of a play's own between the gateway and one address: it can be cut, so that nothing passes and nobody is
//! told, as a partition does, and joined again.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::address::Loopback;

pub(crate) struct Wire {
    claim: Loopback,
    port: u16,
    cut: Arc<watch::Sender<bool>>,
}

/// Carries to that address.
pub(crate) async fn to(there: SocketAddr) -> Wire {
    let (claim, port) = (Loopback::claim(), there.port());
    let listener = TcpListener::bind(claim.port(port)).await.expect("the address is ours");
    let cut = Arc::new(watch::Sender::new(false));
    let cuts = Arc::clone(&cut);
    tokio::spawn(async move {
        while let Ok((here, _)) = listener.accept().await {
            let Ok(there) = TcpStream::connect(there).await else { continue };
            let ((from, to), (back, forth)) = (here.into_split(), there.into_split());
            tokio::spawn(carry(from, forth, cuts.subscribe()));
            tokio::spawn(carry(back, to, cuts.subscribe()));
        }
    });
    Wire { claim, port, cut }
}

/// Until either side closes; holds what comes while the wire is cut.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) {
    let mut bytes = [0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        if cut.wait_for(|cut| !*cut).await.is_err() || to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

impl Wire {
    pub(crate) fn address(&self) -> SocketAddr {
        self.claim.port(self.port)
    }

    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub(crate) fn join(&self) {
        self.cut.send_replace(false);
    }
}
