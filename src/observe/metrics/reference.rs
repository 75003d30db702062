//! The table as a page for people: docs/METRICS.md, which a test compares.

use std::fmt::Write;

use super::super::families::{Row, Values};
use super::TABLE;

const HEAD: &str = "\
# Metrics

What `/metrics` tells, on the operator's listener and on `metrics.listen` ([OBSERVE.md](OBSERVE.md)).
This page is made of the table in `src/observe/metrics.rs`.

Every family is there from the start, with the labels that are known at 0.
A counter only grows, until the process ends; what it told of a key, model or server that was taken out of the
file stays told, while gauges of a server go with it.
No family has more than 20,000 series, a histogram not more than 2000: what is beyond is counted where every label
is `other`.
Of the models that servers report and the file does not name, the first 500 are labels, and the first 1000 keys.

| family | type | labels | unit | | look at it for |
|---|---|---|---|---|---|
";

const BUCKETS: &str = "
## Buckets

In seconds; OpenTelemetry's for generation, from 1 ms to 20 minutes.

| family | up to |
|---|---|
";

/// The page, in Markdown.
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    for row in TABLE {
        let labels: Vec<String> = row.labels.iter().map(|label| format!("`{}`", label.name)).collect();
        let Row { name, kind, help, use_for, .. } = row;
        let (labels, unit) = (labels.join(", "), unit(name));
        let _ = writeln!(page, "| `ai_gateway_{name}` | {kind} | {labels} | {unit} | {help} | {use_for} |");
    }
    page += "\n## Labels\n\n| label | of | values |\n|---|---|---|\n";
    let mut told = Vec::new();
    for label in TABLE.iter().flat_map(|row| row.labels) {
        let values = match label.values {
            Values::These(values) => format!("`{}`", values.join("`, `")),
            Values::Told(values) => values.to_owned(),
        };
        let of = |row: &&Row| row.labels.iter().any(|it| it == label);
        let of: Vec<String> = TABLE.iter().filter(of).map(|row| format!("`{}`", row.name)).collect();
        let line = format!("| `{}` | {} | {values} |\n", label.name, of.join(", "));
        if !told.contains(&line) {
            page += &line;
            told.push(line);
        }
    }
    page += BUCKETS;
    for row in TABLE.iter().filter(|row| !row.buckets.is_empty()) {
        let buckets: Vec<String> = row.buckets.iter().map(f64::to_string).collect();
        let _ = writeln!(page, "| `{}` | {} |", row.name, buckets.join(", "));
    }
    page
}

/// Prometheus has base units in names.
fn unit(name: &str) -> &'static str {
    let name = name.trim_end_matches("_total");
    let units = [("seconds", "seconds"), ("bytes", "bytes"), ("tokens", "tokens")];
    units.iter().find(|(end, _)| name.ends_with(end)).map_or("", |(_, unit)| unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_told_in_full() {
        for row in TABLE {
            assert!(row.help.ends_with('.') && !row.use_for.is_empty(), "{}", row.name);
            assert_eq!(row.kind == "counter", row.name.ends_with("_total"), "{}", row.name);
            assert_eq!(row.kind == "histogram", !row.buckets.is_empty(), "{}", row.name);
            assert!(row.buckets.is_sorted_by(|one, other| one < other), "{}", row.name);
            if let (Some(first), Some(last)) = (row.buckets.first(), row.buckets.last()) {
                assert!(*first <= 0.001 && *last >= 600.0, "{}: from 1 ms to 10 minutes", row.name);
            }
        }
    }
}
