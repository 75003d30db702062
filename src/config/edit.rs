//! A keys file edited as text: one key more or one fewer, and every other byte as it was.
//!
//! YAML says where an item begins; lines say where it ends. What comes out is read again with the gateway's own
//! reader and must hold exactly the keys that it should, so that a layout that was not foreseen is refused, not
//! damaged.

use std::fmt;
use std::ops::Range;

use jiff::Timestamp;

use super::fault::Report;
use super::keys_file::KeysText;
use super::settings::KeySettings;
use super::source::Source;
use super::tree::{self, Content, Node};
use super::value;
use crate::auth::{Key, KeyHash, Patterns};

/// A key to write down. Displays as its item of the list.
#[derive(Debug, Clone)]
pub struct NewKey {
    name: String,
    hash: KeyHash,
    /// Empty: every model.
    models: Vec<String>,
    expires: Option<Timestamp>,
}

impl NewKey {
    /// Fails with a sentence about the argument that is wrong.
    pub fn new(name: &str, hash: KeyHash, models: &[String], expires: Option<&str>) -> Result<Self, String> {
        let of = |argument: &'static str| move |message: String| format!("{argument}: {message}");
        Ok(Self {
            name: value::name(name).map_err(of("--name"))?,
            hash,
            models: models
                .iter()
                .map(|it| value::name(it))
                .collect::<Result<_, _>>()
                .map_err(of("--models"))?,
            expires: expires.map(value::timestamp).transpose().map_err(of("--expires"))?,
        })
    }

    fn key(&self) -> Key {
        Key {
            name: self.name.clone(),
            hashes: vec![self.hash],
            certificates: Vec::new(),
            models: (!self.models.is_empty()).then(|| Patterns::new(&self.models)),
            expires: self.expires,
            from: Vec::new(),
        }
    }
}

impl fmt::Display for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "- name: {}\n  sha256: {}", scalar(&self.name), self.hash)?;
        if !self.models.is_empty() {
            let models: Vec<String> = self.models.iter().map(|model| scalar(model)).collect();
            write!(f, "\n  models: [{}]", models.join(", "))?;
        }
        self.expires.map_or(Ok(()), |expires| write!(f, "\n  expires: {expires}"))
    }
}

/// A text that is plain in YAML too stands as it is; JSON's quotes are YAML's as well.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.len() > 3
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !["true", "false", "null"].contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { serde_json::Value::from(text.replace("${", "$${")).to_string() }
}

impl KeysText<'_> {
    /// The text with this key at the list's end, or why there is none.
    pub fn with(&self, new: &NewKey) -> Result<String, String> {
        let file = self.path.display();
        let before = self.read().map_err(|faults| faults.to_string())?.keys;
        let place = |known: &KeySettings| match known.from_keys_file {
            true => file.to_string(),
            false => "`auth.keys` of the main file".to_owned(),
        };
        if let Some(known) = before.iter().find(|known| known.key.name == new.name) {
            let (name, place) = (&new.name, place(known));
            return Err(format!(
                "{place} has a key `{name}` already: revoke it first, or choose another name"
            ));
        }
        if let Some(known) = before.iter().find(|known| known.key.hashes.contains(&new.hash)) {
            let (name, place) = (&known.key.name, place(known));
            return Err(format!("{place} has this hash already: it is `{name}`'s; make another key"));
        }
        let text = append(self.text, self.root().as_ref(), &new.to_string()).ok_or_else(|| self.by_hand())?;
        match self.reread(&text)?.split_last() {
            Some((last, others)) if last.key == new.key() && others == before => Ok(text),
            _ => Err(self.by_hand()),
        }
    }

    /// The text without the key of this name, or why there is none.
    pub fn without(&self, name: &str) -> Result<String, String> {
        let mut keys = self.read().map_err(|faults| faults.to_string())?.keys;
        let Some(index) = keys.iter().position(|known| known.key.name == name) else {
            return Err(format!("{} has no key `{name}`", self.path.display()));
        };
        if !keys.remove(index).from_keys_file {
            return Err(format!("`{name}` stands in `auth.keys` of the main file: take it out there"));
        }
        let text = remove(self.text, self.root().as_ref(), index - self.main.len());
        let text = text.ok_or_else(|| self.by_hand())?;
        if self.reread(&text)? == keys { Ok(text) } else { Err(self.by_hand()) }
    }

    fn root(&self) -> Option<Node> {
        let report = Report::new("");
        tree::parse(self.text, &Source::of_file(self.path, self.environment, &report))
    }

    fn reread(&self, text: &str) -> Result<Vec<KeySettings>, String> {
        let loaded = KeysText { text, ..*self }.read();
        loaded.map(|loaded| loaded.keys).map_err(|faults| format!("{}\n{faults}", self.by_hand()))
    }

    fn by_hand(&self) -> String {
        let file = self.path.display();
        format!(
            "{file} is not a list with `- name: …` for each key, as this command can edit it: edit it by hand"
        )
    }
}

