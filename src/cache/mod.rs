//! Has this been answered already: the key of an answer, the answers that are kept, what a caller asks of them.

mod policy;
mod control;
mod form;
mod key;
mod memo;
mod purge;
mod entry;
mod tape;
mod shelf;
mod store;
mod depot;
mod flight;
pub mod render;

pub use control::Control;
pub use depot::{Claim, Dealings, Depot, Found, Lease, Look};
pub use entry::{Answer, Entry, Worth};
pub use flight::{Boarding, Flight, Flights, Follower, Head, Landing, Leader, News};
pub use form::{Dialect, Form};
pub use key::{Digest, Key, Question, among, digest, only};
pub use memo::{Gist, Memo};
pub use policy::{Answers, CachePolicy, Scope, is_deterministic};
pub use purge::{Purge, Purges};
pub use store::{Holding, Store};
pub use tape::Tape;
