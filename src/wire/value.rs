//! What stands in a body, as it is looked at: values, and the names and texts in them.

use std::borrow::Cow;
use std::{fmt, iter};

use serde::ser::{Serialize, Serializer};

use super::tree::{LAST, Node, Tree, place};

/// A value of a body.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    pub(super) tree: &'a Tree,
    /// Its place there.
    pub(super) at: usize,
}

/// What a value is.
#[derive(Debug, Clone, Copy)]
pub enum Json<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Text<'a>),
    List(List<'a>),
    Object(Object<'a>),
}

/// As the body writes it: an integer of 64 bits, or else a double.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Unsigned(u64),
    /// Below zero.
    Signed(i64),
    Double(f64),
}

/// A text, kept as it is spelled: most are only passed on, and code has an escape every few words.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a>(Value<'a>);

/// A member's name.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a>(pub(super) Value<'a>);

/// The values of a list.
#[derive(Debug, Clone, Copy)]
pub struct List<'a>(Rest<'a>);

/// The members of an object.
#[derive(Debug, Clone, Copy)]
pub struct Object<'a>(Rest<'a>);

/// What is left of a list or an object.
#[derive(Clone, Copy)]
struct Rest<'a> {
    tree: &'a Tree,
    at: usize,
    end: usize,
}

pub(super) fn member(tree: &Tree, name: usize) -> (Name<'_>, Value<'_>) {
    let name = tree.name(name);
    (name, name.value())
}

impl<'a> Value<'a> {
    fn node(self) -> Option<Node> {
        self.tree.node(self.at)
    }

    fn spelled(self, start: u32, bytes: u32) -> &'a str {
        self.tree.spelled(start, bytes)
    }

    fn apart(self, start: u32, bytes: u32) -> &'a str {
        self.tree.apart(start, bytes)
    }

    pub fn read(self) -> Json<'a> {
        let rest = |end: u32| Rest { tree: self.tree, at: self.at + 1, end: end as usize };
        match self.node() {
            Some(Node::Bool(value)) => Json::Bool(value),
            Some(Node::Unsigned(number)) => Json::Number(Number::Unsigned(number)),
            Some(Node::Signed(number)) => Json::Number(Number::Signed(number)),
            Some(Node::Double(number)) => Json::Number(Number::Double(number)),
            Some(Node::Spelled { .. } | Node::Apart(..)) => Json::Text(Text(self)),
            Some(Node::List(end)) => Json::List(List(rest(end))),
            Some(Node::Object { end, .. }) => Json::Object(Object(rest(end))),
            // No value is a name.
            None | Some(Node::Null | Node::Name { .. } | Node::NameApart { .. }) => Json::Null,
        }
    }

    pub fn is_null(self) -> bool {
        matches!(self.read(), Json::Null)
    }

    pub(super) fn is_number(self) -> bool {
        self.as_number().is_some()
    }

    pub fn as_bool(self) -> Option<bool> {
        if let Json::Bool(value) = self.read() { Some(value) } else { None }
    }

    pub fn as_number(self) -> Option<Number> {
        if let Json::Number(number) = self.read() { Some(number) } else { None }
    }

    pub fn as_f64(self) -> Option<f64> {
        self.as_number().map(Number::as_f64)
    }

    /// As it is read.
    pub fn as_text(self) -> Option<Cow<'a, str>> {
        if let Json::Text(text) = self.read() { Some(text.read()) } else { None }
    }

    pub fn as_list(self) -> Option<List<'a>> {
        if let Json::List(list) = self.read() { Some(list) } else { None }
    }

    pub fn as_object(self) -> Option<Object<'a>> {
        if let Json::Object(object) = self.read() { Some(object) } else { None }
    }

    /// A member, where it is an object that has one of this name.
    pub fn get(self, name: &str) -> Option<Self> {
        self.as_object()?.find(|(other, _)| other.bytes() == name.as_bytes()).map(|(_, value)| value)
    }

    /// The members of an object in the order of the canonical form.
    #[inline]
    pub(super) fn in_order(self) -> impl Iterator<Item = Name<'a>> {
        let tree = self.tree;
        let name = move |at: u32| (at != LAST).then(|| tree.name(at as usize));
        let first = if let Some(Node::Object { first, .. }) = self.node() { first } else { LAST };
        iter::successors(name(first), move |before| match before.0.node() {
            Some(Node::Name { next, .. } | Node::NameApart { next, .. }) => name(next),
            _ => None,
        })
    }

    /// As a tree of serde_json's.
    pub fn to_json(self) -> serde_json::Value {
        match self.read() {
            Json::Null => serde_json::Value::Null,
            Json::Bool(value) => value.into(),
            Json::Number(Number::Unsigned(number)) => number.into(),
            Json::Number(Number::Signed(number)) => number.into(),
            Json::Number(Number::Double(number)) => number.into(),
            Json::Text(text) => text.read().into(),
            Json::List(list) => list.map(Self::to_json).collect(),
            Json::Object(members) => {
                let member = |(name, value): (Name<'_>, Self)| (name.text().to_owned(), value.to_json());
                serde_json::Value::Object(members.map(member).collect())
            }
        }
    }
}

