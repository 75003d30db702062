//! A body's JSON in one piece of memory: its values in their order, 16 bytes each, texts as they stand in the body.
//!
//! A tree of boxes, as serde_json has it, takes a chat of short messages eight times its bytes, and most of the time
//! that reading takes.

use std::fmt;

use bytes::Bytes;
use serde_json::Map;

use super::estimate;
use super::names::order_of_names;
use super::value::{Name, Number, Value, member};

/// A value takes 16 bytes in memory, and as few as two in a body.
pub(super) const VALUES_MAX: u32 = 1 << 20;

/// The members of a body that is an object.
#[derive(Debug, Default)]
pub struct Members {
    tree: Tree,
    /// Where the name of each is; its value comes next.
    names: Vec<u32>,
    /// How many tokens their text is likely to be.
    estimate: u64,
}

#[derive(Default)]
pub(super) struct Tree {
    /// Of which all texts are UTF-8.
    body: Bytes,
    /// Texts that the body does not spell in the canonical way, as they are read.
    apart: String,
    nodes: Vec<Node>,
}

/// What is read of a body, in its order; 16 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Double(f64),
    /// A text that the body spells in the canonical way.
    Spelled {
        /// Where it stands in the body, quotes included.
        start: u32,
        bytes: u32,
        /// Bytes that it has less when it is read, one for each.
        escapes: u32,
        /// There are letters in it that are not ASCII.
        has_others: bool,
    },
    /// A text that it does not: where it begins in what stands apart, and its bytes.
    Apart(u32, u32),
    /// The name of a member, whose value comes next. It has no escapes.
    Name {
        /// The place of the name that comes next in the canonical form; [`LAST`]: none does.
        next: u32,
        /// Where it stands in the body, quotes included.
        start: u32,
        bytes: u32,
    },
    /// One that has: where it begins in what stands apart, and its bytes.
    NameApart {
        next: u32,
        start: u32,
        bytes: u32,
    },
    /// And where it ends: the place of what comes after it.
    List(u32),
    /// The same, and the place of the name that comes first in the canonical form.
    Object {
        first: u32,
        end: u32,
    },
}

/// The place that no name has.
pub(super) const LAST: u32 = u32::MAX;

const _: () = assert!(size_of::<Node>() == 16, "what is read of a body takes many of them");

impl Tree {
    /// Of a body whose values are pushed in their order.
    pub(super) fn of(body: Bytes) -> Self {
        // As many as short messages have. Of names and values together there are twice the values at most.
        const BYTES_A_NODE: usize = 12;
        const NODES_MAX: usize = 2 * VALUES_MAX as usize;
        let nodes = Vec::with_capacity(8 + (body.len() / BYTES_A_NODE).min(NODES_MAX));
        Self { body, apart: String::new(), nodes }
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn push(&mut self, node: Node) {
        self.nodes.push(node);
    }

    pub(super) fn push_apart(&mut self, text: &str) {
        let (start, bytes) = self.set_apart(text);
        self.push(Node::Apart(start, bytes));
    }

    pub(super) fn push_name_apart(&mut self, name: &str) {
        let (start, bytes) = self.set_apart(name);
        self.push(Node::NameApart { start, bytes, next: LAST });
    }

    fn set_apart(&mut self, text: &str) -> (u32, u32) {
        let start = place(self.apart.len());
        self.apart.push_str(text);
        (start, place(text.len()))
    }

    /// The list or object that was begun there ends here.
    #[inline]
    pub(super) fn end(&mut self, at: usize) {
        let here = place(self.nodes.len());
        if let Some(Node::List(end) | Node::Object { end, .. }) = self.nodes.get_mut(at) {
            *end = here;
        }
    }

    /// Tells an object the order of its members in the canonical form.
    #[inline]
    pub(super) fn link(&mut self, object: u32, names: impl Iterator<Item = u32>) {
        let mut before = object;
        for name in names {
            match self.nodes.get_mut(before as usize) {
                Some(
                    Node::Object { first: to, .. }
                    | Node::Name { next: to, .. }
                    | Node::NameApart { next: to, .. },
                ) => *to = name,
                _ => return,
            }
            before = name;
        }
    }

    fn push_json(&mut self, value: &serde_json::Value) {
        let at = self.nodes.len();
        match value {
            serde_json::Value::Null => self.push(Node::Null),
            serde_json::Value::Bool(value) => self.push(Node::Bool(*value)),
            serde_json::Value::Number(number) => self.push(Number::from(number).into()),
            serde_json::Value::String(text) => self.push_apart(text),
            serde_json::Value::Array(items) => {
                self.push(Node::List(0));
                items.iter().for_each(|item| self.push_json(item));
            }
            serde_json::Value::Object(members) => {
                self.push(Node::Object { end: 0, first: LAST });
                let mut names = Vec::with_capacity(members.len());
                for (name, value) in members {
                    names.push(place(self.nodes.len()));
                    self.push_name_apart(name);
                    self.push_json(value);
                }
                names.sort_unstable_by(|one, other| {
                    order_of_names(self.name(*one as usize), self.name(*other as usize))
                });
                self.link(place(at), names.into_iter());
            }
        }
        self.end(at);
    }

    pub(super) fn node(&self, at: usize) -> Option<Node> {
        self.nodes.get(at).copied()
    }

    /// How many items the list has that was begun there and is the last thing, if all are numbers, else 0.
    #[inline]
    pub(super) fn numbers(&self, list: usize) -> usize {
        let items = self.nodes.get(list + 1..).unwrap_or_default();
        let is_number = |node: &Node| matches!(node, Node::Unsigned(_) | Node::Signed(_) | Node::Double(_));
        if items.iter().all(is_number) { items.len() } else { 0 }
    }

    pub(super) fn value(&self, at: usize) -> Value<'_> {
        Value { tree: self, at }
    }

