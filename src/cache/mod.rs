//! Has this been answered already: the key of an answer, the answers that are kept, what a caller asks of them.

mod policy;
mod control;
mod key;
mod entry;
mod store;
pub mod render;

pub use control::Control;
pub use entry::{Entry, Recording};
pub use key::{Form, Key, Question};
pub use policy::{Answers, CachePolicy, Scope};
pub use store::{Holding, Store};
