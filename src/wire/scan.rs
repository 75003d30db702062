//! A body that is a JSON object, read into a tree: refused where two readers could understand it differently.

use std::mem;
use std::ops::Range;

use bytes::Bytes;

use super::lex::{DEPTH_MAX, Lex};
use super::names::{Names, Placed, Twice, beginning};
use super::spelled::{Spelled, Spelling};
use super::tree::{LAST, Node, Tree, VALUES_MAX};
use super::{estimate, media};

/// An object that was read.
pub(super) struct Scanned {
    pub(super) tree: Tree,
    /// Where the names of its members are in the tree.
    pub(super) names: Vec<u32>,
    /// Where the value of its member `model` stands in the text, in bytes, if it is a text.
    pub(super) model: Option<Range<usize>>,
    /// How many tokens all of its text is likely to be.
    pub(super) estimate: u64,
    /// Where the names are in the tree, in their order, of members within it that may name media elsewhere.
    pub(super) media: Vec<u32>,
}

/// Why a text was not read to its end.
pub(super) enum Stopped {
    /// It is no JSON object, or a text in it is no UTF-8.
    Syntax,
    /// A member is there twice; `at`: where the value of a later one is.
    Twice { name: String, at: usize },
    /// It has too many values.
    Many { at: usize },
    /// It has more than 4 GiB.
    Long,
}

/// An object that is being read.
pub(super) struct Scan {
    text: Bytes,
    /// Where the reading is: at the beginning, or at a value or the blanks before one.
    at: usize,
    tree: Tree,
    /// Where the names of the whole are in the tree.
    names_of_whole: Vec<u32>,
    model: Option<Range<usize>>,
    estimate: u64,
    media: Vec<u32>,
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
    pub(super) fn of(text: Bytes) -> Self {
        Self {
            tree: Tree::of(text.clone()),
            text,
            at: 0,
            names_of_whole: Vec::new(),
            model: None,
            estimate: 0,
            media: Vec::new(),
            values: 0,
            innermost: Part { node: 0, names: 0 },
            outer: Vec::new(),
            names: Names::default(),
            stopped: Stopped::Syntax,
        }
    }

    /// How many values have been read, and names of members.
    pub(super) fn values(&self) -> usize {
        self.tree.len()
    }

    /// What has been read.
    pub(super) fn scanned(self) -> Scanned {
        let Self { tree, names_of_whole: names, model, estimate, media, .. } = self;
        Scanned { tree, names, model, estimate, media }
    }

    /// Reads so many bytes more, and on to the next value; whether that was all. Once it has stopped it is not to be
    /// called again.
    pub(super) fn go_on(&mut self, bytes: usize) -> Result<bool, Stopped> {
        if u32::try_from(self.text.len()).is_err() {
            return Err(Stopped::Long);
        }
        let text = self.text.clone();
        let is_over = if self.at == 0 {
            Lex::of(&text).and_then(|lex| self.begin_whole(lex, bytes))
        } else {
            self.read(Lex::at_place(&text, self.at), self.at.saturating_add(bytes.max(1)))
        };
        is_over.ok_or_else(|| mem::replace(&mut self.stopped, Stopped::Syntax))
    }

    fn begin_whole(&mut self, mut lex: Lex<'_>, until: usize) -> Option<bool> {
        lex.pass(b'{')?;
        lex.pass_blanks()?;
        if lex.passes(b'}') {
            return lex.is_over().then_some(true);
        }
        self.name(&mut lex)?;
        self.read(lex, until)
    }

