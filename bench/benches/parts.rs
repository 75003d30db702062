//! Times each part of a request's way: `make bench-parts`, or some of them by name, `make bench-parts PARTS=cache`.

use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    for part in bench::parts() {
        // Made where it is measured alone: a million entries are not made in vain.
        let mut run = None;
        let mut group = criterion.benchmark_group("parts");
        group.sampling_mode(SamplingMode::Flat);
        group.bench_function(&part.name, |bencher| {
            let run = run.get_or_insert_with(|| part.begin());
            bencher.iter_custom(|times| {
                let mut took = Duration::ZERO;
                run.times(times, |work, times| {
                    let begun = Instant::now();
                    (0..times).for_each(|_| work());
                    took += begun.elapsed();
                });
                took
            });
        });
        group.finish();
    }
    criterion.final_summary();
}
