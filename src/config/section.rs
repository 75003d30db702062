//! How every part of the file is read: a `Field` is one value with its place and path, a `Section` a mapping
//! whose keys are taken by name.
//!
//! Readers never stop at a fault. It is noted, the default stands in, and reading goes on, so that one run
//! shows all of them; settings are given out only if nothing was noted. What a reader takes from a section is
//! what is known there: the rest is refused when the section has been read.

use std::path::{Path, PathBuf};

use super::environment::interpolate;
use super::fault::Place;
use super::source::{Source, read_text};
use super::tree::{Content, Entry, Node};
use super::value::Read;
use super::whereabouts;

/// A secret or the like, named as `{file: …}`.
const VALUE_FILE_BYTES_MAX: usize = 64 << 10;

/// One value of the file.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub(super) path: String,
    /// Where its name stands, or the value itself if it has none.
    place: Place,
    node: &'a Node,
    source: &'a Source<'a>,
}

impl<'a> Field<'a> {
    pub(super) fn root(node: &'a Node, source: &'a Source<'a>) -> Self {
        Self { path: String::new(), place: node.place, node, source }
    }

    /// An item of a document that is a list.
    pub(super) fn item(node: &'a Node, index: usize, source: &'a Source<'a>) -> Self {
        Self { path: format!("[{index}]"), place: node.place, node, source }
    }

    pub(super) fn fault(&self, message: impl Into<String>) {
        self.source.fault(self.node.place, &self.path, message);
    }

    pub(super) fn warn(&self, what: &str) {
        self.source.report.warn(format!("{} {what}", self.subject()));
    }

    fn subject(&self) -> String {
        let Source { file, report, .. } = self.source;
        let file = if report.is_main(file) { String::new() } else { format!(" of {file}") };
        format!("`{}` (line {}{file})", self.path, self.place.line)
    }

    /// Where the value stands, for a fault that names a second place.
    pub(super) fn place(&self) -> Place {
        self.node.place
    }

    pub(super) fn source(&self) -> &'a Source<'a> {
        self.source
    }

