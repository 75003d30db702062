//! How exact limits are: the bucket's error when threads race, and what the per-address shield gets wrong.
//! `cargo run --release --example limit_error` prints the tables of docs/LIMITS.md.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ai_gateway::limit::{Allowance, Gate, Rate, Terms};

/// Of each row.
const REQUESTS: u64 = 100_000;
/// Between two requests, on the clock that all threads share.
const STEP: Duration = Duration::from_micros(10);

const BURST: u64 = 100;

/// Threads that ask as one clock goes on: as many are admitted as the bucket held and gained, or the error is told.
fn race(threads: u64, rate: Rate) -> (u64, u64) {
    let allowance = Allowance { requests: Some(rate), burst: Some(BURST), ..Allowance::default() };
    let gate = Arc::new(Gate::new(Terms { gateway: allowance, ..Terms::default() }));
    let clock = Arc::new(AtomicU64::new(0));
    let step = STEP.as_nanos() as u64;
    let asking: Vec<_> = (0..threads)
        .map(|_| {
            let (gate, clock) = (Arc::clone(&gate), Arc::clone(&clock));
            std::thread::spawn(move || {
                let subjects = gate.subjects(None, None, Duration::ZERO);
                let ask = |_| {
                    let now = Duration::from_nanos(clock.fetch_add(step, Ordering::Relaxed));
                    u64::from(subjects.admit(now).is_ok())
                };
                (0..REQUESTS / threads).map(ask).sum::<u64>()
            })
        })
        .collect();
    let admitted = asking.into_iter().map(|thread| thread.join().expect("a count")).sum();
    let last = u128::from(clock.load(Ordering::Relaxed) - step);
    let gained = last * u128::from(rate.count) / rate.per.as_nanos();
    (admitted, BURST + gained as u64)
}

/// So many addresses that each ask exactly as often as they may: how many requests are refused.
fn shield(addresses: u32, rate: Rate) -> u64 {
    let gate = Gate::new(Terms { ip: Some(rate), ..Terms::default() });
    let ask = |number: u32| {
        let address =
            IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number.wrapping_mul(2_654_435_761) % (1 << 24)));
        u64::from(gate.admit_address(address, Duration::ZERO).is_err())
    };
    (0..rate.count).map(|_| (0..addresses).map(ask).sum::<u64>()).sum()
}

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let rate: Rate = "5000/s".parse().expect("a rate");
    writeln!(out, "| threads | requests | admitted | the bucket holds | error |\n|---|---|---|---|---|")?;
    for threads in [1, 2, 8, 32] {
        let (admitted, held) = race(threads, rate);
        let error = admitted.abs_diff(held);
        writeln!(out, "| {threads} | {REQUESTS} | {admitted} | {held} | {error} |")?;
    }
    let rate: Rate = "50/h".parse().expect("a rate");
    writeln!(out, "\n| addresses at once | requests | refused by mistake |\n|---|---|---|")?;
    for addresses in [100, 1_000, 10_000, 20_000, 50_000] {
        let refused = shield(addresses, rate);
        let all = u64::from(addresses) * rate.count;
        writeln!(out, "| {addresses} | {all} | {:.4} % |", 100.0 * refused as f64 / all as f64)?;
    }
    Ok(())
}
