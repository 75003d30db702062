//! Has this been answered already.

mod policy;

pub use policy::{Answers, CachePolicy, Scope};
