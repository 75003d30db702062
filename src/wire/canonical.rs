//! RFC 8785: the one way to write a value, whatever the order of its members, its white space and its escapes.
//!
//! Except that integers keep all their digits: llama-server reads a 64-bit seed exactly, so two seeds above 2^53 must
//! not meet in one double.

use std::cmp::Ordering;
use std::io::{self, Write};

use super::tree::{Json, Number, Text, Value};

/// Writes values.
pub struct Canonical<'a, W> {
    out: W,
    /// The members of the objects that are being written, each object's in their order.
    sorted: Vec<(Text<'a>, Value<'a>)>,
    may_be_rounded: bool,
}

impl<'a, W: Write> Canonical<'a, W> {
    pub fn to(out: W) -> Self {
        Self { out, sorted: Vec::new(), may_be_rounded: false }
    }

    pub fn out(self) -> W {
        self.out
    }

    /// Whether there was a number that may have been an integer of more than 64 bits: these are read as doubles, many
    /// as the same one, and only a server knows whether they are the same to it.
    pub fn may_be_rounded(&self) -> bool {
        self.may_be_rounded
    }

    pub fn value(&mut self, value: Value<'a>) -> io::Result<()> {
        match value.read() {
            Json::Null => self.out.write_all(b"null"),
            Json::Bool(true) => self.out.write_all(b"true"),
            Json::Bool(false) => self.out.write_all(b"false"),
            Json::Number(number) => self.number(number),
            Json::Text(text) => self.text(text),
            Json::List(list) => {
                self.out.write_all(b"[")?;
                for (index, item) in list.enumerate() {
                    if index > 0 {
                        self.out.write_all(b",")?;
                    }
                    self.value(item)?;
                }
                self.out.write_all(b"]")
            }
            Json::Object(members) => self.object(members),
        }
    }

    /// No two members have one name.
    pub fn object(&mut self, members: impl Iterator<Item = (Text<'a>, Value<'a>)>) -> io::Result<()> {
        let first = self.sorted.len();
        self.sorted.extend(members);
        let end = self.sorted.len();
        if let Some(members) = self.sorted.get_mut(first..)
            && !members.is_sorted_by(|(one, _), (other, _)| order(one.text, other.text).is_lt())
        {
            members.sort_unstable_by(|(one, _), (other, _)| order(one.text, other.text));
        }
        self.out.write_all(b"{")?;
        for at in first..end {
            // Objects within it have come and gone behind these.
            let Some((name, value)) = self.sorted.get(at).copied() else { break };
            if at > first {
                self.out.write_all(b",")?;
            }
            self.text(name)?;
            self.out.write_all(b":")?;
            self.value(value)?;
        }
        self.sorted.truncate(first);
        self.out.write_all(b"}")
    }

    /// A text as RFC 8785 escapes it (section 3.2.2.2): short escapes, else lower-case `\u00xx`, nothing beyond. Most of
    /// a text needs none, and is passed on in long pieces.
    fn text(&mut self, Text { text, is_plain }: Text<'_>) -> io::Result<()> {
        self.out.write_all(b"\"")?;
        let mut rest = text.as_bytes();
        while !is_plain && let Some(at) = plain_bytes(rest) {
            let (plain, more) = rest.split_at(at);
            self.out.write_all(plain)?;
            // What must be escaped is ASCII: one byte.
            let (escaped, more) = more.split_at(1);
            match escaped {
                b"\"" => self.out.write_all(b"\\\"")?,
                b"\\" => self.out.write_all(b"\\\\")?,
                b"\n" => self.out.write_all(b"\\n")?,
                b"\r" => self.out.write_all(b"\\r")?,
                b"\t" => self.out.write_all(b"\\t")?,
                b"\x08" => self.out.write_all(b"\\b")?,
                b"\x0c" => self.out.write_all(b"\\f")?,
                other => write!(self.out, "\\u{:04x}", other[0])?,
            }
            rest = more;
        }
        self.out.write_all(rest)?;
        self.out.write_all(b"\"")
    }

    /// As ECMAScript writes doubles. It rounds whole ones above 2^53 to 17 digits, which are those of another integer,
    /// so these keep all theirs.
    fn number(&mut self, number: Number) -> io::Result<()> {
        const EXACT: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
        const EXPONENT: f64 = 1e21;
        const INTEGERS: f64 = (1_u64 << 63) as f64;
        match number {
            Number::Unsigned(number) => self.out.write_all(itoa::Buffer::new().format(number).as_bytes()),
            Number::Signed(number) => self.out.write_all(itoa::Buffer::new().format(number).as_bytes()),
            Number::Double(double) => {
                self.may_be_rounded |= double.abs() >= INTEGERS;
                if (EXACT..EXPONENT).contains(&double.abs()) {
                    write!(self.out, "{double:.0}")
                } else {
                    self.out.write_all(ryu_js::Buffer::new().format(double).as_bytes())
                }
            }
        }
    }
}

/// By UTF-16 units (RFC 8785, section 3.2.3), which is the order of bytes where all is ASCII.
fn order(one: &str, other: &str) -> Ordering {
    if one.is_ascii() && other.is_ascii() {
        one.cmp(other)
    } else {
        one.encode_utf16().cmp(other.encode_utf16())
    }
}

/// How many bytes come before the first that must be escaped; `None`: there is none.
fn plain_bytes(text: &[u8]) -> Option<usize> {
    const PIECE: usize = 32;
    let is_escaped = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    // Without a way out in the middle, a piece is looked at as a whole.
    let mut pieces = text.chunks_exact(PIECE);
    let mut begin = 0;
    for piece in &mut pieces {
        if piece.iter().fold(false, |found, byte| found | is_escaped(*byte)) {
            break;
        }
        begin += PIECE;
    }
    text[begin..].iter().position(|byte| is_escaped(*byte)).map(|at| begin + at)
}

#[cfg(test)]
mod tests;
