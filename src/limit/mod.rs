//! How much may they ask: exact token buckets, concurrency, budgets, and a coarse shield per address.

mod rate;
mod budget;
mod name;
mod standing;
mod bucket;
mod quota;
mod account;
mod shared;
mod subjects;
mod shield;
mod gate;

pub use account::{Account, Grant};
pub use bucket::Level;
pub use budget::{Budget, Goods, Span};
pub use gate::{Gate, ModelShare, Terms};
pub use name::{Kind, Limit, Scope};
pub use quota::Quota;
pub use rate::{Allowance, Rate, parse_count};
pub use shared::{Share, Shared, Unruled, Waited};
pub use standing::{Debt, Movement, Standing};
pub use subjects::{Allows, Permit, Refused, Reservation, Spent, Subjects};
