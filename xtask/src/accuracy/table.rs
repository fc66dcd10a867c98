//! Tables of errors: number of cases, median, 95th percentile.

use std::fmt::Write as _;

use statistics::quantile;

/// A table of the page.
pub(crate) struct Table {
    title: String,
    /// What was done, in one or two sentences.
    text: String,
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: &str, text: &str, heads: &[&'static str]) -> Self {
        Self { title: title.to_owned(), text: text.to_owned(), heads: heads.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.heads.len(), "{}", self.title);
        self.rows.push(cells);
    }

    /// The table as Markdown, with its title and an empty line at its end.
    pub(crate) fn markdown(&self) -> String {
        let mut out = format!("### {}\n\n", self.title);
        wrap(&self.text, &mut out);
        let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
        out.push('\n');
        out.push_str(&line(&self.heads));
        out.push_str(&format!("|{}\n", "---|".repeat(self.heads.len())));
        for row in &self.rows {
            out.push_str(&line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        out.push('\n');
        out
    }
}

/// Appends a paragraph in lines of at most 120 columns.
fn wrap(text: &str, out: &mut String) {
    let mut width = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > 120 {
            out.push('\n');
            width = 0;
        }
        let gap = if width > 0 { " " } else { "" };
        // Writing to a string does not fail.
        let _ = write!(out, "{gap}{word}");
        width += gap.len() + length;
    }
    out.push('\n');
}

/// Number of errors, their median and their 95th percentile, as cells.
pub(super) fn errors(values: &[f64]) -> [String; 3] {
    let at = |fraction| quantile(values, fraction).map_or_else(|| "–".to_owned(), percent);
    [values.len().to_string(), at(0.5), at(0.95)]
}

/// A ratio as per cent.
pub(super) fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

/// A part of a number of cases.
pub(super) fn part(count: usize, of: usize) -> String {
    if of == 0 { "–".to_owned() } else { format!("{count} of {of} ({:.0} %)", count as f64 / of as f64 * 100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_percentages() {
        assert_eq!(errors(&[0.1]), ["1", "10.0 %", "10.0 %"]);
        assert_eq!(errors(&[0.1, 0.3])[..2], ["2", "20.0 %"]);
        assert_eq!(errors(&[]), ["0", "–", "–"]);
        assert_eq!(part(1, 4), "1 of 4 (25 %)");
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new("T", "Some text.", &["a", "b"]);
        table.row(vec!["1".into(), "2".into()]);
        assert_eq!(table.markdown(), "### T\n\nSome text.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n");
    }
}
