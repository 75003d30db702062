//! How things stand, once, as text: for a pipe, a file, a mail. The same tables, and no escape sequences.

use jiff::tz::TimeZone;

use super::board::Board;
use super::pages::{self, Filter};
use super::screen::{NO_REQUEST, about, state};
use super::table::{Row, Table, told as line};
use super::{hour, text};

/// Of the lines of the hour; tables are as wide as what is in them.
const COLUMNS: usize = 120;
const TABLE_COLUMNS_MAX: usize = 1000;

pub(super) fn told(board: &Board, url: &str, zone: &TimeZone) -> String {
    let (_, words) = state(board);
    let mut told = format!("ai-gateway  {words}  {}  {}\n", text::cut(url, COLUMNS), about(board));
    let mut add = |rows: Vec<Row>| {
        told.push('\n');
        for row in rows {
            told.push_str(&line(&row));
            told.push('\n');
        }
    };
    let whole = |table: Table| table.lines(TABLE_COLUMNS_MAX);
    add(hour::lines(board, COLUMNS));
    add(whole(pages::servers(board)));
    let mut keys = pages::of_keys(board, COLUMNS);
    keys.extend(whole(pages::keys(board)));
    add(keys);
    let requests = Filter::All.of(&board.requests);
    add(match requests.is_empty() {
        true => vec![vec![super::table::plain(NO_REQUEST)]],
        false => whole(pages::requests(&requests, zone)),
    });
    told.trim_end().to_owned()
}
