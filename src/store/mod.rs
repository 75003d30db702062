//! What outlives a process: what each key has used, and what processes share in Valkey (`valkey`).
//!
//! A [`Ledger`] counts uses in memory and, where it has a file, writes them there now and then. `books` is what it has
//! in memory, `file` the SQLite file, `ledger` the two together. When to write is the process's business (`server/`).

mod books;
mod far;
mod file;
mod ledger;
mod used;
mod valkey;

/// What requests have of budgets that processes share, for scripts that reserve it.
pub const OPEN: &str = include_str!("open.lua");

pub use file::read;
pub use ledger::Ledger;
pub use used::{Counts, Filter, OTHER, Period, Row, Use, day, today};
pub use valkey::{Address, Dial, Kind, Late, Link, PATIENCE, PATIENCE_REQUIRED, Script, Unanswered};
