//! Now and the last hour: a figure of the last minute, the hour as a line, and what the figure is made of.

use super::board::Board;
use super::table::{Kind, Row, piece, plain};
use super::text::{self, bytes, count, cut, duration, milliseconds, percent, plural};
use super::told::Step;

/// What the line of a row is drawn from; `None`: nothing was measured.
type Read = fn(&Step) -> Option<f64>;

const LABEL_COLUMNS: usize = 18;
const FIGURE_COLUMNS: usize = 9;
const NOTE_COLUMNS: usize = 26;
const PEAK_COLUMNS: usize = 14;
/// A minute is a column, where there is room for it.
const LINE_COLUMNS_MAX: usize = 60;
const LINE_COLUMNS_MIN: usize = 8;
/// From here on, the highest of the hour is told in figures too.
const PEAK_FROM_COLUMNS: usize = 110;

const HOUR_MS: i64 = 3_600_000;
/// What is drawn at least, so that a young gateway's line is none of a few steps.
const DRAWN_MS_MIN: i64 = 300_000;

/// One of these at once is not drawn as high as many.
const FEW: f64 = 4.0;

struct Chart {
    label: &'static str,
    figure: String,
    figure_kind: Kind,
    note: String,
    note_kind: Kind,
    read: Read,
    /// What the top of the line stands for at least; else for the highest that there was.
    top_min: f64,
    peak: fn(f64) -> String,
}

/// How many rows `lines` gives.
pub(super) const ROWS: usize = 9;

pub(super) fn lines(board: &Board, columns: usize) -> Vec<Row> {
    let peaks = columns >= PEAK_FROM_COLUMNS;
    let others = LABEL_COLUMNS + FIGURE_COLUMNS + NOTE_COLUMNS + 4 + if peaks { PEAK_COLUMNS + 2 } else { 0 };
    let drawn = columns.saturating_sub(others).clamp(LINE_COLUMNS_MIN, LINE_COLUMNS_MAX);
    let head = format!("{:LABEL_COLUMNS$}{:>FIGURE_COLUMNS$}  {}", "Now", "a minute", heading(board, drawn));
    let mut lines = vec![vec![piece(Kind::Quiet, cut(&head, columns))]];
    for chart in charts(board) {
        let values = columns_of(&board.steps, drawn, chart.read);
        let highest: f64 = values.iter().flatten().copied().fold(0.0, f64::max);
        let mut row = vec![
            plain(format!("{:LABEL_COLUMNS$}", chart.label)),
            piece(chart.figure_kind, format!("{:>FIGURE_COLUMNS$}", chart.figure)),
            plain("  "),
            piece(Kind::Line, line(&values, highest.max(chart.top_min))),
            plain("  "),
        ];
        if peaks {
            let peak = if values.iter().any(Option::is_some) { (chart.peak)(highest) } else { String::new() };
            row.push(piece(Kind::Quiet, format!("{:PEAK_COLUMNS$}  ", peak)));
        }
        row.push(piece(chart.note_kind, cut(&chart.note, columns.saturating_sub(row_width(&row)))));
        lines.push(row);
    }
    let totals = &board.totals;
    let kept = format!(
        "Cache: {} kept, {} of {}; it has saved {} tokens, {} of servers' time.",
        plural(totals.cache_entries, "answer"),
        bytes(totals.cache_size),
        bytes(totals.cache_capacity),
        count(totals.saved_tokens),
        duration(totals.saved_seconds.max(0.0) as u64)
    );
    lines.push(vec![piece(Kind::Quiet, cut(&kept, columns))]);
    lines
}

pub(super) fn row_width(row: &Row) -> usize {
    row.iter().map(|piece| text::width(&piece.text)).sum()
}

/// What time the lines are of.
fn heading(board: &Board, columns: usize) -> String {
    let Some((begin, end)) = drawn(&board.steps) else { return "the last hour".to_owned() };
    let from = format!("{} min ago", end.saturating_sub(begin) / 60_000);
    let gap = columns.saturating_sub(text::width(&from) + 3);
    format!("{from}{}now", " ".repeat(gap.max(1)))
}

