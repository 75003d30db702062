//! What is likely wrong with a text that is not YAML: a parser says where it gave up, an operator wants to know what
//! to write.
//!
//! A guess from the lines around, in the order of how sure it is; where nothing fits, the parser's own words stand
//! alone. It is asked once, for a file that is refused anyway.

use super::fault::Place;

/// Ends the parser's words with what to do, and says where that is.
pub(super) fn of(text: &str, at: Place, said: &str) -> (Place, String) {
    let lines: Vec<&str> = text.lines().collect();
    let (place, hint) = merge_marks(&lines)
        .or_else(|| around(&lines, at, said))
        .or_else(|| left_open(text))
        .unwrap_or((at, by_words(said).to_owned()));
    (place, if hint.is_empty() { said.to_owned() } else { format!("{said}; {hint}") })
}

type Hint = (Place, String);

fn merge_marks(lines: &[&str]) -> Option<Hint> {
    let line = lines.iter().position(|line| line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> "))?;
    let hint = "a merge left its marks here (`<<<<<<<`, `=======`, `>>>>>>>`): keep one side".to_owned();
    Some((Place { line: line + 1, column: 1 }, hint))
}

/// The line where the parser gave up, the one before it, which may have misled it, and the one after.
fn around(lines: &[&str], at: Place, said: &str) -> Option<Hint> {
    let near = [at.line, at.line.saturating_sub(1), at.line + 1];
    let near = near.into_iter().filter_map(|line| Some((line, *lines.get(line.checked_sub(1)?)?)));
    let near: Vec<(usize, &str)> = near.collect();
    let find = |look: &dyn Fn(&str) -> Option<(usize, String)>| {
        near.iter().find_map(|(line, text)| {
            look(text).map(|(column, hint)| (Place { line: *line, column: column + 1 }, hint))
        })
    };
    find(&tab).or_else(|| find(&|line| mark(line, said))).or_else(|| find(&|line| no_space(line, said)))
}

fn tab(line: &str) -> Option<(usize, String)> {
    let at = line.find('\t').filter(|at| !line[..*at].contains('#'))?;
    Some((line[..at].chars().count(), "a tab stands here: write spaces".to_owned()))
}

/// Where a value, a name or an item begins: each with its column and what follows.
fn beginnings(line: &str) -> Vec<(usize, &str)> {
    let (mut found, mut fresh, mut quote, mut before) = (Vec::new(), true, None, ' ');
    for (column, (at, c)) in line.char_indices().enumerate() {
        match (quote, c) {
            (Some(open), _) if c == open && before != '\\' => quote = None,
            (Some(_), _) => {}
            (None, '#') if before == ' ' => break,
            (None, '"' | '\'') if fresh => (quote, fresh) = (Some(c), false),
            (None, '{' | '[' | ',') => fresh = true,
            (None, ' ') => fresh |= matches!(before, ':' | '-'),
            (None, '-') if fresh => {}
            (None, _) if fresh => {
                found.push((column, &line[at..]));
                fresh = false;
            }
            (None, _) => {}
        }
        before = c;
    }
    found
}

/// A mark of YAML's that was meant as a text.
fn mark(line: &str, said: &str) -> Option<(usize, String)> {
    let escape = line.find('\\').filter(|_| said.contains("escape"));
    if let Some(at) = escape {
        let hint =
            "between double quotes a `\\` is written `\\\\`; single quotes take it as it is".to_owned();
        return Some((line[..at].chars().count(), hint));
    }
    let between = |at: usize| line.chars().take(at).any(|c| matches!(c, '{' | '['));
    beginnings(line).into_iter().find_map(|(at, rest)| {
        let hint = match rest.chars().next()? {
            '*' => "a text that begins with `*` stands in quotes, as `\"*\"`".to_owned(),
            c @ ('%' | '@' | '`' | '!' | '&' | '|' | '>') => {
                format!("a text that begins with `{c}` stands in quotes")
            }
            '$' if rest.starts_with("${") && between(at) => {
                "a `${…}` between braces or brackets stands in quotes, as `\"${NAME}\"`".to_owned()
            }
            _ => return None,
        };
        Some((at, hint))
    })
}

/// `b:local` among lines that are `key: value`.
fn no_space(line: &str, said: &str) -> Option<(usize, String)> {
    if !said.contains("simple key") && !said.contains("expected key") {
        return None;
    }
    let name = line.trim_start().trim_start_matches("- ");
    let at = name.find(':').filter(|at| *at > 0 && name.len() > at + 1 && !name.contains(": "))?;
    let column = line.chars().count() - name.chars().count();
    Some((column, format!("is a space missing after `{}`?", &name[..=at])))
}

/// A brace, bracket or quote that has been opened and is never closed.
fn left_open(text: &str) -> Option<Hint> {
    let (mut open, mut quote, mut before) = (Vec::new(), None, '\n');
    let unclosed =
        |(place, mark): (Place, char)| (place, format!("the `{mark}` that stands here is not closed"));
    for (number, line) in text.lines().enumerate() {
        for (column, c) in line.chars().enumerate() {
            let here = (Place { line: number + 1, column: column + 1 }, c);
            match (quote, c) {
                (Some((_, mark)), _) if c == mark && before != '\\' => quote = None,
                (Some(_), _) => {}
                (None, '#') if before.is_whitespace() => break,
                (None, '"' | '\'') if matches!(before, ' ' | '{' | '[' | ',') => quote = Some(here),
                (None, '{' | '[') if !open.is_empty() || matches!(before, ' ' | '\n') => open.push(here),
                (None, '}' | ']') => match open.pop() {
                    Some(it) if (it.1 == '{') != (c == '}') => return Some(unclosed(it)),
                    _ => {}
                },
                (None, _) => {}
            }
            before = c;
        }
        before = '\n';
    }
    quote.or(open.pop()).map(unclosed)
}

/// What the parser means where no line says more.
fn by_words(said: &str) -> &'static str {
    if said.contains("expected key") {
        "the indentation of this line is that of no line above it"
    } else if said.contains("expected ','") {
        "a value with `: `, `,`, a brace or a bracket in it stands in quotes here"
    } else if said.contains("mapping values are not allowed") {
        "a value with `: ` in it stands in quotes, and a line belongs as deep as those beside it"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_stands_where_the_mistake_is() {
        let cases = [
            ("a:\n\tb: 1", (2, 2), "tabs disallowed", (2, 1), "a tab"),
            ("a:\n  *: b", (2, 3), "unknown anchor", (2, 3), "begins with `*`"),
            ("a:\n  *-b: c\n", (3, 1), "simple key expect ':'", (2, 3), "begins with `*`"),
            ("a: {b: ['x', *]}", (1, 15), "", (1, 14), "begins with `*`"),
            ("a: {b: ${C}}", (1, 8), "", (1, 8), "as `\"${NAME}\"`"),
            ("a: {b: c", (2, 1), "", (1, 4), "the `{` that stands here"),
            ("a: {b: \"*\", c: d\ne: f", (2, 1), "", (1, 4), "the `{` that stands here"),
            ("a: \"b\nc: d", (1, 4), "", (1, 4), "the `\"` that stands here"),
            ("a: b\n c:d\ne: f", (3, 1), "simple key expect ':'", (2, 2), "after `c:`"),
            ("a: \"\\l\"", (1, 4), "unknown escape", (1, 5), "single quotes"),
            ("a: 1\n<<<<<<< HEAD\nb: 2", (2, 5), "", (2, 1), "a merge"),
            ("a: {b: [c}", (1, 10), "", (1, 8), "the `[` that stands here"),
            ("a: {b: c: d}", (1, 9), "expected ',' or '}'", (1, 9), "stands in quotes here"),
            ("a: b # it's {\nc", (2, 1), "simple key", (2, 1), ""),
        ];
        for (text, (line, column), said, expected, hint) in cases {
            let (place, found) = of(text, Place { line, column }, said);
            assert_eq!((place.line, place.column), expected, "{text}: {found}");
            assert!(found.contains(hint), "{text}: {found}");
        }
    }
}
