//! Texts that others wrote, made harmless, and figures as people read them.
//!
//! Names of keys and models, paths and request ids come from callers, and a terminal does what is written to it. So a
//! text from the gateway is a `Text`, which holds nothing but what can be seen.

use std::fmt;

use serde::{Deserialize, Deserializer};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Of each text, this is kept.
const CHARS_MAX: usize = 500;

/// Stands for what could do something to a terminal.
const HARMLESS: char = '\u{FFFD}';

/// One line of what can be seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn of(text: &str) -> Self {
        Self(text.chars().take(CHARS_MAX).map(|it| if is_seen(it) { it } else { HARMLESS }).collect())
    }
}

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Self::of(&text))
    }
}

/// Neither a control character nor one that joins, hides or turns round what stands beside it.
fn is_seen(it: char) -> bool {
    let turns = matches!(it,
        '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
        | '\u{2060}'..='\u{206F}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}'
        | '\u{E0000}'..='\u{E0FFF}');
    !it.is_control() && !turns
}

/// Columns that a text takes.
pub(super) fn width(text: &str) -> usize {
    text.width()
}

/// The beginning of a text that takes no more columns; what was cut ends in `…`.
pub(super) fn cut(text: &str, columns_max: usize) -> String {
    if width(text) <= columns_max {
        return text.to_owned();
    }
    let (mut kept, mut columns) = (String::new(), 0);
    for it in text.chars() {
        columns += it.width().unwrap_or(0);
        if columns >= columns_max {
            break;
        }
        kept.push(it);
    }
    if columns_max > 0 {
        kept.push('…');
    }
    kept
}

/// Lines of at most so many columns, broken between words where that can be.
pub(super) fn wrapped(text: &str, columns_max: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let word = cut(word, columns_max);
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            *line = word;
        } else if width(line) + 1 + width(&word) <= columns_max {
            line.push(' ');
            line.push_str(&word);
        } else {
            lines.push(word);
        }
    }
    lines
}

pub(super) fn count(n: u64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    let size = n as f64;
    match units.into_iter().find(|(unit, _)| n >= 10_000 && size >= *unit) {
        None => n.to_string(),
        Some((unit, name)) if size / unit < 100.0 => format!("{:.1}{name}", size / unit),
        Some((unit, name)) => format!("{:.0}{name}", size / unit),
    }
}

pub(super) fn plural(n: u64, word: &str) -> String {
    format!("{} {word}{}", count(n), if n == 1 { "" } else { "s" })
}

pub(super) fn milliseconds(value: Option<f64>) -> String {
    let Some(value) = value else { return "–".to_owned() };
    match value {
        _ if value <= 0.0 => "0".to_owned(),
        _ if value < 1.0 => "<1 ms".to_owned(),
        _ if value < 999.5 => format!("{value:.0} ms"),
        _ if value < 10_000.0 => format!("{:.2} s", value / 1000.0),
        _ if value < 60_000.0 => format!("{:.1} s", value / 1000.0),
        _ => format!("{} min {:.0} s", (value / 60_000.0).floor(), (value % 60_000.0 / 1000.0).floor()),
    }
}

pub(super) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

pub(super) fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        _ => format!("{:.1} MiB", n as f64 / 1_048_576.0),
    }
}

pub(super) fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "–".to_owned(),
        _ => format!("{:.0} %", 100.0 * part as f64 / whole as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        let hostile = "a\x1b[2Jb\x1b]0;title\x07c\r\n\td\u{9b}31m\u{202e}e\u{200b}\u{feff}\u{7f}é漢";
        let text: Text = serde_json::from_value(serde_json::json!(hostile)).unwrap();
        assert!(!text.chars().any(|it| it.is_control()), "{text:?}");
        assert_eq!(&*text, "a�[2Jb�]0;title�c���d�31m�e���é漢");
        assert_eq!(Text::of(&"x".repeat(10_000)).len(), CHARS_MAX);
    }

    #[test]
    fn what_is_cut_says_so_and_fits() {
        for (text, columns, expected) in [
            ("alice", 5, "alice"),
            ("alice", 4, "ali…"),
            ("漢字漢字", 5, "漢字…"),
            ("漢字漢字", 4, "漢…"),
            ("alice", 1, "…"),
            ("alice", 0, ""),
        ] {
            assert_eq!(cut(text, columns), expected, "{text} in {columns}");
        }
    }

    #[test]
    fn a_long_text_is_broken_between_words() {
        assert_eq!(
            wrapped("Send fewer requests, or ask again in 2 s.", 14),
            ["Send fewer", "requests, or", "ask again in 2", "s."]
        );
        assert_eq!(wrapped("", 14), [""]);
        assert_eq!(wrapped("unbreakable", 5), ["unbr…"]);
    }

    #[test]
    fn figures_are_as_people_read_them() {
        for (n, expected) in
            [(0, "0"), (9999, "9999"), (12_345, "12.3k"), (123_456, "123k"), (5_000_000_000, "5.0G")]
        {
            assert_eq!(count(n), expected);
        }
        for (n, expected) in [
            (0.0, "0"),
            (0.4, "<1 ms"),
            (120.4, "120 ms"),
            (999.7, "1.00 s"),
            (1234.0, "1.23 s"),
            (59_960.0, "60.0 s"),
            (150_900.0, "2 min 30 s"),
        ] {
            assert_eq!(milliseconds(Some(n)), expected);
        }
        for (n, expected) in [(59, "59 s"), (3599, "59 min"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")] {
            assert_eq!(duration(n), expected);
        }
        assert_eq!((percent(1, 3), percent(0, 0)), ("33 %".to_owned(), "–".to_owned()));
        assert_eq!(
            (bytes(5), bytes(2048), bytes(64 << 20)),
            ("5 B".into(), "2.0 KiB".into(), "64.0 MiB".into())
        );
    }
}
