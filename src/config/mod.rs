//! What the operator wrote, checked: file -> settings.

mod settings;

pub use settings::*;
