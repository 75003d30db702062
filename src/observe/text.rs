//! A line of the access log for people: one request a line, in columns that fit into 120.
//!
//! On a terminal it is coloured, and says the time alone. What is not worth a look is left out: JSON has all of it.

use std::fmt::Write;

use anstyle::{AnsiColor, Effects, Style};

use super::line::Line;

/// Of names that are longer, this is shown.
const NAME_CHARS_MAX: usize = 32;

/// A queue that nobody noticed is not worth a look.
const QUEUE_MS_MIN: f64 = 1.0;

const PLAIN: Style = Style::new();
const DIM: Style = Style::new().effects(Effects::DIMMED);
const GOOD: Style = AnsiColor::Green.on_default();
const NEITHER: Style = AnsiColor::Cyan.on_default();
const REFUSED: Style = AnsiColor::Yellow.on_default();
const FAILED: Style = AnsiColor::Red.on_default();
const LEFT: Style = AnsiColor::Magenta.on_default();

impl Line<'_> {
    /// For people, with its line's end. `coloured`: they look at a terminal.
    pub fn to_text(&self, coloured: bool) -> Vec<u8> {
        let style = |style: Style| if coloured { style } else { PLAIN };
        let (dim, outcome) = (style(DIM), style(of_status(self.status)));
        let time = if coloured { "%H:%M:%S" } else { "%Y-%m-%dT%H:%M:%S%.3fZ" };
        let model = self.model_requested.or(self.model);
        let mut text = format!(
            "{dim}{}{dim:#} {outcome}{}{outcome:#} {:<4} {:<20} {:<8} {:<12} {:<8} ",
            self.ts.strftime(time),
            self.status,
            self.method,
            shown(Some(self.path)),
            shown(self.key),
            shown(model),
            shown(self.server),
        );
        let cache = style(if self.cache == "hit" || self.cache == "shared" { NEITHER } else { DIM });
        // Writing to a text cannot fail.
        let _ = write!(text, "{cache}{:<6}{cache:#} {:>6}", self.cache, duration(self.duration_ms));
        let queue = Some(self.queue_ms).filter(|ms| *ms >= QUEUE_MS_MIN);
        for (name, ms) in [("queue", queue), ("first", self.ttft_ms.filter(|_| self.stream))] {
            if let Some(ms) = ms {
                let _ = write!(text, " {dim}{name}{dim:#} {}", duration(ms));
            }
        }
        if let (Some(prompt), Some(completion)) = (self.prompt_tokens, self.completion_tokens) {
            let _ = write!(text, " {prompt}+{completion}");
        }
        if let Some(code) = self.error_code {
            let _ = write!(text, " {outcome}{code}{outcome:#}");
        }
        if let Some(limit) = self.limit {
            let _ = write!(text, " {limit}");
        }
        if !self.complete && self.error_code.is_none() {
            let _ = write!(text, " {outcome}cut off{outcome:#}");
        }
        text.push('\n');
        text.into_bytes()
    }
}

fn of_status(status: u16) -> Style {
    match status {
        499 => LEFT,
        200..=299 => GOOD,
        400..=499 => REFUSED,
        500..=599 => FAILED,
        _ => NEITHER,
    }
}

/// What callers write could move the cursor of who looks: it is escaped.
fn shown(name: Option<&str>) -> String {
    let Some(name) = name else { return "-".to_owned() };
    let mut shown: String = name.chars().take(NAME_CHARS_MAX).flat_map(char::escape_debug).collect();
    if name.chars().nth(NAME_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// In three digits or so.
fn duration(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.1}ms"),
        ..1000.0 => format!("{ms:.0}ms"),
        ..60_000.0 => format!("{:.2}s", ms / 1000.0),
        _ => format!("{}m{:02}s", (ms / 60_000.0) as u64, (ms / 1000.0) as u64 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &Line<'_>, coloured: bool) -> String {
        String::from_utf8(line.to_text(coloured)).expect("UTF-8")
    }

    #[test]
    fn it_reads_well_in_120_columns() {
        let line = Line {
            path: "/v1/chat/completions",
            key: Some("alice"),
            model_requested: Some("qwen2.5-3b"),
            server: Some("gpu1"),
            status: 200,
            cache: "shared",
            stream: true,
            complete: true,
            queue_ms: 1234.0,
            ttft_ms: Some(1500.4),
            duration_ms: 61_500.0,
            error_code: None,
            prompt_tokens: Some(12_345),
            completion_tokens: Some(1024),
            ..Line::SAMPLE
        };
        let plain = text(&line, false);
        let expected = "200 POST /v1/chat/completions alice    qwen2.5-3b   gpu1     shared  1m01s queue 1.23s \
                        first 1.50s 12345+1024\n";
        assert_eq!(plain.split_once(' ').expect("words").1, expected);
        assert!(
            plain.chars().count() - "2026-01-01T00:00:00.000Z".len() + "00:00:00".len() <= 120 + 1,
            "{plain}"
        );
    }

    #[test]
    fn colours_are_of_the_outcome_and_end() {
        for (status, colour) in [(200, 32), (304, 36), (429, 33), (499, 35), (502, 31)] {
            let told = text(&Line { status, ..Line::SAMPLE }, true);
            assert!(told.contains(&format!("\x1b[{colour}m{status}\x1b[0m ")), "{told:?}");
            assert!(!text(&Line { status, ..Line::SAMPLE }, false).contains('\x1b'));
        }
    }

    #[test]
    fn nothing_that_a_caller_writes_moves_the_cursor() {
        let long = "x".repeat(200);
        let line = Line { model_requested: Some("\x1b[2J\nfoo"), path: &long, ..Line::SAMPLE };
        let told = text(&line, false);
        assert!(!told.contains('\x1b') && told.matches('\n').count() == 1, "{told:?}");
        assert!(told.contains('…') && told.len() < 200, "{told:?}");
    }
}
