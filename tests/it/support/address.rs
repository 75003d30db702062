//! Loopback addresses of one's own.
//!
//! Linux answers on all of 127.0.0.0/8, so each server of each play gets an address that nobody else has, and fixed
//! ports never collide. An address is claimed by listening on one port of it for as long as it is in use: that holds
//! between threads of one test binary and between processes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

const CLAIM_PORT: u16 = 9999;
static NEXT: AtomicU32 = AtomicU32::new(0);

/// An address of this machine that is ours until it is dropped.
#[derive(Debug)]
pub(crate) struct Loopback {
    ip: Ipv4Addr,
    _claim: TcpListener,
}

impl Loopback {
    pub(crate) fn claim() -> Self {
        let start = std::process::id().wrapping_mul(251);
        for _ in 0..10_000 {
            let step = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let ip = Ipv4Addr::new(127, octet(step / 62_500), octet(step / 250), octet(step));
            if let Ok(claim) = TcpListener::bind((ip, CLAIM_PORT)) {
                return Self { ip, _claim: claim };
            }
        }
        panic!("no free address in 127.0.0.0/8");
    }

    pub(crate) fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    pub(crate) fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.ip, port))
    }
}

/// 2 to 251: never .0, .1 or .255, which people use for other things.
fn octet(number: u32) -> u8 {
    u8::try_from(number % 250).expect("below 250") + 2
}
