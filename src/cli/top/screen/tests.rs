//! What stands on the screen, in states that are given.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};

use super::super::view::View;
use super::*;

const URL: &str = "http://127.0.0.1:9002";

fn of(told: Value) -> Board {
    let mut board = Board::default();
    board.take(serde_json::from_value(told).unwrap(), true);
    board
}

/// A gateway that nobody has asked anything.
fn empty() -> Board {
    of(json!({
        "ready": true, "well": true, "totals": {"version": "0.1.0", "uptime_seconds": 7},
        "servers": [{"upstream": "local", "server": "gpu1", "url": "http://10.0.0.1:8080", "up": true,
            "breaker": "closed", "in_flight": 0, "slots": null, "waiting": 0, "models": null}],
        "access": {"asks_for_key": false, "keys": [{"name": "anybody", "in_flight": 0}], "keys_count": 1},
    }))
}

fn request(number: u64, more: &Value) -> Value {
    let mut request = json!({"number": number, "ts": "2026-03-01T14:05:09Z", "request_id": format!("id-{number}"),
        "key": "alice", "path": "/v1/chat/completions", "model": "qwen2.5-3b", "server": "gpu1", "attempts": 1,
        "status": 200, "cache": "miss", "complete": true, "queue_ms": 500.0, "ttft_ms": 760.0,
        "prefill_ms": 250.0, "generation_ms": 1250.0, "duration_ms": 2020.0, "prompt_tokens": 812,
        "completion_tokens": 33, "cached_prompt_tokens": 406});
    let more = more.as_object().cloned().unwrap_or_default();
    more.into_iter().for_each(|(name, value)| request[name.as_str()] = value);
    request
}

/// A gateway with everything at once: a server that is full, one drained, one down, and a caller at its limit.
fn busy() -> Board {
    let server = |name: &str, more: Value| {
        let mut server = json!({"upstream": "local", "server": name, "url": format!("http://{name}:8080"),
            "up": true, "breaker": "closed", "in_flight": 2, "slots": 2, "waiting": 3, "models": ["qwen2.5-3b"]});
        more.as_object()
            .cloned()
            .unwrap_or_default()
            .into_iter()
            .for_each(|(key, value)| server[key.as_str()] = value);
        server
    };
    let step = |at: u64| {
        json!({"at": 1_772_000_000_000_u64 + at * 10_000, "seconds": 10.0, "requests": at % 20, "refused": 1,
            "hits": 1, "misses": 3, "tokens_out": at * 10, "ttft_p50_ms": 100 + at, "queue": 1, "in_flight": 2})
    };
    let refused = json!({"status": 429, "error_code": "rate_limit_exceeded", "limit": "key.requests",
        "message": "The limit `key.requests` of 30/min is reached; it frees in 1.0 s.", "complete": false,
        "server": null, "prefill_ms": null, "generation_ms": null, "duration_ms": 0.2, "queue_ms": 0.0});
    let left = json!({"requests": {"limit": 30, "remaining": 0}, "concurrent": {"limit": 4, "now": 2}});
    of(json!({
        "ready": true, "well": true,
        "totals": {"version": "0.1.0", "uptime_seconds": 93_600, "requests": 12_345, "in_flight": 5, "queue": 3,
            "cache_entries": 77, "cache_size": 1 << 20, "cache_capacity": 64 << 20, "saved_tokens": 1424,
            "saved_seconds": 54.2},
        "minute": {"seconds": 60.0, "requests": 128, "refused": 3, "failed": 1, "hits": 12, "shared": 3,
            "misses": 21, "tokens_in": 1200, "tokens_out": 2712, "ttft_p50_ms": 120, "ttft_p95_ms": 900},
        "servers": [server("gpu1", json!({})), server("gpu2", json!({"draining": true, "in_flight": 0})),
            server("gpu3", json!({"up": false, "in_flight": 0}))],
        "steps": (0..360).map(step).collect::<Vec<_>>(),
        "requests": [request(1, &json!({})), request(2, &refused)],
        "access": {"asks_for_key": true, "keys_count": 300, "limits": {"requests": {"limit": 10, "remaining": 4}},
            "keys": [{"name": "alice", "in_flight": 2, "limits": left,
                "used": {"day": {"requests": 40, "prompt_tokens": 3000, "completion_tokens": 637}},
                "budgets": [{"of": "tokens", "per": "month", "amount": 5_000_000, "remaining": 4_000_000}]}]},
    }))
}

fn drawn_in_colours(board: &Board, view: &View, columns: u16, rows: u16, colours: bool) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    let scene = Scene { board, view, url: URL, zone: &TimeZone::UTC };
    terminal.draw(|frame| draw(frame, &scene, colours)).unwrap();
    terminal.backend().clone()
}

fn drawn(board: &Board, view: &View, columns: u16, rows: u16) -> Vec<String> {
    let backend = drawn_in_colours(board, view, columns, rows, true);
    let cells = backend.buffer().content().chunks(usize::from(columns));
    let line = |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect::<String>();
    cells.map(|cells| line(cells).trim_end().to_owned()).collect()
}