    /// A path in the file is relative to the file's folder.
    pub(super) fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.source.folder.join(path)
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.node.content, Content::Null)
    }

    /// Whether this is a short form, one value where a mapping may stand.
    pub(super) fn is_scalar(&self) -> bool {
        matches!(self.node.content, Content::Scalar { .. })
    }

    /// Whether it is written in quotes, or as a block of text.
    pub(super) fn is_quoted(&self) -> bool {
        matches!(self.node.content, Content::Scalar { quoted: true, .. })
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.content, Content::List(_))
    }

    pub(super) fn is_mapping(&self) -> bool {
        matches!(self.node.content, Content::Mapping(_))
    }

    /// Whether it is a mapping with this key in it.
    pub(super) fn names(&self, key: &str) -> bool {
        matches!(&self.node.content, Content::Mapping(entries) if entries.iter().any(|entry| entry.name == key))
    }

    /// Reads one value: variables are filled in, or the file named by `{file: …}` is read, before `read` sees it.
    pub(super) fn value<T>(&self, read: impl FnOnce(&str) -> Read<T>) -> Option<T> {
        let value = if self.is_null() {
            read("").map_err(|message| nothing(&message)).and_then(|_| Err(NOTHING.to_owned()))
        } else {
            self.text().and_then(|text| read(&text))
        };
        value.map_err(|message| self.fault(message)).ok()
    }

    fn text(&self) -> Read<String> {
        match &self.node.content {
            Content::Scalar { text, .. } => interpolate(text, self.source.environment),
            Content::Mapping(entries) if entries.len() == 1 && entries[0].name == "file" => {
                let Content::Scalar { text: path, .. } = &entries[0].node.content else {
                    return Err("expected the path of a file after `file:`".to_owned());
                };
                let path = self.resolve(interpolate(path, self.source.environment)?);
                let text = read_text(&path, VALUE_FILE_BYTES_MAX)
                    .map_err(|unread| format!("{}: {}", path.display(), unread.message))?;
                let line = text.strip_suffix('\n').unwrap_or(&text);
                Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
            }
            other => Err(format!("expected a single value, found {}", other.describe())),
        }
    }

    /// Reads a mapping by its known keys.
    pub(super) fn section<T>(&self, read: impl FnOnce(&mut Section<'a>) -> T) -> Option<T> {
        let entries = self.entries_of_mapping()?;
        let mut section = Section {
            path: self.path.clone(),
            place: self.node.place,
            source: self.source,
            entries,
            known: Vec::new(),
        };
        let value = read(&mut section);
        section.finish();
        Some(value)
    }

    /// The members of a mapping that must have one; a fault says `what` to write.
    pub(super) fn some_members(&self, what: &str) -> Vec<(&'a str, Field<'a>)> {
        match &self.node.content {
            Content::Mapping(entries) if entries.is_empty() => self.fault(what),
            Content::Null => self.fault(what),
            other if !self.is_mapping() && (self.is_list() || other.likely_mapping().is_empty()) => {
                self.fault(format!("expected a mapping, found {}: {what}", other.describe()));
            }
            _ => return self.members(),
        }
        Vec::new()
    }

    /// The members of a mapping whose names are the operator's own.
    pub(super) fn members(&self) -> Vec<(&'a str, Field<'a>)> {
        let member = |entry: &'a Entry| (entry.name.as_str(), field(&self.path, entry, self.source));
        self.entries_of_mapping().unwrap_or_default().iter().map(member).collect()
    }

    fn entries_of_mapping(&self) -> Option<&'a [Entry]> {
        match &self.node.content {
            Content::Mapping(entries) => Some(entries),
            // `metrics:` with every key under it commented out.
            Content::Null => Some(&[]),
            other => {
                let hint = other.likely_mapping();
                self.fault(format!("expected a mapping (`key: value`), found {}{hint}", other.describe()));
                None
            }
        }
    }

    pub(super) fn items(&self) -> Vec<Field<'a>> {
        match &self.node.content {
            Content::List(items) => {
                let item = |(index, node): (usize, &'a Node)| Field {
                    path: format!("{}[{index}]", self.path),
                    place: node.place,
                    node,
                    source: self.source,
                };
                items.iter().enumerate().map(item).collect()
            }
            Content::Null => Vec::new(),
            other => {
                self.fault(format!("expected a list, found {}{}", other.describe(), other.likely_list()));
                Vec::new()
            }
        }
    }

    /// The items of a list that must have one; a fault says `what` to write.
    pub(super) fn some_items(&self, what: &str) -> Vec<Field<'a>> {
        match &self.node.content {
            Content::List(items) if !items.is_empty() => return self.items(),
            Content::List(_) | Content::Null => self.fault(what),
            other if other.likely_list().contains("missing") => return self.items(),
            other => self.fault(format!("expected a list, found {}: {what}", other.describe())),
        }
        Vec::new()
    }

    /// A list of single values.
    pub(super) fn values<T>(&self, read: impl Fn(&str) -> Read<T>) -> Vec<T> {
        self.items().iter().filter_map(|item| item.value(&read)).collect()
    }
}

