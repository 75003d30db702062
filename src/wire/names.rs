//! The order of an object's members in the canonical form (RFC 8785), found while a body is read: a name that is there
//! twice is found by it.

use std::cmp::Ordering;
use std::iter;
use std::ops::RangeInclusive;

use super::tree::Tree;
use super::value::Name;

/// The names of an object are put in their order as they come, up to so many. Those of a larger one are sorted once all
/// are there.
const PLACED_MAX: usize = 16;

/// The names of the objects that are being read, an object's behind those of the one around it.
#[derive(Default)]
pub(super) struct Names(Vec<Placed>);

/// A name of a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    /// How it begins ([`beginning`]).
    pub(super) beginning: u64,
    /// Where it is in the tree.
    pub(super) node: u32,
    /// And in the body, in bytes.
    pub(super) start: u32,
}

/// A name that its object has already.
pub(super) struct Twice(pub(super) Placed);

impl Names {
    /// Where those of an object begin that begins now.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds one of the innermost object, whose names begin at `first`.
    #[inline(always)]
    pub(super) fn add(&mut self, tree: &Tree, first: u32, name: Placed) -> Result<(), Twice> {
        let is_behind = match self.0.last() {
            Some(last) if self.0.len() > first as usize => last.beginning < name.beginning,
            _ => true,
        };
        self.0.push(name);
        if is_behind { Ok(()) } else { self.settle(tree, first) }
    }

    /// Puts the last one where it belongs.
    #[inline(never)]
    fn settle(&mut self, tree: &Tree, first: u32) -> Result<(), Twice> {
        let names = self.0.get_mut(first as usize..).unwrap_or_default();
        let [before @ .., last] = names else { return Ok(()) };
        if before.len() >= PLACED_MAX {
            return Ok(());
        }
        let (name, mut to) = (*last, last);
        for before in before.iter_mut().rev() {
            if before.beginning <= name.beginning {
                match order(tree, before, &name) {
                    Ordering::Less => break,
                    Ordering::Equal => return Err(Twice(name)),
                    Ordering::Greater => {}
                }
            }
            *to = *before;
            to = before;
        }
        *to = name;
        Ok(())
    }

    /// Ends the innermost object, which stands at that place, if it has one: its members know their order now.
    #[inline(always)]
    pub(super) fn end(&mut self, tree: &mut Tree, first: u32, object: Option<u32>) -> Result<(), Twice> {
        let names = self.0.get_mut(first as usize..).unwrap_or_default();
        if names.len() > PLACED_MAX {
            sort(tree, names)?;
        }
        if let Some(object) = object {
            tree.link(object, names.iter().map(|name| name.node));
        }
        self.0.truncate(first as usize);
        Ok(())
    }
}

#[cold]
fn sort(tree: &Tree, names: &mut [Placed]) -> Result<(), Twice> {
    names.sort_unstable_by(|one, other| order(tree, one, other));
    let twice = names.windows(2).find_map(|pair| match pair {
        [one, other] if order(tree, one, other).is_eq() => {
            Some(if one.start < other.start { *other } else { *one })
        }
        _ => None,
    });
    twice.map_or(Ok(()), |name| Err(Twice(name)))
}

/// The order of two names that are being read, which most tell by how they begin.
fn order(tree: &Tree, one: &Placed, other: &Placed) -> Ordering {
    let whole = || order_of_names(tree.name(one.node as usize), tree.name(other.node as usize));
    one.beginning.cmp(&other.beginning).then_with(whole)
}

/// The first eight bytes of a name that stands there, zeros behind a shorter one, as a number that has their order.
#[inline(always)]
pub(super) fn beginning(text: &[u8], start: usize, bytes: usize) -> u64 {
    // What stands behind a short name is read with it: to copy it first takes longer than all else here.
    let Some(word) = text.get(start..).and_then(|rest| rest.first_chunk()) else {
        return beginning_by_bytes(text.get(start..start + bytes).unwrap_or_default());
    };
    let word = u64::from_be_bytes(*word);
    let word = if bytes < 8 { word & !(u64::MAX >> (8 * bytes)) } else { word };
    if word & HIGH == 0 {
        word
    } else {
        beginning_by_bytes(text.get(start..start + bytes).unwrap_or_default())
    }
}

/// The highest bits of eight bytes, which are set in those that are no ASCII.
const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);