fn at(pane: Pane) -> View {
    View { pane, ..View::default() }
}

/// All of these stand there, in this order.
#[track_caller]
fn has(screen: &[String], all: &[&str]) {
    let whole = screen.join("\n");
    let mut rest = whole.as_str();
    for one in all {
        let Some(found) = rest.find(one) else { panic!("no `{one}`, or not there, in\n{whole}") };
        rest = &rest[found + one.len()..];
    }
}

#[test]
fn a_gateway_that_nobody_has_asked_says_what_to_do() {
    let screen = drawn(&empty(), &View::default(), 80, 24);
    has(
        &screen,
        &[
            "ai-gateway  Up",
            "up 7 s",
            "1 Overview",
            URL,
            "Requests",
            "nobody waits",
            "gpu1",
            "No request yet: curl",
        ],
    );
    has(&drawn(&empty(), &at(Pane::Keys), 80, 24), &["Nobody is asked for a key", "anybody", "no limit"]);
    has(&drawn(&empty(), &at(Pane::Requests), 80, 24), &["No request yet"]);
    has(&drawn(&Board::default(), &View::default(), 80, 24), &["Asking", "Asking http://127.0.0.1:9002"]);
}

#[test]
fn a_busy_one_says_who_is_up_who_asks_and_what_waits_on_eighty_columns() {
    let screen = drawn(&busy(), &View::default(), 80, 24);
    has(
        &screen,
        &[
            "Up, with 1 of 3 servers",
            "up 1 d 2 h · 12.3k requests",
            "a minute  60 min ago",
            "Requests                128",
            "Refused, failed           4",
            "3 refused, 1 failed",
            "45.2",
            "120 ms",
            "half; 95 % in 900 ms",
            "42 %",
            "every slot is busy",
            "2 of 6 slots busy",
            "gpu1    Up       2 of 2 ■■",
            "gpu2    Drained  0 of 2 □□",
            "gpu3    Down",
            "429 limit key.requests",
            "2.02 s  500 ms",
            "250 ms",
            "1.25 s",
            "alice",
            "?: help  q: leave",
        ],
    );
    has(
        &drawn(&busy(), &View::default(), 140, 45),
        &["most 114/min", "requests left", "0 of 30", "/v1/chat/completions"],
    );
    has(&drawn(&busy(), &View::default(), 180, 45), &["why", "The limit `key.requests` of"]);
}

#[test]
fn each_pane_tells_of_the_row_that_the_reader_is_on() {
    let servers = View { server: 2, ..at(Pane::Servers) };
    has(
        &drawn(&busy(), &servers, 80, 24),
        &["gpu1", "gpu2", "gpu3  http://gpu3:8080", "Its health probe fails"],
    );
    has(
        &drawn(&busy(), &at(Pane::Keys), 80, 24),
        &[
            "All callers together: 4 of 10 requests left. The 1 of 300 that use most.",
            "2 of 4",
            "0 of 30",
            "4.0M of 5.0M tokens/month",
            "used (UTC): today 40 requests, 3637 tokens",
        ],
    );
    let refused = drawn(&busy(), &at(Pane::Requests), 80, 24);
    has(
        &refused,
        &[
            "all, 2 of the last 2",
            "14:05:09",
            "x-request-id: id-2",
            "429 rate limit exceeded by limit key.requests: The limit `key.requests` of",
            "30/min is reached; it frees in 1.0 s.",
        ],
    );
    let slow = View { filter: Filter::Slow, ..at(Pane::Requests) };
    has(
        &drawn(&busy(), &slow, 80, 24),
        &[
            "1 of the last 2",
            "x-request-id: id-1",
            "tokens 812 → 33, 406 reused",
            "qqqqqqqqqqppppp",
            "queue 500 ms, prefill 250 ms, generation 1.25 s, else 20 ms",
        ],
    );
}

#[test]
fn a_gateway_that_is_away_or_locked_says_so_and_what_to_do() {
    let lost = |why: &str, wants_token| {
        let (why, advice) = (text::Text::of(why), "Is the gateway running?".to_owned());
        Link::Lost(Lost { why, advice, wants_token, again_seconds: 4 })
    };
    let mut board = busy();
    board.link = lost("it ended the connection", false);
    let screen = drawn(&board, &View::default(), 80, 24);
    has(
        &screen,
        &[
            "Connection lost",
            "it ended the connection. What stands here is old.",
            "4 s",
            "gpu1",
            "r: ask now",
        ],
    );
    let locked = Board { link: lost("it asks for a token", true), ..Board::default() };
    let screen = drawn(&locked, &View::default(), 80, 24);
    has(&screen, &["Locked", "it asks for a token. Is the gateway running?", "t: type the token"]);
    let typing = View { question: Some(Question::Token("s3cret".to_owned())), ..View::default() };
    let screen = drawn(&locked, &typing, 80, 24);
    has(&screen, &["admin.token: ******_"]);
    assert!(!screen.join("").contains("s3cret"));
}

