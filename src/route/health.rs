//! Whether a server counts as up: one rule over what its probes and its requests met.
//!
//! Probes say whether it is there: `down_after` consecutive misses, or its own word, and it is away, until `up_after`
//! good probes in a row say that it is back. A good probe does not vouch for more: a server may be well and break every
//! request. So requests have a breaker. It opens at `down_after` consecutive faults of the server's own making; after a
//! pause, which grows with every trial that fails, one request may try the server, and its answer closes the breaker.
//! The first pause ends with `up_after` good probes too, since the server may simply have been started again; what
//! comes back after it was away has a closed breaker.

use std::time::Duration;

use super::spec::HealthCheck;

/// The first pause of a breaker, and the longest; each is twice the one before.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A pause is shorter by up to this part of it, so that not all servers are tried at once.
const JITTER_PART: f64 = 0.25;

/// What was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    GoodProbe,
    /// A probe that was refused, broken off, or not answered.
    BadProbe,
    /// A probe's answer that says so itself (503 while a model loads), or a name that leads nowhere: no fault, but
    /// nothing to send requests to.
    NotReady,
    /// A request's answer has begun, whatever it says.
    Answer,
    /// A request's answer has come to its end.
    Whole,
    /// A request met a fault of the server's own making.
    Fault,
}

/// A change worth a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Up,
    /// Until its probes are good.
    Down,
    /// Its breaker has opened, for so long.
    Open(Opening),
    /// One request may try it.
    Trial,
}

/// One opening of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// Tells it from those before and after it.
    number: u64,
    pub pause: Duration,
}

/// Whether requests go to a server, by what requests have met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breaker {
    Closed,
    /// One request at a time, until one is answered. `trying`: it is under way.
    HalfOpen {
        trying: bool,
    },
    Open,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Health {
    /// It has answered at least once, or is never asked. Until then requests are sent to it all the same, but nobody
    /// is told that all is well.
    pub(super) seen: bool,
    /// By its probes or its own word.
    away: bool,
    /// Probes in a row.
    missed: u32,
    good: u32,
    breaker: Breaker,
    /// Of requests, with no whole answer in between.
    faults: u32,
    /// Openings with no whole answer in between.
    openings: u32,
    /// All of them.
    number: u64,
}

