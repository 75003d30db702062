//! `/metrics`, read as Prometheus does.

/// One scrape.
#[derive(Debug, Clone)]
pub(crate) struct Scrape {
    text: String,
}

impl Scrape {
    pub(crate) fn new(text: String) -> Self {
        Self { text }
    }

    /// Whether a family of this name is there, with its type.
    pub(crate) fn has_family(&self, name: &str) -> bool {
        self.text.lines().any(|line| line.starts_with(&format!("# TYPE {name} ")))
    }

    /// The families whose names begin so, without that beginning.
    pub(crate) fn families(&self, prefix: &str) -> Vec<&str> {
        let types = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        types.filter_map(|name| name.strip_prefix(prefix)).collect()
    }

    /// Whether a series with these labels, among others, is there.
    pub(crate) fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.series(name, labels).next().is_some()
    }

    /// The sum of the series that have these labels, among others; 0 if there is none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).sum()
    }

    fn series(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = f64> {
        let wanted: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        self.text.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let all = wanted.iter().all(|label| labels.contains(label.as_str()));
            if all { value.parse().ok() } else { None }
        })
    }
}
