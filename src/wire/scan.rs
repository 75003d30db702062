//! A body that is a JSON object, read into a tree: refused where two readers could understand it differently.

use std::ops::Range;

use bytestring::ByteString;

use super::lex::{DEPTH_MAX, Lex};
use super::names::{Names, Placed, Twice, beginning};
use super::spelled::{Spelled, Spelling};
use super::tree::{LAST, Node, Tree, VALUES_MAX};

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
        names_of_whole: Vec::new(),
        model: None,
        values: 0,
        innermost: Part { node: 0, names: 0 },
        outer: Vec::new(),
        names: Names::default(),
        stopped: Stopped::Syntax,
    };
    if Lex::of(text).and_then(|lex| scan.object(lex)).is_none() {
        return Err(scan.stopped);
    }
    Ok(Scanned { tree: scan.tree, names: scan.names_of_whole, model: scan.model })
}

struct Scan {
    tree: Tree,
    /// Where the names of the whole are in the tree.
    names_of_whole: Vec<u32>,
    model: Option<(usize, Range<usize>)>,
    values: u32,
    /// The object or list that is being read.
    innermost: Part,
    /// Those around it, from the outermost.
    outer: Vec<Part>,
    names: Names,
    /// Why, once it has.
    stopped: Stopped,
}

/// An object or list that is being read.
#[derive(Clone, Copy)]
struct Part {
    /// Where it is in the tree, which has none for the whole.
    node: u32,
    /// Where its names begin among those of all objects; [`LIST`]: it has none.
    names: u32,
}

const LIST: u32 = u32::MAX;

impl Scan {
    /// Reads the whole.
    fn object(&mut self, mut lex: Lex<'_>) -> Option<()> {
        lex.pass(b'{')?;
        lex.pass_blanks()?;
        if lex.passes(b'}') {
            return lex.is_over().then_some(());
        }
        self.name(&mut lex)?;
        loop {
            // What most values are.
            if lex.peek() == Some(b'"') {
                self.count(&lex)?;
                self.text(&mut lex)?;
            } else {
                let byte = lex.pass_blanks()?;
                self.count(&lex)?;
                match byte {
                    b'"' => self.text(&mut lex)?,
                    b'{' | b'[' => {
                        let is_list = byte == b'[';
                        self.begin(&mut lex, is_list)?;
                        lex.pass_blanks()?;
                        if !lex.passes(if is_list { b']' } else { b'}' }) {
                            if !is_list {
                                self.name(&mut lex)?;
                            }
                            continue;
                        }
                        self.end(&lex)?;
                    }
                    b'n' => {
                        lex.apart(Lex::null)?;
                        self.tree.push(Node::Null);
                    }
                    b't' | b'f' => self.tree.push(Node::Bool(lex.apart(Lex::bool)?)),
                    _ => self.tree.push(lex.apart(Lex::number)?.into()),
                }
            }
            // A value has been read.
            loop {
                let is_list = self.innermost.names == LIST;
                if lex.comma(if is_list { b']' } else { b'}' })? {
                    if !is_list {
                        self.name(&mut lex)?;
                    }
                    break;
                }
                if self.end(&lex)? {
                    return lex.is_over().then_some(());
                }
            }
        }
    }

    /// Begins an object or a list.
    #[inline(always)]
    fn begin(&mut self, lex: &mut Lex<'_>, is_list: bool) -> Option<()> {
        lex.pass(if is_list { b'[' } else { b'{' })?;
        self.outer.push(self.innermost);
        if self.outer.len() >= usize::from(DEPTH_MAX) {
            return None;
        }
        let names = if is_list { LIST } else { self.names.len() as u32 };
        self.innermost = Part { node: self.tree.len() as u32, names };
        self.tree.push(if is_list { Node::List(0) } else { Node::Object { end: 0, first: LAST } });
        Some(())
    }

    /// Ends the innermost; whether that was the whole.
    #[inline(always)]
    fn end(&mut self, lex: &Lex<'_>) -> Option<bool> {
        let Part { node, names } = self.innermost;
        let outer = self.outer.pop();
        let object = outer.map(|_| node);
        if names != LIST
            && let Err(twice) = self.names.end(&mut self.tree, names, object)
        {
            self.stop(lex.clone(), &twice)?;
        }
        let Some(outer) = outer else { return Some(true) };
        self.innermost = outer;
        self.tree.end(node as usize);
        Some(false)
    }

    #[inline(always)]
    fn count(&mut self, lex: &Lex<'_>) -> Option<()> {
        self.values += 1;
        if self.values > VALUES_MAX {
            self.stopped = Stopped::Many { at: lex.at() };
            return None;
        }
        Some(())
    }

    #[inline(always)]
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

    /// Reads a member's name.
    #[inline(always)]
    fn name(&mut self, lex: &mut Lex<'_>) -> Option<()> {
        if lex.peek() != Some(b'"') {
            lex.pass_blanks()?;
        }
        let name @ Spelled { start, end, .. } = lex.name()?;
        let at = self.tree.len() as u32;
        let beginning = if name.escapes == 0 {
            self.tree.push(Node::Name { start, bytes: end - start, next: LAST });
            lex.beginning(name)
        } else {
            let name = lex.read(name)?;
            self.tree.push_name_apart(&name);
            beginning(name.as_bytes(), 0, name.len())
        };
        let name = Placed { beginning, node: at, start };
        if let Err(twice) = self.names.add(&self.tree, self.innermost.names, name) {
            return self.stop(lex.clone(), &twice);
        }
        if self.outer.is_empty() {
            self.name_of_whole(lex.clone(), at)?;
        }
        Some(())
    }

    /// Notes a name of the whole.
    #[cold]
    fn name_of_whole(&mut self, mut lex: Lex<'_>, at: u32) -> Option<()> {
        if self.tree.name(at as usize).bytes() == b"model" {
            lex.pass_blanks()?;
            let start = lex.at();
            // Of what is no text nobody asks where it ends.
            let end = lex.string().map_or(start, |text| text.end as usize);
            self.model = Some((self.names_of_whole.len(), start..end));
        }
        self.names_of_whole.push(at);
        Some(())
    }

    #[cold]
    fn stop(&mut self, mut lex: Lex<'_>, Twice(name): &Twice) -> Option<()> {
        lex.go_to(name.start as usize);
        lex.name()?;
        lex.pass_blanks()?;
        let name = self.tree.name(name.node as usize).text().to_owned();
        self.stopped = Stopped::Twice { name, at: lex.at() };
        None
    }
}
