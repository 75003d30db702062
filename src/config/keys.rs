//! `auth`: who may ask. The file holds hashes of keys, never keys, and names of certificates.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::fault::Place;
use super::limits::allowance;
use super::section::{Field, Section};
use super::settings::KeySettings;
use super::source::{Source, Unread, read_text};
use super::tree::{self, Node};
use super::value::{self, Read};
use crate::auth::{CertificateName, Key, KeyHash, Patterns};
use crate::limit::{Budget, Goods, Span};

/// A hundred thousand keys are some 15 MiB; what is larger is some other file.
const KEYS_FILE_BYTES_MAX: usize = 64 << 20;

/// What `auth` says.
#[derive(Default)]
pub(super) struct Auth {
    pub(super) keys: Vec<KeySettings>,
    pub(super) keys_file: Option<PathBuf>,
}

/// Headers that name nobody.
const SECRET_HEADERS: [&str; 4] = ["authorization", "x-api-key", "cookie", "proxy-authorization"];

/// The keys read so far, and where each name and hash was first seen.
#[derive(Default)]
pub(super) struct Register {
    keys: Vec<KeySettings>,
    /// Items seen, faulty ones included.
    seen: usize,
    names: HashMap<Rc<str>, Seen>,
    /// With the names of their keys.
    hashes: HashMap<KeyHash, (Seen, Rc<str>)>,
    /// The same for names of certificates.
    certificates: HashMap<CertificateName, (Seen, Rc<str>)>,
    /// Whether some listener asks callers for a certificate.
    certificates_asked: bool,
    /// The file that is being read.
    file: Rc<str>,
    from_keys_file: bool,
}

/// Where something was first seen.
#[derive(Clone)]
enum Seen {
    At(Rc<str>, Place),
    /// Among the keys of the main file, which was read before.
    InForce(usize),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(file, place) => write!(f, "{file}:{place}"),
            Self::InForce(index) => write!(f, "auth.keys[{index}] of the main file"),
        }
    }
}

/// Whoever may call. `None`: there is no `auth`, and the gateway is open. Present, it needs a key, or a file to add
/// one to. `certificates_asked`: some listener asks callers for one.
pub(super) fn read(file: &mut Section, certificates_asked: bool) -> Option<Auth> {
    let auth = file.take("auth")?;
    let mut register = Register { certificates_asked, ..Register::default() };
    let faults_before = auth.source().report.faults();
    let keys_file = register.read_auth(&auth);
    let complete = keys_file.as_ref().is_none_or(|field| register.read_named_file(field).is_some());
    let complete = complete && auth.source().report.faults() == faults_before;
    if complete && register.seen == 0 {
        match &keys_file {
            Some(field) => {
                field.warn("names no key yet: nobody may call until `ai-gateway key add` has added one");
            }
            None => auth.fault(
                "nobody could call: add a key (`ai-gateway key new` prints one), or remove `auth` to be open to all",
            ),
        }
    }
    Some(Auth { keys: register.keys, keys_file: keys_file.and_then(|field| path(&field)) })
}

/// The same, without the file that it names: the keys of the main file alone, checked.
pub(super) fn read_main(auth: &Field) -> Auth {
    let mut register = Register { certificates_asked: true, ..Register::default() };
    let keys_file = register.read_auth(auth);
    Auth { keys: register.keys, keys_file: keys_file.and_then(|field| path(&field)) }
}

fn path(keys_file: &Field) -> Option<PathBuf> {
    Some(keys_file.resolve(keys_file.value(value::text)?))
}

pub(super) fn read_keys_text(path: &Path) -> Result<String, Unread> {
    read_text(path, KEYS_FILE_BYTES_MAX)
}

impl Register {
    /// For a keys file beside these keys of the main file.
    pub(super) fn of_keys_file(main: &[KeySettings], certificates_asked: bool) -> Self {
        let mut register =
            Self { keys: main.to_vec(), from_keys_file: true, certificates_asked, ..Self::default() };
        for (index, Key { name, hashes, certificates, .. }) in main.iter().map(|it| &it.key).enumerate() {
            let name: Rc<str> = name.as_str().into();
            let seen = || (Seen::InForce(index), Rc::clone(&name));
            register.hashes.extend(hashes.iter().map(|hash| (*hash, seen())));
            register.certificates.extend(certificates.iter().map(|it| (it.clone(), seen())));
            register.names.insert(name, Seen::InForce(index));
        }
        register
    }

    pub(super) fn into_keys(self) -> Vec<KeySettings> {
        self.keys
    }

