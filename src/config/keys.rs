//! `auth`: who may ask. The file holds hashes of keys, never keys.

use std::collections::HashMap;
use std::path::PathBuf;

use super::limits::allowance;
use super::section::{Field, Section};
use super::settings::KeySettings;
use super::source::{Source, read_text};
use super::value::{self, Read};
use super::{FILE_BYTES_MAX, tree};
use crate::auth::{Key, KeyHash, Patterns};
use crate::limit::{Budget, Goods, Span};

/// The keys read so far, and where each name and hash was first seen.
#[derive(Default)]
struct Register {
    keys: Vec<KeySettings>,
    /// Items seen, faulty ones included.
    seen: usize,
    names: HashMap<String, String>,
    hashes: HashMap<KeyHash, String>,
    from_keys_file: bool,
}

/// The keys, and the file that holds some of them. `None`: there is no `auth`, and the gateway is open. Present, it
/// needs at least one key.
pub(super) fn read(file: &mut Section) -> Option<(Vec<KeySettings>, Option<PathBuf>)> {
    let mut path = None;
    let auth = file.take("auth")?;
    let mut register = Register::default();
    let complete = auth.section(|section| {
        let keys = section.take("keys");
        let keys_file = section.take("keys_file");
        if let Some(keys) = keys {
            register.read_list(&keys);
        }
        path = keys_file.as_ref().and_then(|field| Some(field.resolve(field.value(value::text)?)));
        keys_file.is_none_or(|field| register.read_file(&field).is_some())
    });
    if complete == Some(true) && register.seen == 0 {
        auth.fault(
                "nobody could call: add a key (`ai-gateway key new` prints one), or remove `auth` to be open to all",
            );
    }
    Some((register.keys, path))
}

impl Register {
    fn read_list(&mut self, list: &Field) {
        for item in list.items() {
            self.seen += 1;
            if let Some(key) = item.section(|section| self.read_key(section)).flatten() {
                self.keys.push(key);
            }
        }
    }

    /// Reads the list that stands in a file of its own; `None` if that file cannot be read.
    fn read_file(&mut self, field: &Field) -> Option<()> {
        let path = field.resolve(field.value(value::text)?);
        let text = read_text(&path, FILE_BYTES_MAX)
            .map_err(|unread| {
                let place = unread.place.map_or(String::new(), |place| format!(":{place}"));
                field.fault(format!("{}{place}: {}", path.display(), unread.message));
            })
            .ok()?;
        field.warn("is read at start only in this version: restart after it changes");
        let main = field.source();
        let source = Source {
            file: path.display().to_string(),
            folder: main.folder.clone(),
            environment: main.environment,
            report: main.report,
        };
        let list = tree::parse(&text, &source)?;
        self.from_keys_file = true;
        self.read_list(&Field::root(&list, &source));
        Some(())
    }

    fn read_key(&mut self, section: &mut Section) -> Option<KeySettings> {
        let name = self.read_name(section);
        let hashes = self.read_hashes(section, name.as_deref().unwrap_or("?"));
        let models =
            section.some_values("models", "name a model, or leave it out for all of them", value::name);
        let expires = section.value("expires", value::timestamp);
        let priority = section.value("priority", value::number(-1000..=1000));
        let from = section.some_values("from", "name a network, or leave it out for any", value::network);
        let limits = section.section("limits", allowance);
        let user_limits = section.section("user_limits", allowance);
        let budgets = section.take("budget").map(|field| budgets(&field)).unwrap_or_default();
        let answers = section.value("cache", value::answers);
        let user_header = section.value("user_header", value::header_name);

        let models = models.map(|models| Patterns::new(&models));
        let key = Key { name: name?, hashes, models, expires, from: from.unwrap_or_default() };
        Some(KeySettings {
            key,
            limits,
            user_limits,
            budgets,
            priority: priority.unwrap_or_default(),
            user_header,
            answers,
            from_keys_file: self.from_keys_file,
        })
    }

    fn read_name(&mut self, section: &mut Section) -> Option<String> {
        let Some(field) = section.take("name") else {
            section.missing("name", "what logs and metrics call this key");
            return None;
        };
        let name = field.value(value::name)?;
        if let Some(place) = self.names.get(&name) {
            field.fault(format!("the key at {place} is called `{name}` too; each needs a name of its own"));
        } else {
            self.names.insert(name.clone(), field.place());
        }
        Some(name)
    }

    /// One hash, or a list of them.
    fn read_hashes(&mut self, section: &mut Section, name: &str) -> Vec<KeyHash> {
        let Some(field) = section.take("sha256") else {
            section.missing(
                "sha256",
                "`ai-gateway key new` prints it with a new key, `ai-gateway key hash` for one you have",
            );
            return Vec::new();
        };
        let fields = if field.is_list() { field.items() } else { vec![field.clone()] };
        if fields.is_empty() {
            field.fault("expected at least one hash, as `ai-gateway key new` prints it");
        }
        let mut hashes = Vec::new();
        for field in fields {
            let Some(hash) = field.value(str::parse::<KeyHash>) else { continue };
            if hash == KeyHash::of(b"") {
                field.fault("this is the hash of no text at all: whoever sends an empty key would be let in");
            }
            if let Some(place) = self.hashes.get(&hash) {
                field.fault(format!("this hash stands at {place} already; keep it in one place"));
            } else {
                self.hashes.insert(hash, format!("{} (key `{name}`)", field.place()));
            }
            hashes.push(hash);
        }
        hashes
    }
}

/// Each item names tokens, requests or both.
fn budgets(field: &Field) -> Vec<Budget> {
    let mut budgets = Vec::new();
    for item in field.items() {
        item.section(|section| {
            let goods = [(Goods::Tokens, "tokens"), (Goods::Requests, "requests")].map(|(goods, name)| {
                let field = section.take(name)?;
                let read = field.value(allotment);
                budgets.extend(read.map(|(amount, per)| Budget { goods, amount, per }));
                Some(())
            });
            if goods.iter().all(Option::is_none) {
                section.missing("tokens", "say how many in which time, such as `5M/month`");
            }
        });
    }
    budgets
}

/// So much a day or a month.
fn allotment(text: &str) -> Read<(u64, Span)> {
    let spans = [("/day", Span::Day), ("/month", Span::Month)];
    let found = spans.into_iter().find_map(|(suffix, span)| Some((text.strip_suffix(suffix)?, span)));
    match found.map(|(count, span)| (value::count(count.trim()), span)) {
        Some((Ok(count), span)) => Ok((count, span)),
        _ => value::expected("an amount such as `5M/month` or `200k/day`", text),
    }
}
