//! What a caller's certificate calls it, where the connection asks for one.
//!
//! That the certificate is good has been verified in the handshake; here its names are read, and a key of the file may
//! be one of them.

use std::fmt;
use std::str::FromStr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// A certificate with more names is read as far as this.
const NAMES_MAX: usize = 64;

/// One name of a certificate: the common name of its subject, or one of its alternative names (RFC 5280, section
/// 4.2.1.6).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertificateName {
    Common(String),
    Dns(String),
    /// As SPIFFE has it: `spiffe://example.org/team/alice`.
    Uri(String),
    Email(String),
}

impl CertificateName {
    fn dns(name: &str) -> Self {
        Self::Dns(name.to_ascii_lowercase())
    }
}

impl FromStr for CertificateName {
    type Err = String;

    /// `alice` or `cn:alice`, `dns:…`, `uri:…`, `email:…`.
    fn from_str(text: &str) -> Result<Self, String> {
        let name = match text.split_once(':') {
            Some(("cn", name)) => Self::Common(name.to_owned()),
            Some(("dns", name)) => Self::dns(name),
            Some(("uri", name)) => Self::Uri(name.to_owned()),
            Some(("email", name)) => Self::Email(name.to_owned()),
            _ => Self::Common(text.to_owned()),
        };
        let (Self::Common(it) | Self::Dns(it) | Self::Uri(it) | Self::Email(it)) = &name;
        if it.trim().is_empty() {
            return Err("expected a certificate's common name, or another name of it as `dns:…`, `uri:…` or `email:…`"
                .to_owned());
        }
        Ok(name)
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Common(name) => write!(f, "cn:{name}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Uri(name) => write!(f, "uri:{name}"),
            Self::Email(name) => write!(f, "email:{name}"),
        }
    }
}

/// A caller's certificate, verified.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    pub names: Vec<CertificateName>,
}

impl ClientCertificate {
    /// `None`: it is no X.509 certificate.
    pub fn of_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let common = certificate.subject().iter_common_name();
        let common = common.filter_map(|name| Some(CertificateName::Common(name.as_str().ok()?.to_owned())));
        let alternative = certificate.subject_alternative_name().ok().flatten();
        let others =
            alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(CertificateName::dns(name)),
                GeneralName::URI(name) => Some(CertificateName::Uri((*name).to_owned())),
                GeneralName::RFC822Name(name) => Some(CertificateName::Email((*name).to_owned())),
                _ => None,
            });
        Some(Self { names: common.chain(others).take(NAMES_MAX).collect() })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        for (text, written) in [
            ("alice", Some("cn:alice")),
            ("cn:alice", Some("cn:alice")),
            ("Alice Liddell", Some("cn:Alice Liddell")),
            ("dns:Build.Example.org", Some("dns:build.example.org")),
            ("uri:spiffe://example.org/alice", Some("uri:spiffe://example.org/alice")),
            ("email:alice@example.org", Some("email:alice@example.org")),
            ("", None),
            ("uri:", None),
        ] {
            let read = text.parse::<CertificateName>().ok().map(|name| name.to_string());
            assert_eq!(read.as_deref(), written, "{text}");
        }
    }

    #[test]
    fn a_certificate_is_called_by_its_subject_and_its_alternative_names() {
        let mut params = CertificateParams::new(vec!["Build.example.org".to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, "alice");
        params.distinguished_name.push(DnType::OrganizationName, "bob");
        params.subject_alt_names.push(SanType::URI("spiffe://x/alice".try_into().expect("ASCII")));
        params.subject_alt_names.push(SanType::Rfc822Name("a@x".try_into().expect("ASCII")));
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        let names = ClientCertificate::of_der(certificate.der()).expect("it is one").names;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["cn:alice", "dns:build.example.org", "uri:spiffe://x/alice", "email:a@x"]);
        assert_eq!(ClientCertificate::of_der(b"no certificate"), None);
    }
}
