//! Texts as a body spells them: where they end, and whether the canonical form (RFC 8785) spells them so.

use super::block::Block;

/// A text, or a name.
#[derive(Clone, Copy)]
pub(super) struct Spelled {
    /// Where it stands, in bytes, quotes included.
    pub(super) start: u32,
    pub(super) end: u32,
    /// Each is one byte more than what it stands for, where all are canonical.
    pub(super) escapes: u32,
    pub(super) spelling: Spelling,
}

/// How a text is spelled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// As RFC 8785 has it, all of it ASCII.
    Ascii,
    /// As RFC 8785 has it.
    Canonical,
    /// In another way, as far as that was looked at.
    Other,
}

/// The text whose first quote stands there; `None`: there is none.
#[inline(always)]
pub(super) fn spelled(text: &[u8], start: usize) -> Option<Spelled> {
    if text.get(start) != Some(&b'"') {
        return None;
    }
    if let Some(short) = short(text, start) {
        return Some(short);
    }
    let (rest, spelling) = long(text, start + 1)?;
    Some(Spelled { start: start as u32, end: rest.end(), escapes: rest.escapes(), spelling })
}

/// What most are: at its end within a block, with no escapes before.
#[inline(always)]
fn short(text: &[u8], start: usize) -> Option<Spelled> {
    let block = Block::at(text, start + 1)?;
    let (marks, quotes) = (block.escaped(), block.quotes());
    let first = marks & marks.wrapping_neg();
    if first & quotes == 0 {
        return None;
    }
    let end = start + 2 + first.trailing_zeros() as usize;
    let is_ascii = block.others() & (first - 1) == 0;
    let spelling = if is_ascii { Spelling::Ascii } else { Spelling::Canonical };
    Some(Spelled { start: start as u32, end: end as u32, escapes: 0, spelling })
}

/// Where a text ends and how many escapes it has: with its spelling two words, which are returned in registers. More go
/// through memory, and took as long as all else.
#[derive(Clone, Copy)]
struct Rest(u64);

impl Rest {
    fn new(end: usize, escapes: u32) -> Self {
        Self(end as u64 | u64::from(escapes) << 32)
    }

    fn end(self) -> u32 {
        self.0 as u32
    }

    fn escapes(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// One that is not. `at`: behind the first quote.
#[inline(never)]
fn long(text: &[u8], mut at: usize) -> Option<(Rest, Spelling)> {
    let (mut escapes, mut others, mut is_canonical) = (0, 0, true);
    loop {
        let block = Block::at(text, at).or_else(|| Block::last(text, at))?;
        let mut marks = block.escaped();
        while marks != 0 {
            let bit = marks.trailing_zeros();
            let place_of_it = at + bit as usize;
            match text.get(place_of_it)? {
                b'"' => {
                    others |= block.others() & !(u32::MAX << bit);
                    let spelling = match (is_canonical, others) {
                        (true, 0) => Spelling::Ascii,
                        (true, _) => Spelling::Canonical,
                        (false, _) => Spelling::Other,
                    };
                    return Some((Rest::new(place_of_it + 1, escapes), spelling));
                }
                b'\\' => is_canonical &= escape(text, place_of_it)?,
                _ => return None,
            }
            escapes += 1;
            if bit == Block::BYTES as u32 - 1 {
                // What is escaped begins the next.
                at += 1;
                break;
            }
            // What is escaped may be marked too, what comes behind it is not: nobody waits for how long the escape is.
            marks &= !(0b11 << bit);
        }
        others |= block.others();
        at += Block::BYTES;
    }
}

/// Whether RFC 8785 is sure to have an escape so.
#[inline]
fn escape(text: &[u8], at: usize) -> Option<bool> {
    let byte = *text.get(at + 1)?;
    if SHORT_ESCAPES[usize::from(byte)] {
        return Some(true);
    }
    match byte {
        // What has another spelling.
        b'/' => Some(false),
        // And what may have one.
        b'u' => text.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit).then_some(false),
        _ => None,
    }
}

/// What stands behind a backslash: a table, where a `match` becomes a jump that is guessed.
const SHORT_ESCAPES: [bool; 256] = {
    let mut escapes = [false; 256];
    let mut all = br#""\nrtbf"#.as_slice();
    while let [escape, rest @ ..] = all {
        escapes[*escape as usize] = true;
        all = rest;
    }
    escapes
};
