//! How much may they ask: exact token buckets, concurrency, and a coarse shield per address.

mod rate;

pub use rate::{Allowance, Rate, parse_count};