/// A mapping whose keys are known. One that is absent reads as an empty one, so that defaults stand in one place.
pub(super) struct Section<'a> {
    path: String,
    place: Place,
    source: &'a Source<'a>,
    entries: &'a [Entry],
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub(super) fn fault(&self, message: impl Into<String>) {
        self.source.fault(self.place, &self.path, message);
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.known.push(key);
        let entry = self.entries.iter().find(|entry| entry.name == key)?;
        Some(field(&self.path, entry, self.source))
    }

    pub(super) fn value<T>(&mut self, key: &'static str, read: impl FnOnce(&str) -> Read<T>) -> Option<T> {
        self.take(key)?.value(read)
    }

    /// A value that has no default; a fault says `what` to write.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        what: &str,
        read: impl FnOnce(&str) -> Read<T>,
    ) -> Option<T> {
        let field = self.take(key);
        if field.is_none() {
            self.missing(key, what);
        }
        field?.value(read)
    }

    pub(super) fn missing(&self, key: &str, what: &str) {
        self.source.fault(self.place, &join(&self.path, key), format!("is missing: {what}"));
    }

    pub(super) fn section<T>(&mut self, key: &'static str, read: impl Fn(&mut Section<'a>) -> T) -> T {
        match self.take(key).and_then(|field| field.section(&read)) {
            Some(value) => value,
            None => read(&mut Section {
                path: join(&self.path, key),
                place: self.place,
                source: self.source,
                entries: &[],
                known: Vec::new(),
            }),
        }
    }

    pub(super) fn values<T>(&mut self, key: &'static str, read: impl Fn(&str) -> Read<T>) -> Option<Vec<T>> {
        self.take(key).map(|field| field.values(read))
    }

    /// A list of single values that must have one where it is written; a fault says `what` to write.
    pub(super) fn some_values<T>(
        &mut self,
        key: &'static str,
        what: &str,
        read: impl Fn(&str) -> Read<T>,
    ) -> Option<Vec<T>> {
        let field = self.take(key)?;
        if field.is_scalar() {
            return Some(field.values(read));
        }
        Some(field.some_items(what).iter().filter_map(|item| item.value(&read)).collect())
    }

    /// Refuses what no reader took.
    fn finish(self) {
        for entry in self.entries.iter().filter(|entry| !self.known.contains(&entry.name.as_str())) {
            let path = join(&self.path, &entry.name);
            let known = suggest(&entry.name, &self.known);
            self.source.fault(
                entry.place,
                &path,
                format!("unknown key{}{known}", elsewhere(&entry.name, &known)),
            );
        }
    }
}

fn field<'a>(parent: &str, entry: &'a Entry, source: &'a Source<'a>) -> Field<'a> {
    Field { path: join(parent, &entry.name), place: entry.place, node: &entry.node, source }
}

/// `models."qwen2.5-3b".upstream`: a name that would read as several is quoted.
fn join(parent: &str, name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '/' | ':');
    let name =
        if !name.is_empty() && name.chars().all(plain) { name.to_owned() } else { format!("{name:?}") };
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

/// Ends a fault over an unknown word: the known one that was likely meant, and all of them.
pub(super) fn suggest(word: &str, known: &[&str]) -> String {
    let all = known.join(", ");
    match closest(word, known) {
        Some(likely) => format!(", did you mean `{likely}`? Known here: {all}"),
        None => format!("; known here: {all}"),
    }
}

/// Where a key belongs that is unknown here, unless another was likely meant.
fn elsewhere(name: &str, known: &str) -> String {
    let places: Vec<String> = whereabouts::of(name).iter().map(|place| format!("`{place}`")).collect();
    let places = places.join(", ");
    if places.is_empty() || known.starts_with(',') {
        String::new()
    } else {
        format!(" here: it is known as {places}")
    }
}

const NOTHING: &str = "expected a value, found nothing";

/// What a reader says of an empty text, said of no text.
fn nothing(message: &str) -> String {
    message.replace("found an empty text", "found nothing").replace("found ``", "found nothing")
}

fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |word: &str| word.to_lowercase().replace('-', "_");
    let distance = |known: &str| strsim::damerau_levenshtein(&plain(word), &plain(known));
    let (distance, likely) = known.iter().map(|known| (distance(known), *known)).min_by_key(|near| near.0)?;
    (distance <= 1 + likely.chars().count() / 4).then_some(likely)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likely_word_is_suggested_and_no_other() {
        let known = ["listen", "upstreams", "auth", "ttl"];
        for (word, meant) in [
            ("upstream", Some("upstreams")),
            ("Upstreams", Some("upstreams")),
            ("lisetn", Some("listen")),
            ("tll", Some("ttl")),
            ("plugins", None),
            ("", None),
        ] {
            assert_eq!(closest(word, &known), meant, "{word}");
        }
    }

    #[test]
    fn paths_quote_names_that_would_read_as_several() {
        assert_eq!(join("", "upstreams"), "upstreams");
        assert_eq!(join("models", "qwen2.5"), r#"models."qwen2.5""#);
        assert_eq!(join("models", "*"), r#"models."*""#);
        assert_eq!(join("models", "org/name-3b:q4"), "models.org/name-3b:q4");
    }
}