/// `text`, which reads as `root`, with an item more.
fn append(text: &str, root: Option<&Node>, item: &str) -> Option<String> {
    let root = root?;
    let (text, indent) = match &root.content {
        Content::Null => (text.to_owned(), 0),
        Content::List(items) if items.is_empty() => (without_brackets(text, root)?, 0),
        Content::List(_) => (text.to_owned(), indent(text, root)?),
        _ => return None,
    };
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let lines: Vec<String> = item.lines().map(|line| " ".repeat(indent) + line).collect();
    let item = lines.join(newline);
    let (head, tail) = text.split_at(end_of_document(&text));
    // A file without a newline at its end stays one.
    Some(if head.is_empty() || head.ends_with('\n') {
        format!("{head}{item}{newline}{tail}")
    } else {
        format!("{head}{newline}{item}{tail}")
    })
}

/// `text`, which reads as `root`, without one item of its list.
fn remove(text: &str, root: Option<&Node>, index: usize) -> Option<String> {
    let root = root?;
    let Content::List(items) = &root.content else { return None };
    let indent = indent(text, root)?;
    let lines = lines(text);
    let dash_of = |item: &Node| {
        let until = item.place.line.min(lines.len());
        lines[..until].iter().rposition(|line| is_item(&text[line.clone()], indent))
    };
    let first = dash_of(items.get(index)?)?;
    let end = end_of_document(text);
    let after = match items.get(index + 1) {
        Some(next) => dash_of(next)?,
        None => lines.iter().position(|line| line.start >= end).unwrap_or(lines.len()),
    };
    // Blank lines and comments behind an item are not its own, unless they stand within it.
    let is_own = |line: &Range<usize>| {
        let line = &text[line.clone()];
        let content = line.trim_start();
        let is_within = line.len() - content.len() > indent;
        !content.is_empty() && (is_within || !content.starts_with('#'))
    };
    let last = first + lines.get(first..after)?.iter().rposition(is_own)?;
    let mut range = lines[first].start..lines[last].end;
    if !text[range.clone()].ends_with('\n') {
        // The newline that parted it from what stands before.
        let head = &text[..range.start];
        range.start = head.strip_suffix("\r\n").or(head.strip_suffix('\n')).unwrap_or(head).len();
    }
    Some(format!("{}{}", &text[..range.start], &text[range.end..]))
}

/// How far the dashes of a list are indented; `None` for a list in brackets.
fn indent(text: &str, list: &Node) -> Option<usize> {
    let indent = list.place.column - 1;
    is_item(&text[lines(text).get(list.place.line - 1)?.clone()], indent).then_some(indent)
}

fn is_item(line: &str, indent: usize) -> bool {
    line.strip_prefix(&" ".repeat(indent)).is_some_and(|rest| rest.starts_with('-'))
}

/// The text with nothing in place of `[]`.
fn without_brackets(text: &str, list: &Node) -> Option<String> {
    let line = lines(text).get(list.place.line - 1)?.clone();
    let open = line.start + text[line.clone()].find('[')?;
    let close = open + text[open..].find(']')?;
    text[open + 1..close].trim().is_empty().then(|| format!("{}{}", &text[..open], &text[close + 1..]))
}

/// Every line, its newline included; a byte order mark is of none.
fn lines(text: &str) -> Vec<Range<usize>> {
    let body = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut end = text.len() - body.len();
    let line = |line: &str| {
        let start = end;
        end += line.len();
        start..end
    };
    body.split_inclusive('\n').map(line).collect()
}

/// Where `...` stands, or the text ends.
fn end_of_document(text: &str) -> usize {
    let is_end = |line: &str| line.trim_end() == "..." || line.starts_with("... ");
    lines(text).into_iter().find(|line| is_end(&text[line.clone()])).map_or(text.len(), |line| line.start)
}

#[cfg(test)]
mod tests;
