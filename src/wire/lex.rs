//! JSON read in one pass, by who knows what to look for: what is of interest is read, all else passed over.
//!
//! Readers of JSON hand out texts as they are read; here they are known by where they stand, and by whether that is
//! their canonical spelling, which is most of what a body's key takes. Nothing is accepted that is no JSON (RFC 8259):
//! tests and fuzz targets hold it to what serde_json accepts, and to the same values. Texts with escapes in them are
//! read by serde_json, which also names what is wrong in what was refused (`json.rs`).

use std::borrow::Cow;

use serde::de::IgnoredAny;

use super::names::beginning;
use super::spelled::{Spelled, spelled};
use super::value::Number;

/// Lists and objects within each other: serde_json's bound, and not more than a thread's stack has room for.
pub(super) const DEPTH_MAX: u8 = 127;

/// From here on the standard library may take forty times as long as serde_json for the same double: 9 µs where many
/// digits lie halfway between two. Far beyond, exponents matter that it takes for others: it stops reading at 65,536.
const LONG_NUMERAL_BYTES: usize = 20;

/// A JSON text of less than 4 GiB, as far as it was read: up to a value's first byte, wherever one is to be read. What
/// gives `None` has met what is no JSON, or not what was asked for; nothing more is to be read then. Texts that are
/// passed over need not be UTF-8.
#[derive(Clone)]
pub(super) struct Lex<'a> {
    text: &'a [u8],
    at: usize,
    /// Lists and objects that are begun.
    depth: u8,
}

impl<'a> Lex<'a> {
    /// `None`: it has nothing but blanks.
    pub(super) fn of(text: &'a [u8]) -> Option<Self> {
        let mut lex = Self { text, at: 0, depth: 0 };
        lex.pass_blanks().map(|_| lex)
    }

    /// Where the reading was.
    pub(super) fn at_place(text: &'a [u8], at: usize) -> Self {
        Self { text, at, depth: 0 }
    }

    /// Where the reading is, in bytes.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    #[inline]
    pub(super) fn byte(&self, at: usize) -> Option<u8> {
        self.text.get(at).copied()
    }

    pub(super) fn go_to(&mut self, at: usize) {
        self.at = at;
    }

