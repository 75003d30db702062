//! A body's JSON in one piece of memory: its values in their order, 16 bytes each, texts as they stand in the body.
//!
//! A tree of boxes, as serde_json has it, takes a chat of short messages eight times its bytes, and most of the time
//! that reading takes.

use std::fmt;

use bytestring::ByteString;
use serde::ser::{Serialize, Serializer};
use serde_json::Map;

/// The members of a body that is an object.
#[derive(Debug, Default)]
pub struct Members {
    tree: Tree,
    /// Where the name of each is; its value comes next.
    names: Vec<u32>,
}

/// A value of a body.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    tree: &'a Tree,
    at: usize,
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

#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    pub text: &'a str,
    /// It stands so in the body, between quotes: nothing in it is to be escaped.
    pub is_plain: bool,
}

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

#[derive(Default)]
pub(super) struct Tree {
    body: ByteString,
    /// Texts that are not in the body as they are read.
    apart: String,
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(Number),
    /// A text or a name: where it begins in the body, and its bytes.
    Plain(u32, u32),
    /// The same in what stands apart.
    Apart(u32, u32),
    /// And where it ends: the place of what comes after it.
    List(u32),
    /// The same; each name stands before its value.
    Object(u32),
}

impl Tree {
    /// Of a body whose values are pushed in their order.
    pub(super) fn of(body: ByteString) -> Self {
        const BYTES_A_NODE: usize = 24;
        let nodes = Vec::with_capacity(8 + body.len() / BYTES_A_NODE);
        Self { body, apart: String::new(), nodes }
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn push(&mut self, node: Node) {
        self.nodes.push(node);
    }

    /// Pushes a text that is somewhere in the body, or else a copy.
    pub(super) fn push_plain(&mut self, text: &str) {
        let start = (text.as_ptr() as usize).wrapping_sub(self.body.as_ptr() as usize);
        let is_in_body = start.checked_add(text.len()).is_some_and(|end| end <= self.body.len());
        match u32::try_from(start) {
            Ok(start) if is_in_body => self.nodes.push(Node::Plain(start, place(text.len()))),
            _ => self.push_apart(text),
        }
    }

    pub(super) fn push_apart(&mut self, text: &str) {
        let start = place(self.apart.len());
        self.apart.push_str(text);
        self.nodes.push(Node::Apart(start, place(text.len())));
    }

    /// The list or object that was begun there ends here.
    pub(super) fn end(&mut self, at: usize) {
        let end = place(self.nodes.len());
        if let Some(Node::List(to) | Node::Object(to)) = self.nodes.get_mut(at) {
            *to = end;
        }
    }

    /// Leaves out a name that was pushed last.
    pub(super) fn take_back(&mut self, at: usize) {
        self.nodes.truncate(at);
    }

    fn push_json(&mut self, value: &serde_json::Value) {
        let at = self.nodes.len();
        match value {
            serde_json::Value::Null => self.push(Node::Null),
            serde_json::Value::Bool(value) => self.push(Node::Bool(*value)),
            serde_json::Value::Number(number) => self.push(Node::Number(number.into())),
            serde_json::Value::String(text) => self.push_apart(text),
            serde_json::Value::Array(items) => {
                self.push(Node::List(0));
                items.iter().for_each(|item| self.push_json(item));
            }
            serde_json::Value::Object(members) => {
                self.push(Node::Object(0));
                for (name, value) in members {
                    self.push_apart(name);
                    self.push_json(value);
                }
            }
        }
        self.end(at);
    }

    /// A text or a name; nothing where there is none.
    pub(super) fn text(&self, at: usize) -> Text<'_> {
        let (from, start, bytes, is_plain) = match self.nodes.get(at) {
            Some(Node::Plain(start, bytes)) => (&*self.body, *start, *bytes, true),
            Some(Node::Apart(start, bytes)) => (&*self.apart, *start, *bytes, false),
            _ => return Text { text: "", is_plain: true },
        };
        let (start, bytes) = (start as usize, bytes as usize);
        Text { text: from.get(start..start + bytes).unwrap_or_default(), is_plain }
    }

