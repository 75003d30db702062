//! What is on the screen: rows of pieces for its size, and their colours.
//!
//! The colours are the terminal's own sixteen, whatever they look like there, and none where they are not wanted: the
//! words say everything.

use jiff::tz::TimeZone;
use ratatui::Frame;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::board::{Board, Link, Lost};
use super::hour;
use super::pages::{self, Filter};
use super::table::{Kind, Row, Table, piece, plain};
use super::text::{self, count, cut, duration, wrapped};
use super::view::{Pane, Question, View};

pub(super) const COLUMNS_MIN: usize = 60;
pub(super) const ROWS_MIN: usize = 16;

/// Keys and servers in the overview, where there is room for them.
const KEYS_IN_OVERVIEW: usize = 5;
const SERVERS_IN_OVERVIEW: usize = 4;

const HELP: [&str; 18] = [
    "Tab, arrows, h l, 1 to 4  another pane",
    "j k, arrows, PgUp PgDn    another row; g and G: the first and the last",
    "d  Servers: send it nothing new, or requests again; asks before",
    "f  Requests: all, refused or failed, slow",
    "r  while the gateway is away: ask it now          q, Ctrl-C  leave",
    "",
    "Figures under Now are of the last minute, lines of the last hour: in each",
    "column the highest; a gap is where nothing was measured.",
    "Under way, waiting and slots are as they are now.",
    "",
    "Where a request's time went:  queue     it waited here for a free slot",
    "                              prefill   the server read its prompt",
    "                              generate  the server made the answer",
    "                              else      the network, the server before",
    "prefix hits: the part of the last requests' prompts that was in the",
    "server's KV cache. A 4xx is the caller's to solve, a 5xx the operator's;",
    "499 is a caller that left. docs/LIMITS.md has what each limit means, and",
    "/dashboard on the same listener the same with charts and a prompt to try.",
];

/// Everything that is looked at.
pub(super) struct Scene<'a> {
    pub(super) board: &'a Board,
    pub(super) view: &'a View,
    /// Where the gateway is, as a person writes it.
    pub(super) url: &'a str,
    pub(super) zone: &'a TimeZone,
}

pub(super) fn draw(frame: &mut Frame<'_>, scene: &Scene<'_>, colours: bool) {
    let area = frame.area();
    let rows = scene.rows(usize::from(area.width), usize::from(area.height));
    for (row, y) in rows.iter().zip(area.y..area.bottom()) {
        let spans: Vec<Span<'_>> =
            row.iter().map(|piece| Span::styled(piece.text.as_str(), style(piece.kind, colours))).collect();
        frame.buffer_mut().set_line(area.x, y, &Line::from(spans), area.width);
    }
}

fn style(kind: Kind, colours: bool) -> Style {
    let bare = Style::default();
    let (colour, modifier) = match kind {
        Kind::Plain => return bare,
        Kind::Chosen => return bare.add_modifier(Modifier::REVERSED),
        Kind::Strong => (None, Modifier::BOLD),
        Kind::Quiet => (None, Modifier::DIM),
        Kind::Good => (Some(Color::Green), Modifier::empty()),
        Kind::Warn => (Some(Color::Yellow), Modifier::empty()),
        Kind::Bad => (Some(Color::Red), Modifier::BOLD),
        Kind::Line => (Some(Color::Cyan), Modifier::empty()),
    };
    match colour.filter(|_| colours) {
        Some(colour) => bare.fg(colour).add_modifier(modifier),
        None => bare.add_modifier(modifier),
    }
}

/// Is it up, in words.
pub(super) fn state(board: &Board) -> (Kind, String) {
    match &board.link {
        Link::Asked => (Kind::Quiet, "Asking".to_owned()),
        Link::Lost(lost) if lost.wants_token => (Kind::Warn, "Locked".to_owned()),
        Link::Lost(_) => (Kind::Bad, "Connection lost".to_owned()),
        Link::Live if !board.ready => (Kind::Warn, "Leaving: takes nothing new".to_owned()),
        Link::Live if !board.well => (Kind::Bad, "No server is up".to_owned()),
        Link::Live => {
            let once = board.servers_once();
            let up = once.iter().filter(|it| it.up && !it.draining).count();
            match once.len() {
                all if up < all => (Kind::Warn, format!("Up, with {up} of {all} servers")),
                _ => (Kind::Good, "Up".to_owned()),
            }
        }
    }
}

/// How long it runs, and what it has done.
pub(super) fn about(board: &Board) -> String {
    let totals = &board.totals;
    let requests = text::plural(totals.requests, "request");
    format!("up {} · {requests} · {}", duration(totals.uptime_seconds), totals.version)
}

