//! Whether a prompt waits for the server that holds most of it, while another has a free slot.
//!
//! It waits where its turn there is likely to come within twice the time that another server would read what this one
//! holds, and no longer. Twice, since what is not read again is time for everybody: docs/FLEET.md has what was
//! measured.

use std::time::Duration;

/// What a new sample counts in the average: one in so many.
const SAMPLES: u32 = 8;

/// Fewer blocks say little of how fast a server reads.
const READ_BLOCKS_LEAST: usize = 2;

/// The wait that is worth it, in times of the reading that it saves.
const WORTH: u32 = 2;

/// Less is not worth a wait, and nobody waits longer.
const PATIENCE_LEAST: Duration = Duration::from_millis(20);
const PATIENCE_MAX: Duration = Duration::from_secs(30);

/// How long servers take to read prompts.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// One block; a moving average. `None`: nothing is known yet.
    block: Option<Duration>,
}

/// Where a prompt could go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prospect {
    /// Blocks of it that the busy server holds, and the best of those with a free slot.
    pub(super) held: usize,
    pub(super) held_elsewhere: usize,
    /// Slots of the busy server, and how many wait for it already.
    pub(super) slots: u32,
    pub(super) before: usize,
    /// How long a slot is held on the whole.
    pub(super) turn: Duration,
}

impl Pace {
    /// Takes in that a server read so many blocks of a prompt.
    pub(super) fn note_read(&mut self, blocks: usize, took: Duration) {
        if blocks < READ_BLOCKS_LEAST || took.is_zero() {
            return;
        }
        let sample = took / u32::try_from(blocks).unwrap_or(u32::MAX);
        let average = |before: Duration| before.saturating_mul(SAMPLES - 1).saturating_add(sample) / SAMPLES;
        self.block = Some(self.block.map_or(sample, average));
    }

    /// How long to wait, if at all.
    pub(super) fn patience(&self, prospect: &Prospect) -> Option<Duration> {
        let Prospect { held, held_elsewhere, slots, before, turn } = *prospect;
        let more = u32::try_from(held.checked_sub(held_elsewhere)?).ok()?;
        let worth = self.block?.saturating_mul(more).saturating_mul(WORTH);
        let before = u32::try_from(before).ok()?;
        // The first of so many turns that began at any moment, and a slot's share of whoever is before.
        let first = turn / slots.saturating_add(1);
        let likely = first.saturating_add(turn.saturating_mul(before) / slots.max(1));
        (worth >= PATIENCE_LEAST && likely <= worth).then(|| worth.min(PATIENCE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROSPECT: Prospect =
        Prospect { held: 12, held_elsewhere: 2, slots: 2, before: 0, turn: Duration::from_millis(1500) };

    fn pace(block_ms: u64) -> Pace {
        let mut pace = Pace::default();
        pace.note_read(10, Duration::from_millis(10 * block_ms));
        pace
    }

    #[test]
    fn a_wait_is_worth_twice_what_it_saves() {
        let two = Duration::from_secs(2);
        let cases = [
            (PROSPECT, 100, Some(two), "likely half a second, to save one"),
            (PROSPECT, 20, None, "likely half a second, to save a fifth of one"),
            (Prospect { before: 3, ..PROSPECT }, 100, None, "others wait already"),
            (Prospect { slots: 8, before: 3, ..PROSPECT }, 100, Some(two), "of many slots one is soon free"),
            (Prospect { held_elsewhere: 12, ..PROSPECT }, 100, None, "another holds as much"),
            (Prospect { held_elsewhere: 13, ..PROSPECT }, 100, None, "another holds more"),
            (Prospect { turn: Duration::ZERO, held: 3, ..PROSPECT }, 1, None, "a moment"),
            (Prospect { turn: Duration::ZERO, ..PROSPECT }, 60_000, Some(PATIENCE_MAX), "there is an end"),
        ];
        for (prospect, block_ms, patience, why) in cases {
            assert_eq!(pace(block_ms).patience(&prospect), patience, "{why}");
        }
        assert_eq!(Pace::default().patience(&PROSPECT), None, "nothing is known");
    }

    #[test]
    fn the_pace_is_an_average_of_what_says_something() {
        let mut pace = pace(100);
        pace.note_read(1, Duration::from_secs(100));
        pace.note_read(10, Duration::ZERO);
        assert_eq!(pace.block, Some(Duration::from_millis(100)));
        pace.note_read(10, Duration::from_millis(9000));
        assert_eq!(pace.block, Some(Duration::from_millis(200)));
        // Whatever a server reports, and however many slots the file gives it.
        (0..2).for_each(|_| pace.note_read(2, Duration::MAX));
        let absurd = Prospect { slots: u32::MAX, before: usize::MAX, turn: Duration::MAX, ..PROSPECT };
        assert_eq!(pace.patience(&absurd), None);
        assert_eq!(pace.patience(&Prospect { before: 0, ..absurd }), Some(PATIENCE_MAX));
    }
}
