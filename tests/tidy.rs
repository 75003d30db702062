//! Rules about the code, held as tests: the layers of the house, and what every file owes its reader.
//!
//! The order of the modules in src/lib.rs is the architecture (docs/ARCHITECTURE.md): each uses only those below it.

use std::fs;
use std::path::{Path, PathBuf};

/// The five boxes, which only `proxy` composes.
const BOXES: [&str; 5] = ["observe", "route", "cache", "limit", "auth"];
/// Who may name Pingora.
const PINGORA: [&str; 3] = ["server", "proxy", "admin"];
const LINES_MAX: usize = 400;
const COLUMNS_MAX: usize = 120;

/// A source file: its path from the repository's root, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The module of the house that it belongs to: `cache` of `src/cache/key.rs`.
    fn module(&self) -> &str {
        let path = self.path.trim_start_matches("src/");
        path.split(['/', '.']).next().unwrap_or_default()
    }

    /// Its lines of code, numbered from one, without what is commented.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

fn read(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is readable") {
            let path = entry.expect("the folder is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let text = fs::read_to_string(&path).expect("sources are UTF-8");
                let path = path.strip_prefix(root).expect("below the root").display().to_string();
                sources.push(Source { path, text });
            }
        }
    }
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    sources
}

/// The modules of lib.rs, from the top of the house to the ground.
fn floors() -> Vec<String> {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"))
        .expect("there is a lib.rs");
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    modules.map(str::to_owned).collect()
}

/// Fails with all findings at once.
fn check(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n{}", findings.join("\n"));
}

/// Whether `line` names `crate::module`, as a path or within `crate::{…}`.
fn names(line: &str, module: &str) -> bool {
    let whole = |text: &str| !text.starts_with(|it: char| it.is_alphanumeric() || it == '_');
    let path =
        line.match_indices(&format!("crate::{module}")).any(|(at, found)| whole(&line[at + found.len()..]));
    let group = line.split_once("crate::{").is_some_and(|(_, group)| {
        group.match_indices(module).any(|(at, found)| {
            let before = group[..at].trim_end();
            whole(&group[at + found.len()..]) && (before.is_empty() || before.ends_with(','))
        })
    });
    path || group
}

#[test]
fn the_order_in_lib_is_the_architecture() {
    let floors = floors();
    assert!(floors.len() >= 9, "lib.rs lists the modules as `pub mod name;`: {floors:?}");
    let mut findings = Vec::new();
    for source in read("src") {
        let Some(floor) = floors.iter().position(|it| it == source.module()) else { continue };
        for (number, line) in source.code() {
            for above in floors[..floor].iter().filter(|above| names(line, above)) {
                findings.push(format!("{}:{number} uses {above}, which stands above it", source.path));
            }
        }
    }
    check("a module uses only those below it", &findings);
}

#[test]
fn the_five_boxes_never_use_each_other() {
    let mut findings = Vec::new();
    for source in read("src").iter().filter(|source| BOXES.contains(&source.module())) {
        for (number, line) in source.code() {
            for other in BOXES.iter().filter(|other| **other != source.module() && names(line, other)) {
                findings.push(format!("{}:{number} uses {other}", source.path));
            }
        }
    }
    check("proxy composes the boxes", &findings);
}

#[test]
fn pingora_is_named_in_three_modules() {
    let engine = |line: &str| {
        ["pingora::", "pingora_core", "pingora_proxy", "pingora_http"].iter().any(|it| line.contains(it))
    };
    let mut findings = Vec::new();
    for source in read("src").iter().filter(|source| !PINGORA.contains(&source.module())) {
        for (number, _) in source.code().filter(|(_, line)| engine(line)) {
            findings.push(format!("{}:{number}", source.path));
        }
    }
    check("only server, proxy and admin know Pingora", &findings);
}

#[test]
fn every_file_says_what_it_is() {
    let sources = read("src").into_iter().chain(read("tests"));
    let silent = sources.filter(|source| !source.text.starts_with("//! ")).map(|source| source.path);
    check("a file begins with `//!`", &silent.collect::<Vec<_>>());
}

#[test]
fn files_are_concepts() {
    let mut findings = Vec::new();
    for source in read("src") {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            findings.push(format!("{} has {lines} lines", source.path));
        }
        let drawers = ["util", "utils", "common", "helpers", "types", "manager", "misc"];
        let stem = source.path.trim_end_matches(".rs").trim_end_matches("/mod");
        if drawers.iter().any(|drawer| stem.ends_with(&format!("/{drawer}"))) {
            findings.push(format!("{} is a drawer", source.path));
        }
    }
    check("a file is one concept, of at most 400 lines", &findings);
}

#[test]
fn nothing_is_left_lying_about() {
    // Spelled apart, so that this file does not find itself.
    let banned = [
        (concat!("TO", "DO"), "open an issue instead"),
        (concat!("FIX", "ME"), "open an issue instead"),
        (concat!("dbg", "!("), "remove it"),
        (concat!("#[al", "low("), "use #[expect(…, reason = …)]"),
        (concat!("#![al", "low("), "use #![expect(…, reason = …)]"),
    ];
    let mut findings = Vec::new();
    for source in read("src").into_iter().chain(read("tests")) {
        for (number, line) in source.text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
            for (word, advice) in banned.iter().filter(|(word, _)| line.contains(word)) {
                findings.push(format!("{}:{number} has `{word}`: {advice}", source.path));
            }
            let columns = line.chars().count();
            // A test may quote what is wider than code should be.
            if columns > COLUMNS_MAX && source.path.starts_with("src") {
                findings.push(format!("{}:{number} is {columns} columns wide", source.path));
            }
        }
    }
    check("sources are clean", &findings);
}

#[test]
fn plays_do_not_sleep() {
    let mut findings = Vec::new();
    let allowed = ["tests/it/support/eventually.rs", "tests/it/support/gateway.rs"];
    for source in read("tests/it").iter().filter(|source| !allowed.contains(&source.path.as_str())) {
        for (number, _) in source.code().filter(|(_, line)| line.contains("sleep(")) {
            findings.push(format!("{}:{number}", source.path));
        }
    }
    check("a play waits with `eventually!`", &findings);
}