impl Scene<'_> {
    /// Never more rows than there are; each as wide as there is room for.
    pub(super) fn rows(&self, columns: usize, rows: usize) -> Vec<Row> {
        if columns < COLUMNS_MIN || rows < ROWS_MIN {
            return too_small(columns, rows);
        }
        // A column stays free at each side, and a row at the foot is for keys and questions.
        let width = columns - 2;
        let mut page = self.top(width);
        let room = rows.saturating_sub(page.len() + 1);
        let mut body = self.body(width, room);
        body.resize(room, Row::new());
        page.append(&mut body);
        page.push(self.foot(width));
        for row in &mut page {
            row.insert(0, plain(" "));
        }
        page
    }

    fn top(&self, width: usize) -> Vec<Row> {
        let (kind, words) = state(self.board);
        let name = vec![piece(Kind::Strong, "ai-gateway  "), piece(kind, words)];
        let about = if self.board.told { about(self.board) } else { String::new() };
        let mut tabs = Row::new();
        for (pane, number) in Pane::ALL.iter().zip(1..) {
            let kind = if *pane == self.view.pane { Kind::Chosen } else { Kind::Plain };
            tabs.extend([piece(kind, format!(" {number} {} ", pane.name())), plain(" ")]);
        }
        let mut top = vec![with_right(name, &about, width), with_right(tabs, self.url, width)];
        match &self.board.link {
            Link::Lost(lost) if self.board.told => top.extend(lost_rows(lost, true, width)),
            _ => top.push(Row::new()),
        }
        top
    }

    fn body(&self, width: usize, room: usize) -> Vec<Row> {
        if self.view.helps {
            return HELP.iter().map(|line| vec![plain(cut(line, width))]).collect();
        }
        if !self.board.told {
            return match &self.board.link {
                Link::Lost(lost) => lost_rows(lost, false, width),
                _ => vec![vec![plain(cut(&format!("Asking {} …", self.url), width))]],
            };
        }
        match self.view.pane {
            Pane::Overview => self.overview(width, room),
            Pane::Servers => self.servers(width, room),
            Pane::Keys => self.keys(width, room),
            Pane::Requests => self.requests(width, room),
        }
    }

    fn overview(&self, width: usize, room: usize) -> Vec<Row> {
        let mut rows = hour::lines(self.board, width);
        let fewer = |room: usize| if room < 30 { SERVERS_IN_OVERVIEW } else { 2 * SERVERS_IN_OVERVIEW };
        rows.push(Row::new());
        rows.extend(first_of(pages::servers(self.board), fewer(room), "2", width));
        if room >= hour::ROWS + 2 * SERVERS_IN_OVERVIEW + KEYS_IN_OVERVIEW + 10 {
            rows.push(Row::new());
            rows.extend(first_of(pages::keys(self.board), KEYS_IN_OVERVIEW, "3", width));
        }
        rows.push(Row::new());
        let newest: Vec<_> = self.board.requests.iter().take(room).collect();
        match newest.is_empty() {
            true => rows.push(vec![piece(Kind::Quiet, cut(NO_REQUEST, width))]),
            false => rows.extend(pages::requests(&newest, self.zone).lines(width)),
        }
        rows.truncate(room);
        rows
    }

    fn servers(&self, width: usize, room: usize) -> Vec<Row> {
        let board = self.board;
        let at = self.view.server.min(board.servers.len().saturating_sub(1));
        let about = board.servers.get(at).map(|it| pages::of_server(it, width)).unwrap_or_default();
        chosen(&pages::servers(board), at, about, width, room)
    }

    fn keys(&self, width: usize, room: usize) -> Vec<Row> {
        let mut rows = pages::of_keys(self.board, width);
        let at = self.view.key.min(self.board.access.keys.len().saturating_sub(1));
        let room = room.saturating_sub(rows.len());
        let about = self.board.access.keys.get(at).map(|key| pages::of_key(key, width)).unwrap_or_default();
        rows.extend(chosen(&pages::keys(self.board), at, about, width, room));
        rows
    }

    fn requests(&self, width: usize, room: usize) -> Vec<Row> {
        let shown = self.view.filter.of(&self.board.requests);
        let at = self.view.place_in(&shown);
        let which = Filter::name(self.view.filter);
        let head =
            format!("Shown: {which}, {} of the last {}; f: others", shown.len(), self.board.requests.len());
        let mut rows = vec![vec![piece(Kind::Quiet, cut(&head, width))]];
        let Some(request) = shown.get(at) else {
            let none =
                if self.board.requests.is_empty() { NO_REQUEST } else { "None of the last hundred is so." };
            rows.push(vec![plain(cut(none, width))]);
            return rows;
        };
        let about = pages::of_request(request, self.zone, width);
        rows.extend(chosen(&pages::requests(&shown, self.zone), at, about, width, room - 1));
        rows
    }

    fn foot(&self, width: usize) -> Row {
        let (kind, words) = match (&self.view.question, &self.view.said) {
            (Some(Question::Drain { server, drain }), _) => {
                let name = cut(&server.shown(), 24);
                let words = match drain {
                    true => {
                        format!("Drain {name}? It gets nothing new, and finishes what it has. y: yes, n: no")
                    }
                    false => format!("Undrain {name}? It gets requests again. y: yes, n: no"),
                };
                (Kind::Chosen, words)
            }
            (Some(Question::Token(token)), _) => {
                let typed = "*".repeat(token.chars().count().min(40));
                (Kind::Chosen, format!("admin.token: {typed}_  Enter: send, Esc: leave it"))
            }
            (None, Some((kind, words))) => (*kind, words.clone()),
            (None, None) => (Kind::Quiet, self.keys_now().to_owned()),
        };
        vec![piece(kind, cut(&words, width))]
    }

    fn keys_now(&self) -> &'static str {
        match (&self.board.link, self.view.pane) {
            (Link::Lost(lost), _) if lost.wants_token => "t: type the token  r: ask now  ?: help  q: leave",
            (Link::Lost(_), _) => "r: ask now  Tab: pane  ?: help  q: leave",
            (_, Pane::Overview) => {
                "Tab: pane  f: refused, failed, slow  d: drain a server  ?: help  q: leave"
            }
            (_, Pane::Servers) => "Tab: pane  j k: row  d: drain or undrain  ?: help  q: leave",
            (_, Pane::Keys) => "Tab: pane  j k: row  ?: help  q: leave",
            (_, Pane::Requests) => "Tab: pane  j k: row  f: filter  ?: help  q: leave",
        }
    }
}

