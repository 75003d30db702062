//! Who is asking, and what may they use.
//!
//! A key is known by the SHA-256 of its text alone: the file holds no secret, and neither does this module.

mod key;
mod keyring;

pub use key::{Key, KeyHash, Patterns};
pub use keyring::{Caller, Keyring, presented};
