//! Sixteen bytes of JSON, looked at together: which of them end a text, or are not to stand in it as they are.
//!
//! Each is a bit of a number, the first the lowest. Most names and texts are shorter, and end where the lowest bit
//! says.

use wide::u8x16;

#[derive(Clone, Copy)]
pub(super) struct Block(u8x16);

impl Block {
    pub(super) const BYTES: usize = 16;

    #[inline]
    pub(super) fn of(bytes: [u8; Self::BYTES]) -> Self {
        Self(u8x16::new(bytes))
    }

    /// The bytes from there on; `None`: there are not so many.
    #[inline]
    pub(super) fn at(text: &[u8], at: usize) -> Option<Self> {
        text.get(at..)?.first_chunk().copied().map(Self::of)
    }

    /// The same, with zeros behind the last.
    #[cold]
    pub(super) fn last(text: &[u8], at: usize) -> Option<Self> {
        let rest = text.get(at..)?;
        let mut bytes = [0; Self::BYTES];
        bytes.get_mut(..rest.len())?.copy_from_slice(rest);
        Some(Self::of(bytes))
    }

    /// Those that a text has only escaped (RFC 8259, section 7).
    #[inline]
    pub(super) fn escaped(self) -> u32 {
        let controls = self.0.min(u8x16::splat(0x1f)).simd_eq(self.0);
        (self.is(b'"') | self.is(b'\\') | controls).to_bitmask()
    }

    #[inline]
    pub(super) fn quotes(self) -> u32 {
        self.is(b'"').to_bitmask()
    }

    /// Those that are no ASCII.
    #[inline]
    pub(super) fn others(self) -> u32 {
        self.0.to_bitmask()
    }

    #[inline]
    fn is(self, byte: u8) -> u8x16 {
        self.0.simd_eq(u8x16::splat(byte))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use crate::wire::parse;

    /// As far as serde_json accepts it.
    fn read(body: &str) -> Option<serde_json::Value> {
        let members = parse(&Bytes::copy_from_slice(body.as_bytes())).ok()?.members;
        members.get("a").map(|value| value.to_json())
    }

    #[test]
    fn texts_end_and_are_escaped_at_every_place_of_a_block() {
        let pieces = [
            "", "é", "😀", "\u{7f}", "\n", "\u{0}", r#"""#, r"\", r"\\", r#"\""#, r"\n", r"\/", r"\x",
            r"\u00e9", r"\u00g9",
        ];
        for before in 0..40 {
            for after in [0, 1, 7, 17] {
                for piece in pieces {
                    let (before, after) = ("x".repeat(before), "x".repeat(after));
                    for text in [format!("{before}{piece}{after}"), format!("{before}{piece}{piece}{after}")]
                    {
                        let body = format!(r#"{{"a":"{text}"}}"#);
                        let known = serde_json::from_str::<serde_json::Value>(&body).ok();
                        assert_eq!(read(&body), known.map(|mut body| body["a"].take()), "{body}");
                    }
                }
            }
        }
    }
}
