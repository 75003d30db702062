//! The tables: servers, keys and the last requests, and what there is to say of one of them.

use jiff::tz::TimeZone;

use super::board::Board;
use super::outcome::{self, Parts, is_no};
use super::table::{Column, Kind, Row, Table, piece, plain};
use super::text::{self, count, milliseconds, percent, wrapped};
use super::told::{Budget, Key, Level, Request, Server};

/// Slots of a server that are drawn one by one.
const SLOTS_DRAWN_MAX: u64 = 16;
/// Models of a server that are named.
const MODELS_NAMED_MAX: usize = 8;
/// A request that took so long is slow.
const SLOW_MS: f64 = 2000.0;
const BAR_COLUMNS: usize = 40;

/// Which of the last requests are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Filter {
    #[default]
    All,
    No,
    Slow,
}

impl Filter {
    pub(super) fn next(self) -> Self {
        match self {
            Self::All => Self::No,
            Self::No => Self::Slow,
            Self::Slow => Self::All,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::No => "refused or failed",
            Self::Slow => "slow (2 s and more)",
        }
    }

    pub(super) fn of(self, requests: &[Request]) -> Vec<&Request> {
        let shown = |it: &&Request| match self {
            Self::All => true,
            Self::No => is_no(it),
            Self::Slow => it.duration_ms >= SLOW_MS,
        };
        requests.iter().filter(shown).collect()
    }
}

fn left(head: &'static str, columns_min: usize, columns_max: usize, rank: u8) -> Column {
    Column { head, right: false, columns_min, columns_max, rank }
}

fn right(head: &'static str, columns_min: usize, rank: u8) -> Column {
    Column { head, right: true, columns_min, columns_max: 20, rank }
}

pub(super) fn servers(board: &Board) -> Table {
    let columns = vec![
        left("server", 10, 24, 0),
        left("state", 8, 24, 0),
        left("slots", 12, 30, 1),
        right("waiting", 7, 2),
        right("prefix hits", 11, 3),
        left("upstream", 8, 20, 5),
        left("models", 10, 60, 4),
        left("url", 20, 60, 6),
    ];
    let row = |server: &Server| {
        let state = outcome::of_server(server);
        vec![
            piece(Kind::Strong, &*server.server.shown()),
            piece(state.kind, state.words),
            plain(slots(server)),
            plain(server.waiting.to_string()),
            plain(prefix_hits(board, server)),
            plain(&*server.upstream),
            plain(models(server)),
            piece(Kind::Quiet, &*server.url),
        ]
    };
    Table { columns, rows: board.servers.iter().map(row).collect() }
}

fn slots(server: &Server) -> String {
    match server.slots {
        None => format!("{} busy", server.in_flight),
        Some(slots @ 1..=SLOTS_DRAWN_MAX) => {
            let busy = server.in_flight.min(slots) as usize;
            let bar = "■".repeat(busy) + &"□".repeat(slots as usize - busy);
            format!("{} of {slots} {bar}", server.in_flight)
        }
        Some(slots) => format!("{} of {slots}", server.in_flight),
    }
}

/// The part of the last requests' prompts that was in its KV cache.
fn prefix_hits(board: &Board, server: &Server) -> String {
    let name = server.server.shown();
    let mine = board.requests.iter().filter(|it| it.server.as_ref() == Some(&name));
    let (mut reused, mut read) = (0u64, 0u64);
    for (cached, prompt) in mine.filter_map(|it| it.cached_prompt_tokens.zip(it.prompt_tokens)) {
        reused = reused.saturating_add(cached);
        read = read.saturating_add(prompt);
    }
    percent(reused, read)
}