impl Health {
    /// `seen`: taken on trust, where it is not probed.
    pub(super) fn new(seen: bool) -> Self {
        Self {
            seen,
            away: false,
            missed: 0,
            good: 0,
            breaker: Breaker::Closed,
            faults: 0,
            openings: 0,
            number: 0,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        !self.away && self.breaker != Breaker::Open
    }

    /// Whether the next request may go to it.
    pub(super) fn takes_requests(&self) -> bool {
        !self.away && matches!(self.breaker, Breaker::Closed | Breaker::HalfOpen { trying: false })
    }

    /// Whether any number of requests may go to it.
    pub(super) fn is_settled(&self) -> bool {
        !self.away && self.breaker == Breaker::Closed
    }

    pub(super) fn breaker(&self) -> Breaker {
        self.breaker
    }

    /// `jitter`: from 0 to 1.
    pub(super) fn note(&mut self, sign: Sign, check: &HealthCheck, jitter: f64) -> Option<Turn> {
        self.seen |= matches!(sign, Sign::GoodProbe | Sign::Answer | Sign::Whole);
        match sign {
            Sign::GoodProbe => self.good_probe(check),
            Sign::BadProbe => {
                self.good = 0;
                self.missed = self.missed.saturating_add(1);
                // What requests met counts too: it may have died under them.
                let faults = self.missed.saturating_add(self.faults);
                if faults >= check.down_after { self.leave() } else { None }
            }
            Sign::NotReady => {
                self.good = 0;
                self.leave()
            }
            Sign::Answer => {
                self.missed = 0;
                let closes = matches!(self.breaker, Breaker::HalfOpen { .. });
                if closes {
                    self.close();
                }
                (closes && !self.away).then_some(Turn::Up)
            }
            Sign::Whole => {
                if self.breaker == Breaker::Closed {
                    (self.faults, self.openings) = (0, 0);
                }
                None
            }
            Sign::Fault => {
                self.faults = self.faults.saturating_add(1);
                let opens = match self.breaker {
                    Breaker::Closed => self.faults >= check.down_after,
                    // Without a trial it is a fault of before.
                    Breaker::HalfOpen { trying } => trying,
                    Breaker::Open => false,
                };
                (opens && !self.away).then(|| Turn::Open(self.open(jitter)))
            }
        }
    }

    fn good_probe(&mut self, check: &HealthCheck) -> Option<Turn> {
        self.missed = 0;
        self.good = self.good.saturating_add(1);
        if self.good < check.up_after {
            return None;
        }
        if self.away {
            self.away = false;
            self.openings = 0;
            self.close();
            return Some(Turn::Up);
        }
        let tries = self.breaker == Breaker::Open && self.openings == 1;
        tries.then(|| self.half_open())
    }

    /// It is away, if it was not before.
    fn leave(&mut self) -> Option<Turn> {
        let was_up = self.is_up();
        self.away = true;
        was_up.then_some(Turn::Down)
    }

    fn open(&mut self, jitter: f64) -> Opening {
        self.breaker = Breaker::Open;
        self.good = 0;
        self.openings = self.openings.saturating_add(1);
        self.number += 1;
        Opening { number: self.number, pause: pause(self.openings, jitter) }
    }

    fn half_open(&mut self) -> Turn {
        self.breaker = Breaker::HalfOpen { trying: false };
        Turn::Trial
    }

    fn close(&mut self) {
        self.breaker = Breaker::Closed;
        self.faults = 0;
    }

    /// The pause of this opening is over.
    pub(super) fn pause_ends(&mut self, opening: Opening) -> Option<Turn> {
        let is_it = self.breaker == Breaker::Open && self.number == opening.number;
        let trial = is_it.then(|| self.half_open());
        trial.filter(|_| !self.away)
    }

    /// There is no other: it gets requests as if it had not failed.
    pub(super) fn reinstate(&mut self) -> Option<Turn> {
        let closes = !self.away && self.breaker != Breaker::Closed;
        closes.then(|| {
            self.close();
            Turn::Up
        })
    }

    /// A request goes to it, if it still takes any. True: as the trial.
    pub(super) fn begin(&mut self) -> Option<bool> {
        self.takes_requests().then(|| self.begin_trial())
    }

    fn begin_trial(&mut self) -> bool {
        let begins = self.breaker == Breaker::HalfOpen { trying: false };
        if begins {
            self.breaker = Breaker::HalfOpen { trying: true };
        }
        begins
    }

    /// The trial has ended. Where it has told nothing, as when its caller left, the next request is one.
    pub(super) fn end_trial(&mut self) {
        if self.breaker == (Breaker::HalfOpen { trying: true }) {
            self.breaker = Breaker::HalfOpen { trying: false };
        }
    }
}

/// The pause after so many openings in a row.
fn pause(openings: u32, jitter: f64) -> Duration {
    let doubled = PAUSE.saturating_mul(1 << openings.saturating_sub(1).min(16));
    doubled.min(PAUSE_MAX).mul_f64(1.0 - JITTER_PART * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a row of signs: `g`ood and `b`ad probes, `n`ot ready, an `a`nswer and its `w`hole, a `f`ault;
    /// `.` ends the pause, `t` begins a trial, `x` ends one, `!` says that there is no other server.
    fn after(signs: &str, check: &HealthCheck) -> Health {
        let mut health = Health::new(false);
        let mut opening = None;
        for sign in signs.chars() {
            let turn = match sign {
                'g' => health.note(Sign::GoodProbe, check, 0.0),
                'b' => health.note(Sign::BadProbe, check, 0.0),
                'n' => health.note(Sign::NotReady, check, 0.0),
                'a' => health.note(Sign::Answer, check, 0.0),
                'w' => health.note(Sign::Whole, check, 0.0),
                'f' => health.note(Sign::Fault, check, 0.0),
                '.' => health.pause_ends(opening.expect("it has opened")),
                't' => {
                    health.begin_trial();
                    None
                }
                'x' => {
                    health.end_trial();
                    None
                }
                _ => health.reinstate(),
            };
            if let Some(Turn::Open(now)) = turn {
                opening = Some(now);
            }
        }
        health
    }

    #[test]
    fn probes_take_a_server_out_and_bring_it_back() {
        let check = HealthCheck { down_after: 3, up_after: 2, ..HealthCheck::default() };
        let cases = [
            ("bb", true),
            ("bbb", false),
            ("bbabb", true),
            ("bbgbb", true),
            ("bbba", false),
            ("bbbg", false),
            ("bbbgbg", false),
            ("bbbgg", true),
            ("bbbggbb", true),
            ("n", false),
            ("naw", false),
            ("ngg", true),
            ("ffb", false),
            ("ffbgg", true),
            // What comes back after it was away has nothing on its breaker.
            ("fffbgg", true),
            ("fffbggff", true),
            ("fff.tfbgg", true),
        ];
        for (signs, up) in cases {
            assert_eq!(after(signs, &check).is_up(), up, "{signs}");
        }
    }

    #[test]
    fn a_breaker_opens_is_tried_by_one_request_and_closes_on_its_answer() {
        use Breaker::{Closed, HalfOpen, Open};
        let (free, busy) = (HalfOpen { trying: false }, HalfOpen { trying: true });
        let check = HealthCheck { down_after: 3, up_after: 2, ..HealthCheck::default() };
        let cases = [
            ("ff", Closed),
            ("fff", Open),
            ("ffawff", Closed),
            // Probes do not vouch for requests, nor does an answer that never ends.
            ("ffgggf", Open),
            ("fafaf", Open),
            ("fffaw", Open),
            ("fff.", free),
            ("fffg", Open),
            ("fffgg", free),
            ("ggfff", Open),
            ("fff.t", busy),
            ("fff.tt", busy),
            ("fff.tx", free),
            ("fff.f", free),
            ("fff.ta", Closed),
            ("fff.tax", Closed),
            ("fff.tf", Open),
            // From the second pause on, probes do not shorten it.
            ("fff.tfgggg", Open),
            ("fff.tf.", free),
            ("fff.tawff", Closed),
            ("fff!", Closed),
            ("fff.t!", Closed),
        ];
        for (signs, breaker) in cases {
            let health = after(signs, &check);
            assert_eq!(health.breaker(), breaker, "{signs}");
            assert_eq!(health.takes_requests(), matches!(breaker, Closed) || breaker == free, "{signs}");
        }
    }

    #[test]
    fn a_pause_doubles_up_to_a_bound() {
        let seconds = |openings, jitter| pause(openings, jitter).as_secs_f64();
        let doubled: Vec<f64> = (1..=7).map(|openings| seconds(openings, 0.0)).collect();
        assert_eq!(doubled, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        assert_eq!((seconds(2, 1.0), seconds(u32::MAX, 1.0)), (1.5, 22.5));
    }

    #[test]
    fn a_pause_that_is_over_does_not_end_a_later_one() {
        let check = HealthCheck { down_after: 1, up_after: 1, ..HealthCheck::default() };
        let mut health = Health::new(true);
        let Some(Turn::Open(first)) = health.note(Sign::Fault, &check, 0.0) else { panic!("it opens") };
        assert_eq!(health.note(Sign::GoodProbe, &check, 0.0), Some(Turn::Trial));
        health.begin_trial();
        let Some(Turn::Open(second)) = health.note(Sign::Fault, &check, 0.0) else {
            panic!("it opens again")
        };
        assert_eq!((health.pause_ends(first), health.breaker()), (None, Breaker::Open));
        assert_eq!(health.pause_ends(second), Some(Turn::Trial));
    }
}