    /// Reads on from a value, up to the first that begins at that place or behind it.
    fn read(&mut self, mut lex: Lex<'_>, until: usize) -> Option<bool> {
        loop {
            if lex.at() >= until {
                self.at = lex.at();
                return Some(false);
            }
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
                    return lex.is_over().then_some(true);
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
        self.estimate += if is_list { 0 } else { estimate::PLACE_TOKENS };
        Some(())
    }

    /// Ends the innermost; whether that was the whole.
    #[inline(always)]
    fn end(&mut self, lex: &Lex<'_>) -> Option<bool> {
        let Part { node, names } = self.innermost;
        let outer = self.outer.pop();
        let object = outer.map(|_| node);
        if names == LIST {
            // Tokens.
            self.estimate += self.tree.numbers(node as usize) as u64;
        } else if let Err(twice) = self.names.end(&mut self.tree, names, object) {
            self.stop(lex.clone(), &twice);
            return None;
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
        if spelling != Spelling::Ascii || estimate::may_be_media(lex.byte(start as usize + 1)) {
            return self.other_text(&lex.clone(), text);
        }
        let bytes = end - start;
        self.tree.push(Node::Spelled { start, bytes, escapes, has_others: false });
        self.estimate += estimate::of_ascii(bytes - 2 - escapes);
        Some(())
    }

    /// One that has other letters, another spelling, or media.
    #[inline(never)]
    fn other_text(&mut self, lex: &Lex<'_>, text: Spelled) -> Option<()> {
        let at = self.tree.len();
        let Spelled { start, end, escapes, spelling } = text;
        if spelling == Spelling::Other {
            self.tree.push_apart(&lex.read(text)?);
        } else {
            str::from_utf8(lex.inside(text)?).ok()?;
            let has_others = spelling != Spelling::Ascii;
            self.tree.push(Node::Spelled { start, bytes: end - start, escapes, has_others });
        }
        self.estimate += estimate::of_value(self.tree.value(at));
        Some(())
    }

    /// Reads a member's name.
    #[inline(always)]
    fn name(&mut self, lex: &mut Lex<'_>) -> Option<()> {
        if lex.peek() != Some(b'"') {
            lex.pass_blanks()?;
        }
        let name @ Spelled { start, end, escapes, spelling } = lex.name()?;
        let at = self.tree.len() as u32;
        let (bytes, beginning) = if escapes == 0 && spelling == Spelling::Ascii {
            self.tree.push(Node::Name { start, bytes: end - start, next: LAST });
            (end - start - 2, lex.beginning(name))
        } else {
            self.other_name(&lex.clone(), name)?
        };
        let name = Placed { beginning, node: at, start };
        if let Err(twice) = self.names.add(&self.tree, self.innermost.names, name) {
            self.stop(lex.clone(), &twice);
            return None;
        }
        if self.outer.is_empty() {
            self.name_of_whole(lex.clone(), at)?;
        } else if media::may_name(bytes, beginning) {
            self.note_media(at);
        }
        Some(())
    }

    /// One that has other letters or escapes; its bytes when it is read, and how it begins.
    #[cold]
    fn other_name(&mut self, lex: &Lex<'_>, name: Spelled) -> Option<(u32, u64)> {
        let Spelled { start, end, escapes, .. } = name;
        let read = lex.read(name)?;
        if escapes == 0 {
            self.tree.push(Node::Name { start, bytes: end - start, next: LAST });
        } else {
            self.tree.push_name_apart(&read);
        }
        Some((read.len() as u32, beginning(read.as_bytes(), 0, read.len())))
    }

    #[cold]
    fn note_media(&mut self, at: u32) {
        if media::names(self.tree.name(at as usize)) {
            self.media.push(at);
        }
    }

    /// Notes a name of the whole.
    #[cold]
    fn name_of_whole(&mut self, mut lex: Lex<'_>, at: u32) -> Option<()> {
        if self.tree.name(at as usize).bytes() == b"model" {
            lex.pass_blanks()?;
            self.model = lex.string().map(|text| text.start as usize..text.end as usize);
        }
        self.names_of_whole.push(at);
        Some(())
    }

    #[cold]
    fn stop(&mut self, mut lex: Lex<'_>, Twice(name): &Twice) {
        lex.go_to(name.start as usize);
        let value = lex.name().and_then(|_| lex.pass_blanks());
        let name = self.tree.name(name.node as usize).text().to_owned();
        self.stopped = value.map_or(Stopped::Syntax, |_| Stopped::Twice { name, at: lex.at() });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use crate::wire::{Document, Reading, Step, parse};

    fn in_steps(body: &Bytes, bytes: usize) -> (Option<Document>, usize) {
        let (mut reading, mut steps) = (Reading::of(body), 1);
        loop {
            match reading.go_on(bytes) {
                Some(Step::More(more)) => reading = more,
                Some(Step::Whole(document)) => return (Some(document), steps),
                None => return (None, steps),
            }
            steps += 1;
        }
    }

    fn told(document: Option<Document>) -> Option<String> {
        let Document { members, model, remote_media } = document?;
        Some(format!("{:?} {model:?} {remote_media:?} {}", members.to_json(), members.estimate()))
    }

    proptest! {
        #[test]
        fn a_body_is_the_same_in_whatever_steps(
            value in r#"([\[\]{}:,"]|"[a-z/]{0,9}|\\\\[u"nx/]|[0-9]{1,3}|[-+eE. ]|null|true|é|\x01){0,12}"#,
            image in r#"https://a|data:image/png;base64,AA"#,
            bytes in 1..40_usize,
        ) {
            for body in [
                format!("{{\"value\":{value}}}"),
                format!(
                    r#" {{"model": "\u0061", "messages": [ {{"content":[[1, 2.5],{{"image_url":{{"url":"{image}"}}}}]
                       }},
                       {{"é":["","data:b",null,true] , "a":"b\n\"c\"", "b":{{}} }} ], "value": [{value}] }}"#
                ),
            ] {
                let body = Bytes::from(body);
                prop_assert_eq!(told(in_steps(&body, bytes).0), told(parse(&body).ok()));
            }
        }
    }

    #[test]
    fn a_step_ends_at_the_next_value() {
        let body = Bytes::from(format!("{{\"a\":[{}1]}}", "1,".repeat(1000)));
        let (document, steps) = in_steps(&body, 100);
        assert!(document.is_some());
        assert!((20..=21).contains(&steps), "{steps}");
    }
}
