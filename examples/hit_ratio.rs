//! The hit ratio of the store beside a plain LRU of the same bytes, on a Zipf trace, with and without a flood of
//! requests that come once. `cargo run --release --example hit_ratio` prints the table of docs/CACHE.md.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::time::Duration;

use ai_gateway::cache::{Answer, CachePolicy, Form, Key, Store, Worth};
use bytes::Bytes;
use tinyufo::TinyUfo;

const KEYS: u64 = 100_000;
/// Of the Zipf trace; a flood sends as many between them.
const REQUESTS: u64 = 1_000_000;
/// What the store counts an answer beyond its bytes; the LRU is charged the same.
const OVERHEAD_BYTES: usize = 384;

/// Plain LRU: at a hit to the front, out from the back.
#[derive(Default)]
struct Lru {
    used: HashMap<u64, (u64, usize)>,
    order: BTreeMap<u64, u64>,
    bytes: usize,
    turn: u64,
}

impl Lru {
    fn touch(&mut self, key: u64) -> bool {
        self.turn += 1;
        let Some((turn, _)) = self.used.get_mut(&key) else { return false };
        self.order.remove(turn);
        *turn = self.turn;
        self.order.insert(self.turn, key);
        true
    }

    fn keep(&mut self, key: u64, bytes: usize, bytes_max: usize) {
        self.turn += 1;
        self.used.insert(key, (self.turn, bytes));
        self.order.insert(self.turn, key);
        self.bytes += bytes;
        while self.bytes > bytes_max {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.bytes -= self.used.remove(&oldest).map_or(0, |(_, bytes)| bytes);
        }
    }
}

/// Ranks from 0, by the cumulated weights of `1 / rank^alpha`.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(alpha: f64) -> Self {
        let mut sum = 0.0;
        let weights = (1..=KEYS).map(|rank| (rank as f64).powf(-alpha));
        Self(
            weights
                .map(|weight| {
                    sum += weight;
                    sum
                })
                .collect(),
        )
    }

    fn draw(&self, random: &mut fastrand::Rng) -> u64 {
        let at = random.f64() * self.0.last().copied().unwrap_or_default();
        self.0.partition_point(|sum| *sum < at) as u64
    }
}

/// 0.5 to 64 KiB, each octave as likely as another, always the same for a key.
fn size(key: u64) -> usize {
    let random = fastrand::Rng::with_seed(key ^ 0x5eed).f64();
    (512.0 * 128_f64.powf(random)) as usize
}

fn full(key: u64) -> Key {
    let mut full = [0; 32];
    full[..8].copy_from_slice(&key.to_be_bytes());
    full
}

/// Hits in percent of the store, of an LRU, and of TinyUFO where `put` may turn newcomers away, of the requests that are not the flood's.
fn run(zipf: &Zipf, size_mib: u64, flood: bool) -> [f64; 3] {
    let bytes_max = size_mib << 20;
    let policy = CachePolicy { size_bytes_max: bytes_max, ..CachePolicy::default() };
    let (store, mut lru) = (Store::new(policy), Lru::default());
    let body = Bytes::from(vec![b'x'; 64 << 10]);
    let mut random = fastrand::Rng::with_seed(1);
    let choosy = TinyUfo::<u64, ()>::new((bytes_max >> 10) as usize, (bytes_max >> 12) as usize);
    let mut hits = [0_u64; 3];
    for number in 0..REQUESTS * if flood { 2 } else { 1 } {
        let once = flood && number % 2 == 1;
        let key = if once { KEYS + number } else { zipf.draw(&mut random) };
        let bytes = size(key);
        let in_store = store.look_up(&full(key), Duration::ZERO, None).is_some();
        let in_lru = lru.touch(key);
        let in_choosy = choosy.get(&key).is_some();
        if !in_store {
            let answer = Answer {
                form: Form::Plain,
                content_type: Bytes::new(),
                body: body.slice(..bytes),
                worth: Worth::default(),
            };
            store.keep(full(key), answer, Duration::ZERO);
        }
        if !in_lru {
            lru.keep(key, bytes + OVERHEAD_BYTES, bytes_max as usize);
        }
        if !in_choosy {
            let kib = (bytes + OVERHEAD_BYTES).div_ceil(1 << 10);
            choosy.put(key, (), u16::try_from(kib).unwrap_or(u16::MAX));
        }
        if !once {
            for (hits, hit) in hits.iter_mut().zip([in_store, in_lru, in_choosy]) {
                *hits += u64::from(hit);
            }
        }
    }
    hits.map(|hits| 100.0 * hits as f64 / REQUESTS as f64)
}

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "| trace | `size` | this store | plain LRU | with `put` |\n|---|---|---|---|---|")?;
    for alpha in [0.9, 1.1] {
        let zipf = Zipf::new(alpha);
        for flood in [false, true] {
            for size_mib in [16, 64, 256] {
                let [store, lru, choosy] = run(&zipf, size_mib, flood);
                let trace = if flood { ", as many one-off requests between" } else { "" };
                writeln!(
                    out,
                    "| Zipf {alpha}{trace} | {size_mib}MiB | {store:.1} % | {lru:.1} % | {choosy:.1} % |"
                )?;
            }
        }
    }
    Ok(())
}