    /// Reads by a copy, so that the place stays in a register: what it reads may be a call.
    #[inline(always)]
    pub(super) fn apart<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let mut copy = self.clone();
        let found = read(&mut copy)?;
        self.at = copy.at;
        Some(found)
    }

    /// Whether there is nothing more but blanks.
    pub(super) fn is_over(&mut self) -> bool {
        self.pass_blanks().is_none()
    }

    /// The next byte: what a value is, by how it begins.
    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.byte(self.at)
    }

    /// The next byte that is no blank, which is not passed.
    #[inline]
    pub(super) fn pass_blanks(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
        self.peek()
    }

    /// Passes the next byte that is no blank.
    #[inline]
    fn next(&mut self) -> Option<u8> {
        let byte = self.pass_blanks()?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    pub(super) fn pass(&mut self, expected: u8) -> Option<()> {
        let is_there = self.peek() == Some(expected);
        self.at += 1;
        is_there.then_some(())
    }

    /// Passes the next byte if it is this one.
    #[inline]
    pub(super) fn passes(&mut self, expected: u8) -> bool {
        if self.peek() != Some(expected) {
            return false;
        }
        self.at += 1;
        true
    }

    /// Reads an object. `each` is given the name of each member, and reads or skips its value.
    #[inline]
    pub(super) fn object(&mut self, mut each: impl FnMut(&mut Self, Spelled) -> Option<()>) -> Option<()> {
        self.pass(b'{')?;
        self.up_to(b'}', |lex| {
            let name = lex.name()?;
            lex.pass_blanks()?;
            each(lex, name)
        })
    }

    /// A member's name, and what stands between it and the blanks before its value.
    #[inline(always)]
    pub(super) fn name(&mut self) -> Option<Spelled> {
        let name = self.string()?;
        if !self.passes(b':') {
            self.pass_blanks()?;
            self.pass(b':')?;
        }
        Some(name)
    }

    /// The same, by names as they are read.
    pub(super) fn members(&mut self, mut each: impl FnMut(&mut Self, &[u8]) -> Option<()>) -> Option<()> {
        self.object(|lex, name| {
            if name.escapes == 0 {
                return each(lex, lex.inside(name)?);
            }
            let name = lex.read(name)?;
            each(lex, name.as_bytes())
        })
    }

    /// Reads a list. `each` reads or skips one value.
    #[inline]
    pub(super) fn list(&mut self, each: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.pass(b'[')?;
        self.up_to(b']', each)
    }

    /// What stands between commas, up to the end of the list or object that was begun.
    #[inline]
    fn up_to(&mut self, end: u8, mut each: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return None;
        }
        self.pass_blanks()?;
        if !self.passes(end) {
            loop {
                each(self)?;
                if !self.comma(end)? {
                    break;
                }
                self.pass_blanks()?;
            }
        }
        self.depth -= 1;
        Some(())
    }

    /// Passes what comes behind a value, a comma or the end of its list or object; whether it was a comma. Blanks may
    /// come behind it.
    #[inline]
    pub(super) fn comma(&mut self, end: u8) -> Option<bool> {
        if !self.passes(b',') {
            match self.next()? {
                b',' => {}
                byte if byte == end => return Some(false),
                _ => return None,
            }
        }
        Some(true)
    }

    pub(super) fn null(&mut self) -> Option<()> {
        self.word("null")
    }

    pub(super) fn bool(&mut self) -> Option<bool> {
        let is_true = self.peek()? == b't';
        self.word(if is_true { "true" } else { "false" }).map(|()| is_true)
    }

    fn word(&mut self, word: &str) -> Option<()> {
        let rest = self.text.get(self.at..)?;
        self.at += word.len();
        rest.starts_with(word.as_bytes()).then_some(())
    }

    /// Passes over a value of any kind, however deep.
    pub(super) fn skip(&mut self) -> Option<()> {
        match self.peek()? {
            b'{' | b'[' if self.depth == DEPTH_MAX => self.skip_deep(),
            b'"' => self.string().map(drop),
            b'{' => self.object(|lex, _| lex.skip()),
            b'[' => self.list(Self::skip),
            b'n' => self.null(),
            b't' | b'f' => self.bool().map(drop),
            _ => self.numeral().map(drop),
        }
    }

    /// The same where there is no going deeper: serde_json's way needs no stack.
    #[cold]
    fn skip_deep(&mut self) -> Option<()> {
        let mut rest =
            serde_json::Deserializer::from_slice(self.text.get(self.at..)?).into_iter::<IgnoredAny>();
        rest.next()?.ok()?;
        self.at += rest.byte_offset();
        Some(())
    }

    /// A number: an integer of 64 bits, or else the nearest double, if it is one.
    pub(super) fn number(&mut self) -> Option<Number> {
        let (numeral, is_integer) = self.numeral()?;
        if is_integer {
            if let Ok(number) = numeral.parse() {
                return Some(Number::Unsigned(number));
            }
            // A zero below zero is a double.
            if let Ok(number @ ..0) = numeral.parse() {
                return Some(Number::Signed(number));
            }
        }
        let double: Option<f64> = match numeral.len() < LONG_NUMERAL_BYTES {
            true => numeral.parse().ok(),
            false => serde_json::from_str(numeral).ok(),
        };
        double.filter(|double| double.is_finite()).map(Number::Double)
    }

    /// A number as it is spelled, and whether as an integer.
    fn numeral(&mut self) -> Option<(&'a str, bool)> {
        let start = self.at;
        let mut is_integer = true;
        self.at += usize::from(self.peek() == Some(b'-'));
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
            is_integer = false;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.digits()?;
            is_integer = false;
        }
        Some((str::from_utf8(self.text.get(start..self.at)?).ok()?, is_integer))
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    /// A text, or a name.
    #[inline(always)]
    pub(super) fn string(&mut self) -> Option<Spelled> {
        let spelled = spelled(self.text, self.at)?;
        self.at = spelled.end as usize;
        Some(spelled)
    }

    /// How a name begins that has no escapes.
    #[inline(always)]
    pub(super) fn beginning(&self, name: Spelled) -> u64 {
        let start = name.start as usize + 1;
        beginning(self.text, start, name.end as usize - 1 - start)
    }

    /// A text as it is read; `None` also where it is no UTF-8.
    pub(super) fn read(&self, text: Spelled) -> Option<Cow<'a, str>> {
        if text.escapes == 0 {
            return str::from_utf8(self.inside(text)?).ok().map(Cow::Borrowed);
        }
        serde_json::from_slice(self.text.get(text.start as usize..text.end as usize)?).ok().map(Cow::Owned)
    }

    /// What stands between a text's quotes.
    pub(super) fn inside(&self, text: Spelled) -> Option<&'a [u8]> {
        self.text.get(text.start as usize + 1..text.end as usize - 1)
    }
}
