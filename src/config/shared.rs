//! `shared`: what replicas share, and where.

use super::bundle;
use super::section::Section;
use super::settings::Shared;
use super::value::{self, Read};
use crate::store::{Address, Dial};

/// `None`: nothing is shared.
pub(super) fn read(section: &mut Section) -> Option<Shared> {
    let valkey = section.take("valkey");
    let others = ["required", "prefix", "ca"].map(|key| section.take(key));
    if valkey.is_none() {
        for field in others.iter().flatten() {
            field.fault(
                "nothing is shared that it would be used for: name `shared.valkey` too, or take it out",
            );
        }
    }
    let [required, prefix, ca] = others;
    let address = valkey.and_then(|field| field.value(Address::parse));
    let required = required.and_then(|field| field.value(value::switch)).unwrap_or(false);
    let prefix = prefix.and_then(|field| field.value(read_prefix)).unwrap_or_else(|| "ai-gateway".to_owned());
    let bundle = ca.as_ref().and_then(bundle::read).map(|bundle| bundle.file.clone());
    let address = address?;
    if let Some(field) = ca.filter(|_| !address.tls) {
        field.warn("is not used: Valkey is reached by plain TCP");
    }
    Some(Shared { dial: Dial { address, ca: bundle }, required, prefix })
}

/// What every key begins with, in braces.
fn read_prefix(text: &str) -> Read<String> {
    const BYTES_MAX: usize = 64;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    match !text.is_empty() && text.len() <= BYTES_MAX && text.chars().all(plain) {
        true => Ok(text.to_owned()),
        false => value::expected("1 to 64 letters, digits, `-`, `_`, `.` or `:`", text),
    }
}
