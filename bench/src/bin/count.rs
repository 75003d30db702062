//! Does one part so many times, for callgrind to count what `counted` does: scripts/instructions.py runs it, once for
//! each part. Without a part it lists them, each with how many times that is.

use std::hint::black_box;
use std::process::ExitCode;

use bench::Work;

/// The gateway's own: what it allocates is to cost the same here.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let parts = bench::parts();
    let Some(name) = std::env::args().nth(1) else {
        parts.iter().for_each(|part| println!("{}\t{}", part.times, part.name));
        return ExitCode::SUCCESS;
    };
    let Some(part) = parts.iter().find(|part| part.name == name) else {
        eprintln!("error: there is no part `{name}`");
        return ExitCode::FAILURE;
    };
    // What is done once in a process is done here.
    let mut run = part.begin();
    run.times(part.times.min(10), |work, times| (0..times).for_each(|_| work()));
    run.times(part.times, counted);
    ExitCode::SUCCESS
}

/// Callgrind finds it by its name.
#[inline(never)]
fn counted(work: &mut Work, times: u64) {
    for _ in 0..times {
        black_box(&mut *work)();
    }
}
