//! The gateway's parts, each as work that can be done again and again: what `benches/parts.rs` times and
//! `src/bin/count.rs` counts the instructions of.
//!
//! They are reached as `proxy` reaches them, through what the crate shows. All inputs are made here and are always the
//! same.

mod bodies;
mod streams;
mod limits;
mod prompts;
mod answers;

/// A piece of work.
pub type Work = Box<dyn FnMut()>;

/// A part of a request's way.
pub struct Part {
    /// What it is, and how much of it there is: `cache/hit/1,000 entries`.
    pub name: String,
    /// How often it is done to be counted: often enough that what is random in it makes no difference.
    pub times: u64,
    /// Makes all that it needs.
    make: Box<dyn Fn() -> Work>,
    /// After so many times it is not what it was at first, and is made anew.
    lasts: u64,
}

impl Part {
    fn new(name: impl Into<String>, times: u64, make: impl Fn() -> Work + 'static) -> Self {
        Self { name: name.into(), times, make: Box::new(make), lasts: u64::MAX }
    }

    fn lasting(self, lasts: u64) -> Self {
        Self { lasts, ..self }
    }

    pub fn begin(&self) -> Run<'_> {
        Run { part: self, work: (self.make)(), left: self.lasts }
    }
}

/// A part that is being done.
pub struct Run<'a> {
    part: &'a Part,
    work: Work,
    left: u64,
}

impl Run<'_> {
    /// Does it so many times, as few times in a row as it lasts: `measure` does what it is given so often.
    pub fn times(&mut self, mut times: u64, mut measure: impl FnMut(&mut Work, u64)) {
        while times > 0 {
            if self.left == 0 {
                self.work = (self.part.make)();
                self.left = self.part.lasts;
            }
            let now = times.min(self.left);
            measure(&mut self.work, now);
            (times, self.left) = (times - now, self.left - now);
        }
    }
}

/// All of them, in the order in which a request meets them.
pub fn parts() -> Vec<Part> {
    let all = [limits::parts(), bodies::parts(), prompts::parts(), answers::parts(), streams::parts()];
    all.into_iter().flatten().collect()
}

/// The next of so many, far from the last, all of them in turn: what was near before is not near now.
fn stride(at: usize, all: usize) -> usize {
    // Prime, and no divisor of any size here.
    (at + 7919) % all
}

/// A number with its bits mixed (SplitMix64).
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
