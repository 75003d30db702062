//! Whether a server counts as up: a rule over what probes and requests met.
//!
//! A server counts as up until `down_after` consecutive faults, or its own word, say otherwise, and again after
//! `up_after` good probes in a row. An answer to a request clears the faults of a server that is up,
//! but brings none back.

use super::spec::HealthCheck;

/// What was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    GoodProbe,
    /// A request was answered, whatever the answer says.
    Answer,
    /// Refused, broken off, or silent.
    Fault,
    /// A probe's answer that says so itself (503 while a model loads), or a name that leads nowhere: no fault, but
    /// nothing to send requests to.
    NotReady,
}

/// A change worth a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Up,
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) up: bool,
    /// It has answered at least once, or is never asked. Until then requests are sent to it all the same, but nobody
    /// is told that all is well.
    pub(super) seen: bool,
    faults: u32,
    good: u32,
}

impl Health {
    /// `seen`: taken on trust, where it is not probed.
    pub(super) fn new(seen: bool) -> Self {
        Self { up: true, seen, faults: 0, good: 0 }
    }

    pub(super) fn note(&mut self, sign: Sign, check: &HealthCheck) -> Option<Turn> {
        self.seen |= matches!(sign, Sign::GoodProbe | Sign::Answer);
        match sign {
            Sign::Fault => {
                self.good = 0;
                self.faults = self.faults.saturating_add(1);
                let falls = self.up && self.faults >= check.down_after;
                self.up &= !falls;
                falls.then_some(Turn::Down)
            }
            Sign::NotReady => {
                self.good = 0;
                std::mem::replace(&mut self.up, false).then_some(Turn::Down)
            }
            Sign::Answer => {
                if self.up {
                    self.faults = 0;
                }
                None
            }
            Sign::GoodProbe => {
                self.faults = 0;
                self.good = self.good.saturating_add(1);
                let rises = !self.up && self.good >= check.up_after;
                self.up |= rises;
                rises.then_some(Turn::Up)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_faults_take_a_server_out_and_good_probes_bring_it_back() {
        let check = HealthCheck { down_after: 3, up_after: 2, ..HealthCheck::default() };
        let cases = [
            ("ff", true),
            ("fff", false),
            ("ffaff", true),
            ("ffgff", true),
            ("fffa", false),
            ("fffg", false),
            ("fffgfg", false),
            ("fffgg", true),
            ("fffggff", true),
            ("n", false),
            ("na", false),
            ("ngg", true),
        ];
        for (signs, up) in cases {
            let mut health = Health::new(false);
            for sign in signs.chars() {
                health.note(
                    match sign {
                        'f' => Sign::Fault,
                        'a' => Sign::Answer,
                        'n' => Sign::NotReady,
                        _ => Sign::GoodProbe,
                    },
                    &check,
                );
            }
            assert_eq!(health.up, up, "{signs}");
        }
    }
}
