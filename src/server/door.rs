//! Where a connection comes in: it shakes hands, and says what it wants, in time.
//!
//! Pingora gives a handshake 60 s, writes an error for each that fails, and bounds no head on the whole. So its
//! listeners are plain, and what follows is done here, up to the request: the handshake, the choice of HTTP/1 or
//! HTTP/2, the time that each of them has.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ServerApp};
use pingora::listeners::{L4BufferSettings, ListenerConfig, TcpSocketOptions};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::protocols::l4::stream::Stream as TcpStream;
use pingora::protocols::{ALPN, Stream, TcpKeepalive};
use pingora::server::ShutdownWatch;
use pingora::services::listening::Service;
use tokio::time::timeout;

use crate::observe::Unshaken;
use crate::proxy::{Current, respond};

use super::announce;
use super::head::Watched;
use super::tls::{Listeners, Shown};

/// What an HTTP/2 caller may send of a body before it is read, of one and of all on its connection: at Pingora's 64 KiB
/// an upload from afar would crawl.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// Under TLS, whose records are read piece by piece. Pingora's own would be 64 KiB for each connection.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// What the doors of all services share.
pub(super) struct Doors {
    pub(super) listeners: Arc<Listeners>,
    pub(super) current: Arc<Current>,
}

impl Doors {
    /// A door before an application.
    pub(super) fn before<A>(&self, app: A) -> Door<A> {
        Door {
            app: Arc::new(app),
            listeners: Arc::clone(&self.listeners),
            current: Arc::clone(&self.current),
        }
    }

    /// Opens a listener of a service, and says so: whom it is for, and at which path.
    pub(super) fn open<A>(&self, service: &mut Service<A>, address: SocketAddr, whom: &str, path: &str) {
        let is_tls = self.listeners.shown_at(address).is_some();
        // `Watched` gathers what is written and, in plain text, reads ahead, without buffers that stay.
        let read = if is_tls { READ_BUFFER_BYTES } else { 0 };
        let listener = ListenerConfig::tcp(address.to_string()).tcp_socket_options(socket_options());
        service.add_listener(listener.l4_buffer(L4BufferSettings::new(read, 0)));
        let scheme = if is_tls { "https" } else { "http" };
        log::info!("{whom}{scheme}://{address}{path}");
    }

    /// How HTTP/2 is spoken; streams at once and the size of heads are bounded by Pingora.
    pub(super) fn http2(&self) -> (Option<HttpServerOptions>, Option<H2Options>) {
        let mut server = HttpServerOptions::default();
        server.h2_idle_timeout = Some(self.current.load().settings.connections.idle);
        let mut h2 = default_h2_options();
        h2.initial_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        (Some(server), Some(h2))
    }
}

/// A service's application, and what comes before it.
pub(super) struct Door<A> {
    app: Arc<A>,
    listeners: Arc<Listeners>,
    current: Arc<Current>,
}

