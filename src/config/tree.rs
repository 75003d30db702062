//! YAML text -> a tree of nodes that know their places.
//!
//! `saphyr-parser` reads the YAML; this only stacks its events. The bounds live here: depth, what aliases may
//! add up to, and one document a file. A name that is written twice is a fault, not a surprise.

use std::collections::{BTreeMap, HashMap};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::fault::Place;
use super::hint;
use super::source::Source;

/// Nothing in the file's format is half as deep.
const DEPTH_MAX: usize = 32;
/// All nodes that aliases (`*name`) copy; a bomb of them doubles with each.
const ALIASED_NODES_MAX: usize = 10_000;

#[derive(Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) content: Content,
}

#[derive(Clone)]
pub(super) enum Content {
    /// Nothing was written, or `null`.
    Null,
    /// As written; what it means is the reader's question, not YAML's.
    Scalar {
        text: String,
        /// It is a text whatever it looks like.
        quoted: bool,
    },
    List(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// One `name: value` of a mapping.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Where the name stands.
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Content {
    /// What a fault says was found.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Content::Null => "nothing",
            Content::Scalar { .. } => "a single value",
            Content::List(_) => "a list",
            Content::Mapping(_) => "a mapping",
        }
    }
}

impl Content {
    /// What was likely meant where this stands and a mapping should; what is written may be a secret, and is not said.
    pub(super) fn likely_mapping(&self) -> &'static str {
        match self {
            Content::Scalar { text, quoted: false } if text.contains(" = ") => {
                ": write `key: value`, not `key = value`"
            }
            Content::Scalar { text, quoted: false } if glued(text) => ": is a space missing after the `:`?",
            Content::List(_) => ": take the `-` or the brackets away",
            _ => "",
        }
    }

    /// The same where a list should stand.
    pub(super) fn likely_list(&self) -> &'static str {
        match self {
            Content::Mapping(entries) if entries.iter().all(|entry| entry.name.starts_with('-')) => {
                ": is a space missing after the `-`?"
            }
            Content::Mapping(_) => ": each item begins with `- `",
            Content::Scalar { .. } => ": write `[` and `]` around it",
            _ => "",
        }
    }
}

/// `local:http://a`, `ttl:5m`: a name, and its value without a space between.
fn glued(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    text.split_once(':').is_some_and(|(name, rest)| {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(word)
            && !rest.is_empty()
            && !rest.starts_with("//")
    })
}

/// Reads one document. `None`: the text is not YAML, or beyond the bounds, and a fault says so.
pub(super) fn parse(text: &str, source: &Source) -> Option<Node> {
    build(text, source, None)
}

/// The same for a document that is one long list: each item goes to `take` as soon as it is whole, so that no more than
/// one is held. What is left is an empty list, or what stands there instead of one.
pub(super) fn parse_items(text: &str, source: &Source, take: &mut dyn FnMut(Node)) -> Option<Node> {
    build(text, source, Some(take))
}

fn build(text: &str, source: &Source, take_item: Option<&mut dyn FnMut(Node)>) -> Option<Node> {
    let mut builder = Builder {
        source,
        take_item,
        open: Vec::new(),
        anchors: BTreeMap::new(),
        aliased_nodes: 0,
        documents: 0,
        root: Node { place: Place::START, content: Content::Null },
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (place, outcome) = match event {
            Ok((event, span)) => {
                let place = place_of(&span.start);
                (place, builder.take(event, place))
            }
            Err(error) => {
                let said = format!("this is not YAML: {}", error.info());
                let (place, message) = hint::of(text, place_of(error.marker()), &said);
                (place, Err(message))
            }
        };
        if let Err(message) = outcome {
            source.fault(place, "", message);
            return None;
        }
    }
    Some(builder.root)
}

fn place_of(marker: &Marker) -> Place {
    Place { line: marker.line().max(1), column: marker.col() + 1 }
}

/// A list or mapping whose end has not come yet.
struct Open {
    place: Place,
    anchor: usize,
    content: OpenContent,
}

enum OpenContent {
    List(Vec<Node>),
    Mapping {
        entries: Vec<Entry>,
        /// The name that waits for its value; the inner `None` is one that was refused, and so is its value.
        name: Option<Option<(String, Place)>>,
        lines: HashMap<String, usize>,
    },
}

struct Builder<'a, 'b> {
    source: &'a Source<'a>,
    /// Who gets the items of the outermost list, if not that list.
    take_item: Option<&'b mut dyn FnMut(Node)>,
    open: Vec<Open>,
    /// Finished nodes by the parser's number of their anchor; 0 is no anchor.
    anchors: BTreeMap<usize, Node>,
    aliased_nodes: usize,
    documents: usize,
    root: Node,
}

