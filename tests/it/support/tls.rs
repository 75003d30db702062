//! Certificates that are made for a play, and callers over TLS.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, crypto, version,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::client::Caller;
use super::gateway::Folder;

/// The name that listeners are asked for.
const NAME: &str = "gateway.test";

/// A certificate and its key, as PEM and as DER.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
    der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

/// Who vouches for certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

fn key() -> KeyPair {
    KeyPair::generate().expect("there is randomness")
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority of a play");
        Self(CertifiedIssuer::self_signed(params, key()).expect("good parameters"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a listener.
    pub(crate) fn server(&self) -> Pair {
        self.sign(&CertificateParams::new([NAME.to_owned()]).expect("a name"))
    }

    /// A certificate for who is called by an address.
    pub(crate) fn at(&self, address: IpAddr) -> Pair {
        self.sign(&CertificateParams::new([address.to_string()]).expect("an address"))
    }

    /// One that ended long ago.
    pub(crate) fn expired(&self) -> Pair {
        let mut params = CertificateParams::new([NAME.to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        self.sign(&params)
    }

    /// A certificate for a caller, with this common name and these URIs.
    pub(crate) fn client(&self, name: &str, uris: &[&str]) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let uri = |uri: &&str| SanType::URI((*uri).try_into().expect("ASCII"));
        params.subject_alt_names = uris.iter().map(uri).collect();
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Pair {
        let key = key();
        let certificate = params.signed_by(&key, &self.0).expect("good parameters");
        Pair {
            cert: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
        }
    }
}

impl Pair {
    /// Its two files, and the `tls` that names them.
    pub(crate) fn write(&self, folder: &Folder) -> (PathBuf, PathBuf) {
        (folder.file("tls.crt", &self.cert), folder.private("tls.key", &self.key))
    }

    /// What a server shows.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let key = PrivateKeyDer::try_from(self.key_der.clone()).expect("a key");
        let mut config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(vec![self.der.clone()], key)
            .expect("they belong together");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }
}

/// How a caller shakes hands.
#[derive(Clone)]
pub(crate) struct Hand<'a> {
    trusts: &'a Authority,
    shows: Option<&'a Pair>,
    protocols: Vec<Vec<u8>>,
    /// What is sent before.
    head: Vec<u8>,
    versions: Vec<&'static SupportedProtocolVersion>,
}

/// A hand that trusts this authority, has nothing to show and speaks HTTP/1.1.
pub(crate) fn trusting(trusts: &Authority) -> Hand<'_> {
    let versions = vec![&version::TLS13, &version::TLS12];
    Hand { trusts, shows: None, protocols: vec![b"http/1.1".to_vec()], head: Vec::new(), versions }
}

impl<'a> Hand<'a> {
    pub(crate) fn showing(mut self, pair: &'a Pair) -> Self {
        self.shows = Some(pair);
        self
    }

    /// What it offers by ALPN.
    pub(crate) fn speaking(mut self, protocols: &[&str]) -> Self {
        self.protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
        self
    }

    /// What a balancer sends before it.
    pub(crate) fn after(mut self, head: &[u8]) -> Self {
        self.head = head.to_vec();
        self
    }

    pub(crate) fn tls12(mut self) -> Self {
        self.versions = vec![&version::TLS12];
        self
    }

    pub(crate) async fn try_shake(&self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.trusts.0.der().clone()).expect("a certificate");
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions)
            .expect("the provider has them")
            .with_root_certificates(roots);
        let mut config = match self.shows {
            None => config.with_no_client_auth(),
            Some(Pair { der, key_der, .. }) => {
                let key = PrivateKeyDer::try_from(key_der.clone()).expect("a key");
                config.with_client_auth_cert(vec![der.clone()], key).expect("they belong together")
            }
        };
        config.alpn_protocols.clone_from(&self.protocols);
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&self.head).await?;
        let name = ServerName::try_from(NAME).expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    pub(crate) async fn shake(&self, address: SocketAddr) -> TlsStream<TcpStream> {
        self.try_shake(address).await.unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    /// A caller over HTTP/1.1.
    pub(crate) async fn caller(&self, address: SocketAddr) -> Caller {
        Caller::over(self.shake(address).await)
    }

    /// The certificate that a listener shows.
    pub(crate) async fn shown(&self, address: SocketAddr) -> CertificateDer<'static> {
        let stream = self.shake(address).await;
        stream.get_ref().1.peer_certificates().expect("it shows one")[0].clone()
    }
}
