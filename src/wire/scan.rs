//! A body that is a JSON object, read into a tree: refused where two readers could understand it differently.

use std::hash::BuildHasher;
use std::ops::Range;

use bytestring::ByteString;
use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::lex::{Lex, Spelled, Spelling};
use super::tree::{Node, Tree, VALUES_MAX, place};

/// The members of an object are looked through for a name, up to so many; those of a larger one have a table.
const LOOKED_THROUGH_MAX: usize = 16;

/// An object that was read.
pub(super) struct Scanned {
    pub(super) tree: Tree,
    /// Where the names of its members are in the tree.
    pub(super) names: Vec<u32>,
    /// Its member `model`: the place of its name in `names`, and where its value stands in the text, in bytes.
    pub(super) model: Option<(usize, Range<usize>)>,
}

/// Why a text was not read to its end.
pub(super) enum Stopped {
    /// It is no JSON object.
    Syntax,
    /// A member is there twice; `at`: where the second's value is.
    Twice { name: String, at: usize },
    /// It has too many values.
    Many { at: usize },
}

/// Reads an object of less than 4 GiB.
pub(super) fn scan(text: &ByteString) -> Result<Scanned, Stopped> {
    let mut scan = Scan {
        tree: Tree::of(text.clone()),
        names: Vec::new(),
        model: None,
        values: 0,
        keyed: None,
        stopped: Stopped::Syntax,
    };
    let Some(mut lex) = Lex::of(text) else { return Err(Stopped::Syntax) };
    let read = scan.members(&mut lex);
    if read.is_none() || !lex.is_over() {
        return Err(scan.stopped);
    }
    Ok(Scanned { tree: scan.tree, names: scan.names, model: scan.model })
}

struct Scan {
    tree: Tree,
    /// Of the objects that are being read, one after the other.
    names: Vec<u32>,
    model: Option<(usize, Range<usize>)>,
    values: u32,
    /// Of the tables of names, once there is one.
    keyed: Option<RandomState>,
    /// Why, once it has.
    stopped: Stopped,
}

impl Scan {
    fn value(&mut self, lex: &mut Lex<'_>) -> Option<()> {
        self.values += 1;
        if self.values > VALUES_MAX {
            self.stopped = Stopped::Many { at: lex.at() };
            return None;
        }
        let at = self.tree.len();
        match lex.peek()? {
            b'"' => self.text(lex)?,
            b'{' => {
                self.tree.push(Node::Object(0));
                let first = self.names.len();
                self.members(lex)?;
                self.names.truncate(first);
                self.tree.end(at);
            }
            b'[' => {
                self.tree.push(Node::List(0));
                lex.list(|lex| self.value(lex))?;
                self.tree.end(at);
            }
            b'n' => {
                lex.null()?;
                self.tree.push(Node::Null);
            }
            b't' | b'f' => self.tree.push(Node::Bool(lex.bool()?)),
            _ => self.tree.push(lex.number()?.into()),
        }
        Some(())
    }

    /// Reads the members of an object. Their names are left at the end of all names.
    fn members(&mut self, lex: &mut Lex<'_>) -> Option<()> {
        let mut names = Names { first: self.names.len(), table: HashTable::new() };
        lex.object(|lex, name| {
            let name = self.name(lex, name)?;
            names.add(name, self, lex)?;
            if names.first == 0 && self.tree.name(name as usize).bytes() == b"model" {
                let start = lex.at();
                self.value(lex)?;
                self.model = Some((self.names.len() - 1, start..lex.at()));
                return Some(());
            }
            self.value(lex)
        })
    }

    /// Pushes a name; its place.
    fn name(&mut self, lex: &Lex<'_>, name: Spelled) -> Option<u32> {
        let at = place(self.tree.len());
        if name.escapes == 0 {
            self.tree.push(Node::Name(name.start, name.end - name.start));
        } else {
            self.tree.push_name_apart(&lex.read(name)?);
        }
        Some(at)
    }

    fn text(&mut self, lex: &mut Lex<'_>) -> Option<()> {
        let text @ Spelled { start, end, escapes, spelling } = lex.string()?;
        if spelling == Spelling::Other {
            self.tree.push_apart(&lex.read(text)?);
        } else {
            let has_others = spelling != Spelling::Ascii;
            self.tree.push(Node::Spelled { start, bytes: end - start, escapes, has_others });
        }
        Some(())
    }
}

/// The names of one object, which are the last of all.
struct Names {
    first: usize,
    table: HashTable<u32>,
}

impl Names {
    fn add(&mut self, name: u32, scan: &mut Scan, lex: &Lex<'_>) -> Option<()> {
        let text = |at: &u32| scan.tree.name(*at as usize).bytes();
        let before = scan.names.get(self.first..).unwrap_or_default();
        let is_there = if before.len() < LOOKED_THROUGH_MAX {
            let name = text(&name);
            before.iter().any(|other| text(other) == name)
        } else {
            let keyed = scan.keyed.get_or_insert_default();
            let hash = |at: &u32| keyed.hash_one(text(at));
            if self.table.is_empty() {
                for at in before {
                    self.table.insert_unique(hash(at), *at, hash);
                }
            }
            let hashed = hash(&name);
            let is_there = self.table.find(hashed, |other| text(other) == text(&name)).is_some();
            self.table.insert_unique(hashed, name, hash);
            is_there
        };
        if is_there {
            scan.stopped =
                Stopped::Twice { name: scan.tree.name(name as usize).text().to_owned(), at: lex.at() };
            return None;
        }
        scan.names.push(name);
        Some(())
    }
}
