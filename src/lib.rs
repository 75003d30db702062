//! ai-gateway: one binary between applications and llama.cpp servers.
//!
//! The modules stand from the top of the house to the ground; each uses only those below it, and this is also
//! the order to read them in. The five boxes between `config` and `store` never use each other: `proxy` composes
//! them. Only `server`, `admin` and `proxy` know Pingora. `tests/tidy.rs` reads these rules from this file.
//!
//! ```text
//!             server    the process: listeners, services, signals
//!             admin     what operators ask: live, ready, stats, metrics
//! client ──►  proxy     one request's journey; start at proxy/admit.rs     ──► llama-server
//!             config    what the operator wrote, checked: file -> settings
//!             observe │ route │ cache │ limit │ auth    the five boxes
//!             store     what outlives a process: what each key has used
//!             wire      the protocols: endpoints, bodies, streams, error envelopes
//! ```

pub mod server;
pub mod admin;
pub mod proxy;
pub mod config;
// The five boxes.
pub mod observe;
pub mod route;
pub mod cache;
pub mod limit;
pub mod auth;
// The ground.
pub mod store;
pub mod wire;
