//! A bundle of certificates, as PEM: whom `https` servers are trusted by.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::section::Field;
use super::source::read_text;
use super::value::{self, Read};
use crate::route::CaBundle;

/// The roots of a whole system take a quarter of a MiB.
pub(super) const PEM_BYTES_MAX: usize = 4 << 20;

/// The bundle that a path in the file names.
pub(super) fn read(field: &Field) -> Option<Arc<CaBundle>> {
    let file = field.resolve(field.value(value::text)?);
    match certificates(&file) {
        Ok(certificates) => Some(Arc::new(CaBundle { file, certificates })),
        Err(message) => {
            field.fault(format!("{}: {message}", file.display()));
            None
        }
    }
}

/// Each is read as those that will verify with it read it: a bundle that half of it is understood of would fail when
/// nobody looks.
pub(super) fn certificates(file: &Path) -> Read<Vec<Vec<u8>>> {
    let text = read_text(file, PEM_BYTES_MAX).map_err(|unread| unread.message)?;
    let mut roots = RootCertStore::empty();
    let mut certificates = Vec::new();
    for (index, certificate) in CertificateDer::pem_slice_iter(text.as_bytes()).enumerate() {
        let unread = |why: String| format!("certificate {} cannot be read: {why}", index + 1);
        let certificate = certificate.map_err(|error| unread(error.to_string()))?;
        x509_parser::parse_x509_certificate(&certificate)
            .map_err(|_| unread("it is no X.509 certificate".to_owned()))?;
        certificates.push(certificate.to_vec());
        roots.add(certificate).map_err(|error| unread(error.to_string()))?;
    }
    if certificates.is_empty() {
        return Err("expected certificates in PEM (`-----BEGIN CERTIFICATE-----`), found none".to_owned());
    }
    Ok(certificates)
}