    pub(super) fn name(&self, at: usize) -> Name<'_> {
        Name(self.value(at))
    }

    /// What stands in the body there.
    pub(super) fn spelled(&self, start: u32, bytes: u32) -> &str {
        str::from_utf8(self.body_at(start, bytes)).unwrap_or_default()
    }

    /// The same in bytes, without looking for letters.
    #[inline]
    pub(super) fn body_at(&self, start: u32, bytes: u32) -> &[u8] {
        self.body.get(start as usize..start as usize + bytes as usize).unwrap_or_default()
    }

    /// What stands apart there.
    pub(super) fn apart(&self, start: u32, bytes: u32) -> &str {
        self.apart.get(start as usize..start as usize + bytes as usize).unwrap_or_default()
    }

    /// The place of what comes after the value there.
    pub(super) fn after(&self, at: usize) -> usize {
        match self.nodes.get(at) {
            Some(Node::List(end) | Node::Object { end, .. }) => *end as usize,
            _ => at + 1,
        }
    }
}

/// Bodies of more than 4 GiB are not read.
pub(super) fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

impl Members {
    /// `names`: where they stand in the tree. `estimate`: how many tokens their text is likely to be.
    pub(super) fn new(tree: Tree, names: Vec<u32>, estimate: u64) -> Self {
        Self { tree, names, estimate }
    }

    /// How many values there are in all of them, and names.
    pub fn values(&self) -> usize {
        self.tree.len()
    }

    /// How many tokens their text is likely to be.
    pub fn estimate(&self) -> u64 {
        self.estimate
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = (Name<'_>, Value<'_>)> {
        self.names.iter().map(|name| member(&self.tree, *name as usize))
    }

    pub fn get(&self, name: &str) -> Option<Value<'_>> {
        self.iter().find(|(other, _)| other.bytes() == name.as_bytes()).map(|(_, value)| value)
    }

    /// Gives a member another value, or the body another member.
    pub fn insert(&mut self, name: &str, value: &serde_json::Value) {
        self.remove(name);
        self.names.push(place(self.tree.len()));
        self.tree.push_name_apart(name);
        let at = self.tree.len();
        self.tree.push_json(value);
        self.estimate = self.estimate.saturating_add(estimate::of_value(self.tree.value(at)));
    }

    /// Leaves a member out; whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let Self { tree, names, estimate } = self;
        let Some(at) = names.iter().position(|at| tree.name(*at as usize).bytes() == name.as_bytes()) else {
            return false;
        };
        let value = tree.name(names.remove(at) as usize).value();
        *estimate = estimate.saturating_sub(estimate::of_value(value));
        true
    }

    /// As a tree of serde_json's.
    pub fn to_json(&self) -> Map<String, serde_json::Value> {
        self.iter().map(|(name, value)| (name.text().to_owned(), value.to_json())).collect()
    }
}

impl From<Number> for Node {
    fn from(number: Number) -> Self {
        match number {
            Number::Unsigned(number) => Self::Unsigned(number),
            Number::Signed(number) => Self::Signed(number),
            Number::Double(number) => Self::Double(number),
        }
    }
}

/// Bodies are long, and hold what people say.
impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tree({} values)", self.nodes.len())
    }
}
