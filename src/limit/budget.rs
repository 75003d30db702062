//! What a key may spend in a calendar period, UTC: not a rate, an amount that is gone when it is spent.

use std::fmt;

/// A calendar period, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Span {
    Day,
    Month,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Goods {
    Requests,
    /// Prompt and completion.
    Tokens,
}

/// So much of something in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub goods: Goods,
    pub amount: u64,
    pub per: Span,
}

impl Goods {
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

impl Span {
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.amount, self.goods.name(), self.per.name())
    }
}