impl<'a> Text<'a> {
    /// As it is read.
    pub fn read(self) -> Cow<'a, str> {
        match self.0.node() {
            Some(Node::Spelled { start, bytes, escapes: 0, .. }) => {
                self.0.spelled(start + 1, bytes - 2).into()
            }
            Some(Node::Spelled { start, bytes, .. }) => {
                let spelled = self.0.tree.body_at(start, bytes);
                serde_json::from_slice::<String>(spelled).unwrap_or_default().into()
            }
            Some(Node::Apart(start, bytes)) => self.0.apart(start, bytes).into(),
            _ => Cow::default(),
        }
    }

    /// Its bytes when it is read: of ASCII, and of other letters.
    pub(super) fn bytes(self) -> (usize, usize) {
        let (spelled, more) = match self.0.node() {
            Some(Node::Spelled { bytes, escapes, has_others: false, .. }) => {
                return ((bytes - 2 - escapes) as usize, 0);
            }
            Some(Node::Spelled { start, bytes, escapes, .. }) => {
                (self.0.tree.body_at(start, bytes), 2 + escapes as usize)
            }
            Some(Node::Apart(start, bytes)) => (self.0.apart(start, bytes).as_bytes(), 0),
            _ => return (0, 0),
        };
        // So many at once that a byte can count them.
        let pieces = spelled.chunks(usize::from(u8::MAX));
        let others: usize =
            pieces.map(|piece| usize::from(piece.iter().map(|byte| byte >> 7).sum::<u8>())).sum();
        (spelled.len() - more - others, others)
    }

    /// Whether it begins with this, which has nothing to be escaped in it.
    pub(super) fn begins_with(self, start: &str) -> bool {
        match self.0.node() {
            Some(Node::Spelled { start: at, .. }) => {
                self.0.tree.body_at(at + 1, place(start.len())) == start.as_bytes()
            }
            Some(Node::Apart(at, bytes)) => self.0.apart(at, bytes).starts_with(start),
            _ => false,
        }
    }

    /// What it is in the canonical form, quotes included, if it is not to be made first.
    pub(super) fn canonical(self) -> Option<&'a [u8]> {
        match self.0.node() {
            Some(Node::Spelled { start, bytes, .. }) => Some(self.0.tree.body_at(start, bytes)),
            _ => None,
        }
    }
}

impl<'a> Name<'a> {
    /// As it is read.
    pub fn text(self) -> &'a str {
        match self.0.node() {
            Some(Node::Name { start, bytes, .. }) => self.0.spelled(start + 1, bytes - 2),
            Some(Node::NameApart { start, bytes, .. }) => self.0.apart(start, bytes),
            _ => "",
        }
    }

    /// The same in bytes, without looking for letters.
    #[inline]
    pub(super) fn bytes(self) -> &'a [u8] {
        match self.0.node() {
            Some(Node::Name { start, bytes, .. }) => self.0.tree.body_at(start + 1, bytes - 2),
            Some(Node::NameApart { start, bytes, .. }) => self.0.apart(start, bytes).as_bytes(),
            _ => &[],
        }
    }

    /// The member's value.
    pub(super) fn value(self) -> Value<'a> {
        Value { at: self.0.at + 1, ..self.0 }
    }

    /// With its value as the canonical form has them, where the body has them so, side by side.
    pub(super) fn with_text(self) -> Option<&'a [u8]> {
        match (self.0.node()?, self.value().node()?) {
            (Node::Name { start: at, bytes: name, .. }, Node::Spelled { start, bytes, .. })
                if at + name + 1 == start =>
            {
                Some(self.0.tree.body_at(at, name + 1 + bytes))
            }
            _ => None,
        }
    }

    /// What it is in the canonical form, quotes included, if it is not to be made first.
    pub(super) fn canonical(self) -> Option<&'a [u8]> {
        match self.0.node() {
            Some(Node::Name { start, bytes, .. }) => Some(self.0.tree.body_at(start, bytes)),
            _ => None,
        }
    }
}

impl Number {
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Unsigned(number) => number as f64,
            Self::Signed(number) => number as f64,
            Self::Double(number) => number,
        }
    }
}

impl From<&serde_json::Number> for Number {
    fn from(number: &serde_json::Number) -> Self {
        let (natural, whole) = (number.as_u64().map(Self::Unsigned), number.as_i64().map(Self::Signed));
        natural.or(whole).unwrap_or_else(|| Self::Double(number.as_f64().unwrap_or_default()))
    }
}

impl<'a> Iterator for List<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let Rest { tree, at, end } = &mut self.0;
        (at < end).then(|| {
            let value = Value { tree, at: *at };
            *at = tree.after(*at);
            value
        })
    }
}

impl<'a> Iterator for Object<'a> {
    type Item = (Name<'a>, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let Rest { tree, at, end } = &mut self.0;
        (at < end).then(|| {
            let found = member(tree, *at);
            *at = tree.after(*at + 1);
            found
        })
    }
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.read() {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(value) => serializer.serialize_bool(value),
            Json::Number(Number::Unsigned(number)) => serializer.serialize_u64(number),
            Json::Number(Number::Signed(number)) => serializer.serialize_i64(number),
            Json::Number(Number::Double(number)) => serializer.serialize_f64(number),
            Json::Text(text) => serializer.serialize_str(&text.read()),
            Json::List(list) => serializer.collect_seq(list),
            Json::Object(members) => {
                serializer.collect_map(members.map(|(name, value)| (name.text(), value)))
            }
        }
    }
}

impl fmt::Debug for Rest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.at, self.end)
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({})", self.at)
    }
}
