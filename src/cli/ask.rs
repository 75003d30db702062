//! Asking a gateway that runs on this machine, by the file that it runs under.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ai_gateway::config::{Listener, Tls};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection, ResolvesClientCert};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme, StreamOwned};

pub(super) const TIME_MAX: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Asks a listener; gives the status and the body.
pub(super) fn ask(listener: &Listener, target: &str, token: Option<&str>) -> io::Result<(String, String)> {
    let address = reachable(listener.address);
    let stream = connect(address)?;
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!("GET {target} HTTP/1.1\r\nhost: {address}\r\n{token}connection: close\r\n\r\n");
    match &listener.tls {
        None => converse(stream, &request),
        Some(tls) => {
            let session = session(trusting_itself(tls), address.ip().into())?;
            converse(StreamOwned::new(session, stream), &request).map_err(explained)
        }
    }
}

/// Shakes hands with a listener up to where it asks for a certificate, which nobody has here: more of it cannot be had.
pub(super) fn is_asked_for_a_certificate(address: SocketAddr, tls: &Tls) -> io::Result<bool> {
    let address = reachable(address);
    let asked = Arc::new(Asked::default());
    let mut stream = {
        let session = session(config(tls, Arc::clone(&asked)), address.ip().into())?;
        StreamOwned::new(session, connect(address)?)
    };
    // What comes after, a refusal, is no news.
    let shaken = stream.conn.complete_io(&mut stream.sock);
    match asked.0.load(Ordering::Relaxed) {
        true => Ok(true),
        false => shaken.map(|_| false).map_err(explained),
    }
}

/// An address to connect to, where one is listened on.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

pub(super) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIME_MAX)?;
    stream.set_read_timeout(Some(TIME_MAX))?;
    stream.set_write_timeout(Some(TIME_MAX))?;
    Ok(stream)
}

fn converse(mut stream: impl Read + Write, request: &str) -> io::Result<(String, String)> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.split(' ').nth(1).unwrap_or_default().to_owned(), body.to_owned()))
}

pub(super) fn session(config: ClientConfig, name: ServerName<'static>) -> io::Result<ClientConnection> {
    ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)
}

/// Trusts the certificate that the file names, and shows none.
pub(super) fn trusting_itself(tls: &Tls) -> ClientConfig {
    config(tls, Arc::default())
}

fn config(tls: &Tls, asked: Arc<Asked>) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let itself = Itself { certified: Arc::clone(&tls.identity.certified), provider: Arc::clone(&provider) };
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has all versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(itself))
        .with_client_cert_resolver(asked)
}

/// Trusts the one certificate that the file names, whatever it is called: whoever shows it has its key, and is the
/// gateway. A name or a root could not be asked of it, since it is asked by its address.
#[derive(Debug)]
struct Itself {
    certified: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Itself {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.certified.cert.first() {
            Some(own) if own == shown => Ok(ServerCertVerified::assertion()),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Says in words why the handshake failed, where it is the certificate.
pub(super) fn explained(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(_)) => {
            io::Error::other("it shows another certificate than the one in the file")
        }
        _ => error,
    }
}

/// Notes that a certificate was asked for, and has none.
#[derive(Debug, Default)]
struct Asked(AtomicBool);

impl ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}