pub(super) const NO_REQUEST: &str =
    "No request yet: curl http://HOST:9001/v1/chat/completions -d '{\"messages\":…}'";

fn too_small(columns: usize, rows: usize) -> Vec<Row> {
    let words = format!(
        "ai-gateway top needs {COLUMNS_MIN} columns and {ROWS_MIN} rows; here are {columns} and {rows}. q: leave"
    );
    let lines = wrapped(&words, columns).into_iter().take(rows);
    lines.map(|line| vec![plain(line)]).collect()
}

/// Why there is no word from the gateway, and what to do. `old`: something of before stands below.
fn lost_rows(lost: &Lost, old: bool, width: usize) -> Vec<Row> {
    let stands = if old { " What stands here is old." } else { "" };
    let seconds = lost.again_seconds;
    let words = format!(
        "No word from the gateway: {}.{stands} {} Asked again in {seconds} s.",
        lost.why, lost.advice
    );
    wrapped(&words, width).into_iter().map(|line| vec![piece(Kind::Bad, line)]).collect()
}

/// A row with something at its right end, where there is room for it.
fn with_right(mut row: Row, right: &str, width: usize) -> Row {
    let used = hour::row_width(&row);
    let right = cut(right, width.saturating_sub(used + 2));
    row.push(plain(" ".repeat(width.saturating_sub(used + text::width(&right)))));
    row.push(piece(Kind::Quiet, right));
    row
}

/// The first rows of a table, and how many more there are.
fn first_of(mut table: Table, rows_max: usize, key: &str, width: usize) -> Vec<Row> {
    let more = table.rows.len().saturating_sub(rows_max);
    table.rows.truncate(rows_max);
    let mut lines = table.lines(width);
    if more > 0 {
        lines.push(vec![piece(Kind::Quiet, format!("and {} more: press {key}", count(more as u64)))]);
    }
    lines
}

/// A table with the row that the reader is on, and below it what there is to say of that.
fn chosen(table: &Table, at: usize, about: Vec<Row>, width: usize, room: usize) -> Vec<Row> {
    let mut lines = table.lines(width);
    let head = if lines.is_empty() { Row::new() } else { lines.remove(0) };
    let shown = room.saturating_sub(about.len() + 2).max(1);
    let from = (at + 1).saturating_sub(shown);
    let mut rows = vec![head];
    for (number, line) in lines.into_iter().enumerate().skip(from).take(shown) {
        let chosen = |line: Row| line.into_iter().map(|it| piece(Kind::Chosen, it.text)).collect();
        rows.push(if number == at { chosen(line) } else { line });
    }
    if !about.is_empty() {
        rows.resize(room.saturating_sub(about.len()).max(rows.len()), Row::new());
        rows.extend(about);
    }
    rows.truncate(room);
    rows
}

#[cfg(test)]
mod tests;