    /// The place of what comes after the value there.
    pub(super) fn after(&self, at: usize) -> usize {
        match self.nodes.get(at) {
            Some(Node::List(end) | Node::Object(end)) => *end as usize,
            _ => at + 1,
        }
    }
}

/// Bodies of more than 4 GiB are not read.
fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

impl Members {
    /// `names`: where they stand in the tree.
    pub(super) fn new(tree: Tree, names: Vec<u32>) -> Self {
        Self { tree, names }
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = (Text<'_>, Value<'_>)> {
        self.names.iter().map(|name| member(&self.tree, *name as usize))
    }

    pub fn get(&self, name: &str) -> Option<Value<'_>> {
        self.iter().find(|(other, _)| other.text == name).map(|(_, value)| value)
    }

    /// Gives a member another value, or the body another member.
    pub fn insert(&mut self, name: &str, value: &serde_json::Value) {
        self.remove(name);
        self.names.push(place(self.tree.len()));
        self.tree.push_apart(name);
        self.tree.push_json(value);
    }

    /// Leaves a member out; whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let count = self.names.len();
        let tree = &self.tree;
        self.names.retain(|at| tree.text(*at as usize).text != name);
        self.names.len() < count
    }

    /// As a tree of serde_json's.
    pub fn to_json(&self) -> Map<String, serde_json::Value> {
        self.iter().map(|(name, value)| (name.text.to_owned(), value.to_json())).collect()
    }
}

fn member(tree: &Tree, name: usize) -> (Text<'_>, Value<'_>) {
    (tree.text(name), Value { tree, at: name + 1 })
}

impl<'a> Value<'a> {
    pub fn read(self) -> Json<'a> {
        let rest = |end: &u32| Rest { tree: self.tree, at: self.at + 1, end: *end as usize };
        match self.tree.nodes.get(self.at) {
            None | Some(Node::Null) => Json::Null,
            Some(Node::Bool(value)) => Json::Bool(*value),
            Some(Node::Number(number)) => Json::Number(*number),
            Some(Node::Plain(..) | Node::Apart(..)) => Json::Text(self.tree.text(self.at)),
            Some(Node::List(end)) => Json::List(List(rest(end))),
            Some(Node::Object(end)) => Json::Object(Object(rest(end))),
        }
    }

    pub fn is_null(self) -> bool {
        matches!(self.read(), Json::Null)
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

    pub fn as_str(self) -> Option<&'a str> {
        if let Json::Text(Text { text, .. }) = self.read() { Some(text) } else { None }
    }

    pub fn as_list(self) -> Option<List<'a>> {
        if let Json::List(list) = self.read() { Some(list) } else { None }
    }

    pub fn as_object(self) -> Option<Object<'a>> {
        if let Json::Object(object) = self.read() { Some(object) } else { None }
    }

    /// A member, where it is an object that has one of this name.
    pub fn get(self, name: &str) -> Option<Self> {
        self.as_object()?.find(|(other, _)| other.text == name).map(|(_, value)| value)
    }

    /// As a tree of serde_json's.
    pub fn to_json(self) -> serde_json::Value {
        match self.read() {
            Json::Null => serde_json::Value::Null,
            Json::Bool(value) => value.into(),
            Json::Number(Number::Unsigned(number)) => number.into(),
            Json::Number(Number::Signed(number)) => number.into(),
            Json::Number(Number::Double(number)) => number.into(),
            Json::Text(Text { text, .. }) => text.into(),
            Json::List(list) => list.map(Self::to_json).collect(),
            Json::Object(members) => {
                let member = |(name, value): (Text<'_>, Self)| (name.text.to_owned(), value.to_json());
                serde_json::Value::Object(members.map(member).collect())
            }
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
    type Item = (Text<'a>, Value<'a>);

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
            Json::Text(Text { text, .. }) => serializer.serialize_str(text),
            Json::List(list) => serializer.collect_seq(list),
            Json::Object(members) => serializer.collect_map(members.map(|(name, value)| (name.text, value))),
        }
    }
}

/// Bodies are long, and hold what people say.
impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tree({} values)", self.nodes.len())
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
