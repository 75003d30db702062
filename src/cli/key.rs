//! `ai-gateway key`: keys made, written down, taken back and listed.

use std::io::Read;
use std::path::{Path, PathBuf};

use ai_gateway::auth::KeyHash;
use ai_gateway::config::{
    KeySettings, KeysText, MainKeys, NewKey, main_keys, process_environment, read_keys_text,
};
use clap::{Args, Subcommand};

use super::{Failure, note, print, replace};

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Print a new key, once, and the lines of the file that hold only its hash.
    New {
        /// What logs and metrics will call it.
        #[arg(long)]
        name: String,
    },
    /// Make a new key, write its hash into a keys file, and print the key, once.
    Add {
        /// What logs and metrics will call it.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        place: Place,
        /// The models it may use, names and patterns with `*`; all if absent.
        #[arg(long, value_delimiter = ',')]
        models: Vec<String>,
        /// When it ends: 2027-01-01T00:00:00Z, or a date.
        #[arg(long)]
        expires: Option<String>,
        /// The hash of a key that its owner has already (`ai-gateway key hash`); no key is made.
        #[arg(long)]
        hash: Option<KeyHash>,
    },
    /// Take a key out of a keys file.
    Revoke {
        #[arg(long)]
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// List keys: who, and what each may do.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Print the hash of a key read from standard input.
    Hash,
}

/// Where the keys stand.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Place {
    /// A keys file.
    #[arg(long)]
    file: Option<PathBuf>,
    /// A gateway's file: the keys file is its `auth.keys_file`, and its own keys count too.
    #[arg(long)]
    config: Option<PathBuf>,
}

pub(crate) fn run(command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::New { name } => new(&name),
        KeyCommand::Add { name, place, models, expires, hash } => {
            add(&place, hash, |hash| NewKey::new(&name, hash, &models, expires.as_deref()).map_err(wrong))
        }
        KeyCommand::Revoke { name, place } => revoke(&place, &name),
        KeyCommand::List { place } => list(&place),
        KeyCommand::Hash => hash(),
    }
}

fn wrong(message: impl std::fmt::Display) -> Failure {
    Failure::Wrong(format!("ai-gateway: {message}"))
}

fn new(name: &str) -> Result<(), Failure> {
    let (key, hash) = make()?;
    let item = NewKey::new(name, hash, &[], None).map_err(wrong)?;
    print(&format!(
        "# The key, shown this once:\n{key}\n\n# For `auth.keys` of the file, which holds only its hash:\n{item}"
    ))
}

/// A key that nobody has, and its hash.
fn make() -> Result<(String, KeyHash), Failure> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| Failure::Failed(format!("ai-gateway: no randomness: {error}")))?;
    let key = format!("sk-{}", hex::encode(secret));
    let hash = KeyHash::of(key.as_bytes());
    Ok((key, hash))
}

/// The key goes to standard output, alone, and only once its hash is safely in the file.
fn add(
    place: &Place,
    hash: Option<KeyHash>,
    item: impl FnOnce(KeyHash) -> Result<NewKey, Failure>,
) -> Result<(), Failure> {
    let (main, path) = place.resolve()?;
    let (key, hash) = match hash {
        Some(hash) => (None, hash),
        None => make().map(|(key, hash)| (Some(key), hash))?,
    };
    let item = item(hash)?;
    replace::edit(&path, |text| keys_text(text, &path, &main).with(&item))?;
    let Some(key) = key else {
        note(&format!(
            "Its hash is in {}; a gateway that runs with it takes it within a second.",
            path.display()
        ));
        return Ok(());
    };
    note(&format!(
        "The key, shown this once; {} has its hash, and a gateway that runs with it takes it within a second:",
        path.display()
    ));
    print(&key)
}

fn revoke(place: &Place, name: &str) -> Result<(), Failure> {
    let (main, path) = place.resolve()?;
    if !path.exists() {
        return Err(wrong(format!("{}: there is no such file", path.display())));
    }
    replace::edit(&path, |text| keys_text(text, &path, &main).without(name))?;
    note(&format!(
        "`{name}` is out of {}; a gateway that runs with it refuses it within a second.",
        path.display()
    ));
    Ok(())
}

fn list(place: &Place) -> Result<(), Failure> {
    let (main, path) = place.resolve()?;
    let text = read_keys_text(&path).map_err(|faults| Failure::Wrong(faults.to_string()))?;
    let loaded = keys_text(&text, &path, &main).read();
    let keys = loaded.map_err(|faults| Failure::Wrong(faults.to_string()))?.keys;
    print(&table(&keys))
}

fn keys_text<'a>(text: &'a str, path: &'a Path, main: &'a [KeySettings]) -> KeysText<'a> {
    KeysText { text, path, main, certificates_asked: true, environment: &process_environment }
}

impl Place {
    /// The keys of the gateway's file, if one was named, and the keys file.
    fn resolve(&self) -> Result<(Vec<KeySettings>, PathBuf), Failure> {
        let Some(config) = &self.config else {
            return Ok((Vec::new(), self.file.clone().unwrap_or_default()));
        };
        let main = main_keys(config, &process_environment);
        let MainKeys { keys, keys_file } = main.map_err(|faults| Failure::Wrong(faults.to_string()))?;
        let keys_file = keys_file.ok_or_else(|| {
            let config = config.display();
            wrong(format!(
                "{config} names no keys file: write `auth: {{keys_file: keys.yaml}}` there, or use --file"
            ))
        })?;
        Ok((keys, keys_file))
    }
}

fn table(keys: &[KeySettings]) -> String {
    let head = ["NAME", "KNOWN BY", "MODELS", "EXPIRES", "FROM", "LIMITS"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(keys.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |row: &[String; 6]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn row(settings: &KeySettings) -> [String; 6] {
    let KeySettings { key, limits, budgets, .. } = settings;
    let short = |hash: &KeyHash| hash.to_string()[..8].to_owned();
    let certificates = key.certificates.iter().map(ToString::to_string);
    let limits = [
        limits.requests.map(|rate| rate.to_string()),
        limits.burst.map(|burst| format!("burst {burst}")),
        limits.tokens.map(|rate| format!("{rate} tokens")),
        limits.concurrent.map(|most| format!("{most} at once")),
    ];
    let limits: Vec<String> =
        limits.into_iter().flatten().chain(budgets.iter().map(ToString::to_string)).collect();
    let joined =
        |cells: Vec<String>, none: &str| if cells.is_empty() { none.to_owned() } else { cells.join(", ") };
    [
        key.name.clone(),
        joined(key.hashes.iter().map(short).chain(certificates).collect(), "-"),
        key.models.as_ref().map_or("all".to_owned(), ToString::to_string),
        key.expires.map_or("never".to_owned(), |expires| expires.to_string()),
        joined(key.from.iter().map(ToString::to_string).collect(), "anywhere"),
        joined(limits, "-"),
    ]
}

fn hash() -> Result<(), Failure> {
    let mut text = String::new();
    let read = std::io::stdin().take(64 << 10).read_to_string(&mut text);
    read.map_err(|error| Failure::Failed(format!("ai-gateway: cannot read the key: {error}")))?;
    let key = text.trim();
    if key.is_empty() {
        return Err(wrong("expected a key on standard input"));
    }
    print(&KeyHash::of(key.as_bytes()).to_string())
}
