//! The access log: one JSON object a line.

use serde_json::Value;

/// One line of it.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) fields: Value,
}

impl Line {
    /// Whatever stands on stdout must be a line of the log.
    pub(crate) fn parse(line: &str) -> Self {
        let fields = serde_json::from_str(line).unwrap_or_else(|fault| panic!("{fault} in `{line}`"));
        Self { fields }
    }

    pub(crate) fn text(&self, field: &str) -> &str {
        self.fields[field].as_str().unwrap_or_default()
    }

    pub(crate) fn number(&self, field: &str) -> u64 {
        self.fields[field]
            .as_u64()
            .unwrap_or_else(|| panic!("{field} is no whole number in {:?}", self.fields))
    }
}
