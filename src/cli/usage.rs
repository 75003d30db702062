//! `ai-gateway usage`: what keys have used, as a table for people or as comma-separated values.

use std::fmt::Write;

use ai_gateway::config::Settings;
use ai_gateway::store::{self, Filter};
use jiff::civil::Date;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::ask::ask;
use super::{Failure, print};

const COLUMNS: [&str; 10] = [
    "day",
    "key",
    "user",
    "model",
    "requests",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "prefill_ms",
    "generation_ms",
];
/// The columns before this one are text.
const FIRST_NUMBER: usize = 4;

/// `/usage` of the operator's listener.
#[derive(Deserialize)]
struct Page {
    usage: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    day: Date,
    key: String,
    user: String,
    model: String,
    requests: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    cached_tokens: u64,
    prefill_ms: u64,
    generation_ms: u64,
}

impl Row {
    fn texts(&self) -> [String; FIRST_NUMBER] {
        [self.day.to_string(), self.key.clone(), self.user.clone(), self.model.clone()]
    }

    fn numbers(&self) -> [u64; COLUMNS.len() - FIRST_NUMBER] {
        [
            self.requests,
            self.prompt_tokens,
            self.completion_tokens,
            self.cached_tokens,
            self.prefill_ms,
            self.generation_ms,
        ]
    }

    fn cells(&self) -> Vec<String> {
        self.texts().into_iter().chain(self.numbers().map(|number| number.to_string())).collect()
    }
}

impl From<store::Row> for Row {
    fn from(row: store::Row) -> Self {
        let store::Row { day, key, user, model, counts } = row;
        Self {
            day,
            key,
            user,
            model,
            requests: counts.requests,
            prompt_tokens: counts.prompt_tokens,
            completion_tokens: counts.completion_tokens,
            cached_tokens: counts.cached_tokens,
            prefill_ms: counts.prefill_ms,
            generation_ms: counts.generation_ms,
        }
    }
}

pub(crate) fn show(settings: &Settings, of: &Filter, csv: bool) -> Result<(), Failure> {
    // What replicas share, any of them tells.
    let rows = match settings.usage.as_ref().filter(|_| settings.shared.is_none()) {
        Some(path) => store::read(path, of)
            .map(|rows| rows.into_iter().map(Row::from).collect())
            .map_err(|why| Failure::Failed(format!("ai-gateway: {why}")))?,
        None => ask_gateway(settings, of)?,
    };
    print(&if csv { comma_separated(&rows) } else { table(&rows) })
}

fn ask_gateway(settings: &Settings, of: &Filter) -> Result<Vec<Row>, Failure> {
    let address = settings.admin.listen.address;
    let mut target = "/usage?".to_owned();
    if let Some(key) = &of.key {
        let _ = write!(target, "key={}&", utf8_percent_encode(key, NON_ALPHANUMERIC));
    }
    if let Some(since) = of.since {
        let _ = write!(target, "since={since}");
    }
    let token = settings.admin.token.as_ref().map(|token| token.0.as_str());
    let (status, body) = ask(&settings.admin.listen, &target, token).map_err(|error| {
        Failure::Failed(format!(
            "no gateway answers operators on {address}: {error}; name its file with --config, or `usage.path` in \
             that file, which is read without a gateway"
        ))
    })?;
    let page = serde_json::from_str::<Page>(&body).ok().filter(|_| status == "200");
    page.map(|page| page.usage)
        .ok_or_else(|| Failure::Failed(format!("{address} answers {status} and no usage: {body}")))
}

fn comma_separated(rows: &[Row]) -> String {
    let mut writer = csv::WriterBuilder::new().from_writer(Vec::new());
    let records = std::iter::once(COLUMNS.map(str::to_owned).to_vec()).chain(rows.iter().map(Row::cells));
    for record in records {
        writer.write_record(record).expect("memory takes records of one length");
    }
    let bytes = writer.into_inner().expect("memory can be flushed");
    String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned()
}

fn table(rows: &[Row]) -> String {
    let head = COLUMNS.map(|column| column.replace('_', " ")).to_vec();
    let mut total = [0u64; COLUMNS.len() - FIRST_NUMBER];
    for row in rows {
        for (sum, number) in total.iter_mut().zip(row.numbers()) {
            *sum = sum.saturating_add(number);
        }
    }
    let texts = ["total", "", "", ""].map(str::to_owned).into_iter();
    let total = texts.chain(total.map(|sum| sum.to_string())).collect();
    let lines: Vec<Vec<String>> =
        [head].into_iter().chain(rows.iter().map(Row::cells)).chain([total]).collect();
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut table = String::new();
    for line in &lines {
        let mut text = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = match column {
                0..FIRST_NUMBER => write!(text, "{cell:<width$}  "),
                _ => write!(text, "{cell:>width$}  "),
            };
        }
        table.push_str(text.trim_end());
        table.push('\n');
    }
    table.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> [Row; 2] {
        let row = |key: &str, user: &str, requests| Row {
            day: jiff::civil::date(2026, 3, 1),
            key: key.to_owned(),
            user: user.to_owned(),
            model: "tiny".to_owned(),
            requests,
            prompt_tokens: 12,
            completion_tokens: u64::MAX / 2 + 1,
            cached_tokens: 0,
            prefill_ms: 5,
            generation_ms: 600,
        };
        [row("alice", "", 7), row("bob, \"the builder\"", "ève", 11)]
    }

    #[test]
    fn people_read_a_table() {
        let table = table(&rows());
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4);
        let end = |line: &str, word: &str| line[..line.find(word).unwrap()].chars().count() + word.len();
        assert!(lines[0].starts_with("day         key") && lines[3].starts_with("total "), "{table}");
        assert_eq!(end(lines[0], "requests"), end(lines[3], "18"), "{table}");
        assert!(lines[3].contains(" 18 ") && lines[3].contains(&u64::MAX.to_string()), "{table}");
        let length = |line: &&str| line.chars().count();
        assert!(lines.iter().all(|line| length(line) == length(&lines[0])), "{table}");
    }

    #[test]
    fn programs_read_commas() {
        let half = u64::MAX / 2 + 1;
        assert_eq!(
            comma_separated(&rows()),
            format!(
                "day,key,user,model,requests,prompt_tokens,completion_tokens,cached_tokens,\
                 prefill_ms,generation_ms\n\
                 2026-03-01,alice,,tiny,7,12,{half},0,5,600\n\
                 2026-03-01,\"bob, \"\"the builder\"\"\",ève,tiny,11,12,{half},0,5,600"
            )
        );
        assert_eq!(comma_separated(&[]).lines().count(), 1);
    }
}
