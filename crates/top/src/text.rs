//! Names and messages in a terminal: without characters that would move the cursor, and cut by the
//! columns that they take.

use std::ops::Deref;

use cli::terminal::printable;
pub(crate) use cli::terminal::width;
use serde::{Deserialize, Deserializer};
use unicode_width::UnicodeWidthChar as _;

/// Maximum length of a text in characters. No column is wider, and names come from containers.
const LONGEST: usize = 256;

/// Text of a container, stream or driver, cleaned when it is read, so that no view can show it
/// otherwise. `null` is the empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Text(String);

impl Text {
    /// The text without control characters.
    pub(crate) fn new(text: &str) -> Self {
        Self(clean(text))
    }
}

impl Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        Ok(Self::new(&text.unwrap_or_default()))
    }
}

/// The text without characters that control the terminal, cut to its maximum length.
pub(crate) fn clean(text: &str) -> String {
    printable(text).chars().take(LONGEST).collect()
}

/// The text in at most so many columns, with an ellipsis where it was cut.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let Some(room) = columns.checked_sub(1) else { return String::new() };
    let mut short = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += c.width().unwrap_or_default();
        if used > room {
            break;
        }
        short.push(c);
    }
    short.push('…');
    short
}

/// The text in exactly so many columns.
pub(crate) fn fit(text: &str, columns: usize, right: bool) -> String {
    let text = cut(text, columns);
    let space = " ".repeat(columns.saturating_sub(width(&text)));
    if right { space + &text } else { text + &space }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_move_the_cursor_or_turn_the_text() {
        assert_eq!(clean("a\u{1b}[2Jb\r\nc"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c");
        assert_eq!(clean("\u{202e}gpj.exe\u{200d}\u{feff}"), "gpj.exe");
        assert_eq!(clean("\u{9b}1m\u{2028}"), "\u{fffd}1m\u{fffd}");
        assert_eq!(clean(&"x".repeat(10_000)).len(), LONGEST);
    }

    #[test]
    fn wide_characters_are_cut_by_columns() {
        assert_eq!(cut("配信サーバー", 12), "配信サーバー");
        assert_eq!(cut("配信サーバー", 11), "配信サーバ…");
        assert_eq!(cut("配信サーバー", 10), "配信サー…");
        assert_eq!(cut("abc", 0), "");
        assert_eq!(fit("配信", 6, true), "  配信");
        assert_eq!(fit("abcdef", 4, false), "abc…");
        assert_eq!(width("e\u{301}"), 1);
    }
}
