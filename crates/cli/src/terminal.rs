//! Tables and text of commands: as wide as the terminal, and no word broken. Without a terminal
//! tables have 80 columns, or one line for each row.

use std::{
    io::{self, IsTerminal},
    os::fd::AsFd,
};

use rustix::termios::tcgetwinsize;
use unicode_width::UnicodeWidthChar as _;

use crate::colour::{Colours, Meaning};

/// Columns without a terminal.
const COLUMNS: usize = 80;
/// Fewest columns that are used.
const FEWEST: usize = 20;
/// Spaces between columns.
const GAP: usize = 2;

/// How output is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Columns of a line.
    pub columns: usize,
    /// Its colours.
    pub colours: Colours,
    /// False for a pipe or a file.
    pub is_terminal: bool,
}

impl View {
    /// A pipe or a file.
    pub const PLAIN: Self = Self { columns: COLUMNS, colours: Colours::NONE, is_terminal: false };

    /// Standard output.
    #[must_use]
    pub fn stdout() -> Self {
        Self::of(&io::stdout())
    }

    /// Standard error.
    #[must_use]
    pub fn stderr() -> Self {
        Self::of(&io::stderr())
    }

    fn of(stream: &(impl AsFd + IsTerminal)) -> Self {
        if !stream.is_terminal() {
            return Self::PLAIN;
        }
        // A terminal that does not know its size says zero.
        let columns = tcgetwinsize(stream).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        let columns = columns.unwrap_or(COLUMNS).max(FEWEST);
        Self { columns, colours: Colours::of(true), is_terminal: true }
    }

    /// The same; without a terminal with lines of any length, which programs like grep need.
    #[must_use]
    pub fn with_whole_lines(self) -> Self {
        if self.is_terminal { self } else { Self { columns: usize::MAX, ..self } }
    }

    /// The text in the colour of its meaning.
    #[must_use]
    pub fn paint(&self, meaning: Meaning, text: &str) -> String {
        self.colours.paint(meaning, text)
    }

    /// On a terminal, the text with its long lines broken between words. A pipe gets whole lines,
    /// which programs like grep need.
    #[must_use]
    pub fn fit(&self, text: &str) -> String {
        if !self.is_terminal {
            return text.to_owned();
        }
        text.split_inclusive('\n')
            .map(|line| {
                let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
                let indent = line.len() - line.trim_start_matches(' ').len();
                wrap(line, self.columns, indent + 2) + end
            })
            .collect()
    }
}

/// Columns that a text takes, without the characters of colours.
#[must_use]
pub fn width(text: &str) -> usize {
    let (mut columns, mut in_colour) = (0, false);
    for c in text.chars() {
        match c {
            '\x1b' => in_colour = true,
            'm' if in_colour => in_colour = false,
            _ if in_colour => {}
            _ => columns += c.width().unwrap_or_default(),
        }
    }
    columns
}

/// A text without control characters, and without those that take no column and change how their
/// neighbours are shown: names come from files and containers, and must not control the terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    let shown = text.chars().filter(|c| !changes_neighbours(*c));
    shown.map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { '\u{fffd}' } else { c }).collect()
}

/// True for joiners, directions of text, variation selectors and tags.
fn changes_neighbours(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{e0000}'..='\u{e01ef}')
}

/// A line broken between words, with `indent` spaces before each further line. A word that is
/// longer than a line stays whole.
#[must_use]
pub fn wrap(line: &str, columns: usize, indent: usize) -> String {
    if width(line) <= columns {
        return line.to_owned();
    }
    let indent = indent.min(columns / 2);
    let (mut out, mut used) = (String::new(), 0);
    let mut rest = line;
    while !rest.is_empty() {
        let word_at = rest.len() - rest.trim_start_matches(' ').len();
        let (space, text) = rest.split_at(word_at);
        let (word, after) = text.split_at(text.find(' ').unwrap_or(text.len()));
        rest = after;
        // Spaces between words that align columns are kept; the first word is never moved.
        if !out.trim_start().is_empty() && used + space.len() + width(word) > columns {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            used = indent;
        } else {
            out.push_str(space);
            used += space.len();
        }
        out.push_str(word);
        used += width(word);
    }
    out
}

/// A column of a [`Table`].
#[derive(Clone, Debug)]
pub struct Column {
    heading: String,
    is_right: bool,
    is_prose: bool,
}

impl Column {
    /// Names.
    #[must_use]
    pub fn left(heading: &str) -> Self {
        Self { heading: heading.to_owned(), is_right: false, is_prose: false }
    }

