//! The commands that are more than a call into the library, and how every command ends.

mod ask;
pub(crate) mod health;
pub(crate) mod key;
mod place;
mod replace;
pub(crate) mod top;
pub(crate) mod upgrade;
pub(crate) mod usage;

use std::io::Write;

/// Why the process ends with anything but 0.
pub(crate) enum Failure {
    /// A wrong command line or file: 2.
    Wrong(String),
    /// Something that went wrong at run time: 1.
    Failed(String),
}

pub(crate) fn print(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}")
        .map_err(|error| Failure::Failed(format!("ai-gateway: cannot write: {error}")))
}

/// Says something beside the result, which alone goes to standard output.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
