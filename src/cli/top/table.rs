//! Tables of pieces of text, laid out for a width: for the screen and for plain text alike.
//!
//! Where it is too narrow, cells are cut first, then columns are left out, those that matter least before the others.

use super::text;

/// How a piece is meant. Without colours, the words alone must say it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Plain,
    /// What is named by it matters: a server, a figure.
    Strong,
    Quiet,
    Good,
    Warn,
    Bad,
    /// Lines of the hour.
    Line,
    /// The one that the keys are on.
    Chosen,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) kind: Kind,
}

/// A line.
pub(super) type Row = Vec<Piece>;

pub(super) fn piece(kind: Kind, text: impl Into<String>) -> Piece {
    Piece { text: text.into(), kind }
}

pub(super) fn plain(text: impl Into<String>) -> Piece {
    piece(Kind::Plain, text)
}

/// As text, without what is only room.
pub(super) fn told(row: &[Piece]) -> String {
    let text: String = row.iter().map(|piece| piece.text.as_str()).collect();
    text.trim_end().to_owned()
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub(super) head: &'static str,
    /// Figures stand at the right.
    pub(super) right: bool,
    pub(super) columns_min: usize,
    pub(super) columns_max: usize,
    /// The highest is left out first; 0 never is.
    pub(super) rank: u8,
}

pub(super) struct Table {
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Row>,
}

/// Between two columns.
const GAP: usize = 2;

impl Table {
    /// The head and then the rows, none of them wider than `columns_max`, but where the first column alone is.
    pub(super) fn lines(&self, columns_max: usize) -> Vec<Row> {
        let widths = self.widths(columns_max);
        let head = self.columns.iter().map(|column| piece(Kind::Quiet, column.head)).collect();
        std::iter::once(&head).chain(&self.rows).map(|row: &Row| self.line(row, &widths)).collect()
    }

    fn line(&self, row: &Row, widths: &[Option<usize>]) -> Row {
        let mut line = Row::new();
        for ((cell, column), width) in row.iter().zip(&self.columns).zip(widths) {
            let Some(width) = *width else { continue };
            if !line.is_empty() {
                line.push(plain(" ".repeat(GAP)));
            }
            let text = text::cut(&cell.text, width);
            let room = " ".repeat(width.saturating_sub(text::width(&text)));
            let text = if column.right { room + &text } else { text + &room };
            line.push(piece(cell.kind, text));
        }
        line
    }

    /// How wide each column is; `None`: it is left out.
    fn widths(&self, columns_max: usize) -> Vec<Option<usize>> {
        let wanted: Vec<usize> = (0..self.columns.len()).map(|at| self.wanted(at)).collect();
        let least = |at: usize| self.columns[at].columns_min.min(wanted[at]);
        let mut kept: Vec<usize> = (0..self.columns.len()).collect();
        let needed = |kept: &[usize]| {
            kept.iter().map(|at| least(*at)).sum::<usize>() + GAP * kept.len().saturating_sub(1)
        };
        while needed(&kept) > columns_max {
            let ranked = kept.iter().enumerate().max_by_key(|(_, at)| self.columns[**at].rank);
            match ranked.filter(|(_, at)| self.columns[**at].rank > 0) {
                Some((place, _)) => drop(kept.remove(place)),
                None => break,
            }
        }
        let mut widths: Vec<Option<usize>> = vec![None; self.columns.len()];
        kept.iter().for_each(|at| widths[*at] = Some(least(*at)));
        // What is left goes to who lacks most.
        for _ in needed(&kept)..columns_max {
            let lacks = |at: &usize| wanted[*at].saturating_sub(widths[*at].unwrap_or_default());
            let Some(at) = kept.iter().copied().max_by_key(lacks).filter(|at| lacks(at) > 0) else { break };
            widths[at] = widths[at].map(|width| width + 1);
        }
        widths
    }

    fn wanted(&self, at: usize) -> usize {
        let column = &self.columns[at];
        let cells = self.rows.iter().filter_map(|row| row.get(at)).map(|cell| text::width(&cell.text));
        cells.chain([text::width(column.head)]).max().unwrap_or_default().min(column.columns_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let column =
            |head, right, columns_min, rank| Column { head, right, columns_min, columns_max: 20, rank };
        let row = |name: &str, n: &str, note: &str| vec![plain(name), plain(n), plain(note)];
        Table {
            columns: vec![column("name", false, 4, 0), column("n", true, 3, 1), column("note", false, 4, 2)],
            rows: vec![row("alice", "7", "a note of some length"), row("漢字", "1234", "-")],
        }
    }

    fn lines(columns_max: usize) -> Vec<String> {
        table().lines(columns_max).iter().map(|line| told(line)).collect()
    }

    #[test]
    fn it_fits_what_there_is() {
        assert_eq!(lines(80), ["name      n  note", "alice     7  a note of some leng…", "漢字   1234  -",]);
        assert_eq!(lines(17), ["name    n  note", "ali…    7  a not…", "漢字  12…  -"].map(str::to_owned));
        assert_eq!(lines(11), ["name      n", "alice     7", "漢字   1234"]);
        assert_eq!(lines(5), ["name", "alice", "漢字"]);
        assert_eq!(lines(0), ["name", "ali…", "漢字"], "the first stays");
    }

    #[test]
    fn no_line_is_wider_than_it_may_be() {
        for columns_max in 4..60 {
            for line in table().lines(columns_max) {
                let width: usize = line.iter().map(|piece| text::width(&piece.text)).sum();
                assert!(width <= columns_max, "{width} in {columns_max}");
            }
        }
    }
}
