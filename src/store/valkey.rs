//! Valkey, or Redis 7: what replicas share.
//!
//! `address` is where it is, as an operator writes it; `dial` connects to it, in each of its forms; `line` is one such
//! connection, pipelined, and a bound on the time of every question; `link` is the way there for whoever asks, with a
//! circuit that opens when there is no answer, so that whoever asks goes on without. What is asked is not decided here.

mod address;
mod dial;
mod line;
mod link;

pub use address::{Address, Kind};
pub use dial::Dial;
pub use link::{Late, Link, PATIENCE, PATIENCE_REQUIRED, Script, Unanswered};
