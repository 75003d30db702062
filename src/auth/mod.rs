//! Who is asking, and what may they use.
//!
//! A key is known by the SHA-256 of its text alone, or by the name of its caller's certificate: the file holds no
//! secret, and neither does this module.

mod certificate;
mod key;
mod keyring;

pub use certificate::{CertificateName, ClientCertificate};
pub use key::{Key, KeyHash, Patterns};
pub use keyring::{Caller, Keyring, Presented, presented};