    /// Reads the keys that stand in the main file; gives the name of the file with the others.
    fn read_auth<'a>(&mut self, auth: &Field<'a>) -> Option<Field<'a>> {
        self.file = auth.source().file.as_str().into();
        auth.section(|section| {
            let keys = section.take("keys");
            let keys_file = section.take("keys_file");
            if let Some(keys) = keys {
                self.read_list(&keys);
            }
            keys_file
        })
        .flatten()
    }

    fn read_list(&mut self, list: &Field) {
        list.items().iter().for_each(|item| self.read_item(item));
    }

    fn read_item(&mut self, item: &Field) {
        self.seen += 1;
        if item.is_scalar() {
            item.fault(
                "expected a mapping with `name` and `sha256`, as `ai-gateway key new` prints it; \
                 no key stands in the file",
            );
            return;
        }
        if let Some(key) = item.section(|section| self.read_key(section)).flatten() {
            self.keys.push(key);
        }
    }

    /// Reads a text that is a list of keys; `None` if it is not even YAML.
    pub(super) fn read_keys_file(&mut self, text: &str, source: &Source) -> Option<()> {
        self.file = source.file.as_str().into();
        self.from_keys_file = true;
        let mut indices = 0..;
        let mut take = |item: Node| {
            let index = indices.next().unwrap_or_default();
            self.read_item(&Field::item(&item, index, source));
        };
        let rest = tree::parse_items(text, source, &mut take)?;
        self.read_list(&Field::root(&rest, source));
        Some(())
    }

    /// Reads the list that stands in a file of its own; `None` if that file cannot be read.
    fn read_named_file(&mut self, field: &Field) -> Option<()> {
        let path = path(field)?;
        let text = read_keys_text(&path)
            .map_err(|unread| {
                let place = unread.place.map_or(String::new(), |place| format!(":{place}"));
                field.fault(format!("{}{place}: {}", path.display(), unread.message));
            })
            .ok()?;
        let Source { environment, report, .. } = *field.source();
        let source = Source::of_file(&path, environment, report);
        self.read_keys_file(&text, &source)
    }

    fn read_key(&mut self, section: &mut Section) -> Option<KeySettings> {
        let name = self.read_name(section);
        let certificates = self.read_certificates(section, name.as_ref());
        let hashes = self.read_hashes(section, name.as_ref(), certificates.is_some());
        let certificates = certificates.unwrap_or_default();
        let models =
            section.some_values("models", "name a model, or leave it out for all of them", value::name);
        let expires = section.value("expires", value::timestamp);
        let priority = section.value("priority", value::number(-1000..=1000));
        let from = section.some_values("from", "name a network, or leave it out for any", value::network);
        let limits = section.section("limits", allowance);
        let user_limits = section.section("user_limits", allowance);
        let budgets = section.take("budget").map(|field| budgets(&field)).unwrap_or_default();
        let answers = section.value("cache", value::answers);
        let user_header = section.value("user_header", |text| match value::header_name(text)? {
            // It is written into logs.
            name if SECRET_HEADERS.contains(&name.as_str()) => {
                Err(format!("`{name}` holds a secret, which would be in every log line; name another header"))
            }
            name => Ok(name),
        });

        let models = models.map(|models| Patterns::new(&models));
        let from = from.unwrap_or_default();
        let key = Key { name: name?.to_string(), hashes, certificates, models, expires, from };
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

    fn read_name(&mut self, section: &mut Section) -> Option<Rc<str>> {
        let Some(field) = section.take("name") else {
            section.missing("name", "what logs and metrics call this key");
            return None;
        };
        let name: Rc<str> = field.value(value::name)?.into();
        if let Some(seen) = self.names.get(&name) {
            field.fault(format!("the key at {seen} is called `{name}` too; each needs a name of its own"));
        } else {
            let seen = Seen::At(Rc::clone(&self.file), field.place());
            self.names.insert(Rc::clone(&name), seen);
        }
        Some(name)
    }

    /// One name of a certificate, or a list of them; `None` where the key is no certificate's.
    fn read_certificates(
        &mut self,
        section: &mut Section,
        name: Option<&Rc<str>>,
    ) -> Option<Vec<CertificateName>> {
        let name = name.map_or_else(|| "?".into(), Rc::clone);
        let field = section.take("client_cert")?;
        if !self.certificates_asked {
            field.fault("no listener asks callers for a certificate: name `client_ca` in the `tls` of one");
        }
        let fields = if field.is_list() { field.items() } else { vec![field.clone()] };
        if fields.is_empty() {
            field.fault("expected at least one name of a certificate, or leave it out");
        }
        let mut certificates = Vec::new();
        for field in fields {
            let Some(certificate) = field.value(str::parse::<CertificateName>) else { continue };
            if let Some((seen, name)) = self.certificates.get(&certificate) {
                let place = format!("{seen} (key `{name}`)");
                field.fault(format!("this certificate stands at {place} already; keep it in one place"));
            } else {
                let seen = Seen::At(Rc::clone(&self.file), field.place());
                self.certificates.insert(certificate.clone(), (seen, Rc::clone(&name)));
            }
            certificates.push(certificate);
        }
        Some(certificates)
    }

    /// One hash, or a list of them. `spared`: there need be none.
    fn read_hashes(&mut self, section: &mut Section, name: Option<&Rc<str>>, spared: bool) -> Vec<KeyHash> {
        let name = name.map_or_else(|| "?".into(), Rc::clone);
        let Some(field) = section.take("sha256") else {
            if !spared {
                section.missing(
                    "sha256",
                    "`ai-gateway key new` prints it with a new key, `ai-gateway key hash` for one you have",
                );
            }
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
            if let Some((seen, name)) = self.hashes.get(&hash) {
                let place = format!("{seen} (key `{name}`)");
                field.fault(format!("this hash stands at {place} already; keep it in one place"));
            } else {
                let seen = Seen::At(Rc::clone(&self.file), field.place());
                self.hashes.insert(hash, (seen, Rc::clone(&name)));
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
