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
    use serde_json::Value;

    use crate::wire::value::Json;
    use crate::wire::{Canonical, parse};

    const PIECES: &[&str] = &[
        "",
        "é",
        "😀",
        "\u{7f}",
        "\n",
        "\u{0}",
        r#"""#,
        r"\",
        r"\\",
        r#"\""#,
        r"\n",
        r"\/",
        r"\x",
        r"\u00e9",
        r"\u001f",
        r"\u00g9",
        r#"\u00"9"#,
    ];

    /// A member whose value is a text.
    #[derive(Debug, PartialEq)]
    struct Member {
        name: String,
        text: String,
        /// As RFC 8785 has it.
        spelled: String,
        /// Its bytes: of ASCII, and of other letters.
        bytes: (usize, usize),
    }

    /// The first of a body's members, as serde_json reads and spells it: RFC 8785 has no other way for texts.
    fn known(body: &str) -> Option<Member> {
        let body: Value = serde_json::from_str(body).ok()?;
        let (name, value) = body.as_object()?.iter().find(|(name, _)| *name != "z")?;
        let text = value.as_str()?.to_owned();
        let ascii = text.bytes().filter(u8::is_ascii).count();
        Some(Member {
            name: name.clone(),
            spelled: value.to_string(),
            bytes: (ascii, text.len() - ascii),
            text,
        })
    }

    /// The same, as it is read here.
    fn read(body: &str) -> Option<Member> {
        let document = parse(&Bytes::copy_from_slice(body.as_bytes())).ok()?;
        let (name, value) = document.members.iter().find(|(name, _)| name.text() != "z")?;
        let Json::Text(text) = value.read() else { return None };
        let mut canonical = Canonical::to(Vec::new());
        canonical.value(value).ok()?;
        Some(Member {
            name: name.text().to_owned(),
            text: text.read().into_owned(),
            spelled: String::from_utf8(canonical.finish().ok()?).ok()?,
            bytes: text.bytes(),
        })
    }

    #[test]
    fn texts_and_names_end_and_are_escaped_at_every_place_of_a_block() {
        for before in 0..40 {
            for after in [0, 1, 7, 17] {
                for piece in PIECES {
                    let (before, after) = ("x".repeat(before), "x".repeat(after));
                    for text in [format!("{before}{piece}{after}"), format!("{before}{piece}{piece}{after}")]
                    {
                        for body in [
                            format!(r#"{{"a":"{text}"}}"#),
                            format!(r#"{{"a":"{text}","z":"ééééééééééééé"}}"#),
                            format!(r#"{{"{text}":"{text}" }}"#),
                        ] {
                            assert_eq!(read(&body), known(&body), "{body}");
                        }
                    }
                }
            }
        }
    }
}
