//! How much may they ask: exact token buckets, concurrency, and a coarse shield per address.

mod rate;
mod budget;
mod bucket;
mod gate;

pub use bucket::Level;
pub use budget::{Budget, Goods, Span};
pub use gate::{Allows, Gate, Limit, Permit, Refused};
pub use rate::{Allowance, Rate, parse_count};