fn charts(board: &Board) -> [Chart; 7] {
    let (minute, totals) = (&board.minute, &board.totals);
    let seconds = if minute.seconds > 0.0 { minute.seconds } else { 1.0 };
    let tokens = minute.tokens_out as f64 / seconds;
    let asked = minute.hits + minute.shared + minute.misses;
    let queue = u64::try_from(totals.queue).unwrap_or_default();
    let no: Vec<String> = [(minute.refused, "refused"), (minute.failed, "failed"), (minute.left, "left")]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, word)| format!("{} {word}", count(n)))
        .collect();
    let no_kind = match (minute.failed, no.is_empty()) {
        (_, true) => Kind::Quiet,
        (0, _) => Kind::Warn,
        _ => Kind::Bad,
    };
    let chart = |label, figure: String, note: String, read, peak| Chart {
        label,
        figure,
        figure_kind: Kind::Strong,
        note,
        note_kind: Kind::Quiet,
        read,
        top_min: 0.0,
        peak,
    };
    [
        chart(
            "Requests",
            count(minute.requests),
            format!("{} since the start", count(totals.requests)),
            |it| Some(it.requests as f64 / it.seconds.max(1.0) * 60.0),
            |most| format!("most {most:.0}/min"),
        ),
        Chart {
            figure_kind: no_kind,
            note_kind: no_kind,
            ..chart(
                "Refused, failed",
                count(minute.refused + minute.failed),
                if no.is_empty() { "none, and no caller left".to_owned() } else { no.join(", ") },
                |it| Some((it.refused + it.failed) as f64 / it.seconds.max(1.0) * 60.0),
                |most| format!("most {most:.0}/min"),
            )
        },
        chart(
            "Tokens a second",
            if tokens < 100.0 { format!("{tokens:.1}") } else { count(tokens.round() as u64) },
            format!("{} read, {} made", count(minute.tokens_in), count(minute.tokens_out)),
            |it| Some(it.tokens_out as f64 / it.seconds.max(1.0)),
            |most| format!("most {most:.1}/s"),
        ),
        chart(
            "First token after",
            milliseconds(minute.ttft_p50_ms),
            match minute.ttft_p95_ms {
                Some(most) => format!("half; 95 % in {}", milliseconds(Some(most))),
                None => "no answer was made".to_owned(),
            },
            |it| it.ttft_p50_ms,
            |most| format!("most {}", milliseconds(Some(most))),
        ),
        Chart {
            top_min: 100.0,
            ..chart(
                "From the cache",
                percent(minute.hits + minute.shared, asked),
                match asked {
                    0 => "nothing was asked".to_owned(),
                    _ => format!("{} kept, {} shared, of {}", minute.hits, minute.shared, asked),
                },
                |it| {
                    let asked = it.hits + it.shared + it.misses;
                    (asked > 0).then(|| 100.0 * (it.hits + it.shared) as f64 / asked as f64)
                },
                |most| format!("most {most:.0} %"),
            )
        },
        Chart {
            top_min: FEW,
            figure_kind: if queue > 0 { Kind::Warn } else { Kind::Strong },
            note_kind: if queue > 0 { Kind::Warn } else { Kind::Quiet },
            ..chart(
                "Waiting for a slot",
                count(queue),
                if queue > 0 { "every slot is busy".to_owned() } else { "nobody waits".to_owned() },
                |it| Some(it.queue as f64),
                |most| format!("most {most:.0}"),
            )
        },
        Chart {
            top_min: FEW,
            ..chart(
                "Under way",
                count(u64::try_from(totals.in_flight).unwrap_or_default()),
                slots(board),
                |it| Some(it.in_flight as f64),
                |most| format!("most {most:.0}"),
            )
        },
    ]
}

