//! `tls` of a listener: its certificate, its key, and whom callers' own certificates must come from.
//!
//! The files are read and held against each other here, at the start and whenever they change, so that what is given
//! out can be shown to callers as it is.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};
use sha2::{Digest, Sha256};

use super::bundle::{PEM_BYTES_MAX, certificates};
use super::fault::{Fault, Faults};
use super::section::{Field, Section};
use super::source::read_text;
use super::value::{self, Read};

/// The files of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The listener's own certificate first, then those between it and its root.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Callers must show a certificate that one of these vouches for. `None`: they are not asked for one.
    pub client_ca: Option<PathBuf>,
}

/// What a listener shows to callers, and asks of them.
#[derive(Debug, Clone)]
pub struct Tls {
    pub files: TlsFiles,
    pub identity: Arc<Identity>,
}

/// What the files held when they were read.
pub struct Identity {
    /// The certificates with their key.
    pub certified: Arc<CertifiedKey>,
    /// `None`: callers are not asked for a certificate.
    pub clients: Option<Arc<RootCertStore>>,
    /// When the listener's certificate ends.
    pub not_after: Timestamp,
    /// Of all that was read.
    digest: [u8; 32],
}

impl Identity {
    /// Whether a listener that shows this need not change to show the other.
    pub fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// Without the key.
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// Which of the files something is wrong with, and what.
struct Wrong {
    file: Of,
    message: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Of {
    Cert,
    Key,
    ClientCa,
}

/// Reads a certificate or a key, within its bound; for who looks whether it has changed.
pub fn read_pem_text(path: &Path) -> Result<String, Faults> {
    read_text(path, PEM_BYTES_MAX).map_err(|unread| unread.of_file(&path.display().to_string()))
}

impl TlsFiles {
    /// Reads all of them again.
    pub fn read(&self) -> Result<Identity, Faults> {
        self.identity().map_err(|wrong| {
            let fault = |wrong: Wrong| {
                let file = self.of(wrong.file).display().to_string();
                Fault { file, place: None, path: String::new(), message: wrong.message }
            };
            Faults::of(wrong.into_iter().map(fault).collect())
        })
    }

    /// As they are from this folder on.
    pub fn from(&self, folder: &Path) -> Self {
        Self {
            cert: folder.join(&self.cert),
            key: folder.join(&self.key),
            client_ca: self.client_ca.as_ref().map(|file| folder.join(file)),
        }
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).map(PathBuf::as_path)
    }

    fn of(&self, file: Of) -> &Path {
        match file {
            Of::Cert => &self.cert,
            Of::Key => &self.key,
            Of::ClientCa => self.client_ca.as_deref().unwrap_or(&self.cert),
        }
    }

    /// What the files hold, or all that is wrong with them.
    fn identity(&self) -> Result<Identity, Vec<Wrong>> {
        let mut wrong = Vec::new();
        let mut note = |file: Of, message: String| wrong.push(Wrong { file, message });
        let mut digest = Sha256::new();
        let chain = certificates(&self.cert).map_err(|why| note(Of::Cert, why)).ok();
        let key = private_key(&self.key).map_err(|why| note(Of::Key, why)).ok();
        let clients = self.client_ca.as_deref().map(|file| clients(file, &mut digest));
        let clients = clients.transpose().map_err(|why| note(Of::ClientCa, why));
        let shown = chain.zip(key).and_then(|(chain, key)| {
            chain.iter().for_each(|it| digest.update(it));
            digest.update(key.secret_der());
            let not_after = not_after(&chain[0]).map_err(|why| note(Of::Cert, why)).ok()?;
            Some((certified(chain, key, &self.cert).map_err(|why| note(Of::Key, why)).ok()?, not_after))
        });
        match (shown, clients) {
            (Some((certified, not_after)), Ok(clients)) => Ok(Identity {
                certified: Arc::new(certified),
                clients,
                not_after,
                digest: digest.finalize().into(),
            }),
            _ => Err(wrong),
        }
    }
}

/// Whom callers' certificates must come from.
fn clients(file: &Path, digest: &mut Sha256) -> Read<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        digest.update(&certificate);
        roots.add(certificate.into()).map_err(|error| format!("cannot be trusted: {error}"))?;
    }
    Ok(Arc::new(roots))
}

