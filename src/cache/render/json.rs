//! JSON of which only the members that matter are read: an object is an ordered list of names and JSON texts.
//!
//! Values pass as they were spelled, so that no number changes and no member moves. Only one level is read at a time,
//! and `serde_json` skips deeper levels without recursion, so depth costs nothing.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Members are found by going through the list.
pub(super) const MEMBERS_MAX: usize = 256;

pub(super) const NULL: &str = "null";

/// A JSON text: one value, as it is spelled.
pub(super) type Text<'a> = Cow<'a, str>;

/// An object whose members keep their order and spelling.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Object<'a>(Vec<(Cow<'a, str>, Text<'a>)>);

impl<'a> Object<'a> {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Reads an object; `None` for anything else, for a member that stands twice, and for too many members.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Text<'a>> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }

    /// A member of an object that was read.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        match self.get(name)? {
            Cow::Borrowed(text) => Some(text),
            Cow::Owned(_) => None,
        }
    }

    /// What a string member says; `None` if it is absent or not a string.
    pub(super) fn string(&self, name: &str) -> Option<String> {
        self.get(name).and_then(|text| string(text))
    }

    /// Whether a member is there and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|text| text != NULL)
    }

    /// Replaces a member where it stands, or adds it at the end.
    pub(super) fn set(&mut self, name: impl Into<Cow<'a, str>>, value: impl Into<Text<'a>>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(own, _)| *own == name) {
            Some((_, own)) => *own = value,
            None => self.0.push((name, value)),
        }
    }

    /// Does the same, for a chain.
    pub(super) fn with(mut self, name: impl Into<Cow<'a, str>>, value: impl Into<Text<'a>>) -> Self {
        self.set(name, value);
        self
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Text<'a>> {
        let at = self.0.iter().position(|(own, _)| own == name)?;
        Some(self.0.remove(at).1)
    }

    /// Takes a member and leaves another value in its place.
    pub(super) fn take_leaving(&mut self, name: &str, value: &'static str) -> Option<Text<'a>> {
        let (_, own) = self.0.iter_mut().find(|(own, _)| own == name)?;
        Some(std::mem::replace(own, Cow::Borrowed(value)))
    }

    /// Takes a member of an object that was read; `None` if it is absent.
    pub(super) fn raw(&mut self, name: &str) -> Option<&'a str> {
        let text = self.text(name)?;
        self.take(name);
        Some(text)
    }

    /// Moves a member of another object to the end of this one, if it is there.
    pub(super) fn adopt(&mut self, from: &mut Self, name: &'static str) {
        if let Some(value) = from.take(name) {
            self.set(name, value);
        }
    }

    /// The same members, these first and in this order.
    pub(super) fn in_order(mut self, names: &[&'static str]) -> Self {
        let mut ordered = Self::new();
        names.iter().for_each(|name| ordered.adopt(&mut self, name));
        ordered.set_all(self);
        ordered
    }

    /// Copies a member of another object, if it is there.
    pub(super) fn copy(&mut self, from: &Self, name: &'static str) {
        if let Some(value) = from.get(name) {
            self.set(name, value.clone());
        }
    }

    /// Adds a member, or finds it there with the very same value. Null gives way to anything. `None` if the values
    /// differ or there are too many members.
    pub(super) fn agree(&mut self, name: impl Into<Cow<'a, str>>, value: impl Into<Text<'a>>) -> Option<()> {
        let (name, value) = (name.into(), value.into());
        let full = self.0.len() == MEMBERS_MAX;
        match self.0.iter_mut().find(|(own, _)| *own == name) {
            Some((_, own)) if *own == NULL => *own = value,
            Some((_, own)) => return (*own == value || value == NULL).then_some(()),
            None if full => return None,
            None => self.0.push((name, value)),
        }
        Some(())
    }

    /// Adds or replaces all members of another object.
    pub(super) fn set_all(&mut self, others: Self) {
        others.into_iter().for_each(|(name, value)| self.set(name, value));
    }

    /// Takes over all members of another object; see [`Self::agree`].
    pub(super) fn agree_all(&mut self, others: Self) -> Option<()> {
        others.into_iter().try_for_each(|(name, value)| self.agree(name, value))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_ref())
    }
}

impl<'a> IntoIterator for Object<'a> {
    type Item = (Cow<'a, str>, Text<'a>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, (name, value)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}:{value}", quoted(name))?;
        }
        f.write_str("}")
    }
}

impl<'a> From<Object<'a>> for Text<'a> {
    fn from(object: Object<'a>) -> Self {
        Cow::Owned(object.to_string())
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut members = Object::new();
                while let Some(name) = map.next_key::<String>()? {
                    if members.get(&name).is_some() || members.0.len() == MEMBERS_MAX {
                        return Err(A::Error::custom("a member stands twice, or there are too many"));
                    }
                    let value = map.next_value::<&'de RawValue>()?.get();
                    members.0.push((Cow::Owned(name), Cow::Borrowed(value)));
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Members)
    }
}

/// The items of an array.
pub(super) fn items(text: &str) -> Option<Vec<&str>> {
    let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    Some(items.into_iter().map(RawValue::get).collect())
}

/// An array of these items.
pub(super) fn array<I: fmt::Display>(items: impl IntoIterator<Item = I>) -> Text<'static> {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    Cow::Owned(format!("[{}]", items.join(",")))
}

/// The inside of an array, without its brackets: what is put together with the inside of another.
pub(super) fn inside(text: &str) -> Option<&str> {
    Some(text.strip_prefix('[')?.strip_suffix(']')?.trim())
}

/// An array of what was inside of these.
pub(super) fn joined<'a>(insides: impl IntoIterator<Item = &'a str>) -> Text<'static> {
    array(insides.into_iter().filter(|inside| !inside.is_empty()))
}

/// What a string says.
pub(super) fn string(text: &str) -> Option<String> {
    serde_json::from_str(text).ok()
}

/// A count: an index, a number of tokens.
pub(super) fn count(text: &str) -> Option<u64> {
    serde_json::from_str(text).ok()
}

/// A string as JSON spells it.
pub(super) fn quoted(text: &str) -> Text<'static> {
    Cow::Owned(serde_json::Value::from(text).to_string())
}

/// A JSON text without white space between its tokens; `None` if it is none.
pub(super) fn compact(text: &str) -> Option<String> {
    serde_json::from_str::<&RawValue>(text).ok()?;
    let (mut within, mut escaped) = (false, false);
    let mut keep = |it: char| {
        let kept = within || !it.is_ascii_whitespace();
        within ^= it == '"' && !escaped;
        escaped = it == '\\' && !escaped;
        kept
    };
    Some(text.chars().filter(|it| keep(*it)).collect())
}
