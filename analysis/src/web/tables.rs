//! Tables of text as HTML: numbers right-aligned, states in colours, in a container that scrolls
//! sideways instead of the page.

use std::fmt::Write as _;

use http::index_page::escape;

use super::frame::Tone;
use crate::{health::check::TargetState, rendered_page::Table};

/// Longest text of a number with its unit, in characters.
const MAX_NUMBER: usize = 24;
/// Texts from here on may break into lines, so that a note does not widen the table.
const LONG: usize = 32;

/// How the cells of a column are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Number,
    Text,
    LongText,
    State,
}

/// A table with its heading.
#[must_use]
pub fn table((title, heads, rows): &Table) -> String {
    let columns: Vec<Column> = (0..heads.len()).map(|at| column(at, heads, rows)).collect();
    let mut out = format!("<h2>{}</h2>", escape(title));
    out += &open(title);
    out.push_str("<thead><tr>");
    for (head, column) in heads.iter().zip(&columns) {
        // A head without text has no meaning for a screen reader.
        let head = if head.is_empty() { "details" } else { head.as_str() };
        let _ = write!(out, "<th scope=\"col\"{}>{}</th>", class(*column), escape(head));
    }
    out.push_str("</tr></thead><tbody>");
    for row in rows {
        out.push_str("<tr>");
        for (cell, column) in row.iter().zip(&columns) {
            let _ = write!(out, "<td{}>{}</td>", class(*column), content(*column, cell));
        }
        out.push_str("</tr>");
    }
    out + CLOSE
}

/// The start of a table, in a container that the keyboard can scroll.
#[must_use]
pub fn open(label: &str) -> String {
    format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"{}\" tabindex=\"0\"><table class=\"data\">",
        escape(label)
    )
}

/// The end of a table that [`open`] started, after its rows.
pub const CLOSE: &str = "</tbody></table></div>";

fn column(at: usize, heads: &[String], rows: &[Vec<String>]) -> Column {
    if matches!(heads.get(at).map(String::as_str), Some("state" | "severity")) {
        return Column::State;
    }
    let cells = || rows.iter().filter_map(move |row| row.get(at)).map(String::as_str);
    let known = || cells().filter(|cell| !matches!(*cell, "" | "–"));
    // The first column is the name of the row, which may consist of digits.
    if at > 0 && known().next().is_some() && known().all(is_number) {
        Column::Number
    } else if cells().any(|cell| cell.chars().count() > LONG) {
        Column::LongText
    } else {
        Column::Text
    }
}

/// True for a number, with or without a unit.
fn is_number(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-', '−', '<', ' ']);
    digits.starts_with(|c: char| c.is_ascii_digit()) && text.chars().count() <= MAX_NUMBER
}

fn class(column: Column) -> &'static str {
    match column {
        Column::Number => "",
        Column::Text | Column::State => " class=\"text\"",
        Column::LongText => " class=\"text fill\"",
    }
}

fn content(column: Column, cell: &str) -> String {
    if column == Column::State && !cell.is_empty() {
        return tone(cell).badge(cell);
    }
    // The scheme decides: another one could be a script.
    if (cell.starts_with("https://") || cell.starts_with("http://")) && !cell.contains(char::is_whitespace) {
        return link(cell);
    }
    escape(cell)
}

/// A link to another site, whose text is its address.
#[must_use]
pub fn link(url: &str) -> String {
    format!("<a href=\"{0}\" rel=\"noopener noreferrer\">{0}</a>", escape(url))
}

/// The colour of a state of a target, a stream or an alert.
#[must_use]
pub fn tone(state: &str) -> Tone {
    let passing = [TargetState::Unready, TargetState::Unproven, TargetState::Stale, TargetState::Clock];
    match state {
        "active" | "ok" => Tone::Ok,
        "ended" | "" => Tone::Neutral,
        "warning" | "info" | "other" | "not checked yet" => Tone::Warn,
        _ if state == TargetState::Healthy.as_str() => Tone::Ok,
        _ if passing.iter().any(|passing| passing.as_str() == state) => Tone::Warn,
        _ => Tone::Bad,
    }
}

/// The number of rows by state, in the order of their first row; empty without a column `state`.
#[must_use]
pub fn states((_, heads, rows): &Table) -> Vec<(String, usize)> {
    let Some(at) = heads.iter().position(|head| head == "state") else { return Vec::new() };
    let mut all: Vec<(String, usize)> = Vec::new();
    for state in rows.iter().filter_map(|row| row.get(at)) {
        match all.iter_mut().find(|(known, _)| known == state) {
            Some((_, count)) => *count += 1,
            None => all.push((state.clone(), 1)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(heads: &[&str], rows: &[&[&str]]) -> Table {
        let owned = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        ("T".to_owned(), owned(heads), rows.iter().map(|row| owned(row)).collect())
    }

    #[test]
    fn names_are_escaped_in_every_column() {
        let hostile = "<script>alert(1)</script>";
        let page = table(&sample(&[hostile, "state", "b"], &[&[hostile, hostile, hostile]]));
        assert!(!page.contains("<script>"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;").count(), 4, "{page}");
    }

    #[test]
    fn numbers_are_right_aligned_and_texts_left() {
        let page = table(&sample(
            &["scenario", "energy", "response", "codec"],
            &[&["2 streams", "12.3 J", "–", "h264"], &["4 streams", "–", "5.0 ms", "h264"]],
        ));
        assert!(page.contains("<td class=\"text\">2 streams</td><td>12.3 J</td><td>–</td>"), "{page}");
        assert!(page.contains("<td class=\"text\">h264</td>"), "{page}");
    }

    #[test]
    fn states_have_a_colour_and_a_word() {
        let page = table(&sample(&["target", "state"], &[&["a", "healthy"], &["b", "down"], &["c", "stale"]]));
        for badge in ["badge ok\">healthy", "badge bad\">down", "badge warn\">stale"] {
            assert!(page.contains(badge), "{badge}\n{page}");
        }
        assert!(TargetState::ALL.iter().all(|state| tone(state.as_str()) != Tone::Neutral));
    }

    #[test]
    fn only_web_addresses_become_links() {
        let page = table(&sample(&["a", "URL"], &[&["x", "javascript:alert(1)"], &["y", "https://h/\"><b>"]]));
        assert!(
            !page.contains("href=\"javascript") && page.contains("href=\"https://h/&quot;&gt;&lt;b&gt;\""),
            "{page}"
        );
    }

    #[test]
    fn rows_are_counted_by_state() {
        let table = sample(&["t", "state"], &[&["a", "healthy"], &["b", "down"], &["c", "healthy"]]);
        assert_eq!(states(&table), [("healthy".to_owned(), 2), ("down".to_owned(), 1)]);
        assert!(states(&sample(&["t"], &[&["a"]])).is_empty());
    }
}