/// A peer that has vanished, as a laptop that was closed, is noticed within two minutes though nothing is sent.
fn socket_options() -> TcpSocketOptions {
    let seconds = std::time::Duration::from_secs;
    let mut options = TcpSocketOptions::default();
    options.tcp_keepalive = Some(TcpKeepalive {
        idle: seconds(60),
        interval: seconds(15),
        count: 4,
        #[cfg(target_os = "linux")]
        user_timeout: seconds(0),
    });
    options
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> ServerApp for Door<A> {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        // What few connections need is made in a box, and gone afterwards: this stays as long as the connection.
        let stream = match self.announces(&stream) {
            true => Box::pin(self.announced(stream)).await?,
            false => stream,
        };
        let stream = match self.shown(&stream) {
            Some(shown) => Box::pin(self.shaken(stream, &shown)).await?,
            None => stream,
        };
        match stream.selected_alpn_proto() {
            Some(ALPN::H2) => Box::pin(self.http2(stream, shutdown)).await,
            _ => self.http1(stream, shutdown).await,
        }
        None
    }

    async fn cleanup(&self) {
        self.app.http_cleanup().await;
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> Door<A> {
    /// Whether a connection comes from a balancer that is trusted.
    fn announces(&self, stream: &Stream) -> bool {
        let gateway = self.current.load();
        let trusted = &gateway.settings.trusted_proxies;
        whence(stream).is_some_and(|address| trusted.iter().any(|network| network.contains(&address)))
    }

    /// The connection of such a balancer, from whom that says that it comes.
    async fn announced(&self, stream: Stream) -> Option<Stream> {
        let gateway = self.current.load();
        let (bounds, address) = (gateway.settings.connections, whence(&stream));
        // Who says nothing has as long as without a balancer before it.
        let shakes = self.shown(&stream).is_some();
        let first = if shakes { bounds.handshake } else { bounds.idle };
        let mut stream = plain(stream);
        match announce::heard(&mut stream, first, bounds.handshake).await {
            Ok(()) => Some(stream),
            Err(why) => {
                log::debug!("no PROXY header from {address:?}: {why}");
                if shakes && why.kind() == ErrorKind::TimedOut {
                    gateway.metrics.unshaken(Unshaken::Late);
                }
                None
            }
        }
    }

    /// What the listener of a connection shows, where it has TLS.
    fn shown(&self, stream: &Stream) -> Option<Arc<Shown>> {
        let ours = stream.get_socket_digest().and_then(|digest| digest.local_addr()?.as_inet().copied());
        self.listeners.shown_at(ours?)
    }

    /// The connection, past its handshake.
    async fn shaken(&self, stream: Stream, shown: &Shown) -> Option<Stream> {
        let gateway = self.current.load();
        let handshake = shake(shown, plain(stream));
        let why = match timeout(gateway.settings.connections.handshake, handshake).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(why)) => {
                log::debug!("no TLS: {why}");
                Unshaken::Failed
            }
            Err(_) => Unshaken::Late,
        };
        gateway.metrics.unshaken(why);
        None
    }

    async fn http2(&self, stream: Stream, shutdown: &ShutdownWatch) {
        let time_max = self.current.load().settings.connections.handshake;
        let (stream, given_up) = Watched::for_preface(stream, time_max);
        tokio::select! {
            biased;
            _ = self.app.process_new(stream, shutdown) => {}
            () = given_up.notified() => {}
        }
    }

    /// As Pingora does it, with a bound for each head.
    async fn http1(&self, stream: Stream, shutdown: &ShutdownWatch) {
        let bounds = self.current.load().settings.connections;
        let (watched, given_up) = Watched::for_heads(stream, bounds.head, respond::late_head);
        let mut session = ServerSession::new_http1(watched);
        // A process that is about to leave keeps no connection.
        session.set_keepalive(Some(bounds.idle_seconds()).filter(|_| !*shutdown.borrow()));
        loop {
            let answered = tokio::select! {
                biased;
                answered = self.app.process_new_http(session, shutdown) => answered,
                () = given_up.notified() => None,
            };
            let Some((stream, persistent)) = answered.map(|reused| reused.consume()) else { return };
            session = ServerSession::new_http1(Watched::again(stream));
            if let Some(persistent) = persistent {
                persistent.apply_to_session(&mut session);
            }
        }
    }
}

async fn shake(shown: &Shown, stream: Box<TcpStream>) -> pingora::Result<Stream> {
    Ok(Box::new(shown.acceptor.tls_handshake(*stream).await?))
}

/// Whom a connection comes from.
fn whence(stream: &Stream) -> Option<IpAddr> {
    let peer = *stream.get_socket_digest()?.peer_addr()?.as_inet()?;
    Some(peer.ip().to_canonical())
}

fn plain(stream: Stream) -> Box<TcpStream> {
    stream.into_any().downcast().expect("Pingora's listeners are given no TLS, so their streams are TCP's")
}