#[cold]
fn beginning_by_bytes(name: &[u8]) -> u64 {
    let late = |byte: u8| if LATE.contains(&byte) { byte | 0x10 } else { byte };
    let bytes = name.iter().copied().map(late).chain(iter::repeat(0)).take(8);
    bytes.fold(0, |word, byte| word << 8 | u64::from(byte))
}

/// How letters from U+E000 on begin that have 16 bits: behind all others.
const LATE: RangeInclusive<u8> = 0xee..=0xef;

/// The order of members in the canonical form, by UTF-16 units (RFC 8785, section 3.2.3). It is the order of bytes, but
/// for letters beyond 16 bits, whose first unit comes before U+E000: they begin with 0xF0 and more.
pub(super) fn order_of_names(one: Name<'_>, other: Name<'_>) -> Ordering {
    let (one, other) = (one.bytes(), other.bytes());
    // Eight bytes at a time: what they have in common may be long.
    for at in (0..one.len().min(other.len())).step_by(8) {
        let of = |name: &[u8]| beginning(name, at, name.len() - at);
        match of(one).cmp(&of(other)) {
            Ordering::Equal => {}
            differ => return differ,
        }
    }
    one.len().cmp(&other.len())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::wire::{Canonical, Fault, Members, parse};

    fn canonical(body: &Members) -> String {
        let mut canonical = Canonical::to(Vec::new());
        canonical.object(body.iter().map(|(name, _)| name)).expect("a vector takes every byte");
        String::from_utf8(canonical.finish().expect("the same")).expect("UTF-8")
    }

    proptest! {
        /// However many there are, wherever they stand, and however they are spelled.
        #[test]
        fn a_name_that_is_there_twice_is_found(
            names in prop::collection::vec(
                "[ab\\x00é\u{ffff}\u{e000}😀]{0,3}|abcdefgh?[a-c]{0,2}|m[0-9]{1,3}|abcdefghm[0-9]{1,3}",
                0..40,
            ),
            deep: bool,
            escaped in 0..40_usize,
        ) {
            let spelled = |(at, name): (usize, &String)| {
                let units = name.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
                if at % 40 == escaped { format!("\"{}\"", units.collect::<String>()) } else { json!(name).to_string() }
            };
            let members: Vec<_> = names.iter().enumerate().map(|it| format!("{}: {{\"z\":1}}", spelled(it))).collect();
            let object = format!("{{{}}}", members.join(","));
            let body = if deep { format!("{{\"a\":[1,{object}]}}") } else { object };
            let twice = names.iter().collect::<HashSet<_>>().len() < names.len();
            match parse(&body.into()) {
                Ok(_) => prop_assert!(!twice),
                Err(Fault::Syntax(message)) => prop_assert!(twice && message.contains("is there twice"), "{message}"),
                Err(fault) => prop_assert!(false, "{fault:?}"),
            }
        }
    }

    #[test]
    fn where_the_second_of_two_is_is_told() {
        let many = (0..30).map(|number| format!("\"m{number}\":0")).collect::<Vec<_>>().join(",");
        for (body, told) in [
            (
                r#"{"a":1,"b":[{"c":1, "c" : 2}]}"#.to_owned(),
                "the member `c` is there twice at line 1 column 26",
            ),
            (format!("{{{many},\n\"m3\":0}}"), "the member `m3` is there twice at line 2 column 5"),
        ] {
            let Err(Fault::Syntax(message)) = parse(&body.into()) else { panic!("it is there twice") };
            assert_eq!(message, told);
        }
    }

    #[test]
    fn what_is_put_into_a_body_has_its_order_too() {
        let mut body = parse(&r#"{"b":1}"#.into()).expect("an object").members;
        let value = json!({"z": [{"y": 1, "x": {"é": 0, "\u{ffff}": 1, "😀": 2}}], "a": {}});
        body.insert("a", &value);
        let same = parse(&json!({"a": value, "b": 1}).to_string().into()).expect("an object").members;
        assert_eq!(canonical(&body), canonical(&same));
        let written: Value = serde_json::from_str(&canonical(&body)).expect("JSON");
        assert_eq!(written, json!({"a": value, "b": 1}));
        assert!(canonical(&body).contains("{\"é\":0,\"😀\":2,\"\u{ffff}\":1}"));
    }
}