fn models(server: &Server) -> String {
    let loaded = server
        .router
        .as_ref()
        .map(|rows| rows.iter().filter(|it| &*it.state == "loaded").map(|it| it.model.clone()).collect());
    let models: Vec<text::Text> = loaded.or_else(|| server.models.clone()).unwrap_or_default();
    if models.is_empty() {
        return "–".to_owned();
    }
    let named: Vec<&str> = models.iter().take(MODELS_NAMED_MAX).map(|it| &**it).collect();
    match models.len().saturating_sub(MODELS_NAMED_MAX) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// What there is to say of a server.
pub(super) fn of_server(server: &Server, columns: usize) -> Vec<Row> {
    let state = outcome::of_server(server);
    let why = if state.why.is_empty() { "It gets requests.".to_owned() } else { state.why };
    let why_columns = columns.saturating_sub(text::width(&state.words) + 2);
    let name = server.server.shown();
    vec![
        vec![
            piece(Kind::Strong, text::cut(&name, 30)),
            piece(
                Kind::Quiet,
                text::cut(&format!("  {} in {}", server.url, server.upstream), columns.saturating_sub(30)),
            ),
        ],
        vec![piece(state.kind, state.words), plain(format!("  {}", text::cut(&why, why_columns)))],
    ]
}

pub(super) fn keys(board: &Board) -> Table {
    let columns = vec![
        left("key", 10, 30, 0),
        right("now", 6, 1),
        right("requests today", 14, 2),
        right("tokens today", 12, 2),
        right("requests left", 13, 3),
        right("tokens left", 14, 4),
        left("budget left", 24, 50, 5),
        right("tokens this month", 17, 6),
    ];
    let row = |key: &Key| {
        let now = match &key.limits.concurrent {
            Some(at_once) => format!("{} of {}", key.in_flight, at_once.limit),
            None => key.in_flight.to_string(),
        };
        let spent = key.budgets.iter().any(|it| is_low(it.remaining, it.amount));
        vec![
            piece(Kind::Strong, &*key.name),
            plain(now),
            plain(count(key.used.day.requests)),
            plain(count(key.used.day.tokens())),
            level(key.limits.requests.as_ref()),
            level(key.limits.tokens.as_ref()),
            match budgets(key) {
                None => piece(Kind::Quiet, "no budget"),
                Some(budgets) => piece(if spent { Kind::Bad } else { Kind::Plain }, budgets),
            },
            plain(count(key.used.month.tokens())),
        ]
    };
    Table { columns, rows: board.access.keys.iter().map(row).collect() }
}

fn level(level: Option<&Level>) -> super::table::Piece {
    match level {
        None => piece(Kind::Quiet, "no limit"),
        Some(it) => {
            let kind = if is_low(it.remaining, it.limit) { Kind::Bad } else { Kind::Plain };
            piece(kind, format!("{} of {}", count(it.remaining), count(it.limit)))
        }
    }
}

fn budgets(key: &Key) -> Option<String> {
    let told = |it: &Budget| format!("{} of {} {}/{}", count(it.remaining), count(it.amount), it.of, it.per);
    let budgets: Vec<String> = key.budgets.iter().map(told).collect();
    (!budgets.is_empty()).then(|| budgets.join(", "))
}

/// All there is to say of a key.
pub(super) fn of_key(key: &Key, columns: usize) -> Vec<Row> {
    let (day, month) = (&key.used.day, &key.used.month);
    let used = format!(
        "used (UTC): today {} requests, {} tokens; this month {} requests, {} tokens",
        count(day.requests),
        count(day.tokens()),
        count(month.requests),
        count(month.tokens())
    );
    let left = format!(
        "left: requests {}, tokens {}, budget {}",
        level(key.limits.requests.as_ref()).text,
        level(key.limits.tokens.as_ref()).text,
        budgets(key).unwrap_or_else(|| "none".to_owned())
    );
    let line = |kind, text: &str| vec![piece(kind, text::cut(text, columns))];
    vec![line(Kind::Strong, &key.name), line(Kind::Plain, &left), line(Kind::Plain, &used)]
}

/// Less than a tenth is left.
fn is_low(remaining: u64, of: u64) -> bool {
    (remaining as f64) < of as f64 / 10.0
}

/// What is said above the keys.
pub(super) fn of_keys(board: &Board, columns: usize) -> Vec<Row> {
    let access = &board.access;
    let mut said = Vec::new();
    if !access.asks_for_key {
        said.push(
            "Nobody is asked for a key: name auth.keys in the file, and each caller gets a row.".to_owned(),
        );
    }
    let limits = &access.limits;
    let levels = [(&limits.requests, "requests left"), (&limits.tokens, "tokens left")];
    let mut all: Vec<String> = levels
        .into_iter()
        .filter_map(|(level, word)| Some((level.as_ref()?, word)))
        .map(|(level, word)| format!("{} of {} {word}", count(level.remaining), count(level.limit)))
        .collect();
    all.extend(limits.concurrent.as_ref().map(|it| format!("{} of {} at once", it.now, it.limit)));
    if !all.is_empty() {
        said.push(format!("All callers together: {}.", all.join(", ")));
    }
    let shown = access.keys.len() as u64;
    if access.keys_count > shown {
        said.push(format!("The {shown} of {} that use most.", access.keys_count));
    }
    if said.is_empty() {
        return Vec::new();
    }
    wrapped(&said.join(" "), columns).into_iter().map(|line| vec![piece(Kind::Quiet, line)]).collect()
}

pub(super) fn requests(requests: &[&Request], zone: &TimeZone) -> Table {
    let columns = vec![
        left("time", 8, 8, 0),
        left("outcome", 24, 46, 0),
        right("took", 6, 1),
        right("queue", 6, 3),
        right("prefill", 7, 4),
        right("generate", 8, 4),
        left("key", 5, 20, 2),
        left("model", 6, 24, 5),
        left("server", 6, 20, 6),
        right("tokens", 9, 7),
        left("path", 20, 28, 8),
        left("x-request-id", 12, 40, 10),
        left("why", 40, 400, 9),
    ];
    Table { columns, rows: requests.iter().map(|it| request(it, zone)).collect() }
}

fn request(it: &Request, zone: &TimeZone) -> Row {
    let outcome = outcome::of_request(it);
    let took_kind = if it.duration_ms >= SLOW_MS { Kind::Warn } else { Kind::Plain };
    let part = |part: Option<f64>| match part {
        Some(part) if part >= 0.5 => plain(milliseconds(Some(part))),
        _ => piece(Kind::Quiet, "–"),
    };
    vec![
        piece(Kind::Quiet, time(it, zone)),
        piece(outcome.kind, outcome.short),
        piece(took_kind, milliseconds(Some(it.duration_ms))),
        part(Some(it.queue_ms)),
        part(it.prefill_ms),
        part(it.generation_ms),
        plain(it.key.as_deref().unwrap_or("–")),
        plain(it.model.as_deref().unwrap_or("–")),
        plain(it.server.as_deref().unwrap_or("–")),
        plain(tokens(it)),
        plain(&*it.path),
        piece(Kind::Quiet, &*it.request_id),
        piece(Kind::Quiet, outcome.why),
    ]
}

fn time(it: &Request, zone: &TimeZone) -> String {
    let local = it.ts.map(|ts| ts.to_zoned_datetime(zone.clone()));
    local.map_or_else(|| "–".to_owned(), |local| local.strftime("%H:%M:%S").to_string())
}

fn tokens(it: &Request) -> String {
    let number = |n: Option<u64>| n.map_or_else(|| "–".to_owned(), count);
    match (it.prompt_tokens, it.completion_tokens) {
        (None, None) => "–".to_owned(),
        (prompt, completion) => format!("{} → {}", number(prompt), number(completion)),
    }
}

/// All there is to say of a request.
pub(super) fn of_request(it: &Request, zone: &TimeZone, columns: usize) -> Vec<Row> {
    let outcome = outcome::of_request(it);
    let parts = Parts::of(it);
    let mut who = vec![it.path.to_string() + if it.stream { " (stream)" } else { "" }];
    who.extend(it.key.as_ref().map(|key| format!("key {key}")));
    who.extend(it.user.as_ref().map(|user| format!("user {user}")));
    who.extend(it.model.as_ref().map(|model| format!("model {model}")));
    who.extend(it.server.as_ref().map(|server| format!("server {server}")));
    let mut figures = vec![format!("took {}", milliseconds(Some(it.duration_ms)))];
    figures.extend(it.ttft_ms.map(|first| format!("first byte after {}", milliseconds(Some(first)))));
    figures.extend(
        (it.prompt_tokens.is_some() || it.completion_tokens.is_some())
            .then(|| format!("tokens {}", tokens(it))),
    );
    figures.extend(it.cached_prompt_tokens.filter(|n| *n > 0).map(|n| format!("{} reused", count(n))));
    figures.extend(it.finish_reason.as_ref().map(|why| format!("ended by {why}")));
    let line = |text: String| vec![plain(text::cut(&text, columns))];
    let why = format!("{}{}{}", outcome.words, if outcome.why.is_empty() { "" } else { ": " }, outcome.why);
    let mut lines = vec![
        line(format!("{}  {}", time(it, zone), who.join(", "))),
        vec![piece(Kind::Quiet, text::cut(&format!("x-request-id: {}", it.request_id), columns))],
    ];
    lines.extend(wrapped(&why, columns).into_iter().take(3).map(|line| vec![piece(outcome.kind, line)]));
    lines.push(line(figures.join(", ")));
    let told = parts.told();
    if !told.is_empty() {
        lines.push(vec![piece(Kind::Line, parts.bar(BAR_COLUMNS.min(columns)))]);
        lines.push(line(told));
    }
    lines
}