/// When a certificate ends.
fn not_after(certificate: &[u8]) -> Read<Timestamp> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| "its certificate is no X.509 certificate".to_owned())?;
    let seconds = certificate.validity().not_after.timestamp();
    Ok(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
}

fn private_key(file: &Path) -> Read<PrivateKeyDer<'static>> {
    use rustls::pki_types::pem::Error::NoItemsFound;
    let text = read_text(file, PEM_BYTES_MAX).map_err(|unread| unread.message)?;
    match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
        Ok(key) => Ok(key),
        Err(NoItemsFound) if text.contains("BEGIN ENCRYPTED PRIVATE KEY") => {
            Err("the key is encrypted, and nobody could type its password: decrypt it (`openssl pkey`)"
                .to_owned())
        }
        Err(NoItemsFound) => {
            Err("expected a private key in PEM (`-----BEGIN PRIVATE KEY-----`), found none".to_owned())
        }
        Err(error) => Err(format!("the private key cannot be read: {error}")),
    }
}

/// The certificates with the key that belongs to the first of them.
fn certified(chain: Vec<Vec<u8>>, key: PrivateKeyDer<'static>, cert: &Path) -> Read<CertifiedKey> {
    let key = default_provider().key_provider.load_private_key(key).map_err(|error| {
        format!("keys of this kind are not supported ({error}): use RSA from 2048 bits, ECDSA or Ed25519")
    })?;
    let chain: Vec<CertificateDer<'static>> = chain.into_iter().map(CertificateDer::from).collect();
    let certified = CertifiedKey::new(chain, key);
    let belongs = |certified: &CertifiedKey| {
        !matches!(certified.keys_match(), Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)))
    };
    if belongs(&certified) {
        return Ok(certified);
    }
    let alone = |it: &CertificateDer<'static>| CertifiedKey::new(vec![it.clone()], certified.key.clone());
    let cert = cert.display();
    Err(match certified.cert.iter().position(|it| belongs(&alone(it))) {
        Some(place) => format!(
            "the key belongs to certificate {} of {cert}: put that one first, then the one that vouches for it",
            place + 1
        ),
        None => format!("the key does not belong to the certificate in {cert}"),
    })
}

/// The `tls` of a listener; its `client_ca` may stand beside it. Of faults there is nothing but a note.
pub(super) fn read<'a>(field: &Field<'a>, client_ca: Option<Field<'a>>) -> Option<Tls> {
    field.section(|section| read_section(section, client_ca)).flatten()
}

fn read_section<'a>(section: &mut Section<'a>, beside: Option<Field<'a>>) -> Option<Tls> {
    let mut named = |key: &'static str, what: &str| {
        let field = section.take(key);
        if field.is_none() && !what.is_empty() {
            section.missing(key, what);
        }
        field
    };
    let cert = named("cert", "name the file with the certificate, and those that vouch for it after it");
    let key = named("key", "name the file with the certificate's private key");
    let client_ca = named("client_ca", "").or(beside);
    let path = |field: &Field| field.value(value::text).map(|text| field.resolve(text));
    let (cert, key) = (cert?, key?);
    let (cert_path, key_path) = (path(&cert), path(&key));
    let ca_path = match &client_ca {
        Some(field) => Some(path(field)?),
        None => None,
    };
    let files = TlsFiles { cert: cert_path?, key: key_path?, client_ca: ca_path };
    let mode = std::fs::metadata(&files.key).map_or(0, |it| it.mode());
    match files.identity() {
        Ok(identity) => {
            if mode & 0o004 != 0 {
                key.warn("names a key that everybody on this machine may read: `chmod o-r` it");
            }
            Some(Tls { files, identity: Arc::new(identity) })
        }
        Err(wrong) => {
            for Wrong { file, message } in wrong {
                let field = match file {
                    Of::Cert => &cert,
                    Of::Key => &key,
                    Of::ClientCa => client_ca.as_ref().unwrap_or(&cert),
                };
                field.fault(format!("{}: {message}", files.of(file).display()));
            }
            None
        }
    }
}
