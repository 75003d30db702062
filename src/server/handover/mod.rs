//! The handover: a running process gives its listening sockets and what it has in memory to the one that succeeds it.
//!
//! The successor (`run --upgrade`) binds `server.upgrade_sock` and waits; on SIGQUIT the running process connects to
//! it. What they say, one line of JSON each:
//!
//! | running process | successor |
//! |---|---|
//! | | `hello`: who it is |
//! | `sockets`: the addresses, with their sockets | |
//! | | `ready`: its file is read, its servers have been looked at |
//! | `item` … `end`: what it leaves | |
//! | | `serving`: its listeners take connections |
//! | closes its own listeners; `item` … as what it still has ends | |
//!
//! Until `serving` the running process serves as ever, and whatever goes wrong leaves it so. So for some milliseconds
//! both take connections, and a limit may admit twice what comes just then, a burst at most; the running process tells
//! the successor of it at once.
//!
//! `ai-gateway upgrade` binds the same socket first, and says `upgrade`: with which binary and file the running
//! process is to start its successor. So the successor has the folder, the environment, the user, the sandbox and the
//! output of the process that it succeeds.

mod leave;
mod line;
pub(crate) mod orphan;
pub(crate) mod request;
mod take;

use std::time::Duration;

pub(super) use self::leave::Handover;
pub(super) use self::take::{Meeting, Succession};

/// A process that was signalled looks this long for its successor.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// A successor waits this long for the process that it succeeds.
const WAIT_TIME_MAX: Duration = Duration::from_secs(60);

/// The longest silence between the two, and until a successor that was started is ready.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(60);

/// How often what is waited for without a signal is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
