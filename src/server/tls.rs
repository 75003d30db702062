//! What each listener shows to callers, and asks of them, in the handshake of TLS.
//!
//! Pingora listens, in plain; the handshake is its own, made here with what is in force at that moment. So a
//! certificate, a key and whom callers' certificates must come from change without a restart, and connections that are
//! open go on with what they have.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::{Acceptor, TlsSettings};
use pingora::protocols::ALPN;
use pingora::protocols::tls::TlsRef;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::auth::ClientCertificate;
use crate::config::{Identity, Settings};
use crate::proxy::Gateway;

/// Every listener that is open.
pub(super) struct Listeners(Vec<Listening>);

struct Listening {
    address: SocketAddr,
    /// Callers may use HTTP/2 here.
    h2: bool,
    /// `None`: plain text.
    shown: ArcSwapOption<Shown>,
}

/// What a listener shows, ready for handshakes.
pub(super) struct Shown {
    identity: Arc<Identity>,
    pub(super) acceptor: Acceptor,
}

impl Listeners {
    pub(super) fn new(settings: &Settings) -> Result<Self, String> {
        let callers = settings.listen.iter().map(|it| (it, true));
        let others = [Some(&settings.admin.listen), settings.metrics.as_ref()].into_iter().flatten();
        let listening = callers.chain(others.map(|it| (it, false))).map(|(listener, h2)| {
            let shown = listener.tls.as_ref().map(|tls| Shown::new(Arc::clone(&tls.identity), h2));
            let shown = shown.transpose().map_err(|why| format!("{}: {why}", listener.address))?;
            let shown = ArcSwapOption::from_pointee(shown);
            Ok(Listening { address: listener.address, h2, shown })
        });
        listening.collect::<Result<_, _>>().map(Self)
    }

    /// What is shown on a connection to this address of ours; `None`: it is plain.
    pub(super) fn shown_at(&self, ours: SocketAddr) -> Option<Arc<Shown>> {
        let ours = SocketAddr::new(ours.ip().to_canonical(), ours.port());
        let exact = |it: &&Listening| it.address.ip().to_canonical() == ours.ip();
        let any = |it: &&Listening| it.address.ip().is_unspecified();
        let mut of_port = self.0.iter().filter(|it| it.address.port() == ours.port());
        let found = of_port.clone().find(exact).or_else(|| of_port.find(any));
        found.and_then(|it| it.shown.load_full())
    }

    /// Shows what the settings in force have from now on. Whether a listener has TLS at all does not change.
    pub(super) fn take(&self, gateway: &Gateway) {
        for (name, listener) in gateway.settings.listeners() {
            let Some(tls) = &listener.tls else {
                gateway.metrics.certificate_ends(&name, None);
                continue;
            };
            match self.show(listener.address, &tls.identity) {
                Ok(_) => gateway.metrics.certificate_ends(&name, Some(tls.identity.not_after)),
                Err(why) => log::error!("`{name}` goes on with the certificate that it has: {why}"),
            }
            if tls.identity.not_after < gateway.clock.wall() {
                let cert = tls.files.cert.display();
                log::warn!(
                    "the certificate {cert} of `{name}` ended at {}: renew it",
                    tls.identity.not_after
                );
            }
        }
    }

    /// Shows this at an address from now on. False: it does already, or nothing is shown there.
    pub(super) fn show(&self, address: SocketAddr, identity: &Arc<Identity>) -> Result<bool, String> {
        let Some(listening) = self.0.iter().find(|it| it.address == address) else { return Ok(false) };
        let other = listening.shown.load().as_ref().is_some_and(|now| !now.identity.is_same(identity));
        if other {
            listening.shown.store(Some(Arc::new(Shown::new(Arc::clone(identity), listening.h2)?)));
        }
        Ok(other)
    }
}

impl Shown {
    fn new(identity: Arc<Identity>, h2: bool) -> Result<Self, String> {
        let refused = |why: &dyn std::fmt::Display| format!("TLS cannot be set up: {why}");
        let mut settings = TlsSettings::with_callbacks(Box::new(Names)).map_err(|why| refused(&why))?;
        settings.set_cert_resolver(Arc::new(One(Arc::clone(&identity.certified))));
        settings.set_alpn(if h2 { ALPN::H2H1 } else { ALPN::H1 });
        if let Some(roots) = &identity.clients {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::new(default_provider()));
            let inner = verifier.build().map_err(|why| refused(&why))?;
            settings.set_client_cert_verifier(Arc::new(Readable(inner)));
        }
        Ok(Self { identity, acceptor: settings.build() })
    }
}

/// One certificate, whatever name a caller asks for.
#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl ResolvesServerCert for One {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Keeps the names of a caller's certificate with its connection.
struct Names;

#[async_trait]
impl TlsAccept for Names {
    async fn handshake_complete_callback(&self, tls: &TlsRef) -> Option<Arc<dyn Any + Send + Sync>> {
        let certificate = ClientCertificate::of_der(tls.peer_certificate_der()?)?;
        Some(Arc::new(certificate))
    }
}

/// Refuses a certificate that is good for rustls and cannot be read by x509-parser: Pingora reads those that pass with
/// it, and panics over one that it cannot.
#[derive(Debug)]
struct Readable(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Readable {
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if ClientCertificate::of_der(certificate).is_none() {
            return Err(CertificateError::BadEncoding.into());
        }
        self.0.verify_client_cert(certificate, between, now)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