#[test]
fn what_is_asked_and_what_came_of_it_stand_at_the_foot() {
    let board = busy();
    let (server, drain) = (board.servers[0].server.clone(), true);
    let asked = View { question: Some(Question::Drain { server, drain }), ..at(Pane::Servers) };
    has(
        &drawn(&board, &asked, 80, 24)[23..],
        &["Drain gpu1? It gets nothing new, and finishes what it has. y: yes, n: no"],
    );
    let said = View { said: Some((Kind::Bad, "Not done: it answers 401.".to_owned())), ..at(Pane::Servers) };
    has(&drawn(&board, &said, 80, 24)[23..], &["Not done: it answers 401."]);
    has(
        &drawn(&board, &View { helps: true, ..View::default() }, 80, 24),
        &["another pane", "prefill", "a prompt to try."],
    );
}

#[test]
fn it_is_drawn_in_any_size_and_says_where_it_is_too_small() {
    for board in [Board::default(), empty(), busy()] {
        for pane in Pane::ALL {
            for (columns, rows) in
                [(1, 1), (1, 24), (10, 3), (59, 24), (80, 15), (60, 16), (80, 24), (300, 100)]
            {
                let screen = drawn(&board, &at(pane), columns, rows);
                let small = usize::from(columns) < COLUMNS_MIN || usize::from(rows) < ROWS_MIN;
                assert_eq!(small, !screen.join("").contains("1 Overview"), "{columns}x{rows}");
            }
        }
    }
    has(&drawn(&busy(), &View::default(), 40, 10), &["needs 60 columns and 16", "here are 40 and 10"]);
    let many: Vec<Value> =
        (0..500).map(|n| json!({"server": format!("s{n}"), "url": format!("http://{n}")})).collect();
    let many = of(json!({"servers": many}));
    has(&drawn(&many, &View::default(), 80, 24), &["s3", "and 496 more: press 2"]);
    has(
        &drawn(&many, &View { server: 499, ..at(Pane::Servers) }, 80, 24),
        &["s498", "s499", "s499  http://499"],
    );
}

#[test]
fn without_colours_there_are_none_and_else_only_the_terminals_own() {
    let own = [Color::Reset, Color::Red, Color::Green, Color::Yellow, Color::Cyan];
    let colours = |wanted| {
        let backend = drawn_in_colours(&busy(), &View::default(), 80, 24, wanted);
        backend.buffer().content().iter().map(|cell| cell.fg).collect::<Vec<_>>()
    };
    assert!(colours(false).iter().all(|colour| *colour == Color::Reset));
    let coloured = colours(true);
    assert!(coloured.contains(&Color::Red) && coloured.iter().all(|colour| own.contains(colour)));
}

#[test]
fn what_others_wrote_reaches_neither_screen_nor_text_as_a_control() {
    let hostile = "evil\u{1b}]0;owned\u{7}\u{1b}[2J\r\n\u{9b}31m\u{202e}";
    let told = json!({
        "ready": true, "well": true, "totals": {"version": hostile},
        "servers": [{"upstream": hostile, "server": hostile, "url": hostile, "breaker": hostile,
            "models": [hostile], "router": [{"model": hostile, "state": "loaded"}]}],
        "requests": [request(1, &json!({"request_id": hostile, "key": hostile, "user": hostile, "path": hostile,
            "model": hostile, "server": hostile, "status": 429, "error_code": hostile, "limit": hostile,
            "message": hostile, "cache": hostile, "finish_reason": hostile}))],
        "access": {"asks_for_key": true, "keys": [{"name": hostile,
            "budgets": [{"of": hostile, "per": hostile, "amount": 1}]}], "keys_count": 1},
    });
    let board = of(told);
    let is_bad = |it: char| it.is_control() || it == '\u{202e}';
    for pane in Pane::ALL {
        let (server, drain) = (board.servers[0].server.clone(), true);
        for question in [None, Some(Question::Drain { server, drain })] {
            let screen = drawn(&board, &View { question, ..at(pane) }, 200, 60).join("");
            assert!(screen.contains("evil�]0;owned��[2J"), "{pane:?}: {screen}");
            assert!(!screen.contains(is_bad), "{pane:?}: {screen:?}");
        }
    }
    let text = super::super::plain::told(&board, URL, &TimeZone::UTC);
    assert!(text.contains("evil�") && !text.replace('\n', "").contains(is_bad), "{text:?}");
    assert_eq!(text.lines().filter(|line| line.contains("evil")).count(), 4, "one line is one line: {text}");
}

#[test]
fn as_text_it_is_the_same_tables_in_full() {
    let text = super::super::plain::told(&busy(), URL, &TimeZone::UTC);
    for line in [
        "ai-gateway  Up, with 1 of 3 servers  http://127.0.0.1:9002  up 1 d 2 h · 12.3k requests · 0.1.0",
        "429 limit key.requests",
        "id-2          The limit `key.requests` of 30/min is reached; it frees in 1.0 s.",
        "Cache: 77 answers kept, 1.0 MiB of 64.0 MiB; it has saved 1424 tokens, 54 s of servers' time.",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
    assert!(text.lines().all(|line| line == line.trim_end()));
}
