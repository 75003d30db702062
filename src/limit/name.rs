//! Which limit: of whom, on what.

/// Whose limit, in the order in which a request meets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All callers together.
    Gateway,
    /// One key.
    Key,
    /// One user of a key.
    User,
    /// All callers of one model.
    Model,
    /// One key with one model.
    KeyModel,
    /// One address, before authentication.
    Address,
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Requests,
    Tokens,
    Concurrent,
    /// What a calendar period allows.
    Budget,
}

/// Which limit refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    pub scope: Scope,
    pub kind: Kind,
}

/// All that there are, with their names in logs and metrics.
const NAMES: [(Scope, Kind, &str); 17] = [
    (Scope::Gateway, Kind::Requests, "gateway.requests"),
    (Scope::Gateway, Kind::Tokens, "gateway.tokens"),
    (Scope::Gateway, Kind::Concurrent, "gateway.concurrent"),
    (Scope::Key, Kind::Requests, "key.requests"),
    (Scope::Key, Kind::Tokens, "key.tokens"),
    (Scope::Key, Kind::Concurrent, "key.concurrent"),
    (Scope::Key, Kind::Budget, "key.budget"),
    (Scope::User, Kind::Requests, "user.requests"),
    (Scope::User, Kind::Tokens, "user.tokens"),
    (Scope::User, Kind::Concurrent, "user.concurrent"),
    (Scope::Model, Kind::Requests, "model.requests"),
    (Scope::Model, Kind::Tokens, "model.tokens"),
    (Scope::Model, Kind::Concurrent, "model.concurrent"),
    (Scope::KeyModel, Kind::Requests, "key_model.requests"),
    (Scope::KeyModel, Kind::Tokens, "key_model.tokens"),
    (Scope::KeyModel, Kind::Concurrent, "key_model.concurrent"),
    (Scope::Address, Kind::Requests, "ip.requests"),
];

impl Limit {
    pub const ADDRESS: Self = Self { scope: Scope::Address, kind: Kind::Requests };
    pub const BUDGET: Self = Self { scope: Scope::Key, kind: Kind::Budget };

    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|(scope, kind, _)| Self { scope: *scope, kind: *kind })
    }

    /// As logs and metrics name it.
    pub fn name(self) -> &'static str {
        let own = NAMES.iter().find(|(scope, kind, _)| (*scope, *kind) == (self.scope, self.kind));
        own.map_or("other", |(.., name)| name)
    }
}
