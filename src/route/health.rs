//! Whether a server counts as up: a rule over what probes and requests met.
//!
//! A server counts as up until `down_after` consecutive faults say otherwise, and again after `up_after` good probes
//! in a row. An answer to a request clears the faults of a server that is up, but brings none back.

use super::spec::HealthCheck;

/// What was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    GoodProbe,
    /// A request was answered, whatever the answer says.
    Answer,
    /// Refused, broken off, silent, or not ready.
    Fault,
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
    faults: u32,
    good: u32,
}

impl Health {
    pub(super) fn new() -> Self {
        Self { up: true, faults: 0, good: 0 }
    }

    pub(super) fn note(&mut self, sign: Sign, check: &HealthCheck) -> Option<Turn> {
        match sign {
            Sign::Fault => {
                self.good = 0;
                self.faults = self.faults.saturating_add(1);
                let falls = self.up && self.faults >= check.down_after;
                self.up &= !falls;
                falls.then_some(Turn::Down)
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
        ];
        for (signs, up) in cases {
            let mut health = Health::new();
            for sign in signs.chars() {
                health.note(
                    match sign {
                        'f' => Sign::Fault,
                        'a' => Sign::Answer,
                        _ => Sign::GoodProbe,
                    },
                    &check,
                );
            }
            assert_eq!(health.up, up, "{signs}");
        }
    }
}