    /// Numbers.
    #[must_use]
    pub fn right(heading: &str) -> Self {
        Self { heading: heading.to_owned(), is_right: true, is_prose: false }
    }

    /// Text that may have several lines.
    #[must_use]
    pub fn prose(heading: &str) -> Self {
        Self { heading: heading.to_owned(), is_right: false, is_prose: true }
    }
}

/// A cell of a [`Table`].
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    meaning: Option<Meaning>,
}

impl Cell {
    /// A cell with a colour.
    #[must_use]
    pub fn coloured(text: &str, meaning: Meaning) -> Self {
        Self { meaning: Some(meaning), ..Self::from(text) }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self { text: printable(text), meaning: None }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

/// A table. Where its lines would be too long, text has several lines; where that is not enough,
/// each row becomes a paragraph.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row. Missing cells are empty.
    pub fn push(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let mut row: Vec<Cell> = cells.into_iter().take(self.columns.len()).collect();
        row.resize_with(self.columns.len(), || Cell::from(""));
        self.rows.push(row);
    }

    /// The table as text. Columns without any text are left out.
    #[must_use]
    pub fn text(&self, view: View) -> String {
        let used: Vec<usize> =
            (0..self.columns.len()).filter(|at| self.rows.iter().any(|row| !row[*at].text.is_empty())).collect();
        match self.widths(&used, view.columns) {
            Some(widths) => self.grid(&used, &widths, view),
            None => self.paragraphs(&used, view),
        }
    }

    /// The widths with which the table fits; `None` if it does not.
    fn widths(&self, used: &[usize], columns: usize) -> Option<Vec<usize>> {
        let cells = |at: usize| self.rows.iter().map(move |row| row[at].text.as_str());
        let all = |at: usize| cells(at).chain([self.columns[at].heading.as_str()]);
        let mut widths: Vec<usize> = used.iter().map(|at| all(*at).map(width).max().unwrap_or_default()).collect();
        let longest_word = |at: usize| all(at).flat_map(str::split_whitespace).map(width).max().unwrap_or_default();
        let least: Vec<usize> = used
            .iter()
            .zip(&widths)
            // Narrower text is hard to read.
            .map(|(at, width)| if self.columns[*at].is_prose { longest_word(*at).max(20).min(*width) } else { *width })
            .collect();
        let gaps = GAP * used.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > columns {
            let shrinks = |at: &usize| widths[*at] > least[*at];
            let widest = (0..widths.len()).filter(shrinks).max_by_key(|at| widths[*at])?;
            widths[widest] -= 1;
        }
        Some(widths)
    }

    fn grid(&self, used: &[usize], widths: &[usize], view: View) -> String {
        let headings: Vec<Cell> =
            self.columns.iter().map(|column| Cell::coloured(&column.heading, Meaning::Heading)).collect();
        let has_headings = self.columns.iter().any(|column| !column.heading.is_empty());
        let mut out = String::new();
        for row in has_headings.then_some(&headings).into_iter().chain(&self.rows) {
            let lines: Vec<Vec<String>> = used.iter().zip(widths).map(|(at, width)| lines(&row[*at], *width)).collect();
            for line in 0..lines.iter().map(Vec::len).max().unwrap_or_default() {
                let mut text = String::new();
                for (place, at) in used.iter().enumerate() {
                    let cell = lines[place].get(line).map_or("", String::as_str);
                    let space = " ".repeat(widths[place].saturating_sub(width(cell)));
                    let cell = row[*at].meaning.map_or_else(|| cell.to_owned(), |meaning| view.paint(meaning, cell));
                    let gap = if place == 0 { "" } else { "  " };
                    text += gap;
                    text += &if self.columns[*at].is_right { space + &cell } else { cell + &space };
                }
                out += text.trim_end();
                out.push('\n');
            }
        }
        out
    }

    /// The first named column as title of each row, below it all others with their headings.
    fn paragraphs(&self, used: &[usize], view: View) -> String {
        let named = used.iter().position(|at| !self.columns[*at].heading.is_empty()).unwrap_or_default();
        let (title, rest) = used.split_at((named + 1).min(used.len()));
        let mut out = String::new();
        for row in &self.rows {
            let words = title.iter().map(|at| &row[*at].text).filter(|text| !text.is_empty());
            let title = words.map(String::as_str).collect::<Vec<_>>().join(" ");
            // A row that continues the one before it has none.
            if !title.is_empty() {
                out += &view.paint(Meaning::Heading, &wrap(&title, view.columns, 4));
                out.push('\n');
            }
            let mut line = String::new();
            for at in rest.iter().filter(|at| !row[**at].text.is_empty()) {
                let cell = &row[*at];
                let text = cell.meaning.map_or_else(|| cell.text.clone(), |meaning| view.paint(meaning, &cell.text));
                let pair = format!("{} {text}", self.columns[*at].heading).trim_start().to_owned();
                if !line.is_empty() && width(&line) + 3 + width(&pair) > view.columns {
                    out += &wrap(&line, view.columns, 6);
                    out.push('\n');
                    line.clear();
                }
                line += if line.is_empty() { "    " } else { "   " };
                line += &pair;
            }
            if !line.is_empty() {
                out += &wrap(&line, view.columns, 6);
                out.push('\n');
            }
        }
        out
    }
}

/// The lines of a cell.
fn lines(cell: &Cell, columns: usize) -> Vec<String> {
    wrap(&cell.text, columns, 0).split('\n').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(columns: usize) -> View {
        View { columns, ..View::PLAIN }
    }

    fn table() -> Table {
        let mut table = Table::new([
            Column::left(""),
            Column::left("scenario"),
            Column::right("J/frame"),
            Column::right("empty"),
            Column::prose("note"),
        ]);
        let row = |cells: [&str; 5]| cells.map(Cell::from);
        table.push(row(["*", "libx264 fast 720p", "1.39 ± 0.02", "", ""]));
        table.push(row(["", "libx265", "12.3", "", "samples cover 5 % of its window in 2 of 3 repeats"]));
        table
    }

    #[test]
    fn a_table_that_fits_has_one_line_for_each_row() {
        let text = table().text(view(120));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "   scenario               J/frame  note");
        assert_eq!(lines[1], "*  libx264 fast 720p  1.39 ± 0.02");
        assert!(!text.contains("empty"), "{text}");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_no_word_is_broken() {
        for columns in [24, 30, 40, 60, 80, 100] {
            let text = table().text(view(columns));
            assert!(text.lines().all(|line| width(line) <= columns), "{columns}:\n{text}");
            for word in ["libx264", "720p", "samples", "repeats", "12.3"] {
                assert!(text.split_whitespace().any(|found| found == word), "{columns}, {word}:\n{text}");
            }
        }
        assert!(table().text(view(40)).contains("    J/frame 1.39 ± 0.02\n"), "{}", table().text(view(40)));
    }

    #[test]
    fn long_lines_are_broken_between_words_on_a_terminal_only() {
        let text = "  note    one two three four five\n\nshort\n";
        let terminal = View { is_terminal: true, ..view(20) };
        assert_eq!(terminal.fit(text), "  note    one two\n    three four five\n\nshort\n");
        assert_eq!(view(20).fit(text), text);
        assert_eq!(wrap("a-word-that-is-longer-than-the-line b", 10, 2), "a-word-that-is-longer-than-the-line\n  b");
        assert_eq!((width("\x1b[31mred\x1b[0m"), width("配信")), (3, 4));
    }

    #[test]
    fn a_row_that_continues_another_is_no_paragraph_of_its_own() {
        let mut table = Table::new([Column::left(""), Column::left(""), Column::prose("")]);
        let long = "a-word-of-thirty-one-characters";
        table.push(["perf", "absent", long].map(Cell::from));
        table.push(["", "", "remedy"].map(Cell::from));
        assert_eq!(table.text(view(36)), format!("perf\n    absent\n    {long}\n    remedy\n"));
    }

    #[test]
    fn a_pipe_can_have_one_line_for_each_row() {
        assert_eq!(table().text(View::PLAIN.with_whole_lines()), table().text(view(120)));
        let mut long = Table::new([Column::left(""), Column::prose("")]);
        long.push([Cell::from("perf"), Cell::from("word ".repeat(100).trim())]);
        assert_eq!(long.text(View::PLAIN.with_whole_lines()).lines().count(), 1);
        let terminal = View { is_terminal: true, ..view(40) };
        assert_eq!(terminal.with_whole_lines(), terminal);
    }

    #[test]
    fn names_do_not_control_the_terminal() {
        let mut table = Table::new([Column::left("name")]);
        table.push([Cell::from("\x1b[2Jevil")]);
        assert_eq!(table.text(View::PLAIN), "name\n\u{fffd}[2Jevil\n");
    }
}