fn slots(board: &Board) -> String {
    let known: Vec<_> = board.servers_once().into_iter().filter(|it| it.slots.is_some()).collect();
    let busy: u64 = known.iter().map(|it| it.in_flight).sum();
    match known.iter().filter_map(|it| it.slots).sum() {
        0 => "slots are not known yet".to_owned(),
        slots => format!("{busy} of {} busy", plural(slots, "slot")),
    }
}

/// From when to when the lines are.
fn drawn(steps: &[Step]) -> Option<(i64, i64)> {
    let (first, last) = (steps.first()?, steps.last()?);
    let end = last.at;
    let begin = first.at.saturating_sub(10_000).min(end.saturating_sub(DRAWN_MS_MIN));
    Some((begin.max(end.saturating_sub(HOUR_MS)), end))
}

/// For each column the highest of the steps that it stands for.
fn columns_of(steps: &[Step], columns: usize, read: Read) -> Vec<Option<f64>> {
    let mut values = vec![None; columns];
    let Some((begin, end)) = drawn(steps) else { return values };
    let whole = (end - begin).max(1) as f64;
    let place = |at: f64| ((at - begin as f64) / whole * columns as f64).clamp(0.0, columns as f64);
    for step in steps {
        let Some(value) = read(step).filter(|it| it.is_finite()) else { continue };
        let from = place(step.at as f64 - step.seconds * 1000.0);
        let to = place(step.at as f64);
        let last = (to.ceil() as usize).min(columns);
        for column in &mut values[(from.floor() as usize).min(last)..last] {
            *column = Some(column.map_or(value, |highest: f64| highest.max(value)));
        }
    }
    values
}

/// A line of blocks: none where nothing is known, the lowest for 0.
fn line(values: &[Option<f64>], top: f64) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let block = |value: &Option<f64>| match value {
        None => ' ',
        Some(value) if *value <= 0.0 || top <= 0.0 => BLOCKS[0],
        Some(value) => BLOCKS[((value / top * 7.0).ceil() as usize).clamp(1, 7)],
    };
    values.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::super::table::told;
    use super::*;

    fn step(at_seconds: i64, requests: u64) -> Step {
        Step { at: at_seconds * 1000, seconds: 10.0, requests, ..Step::default() }
    }

    #[test]
    fn a_line_shows_what_was_nothing_what_is_unknown_and_the_peaks() {
        assert_eq!(line(&[None, Some(0.0), Some(0.1), Some(50.0), Some(100.0)], 100.0), " ▁▂▅█");
        assert_eq!(line(&[Some(0.0)], 0.0), "▁");
        let steps: Vec<Step> = (0..360).map(|it| step(it * 10, if it == 180 { 9 } else { 1 })).collect();
        let values = columns_of(&steps, 60, |it| Some(it.requests as f64));
        let peaks: Vec<usize> = (0..60).filter(|at| values[*at] == Some(9.0)).collect();
        assert!(peaks == [30] || peaks == [29, 30], "{peaks:?}");
        assert!(values.iter().all(Option::is_some));
    }

    #[test]
    fn a_young_gateways_line_is_at_the_right() {
        let values = columns_of(&[step(100, 1), step(110, 1)], 30, |it| Some(it.requests as f64));
        assert_eq!(values.iter().position(Option::is_some), Some(28));
        assert_eq!(columns_of(&[], 3, |_| Some(1.0)), [None; 3]);
        let odd = [Step { seconds: f64::NAN, ..step(5, 1) }, Step { at: i64::MIN, ..step(0, 1) }];
        assert_eq!(columns_of(&odd, 3, |_| Some(1.0)).len(), 3, "whatever it is told");
    }

    #[test]
    fn every_row_fits() {
        let board = Board { steps: vec![step(100, 1)], ..Board::default() };
        for columns in [58, 78, 118, 138, 200] {
            let lines = lines(&board, columns);
            assert_eq!(lines.len(), ROWS);
            for row in lines {
                assert!(row_width(&row) <= columns, "{columns}: {}", told(&row));
            }
        }
    }
}
