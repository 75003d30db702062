//! What it costs to know a caller by its key: among 10, 1,000 and 100,000 keys, and for a key that is right, right once
//! more, unknown, expired or from elsewhere. `cargo run --release --example key_lookup` prints the table of
//! docs/SHARE.md.

use std::hint::black_box;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ai_gateway::auth::{Key, KeyHash, Keyring};
use jiff::Timestamp;

/// Of each kind; they take turns, so that whatever else the machine does meets all alike.
const LOOK_UPS: usize = 200_000;
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// As `ai-gateway key new` makes them.
fn text(kind: &str, number: usize) -> String {
    format!("sk-{kind}{number:064}")
}

/// A third of the keys are right, a third expired, a third from elsewhere.
fn keyring(size: usize) -> Keyring {
    let elsewhere = "10.0.0.0/8".parse().expect("a network");
    let key = |number: usize| Key {
        name: format!("key-{number}"),
        hashes: vec![KeyHash::of(text("known", number).as_bytes())],
        certificates: Vec::new(),
        models: None,
        expires: Some(if number % 3 == 1 { Timestamp::MIN } else { Timestamp::MAX }),
        from: if number % 3 == 2 { vec![elsewhere] } else { Vec::new() },
    };
    Keyring::new((0..size).map(key).collect())
}

#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn time(keyring: &Keyring, text: &str, known: bool) -> Duration {
    let now = Timestamp::UNIX_EPOCH;
    let start = Instant::now();
    let caller = keyring.identify(black_box(text.as_bytes()), HERE, now);
    let time = start.elapsed();
    assert_eq!(caller.is_some(), known, "{text}");
    time
}

/// Medians in nanoseconds: right, right once more, unknown, expired, from elsewhere.
fn medians(keyrings: &[(usize, Keyring)]) -> Vec<[f64; 5]> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut times = vec![[const { Vec::new() }; 5]; keyrings.len()];
    for _ in 0..LOOK_UPS {
        for ((size, keyring), times) in keyrings.iter().zip(&mut times) {
            let mut any = || random.usize(..size / 3) * 3;
            let texts = [
                text("known", any()),
                text("other", any()),
                text("known", any() + 1),
                text("known", any() + 2),
            ];
            let first = random.usize(..4);
            for kind in (0..4).map(|step| (first + step) % 4) {
                times[kind].push(time(keyring, &texts[kind], kind == 0));
                if kind == 0 {
                    times[4].push(time(keyring, &texts[kind], true));
                }
            }
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_nanos() as f64
    };
    times.iter_mut().map(|kinds| [0, 4, 1, 2, 3].map(|kind| median(&mut kinds[kind]))).collect()
}

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    let keyrings: Vec<_> = [10, 1_000, 100_000].map(|size| (size, keyring(size))).into();
    let medians = medians(&keyrings);
    let base = medians[0][0];
    writeln!(
        out,
        "a right key among 10 takes {base} ns (median, the timer included); the table is in multiples of it\n"
    )?;
    writeln!(
        out,
        "| keys | right | right, once more | unknown | expired | from elsewhere |\n|---|---|---|---|---|---|"
    )?;
    for ((size, _), kinds) in keyrings.iter().zip(medians) {
        let cells = kinds.map(|median| format!("{:.2}", median / base));
        writeln!(out, "| {size} | {} |", cells.join(" | "))?;
    }
    Ok(())
}