impl Builder<'_, '_> {
    fn take(&mut self, event: Event, place: Place) -> Result<(), String> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err("expected one document, found a second one after `---`".to_owned());
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.is_some(), place);
                let plain = style == ScalarStyle::Plain;
                let content = match text.as_ref() {
                    "" | "~" | "null" if plain => Content::Null,
                    _ => Content::Scalar { text: text.into_owned(), quoted: !plain },
                };
                self.add(Node { place, content }, anchor);
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_tag(tag.is_some(), place);
                self.begin(place, anchor, OpenContent::List(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_tag(tag.is_some(), place);
                let content = OpenContent::Mapping { entries: Vec::new(), name: None, lines: HashMap::new() };
                self.begin(place, anchor, content)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open { place, anchor, content }) = self.open.pop() {
                    let content = match content {
                        OpenContent::List(items) => Content::List(items),
                        OpenContent::Mapping { entries, .. } => Content::Mapping(entries),
                    };
                    self.add(Node { place, content }, anchor);
                }
            }
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).ok_or("this alias names what contains it")?;
                self.aliased_nodes += count_nodes(node);
                if self.aliased_nodes > ALIASED_NODES_MAX {
                    return Err(format!(
                        "the aliases copy more than {ALIASED_NODES_MAX} values; write them out"
                    ));
                }
                let (depth, node) = (depth(node), node.clone());
                self.check_depth(depth)?;
                self.add(node, 0);
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn begin(&mut self, place: Place, anchor: usize, content: OpenContent) -> Result<(), String> {
        self.check_depth(1)?;
        self.open.push(Open { place, anchor, content });
        Ok(())
    }

    fn check_depth(&self, more: usize) -> Result<(), String> {
        if self.open.len() + more > DEPTH_MAX {
            return Err(format!("lists and mappings are nested more than {DEPTH_MAX} deep"));
        }
        Ok(())
    }

    fn refuse_tag(&self, tagged: bool, place: Place) {
        if tagged {
            self.source.fault(place, "", "YAML tags (`!…`) mean nothing here; take it out");
        }
    }

    /// Puts a finished node where it belongs: into the innermost open list or mapping, or at the root.
    fn add(&mut self, node: Node, anchor: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let is_outermost = self.open.len() == 1;
        match (self.open.last_mut().map(|open| &mut open.content), &mut self.take_item) {
            (None, _) => self.root = node,
            (Some(OpenContent::List(_)), Some(take)) if is_outermost => take(node),
            (Some(OpenContent::List(items)), _) => items.push(node),
            (Some(OpenContent::Mapping { entries, name, lines }), _) => match name.take() {
                None => *name = Some(check_name(node, lines, self.source)),
                Some(None) => {}
                Some(Some((name, place))) => entries.push(Entry { name, place, node }),
            },
        }
    }
}

/// The text of a mapping's key, unless it cannot be one.
fn check_name(node: Node, lines: &mut HashMap<String, usize>, source: &Source) -> Option<(String, Place)> {
    let place = node.place;
    let found = node.content.describe();
    let Content::Scalar { text: name, .. } = node.content else {
        source.fault(place, "", format!("expected a name before `:`, found {found}"));
        return None;
    };
    if name.starts_with(|c: char| c.is_whitespace() && !c.is_ascii()) {
        source.fault(
            place,
            "",
            "this line begins with a space that is none to YAML (a no-break space); write plain ones",
        );
        return None;
    }
    if name == "<<" {
        source.fault(place, "", "merge keys (`<<`) are not read; write the members out");
        return None;
    }
    if let Some(line) = lines.insert(name.clone(), place.line) {
        source.fault(place, "", format!("`{name}` is written twice here, first on line {line}; keep one"));
        return None;
    }
    Some((name, place))
}

fn children(node: &Node) -> Vec<&Node> {
    match &node.content {
        Content::Null | Content::Scalar { .. } => Vec::new(),
        Content::List(items) => items.iter().collect(),
        Content::Mapping(entries) => entries.iter().map(|entry| &entry.node).collect(),
    }
}

fn count_nodes(node: &Node) -> usize {
    1 + children(node).into_iter().map(count_nodes).sum::<usize>()
}

/// How many lists and mappings are nested in this node, itself included.
fn depth(node: &Node) -> usize {
    match &node.content {
        Content::Null | Content::Scalar { .. } => 0,
        _ => 1 + children(node).into_iter().map(depth).max().unwrap_or(0),
    }
}
