//! RFC 8785: the one way to write a value, whatever the order of its members, its white space and its escapes.
//!
//! Except that integers keep all their digits: llama-server reads a 64-bit seed exactly, so two seeds above 2^53 must
//! not meet in one double.

use std::io::{self, Write};

use super::block::Block;
use super::names::order_of_names;
use super::value::{Json, Name, Number, Text, Value};

/// Small pieces gather up to here before they are written.
const GATHERED_BYTES: usize = 4 << 10;

/// Room for this is there from the start: what most bodies are.
const USUAL_BYTES: usize = 1 << 10;

/// Writes values.
pub struct Canonical<W> {
    out: W,
    gathered: Vec<u8>,
    may_be_rounded: bool,
}

impl<W: Write> Canonical<W> {
    pub fn to(out: W) -> Self {
        Self { out, gathered: Vec::with_capacity(USUAL_BYTES), may_be_rounded: false }
    }

    /// What it was written to, with all of it.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&self.gathered)?;
        Ok(self.out)
    }

    /// Whether there was a number that may have been an integer of more than 64 bits: these are read as doubles, many
    /// as the same one, and only a server knows whether they are the same to it.
    pub fn may_be_rounded(&self) -> bool {
        self.may_be_rounded
    }

    pub fn value(&mut self, value: Value<'_>) -> io::Result<()> {
        match value.read() {
            Json::Null => self.gathered.extend_from_slice(b"null"),
            Json::Bool(true) => self.gathered.extend_from_slice(b"true"),
            Json::Bool(false) => self.gathered.extend_from_slice(b"false"),
            Json::Number(number) => self.number(number)?,
            Json::Text(text) => self.text(text)?,
            Json::List(list) => {
                self.gathered.push(b'[');
                for (index, item) in list.enumerate() {
                    if index > 0 {
                        self.gathered.push(b',');
                    }
                    self.value(item)?;
                }
                self.gathered.push(b']');
            }
            Json::Object(_) => self.members(value.in_order())?,
        }
        self.pass_on(GATHERED_BYTES)
    }

    /// An object of these members, of which no two have one name.
    pub fn object<'a>(&mut self, members: impl Iterator<Item = Name<'a>>) -> io::Result<()> {
        let mut members: Vec<Name<'_>> = members.collect();
        members.sort_unstable_by(|one, other| order_of_names(*one, *other));
        self.members(members.into_iter())
    }

    /// An object of these members, which are in their order.
    fn members<'a>(&mut self, members: impl Iterator<Item = Name<'a>>) -> io::Result<()> {
        self.gathered.push(b'{');
        for (index, name) in members.enumerate() {
            if index > 0 {
                self.gathered.push(b',');
            }
            if let Some(spelled) = name.with_text() {
                self.spelled(spelled)?;
                self.pass_on(GATHERED_BYTES)?;
                continue;
            }
            self.name(name)?;
            self.gathered.push(b':');
            self.value(name.value())?;
        }
        self.gathered.push(b'}');
        Ok(())
    }

    /// Writes what has gathered, if it is so much.
    fn pass_on(&mut self, bytes: usize) -> io::Result<()> {
        if self.gathered.len() >= bytes {
            self.out.write_all(&self.gathered)?;
            self.gathered.clear();
        }
        Ok(())
    }

    fn text(&mut self, text: Text<'_>) -> io::Result<()> {
        match text.canonical() {
            Some(spelled) => self.spelled(spelled),
            None => self.quoted(&text.read()),
        }
    }

    fn name(&mut self, name: Name<'_>) -> io::Result<()> {
        match name.canonical() {
            Some(spelled) => self.spelled(spelled),
            None => self.quoted(name.text()),
        }
    }

    /// Writes what is spelled as it is to be.
    fn spelled(&mut self, spelled: &[u8]) -> io::Result<()> {
        if spelled.len() < GATHERED_BYTES {
            self.gathered.extend_from_slice(spelled);
            return Ok(());
        }
        self.pass_on(0)?;
        self.out.write_all(spelled)
    }

    fn quoted(&mut self, text: &str) -> io::Result<()> {
        self.gathered.push(b'"');
        for piece in text.as_bytes().chunks(GATHERED_BYTES) {
            escape(piece, &mut self.gathered);
            self.pass_on(GATHERED_BYTES)?;
        }
        self.gathered.push(b'"');
        Ok(())
    }

    /// As ECMAScript writes doubles. It rounds whole ones above 2^53 to 17 digits, which are those of another integer,
    /// so these keep all theirs.
    fn number(&mut self, number: Number) -> io::Result<()> {
        const EXACT: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
        const EXPONENT: f64 = 1e21;
        const INTEGERS: f64 = (1_u64 << 63) as f64;
        match number {
            Number::Unsigned(number) => {
                self.gathered.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
            }
            Number::Signed(number) => {
                self.gathered.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
            }
            Number::Double(double) => {
                self.may_be_rounded |= double.abs() >= INTEGERS;
                if (EXACT..EXPONENT).contains(&double.abs()) {
                    write!(self.gathered, "{double:.0}")?;
                } else {
                    self.gathered.extend_from_slice(ryu_js::Buffer::new().format(double).as_bytes());
                }
            }
        }
        Ok(())
    }
}

/// Adds a piece of a text as RFC 8785 escapes it (section 3.2.2.2): short escapes, else lower-case `\u00xx`, nothing
/// beyond. A block at a time: a copy of that many is one store, and code has an escape every few words.
fn escape(mut text: &[u8], out: &mut Vec<u8>) {
    while let Some((bytes, rest)) = text.split_first_chunk() {
        out.extend_from_slice(bytes);
        let marks = Block::of(*bytes).escaped();
        if marks == 0 {
            text = rest;
            continue;
        }
        let plain = marks.trailing_zeros() as usize;
        out.truncate(out.len() - Block::BYTES + plain);
        escape_byte(bytes[plain], out);
        text = &text[plain + 1..];
    }
    text.iter().for_each(|byte| escape_byte(*byte, out));
}

fn escape_byte(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        0..0x20 => {
            let hex = |digit: u8| HEX[usize::from(digit & 15)];
            return out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte)]);
        }
        plain => return out.push(plain),
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests;
