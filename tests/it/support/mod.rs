//! What a play is made of: a scripted llama-server, the real gateway binary before it, and callers on raw sockets.
//!
//! Nothing here sleeps but `eventually!`, and every wait has a bound, so a play that hangs says where.

#[macro_use]
pub(crate) mod eventually;
pub(crate) mod address;
pub(crate) mod http;
pub(crate) mod llama;
pub(crate) mod valkey;
pub(crate) mod wire;
pub(crate) mod gateway;
pub(crate) mod client;
pub(crate) mod tls;
pub(crate) mod replicas;
pub(crate) mod h2;
pub(crate) mod collector;
pub(crate) mod scrape;
pub(crate) mod log;
pub(crate) mod expect;
pub(crate) mod terminal;
