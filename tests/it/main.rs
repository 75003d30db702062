//! The gateway as its callers and operators see it: short plays with the real binary between a scripted llama-server
//! and raw sockets.
//!
//! The modules stand in reading order, from the first thing that must work to the last. `AI_GATEWAY_BIN` names
//! another binary to hold to the contract.

#[macro_use]
mod support;

mod stage;
mod smoke;
mod proxy;
mod conduit;
mod bodies;
mod refuse;
mod auth;
mod keys;
mod limit;
mod token;
mod trace;
mod budget;
mod shared;
mod shared_use;
mod shared_ways;
mod charge;
mod cache;
mod purge;
mod memo;
mod memory;
mod flight;
mod form;
mod replicas;
mod replicas_apart;
mod turned;
mod isolation;
mod stream;
mod failure;
mod breaker;
mod fallback;
mod route;
mod queue;
mod servers;
mod router;
mod cors;
mod observe;
mod lines;
mod page;
mod top;
mod upgrade;
mod usage;
mod config_cli;
mod conf_files;
mod living;
mod reload;
mod rollout;
mod announce;
mod tls;
mod http2;
mod bad_days;
mod docs;
mod exchange;
mod regression;
