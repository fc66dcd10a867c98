//! Colours of the output of commands, by meaning: none of them is the only sign of anything, so
//! that the text says the same without.

use std::ffi::OsStr;

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Better than the baseline, or healthy.
    Better,
    /// Worse than the baseline, or failed.
    Worse,
    /// To be noticed.
    Warning,
    /// Names what follows.
    Heading,
    /// Of less interest.
    Quiet,
}

impl Meaning {
    /// Parameter of the escape sequence (ECMA-48, SGR).
    const fn code(self) -> &'static str {
        match self {
            Self::Better => "32",
            Self::Worse => "31",
            Self::Warning => "33",
            Self::Heading => "1",
            Self::Quiet => "2",
        }
    }
}

/// Whether an output has colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Colours {
    enabled: bool,
}

impl Colours {
    /// Without colours.
    pub const NONE: Self = Self { enabled: false };

    /// Colours on a terminal that has them, unless the user refuses them (no-color.org).
    #[must_use]
    pub fn of(is_terminal: bool) -> Self {
        let variable = |name: &str| std::env::var_os(name);
        Self { enabled: is_wanted(is_terminal, variable("NO_COLOR").as_deref(), variable("TERM").as_deref()) }
    }

    /// The text in the colour of its meaning.
    #[must_use]
    pub fn paint(self, meaning: Meaning, text: &str) -> String {
        if self.enabled && !text.is_empty() {
            format!("\x1b[{}m{text}\x1b[0m", meaning.code())
        } else {
            text.to_owned()
        }
    }
}

fn is_wanted(is_terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty) && term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_dumb_terminals_and_no_color_have_no_colours() {
        let is_wanted = |is_terminal, no_color: Option<&str>, term: Option<&str>| {
            is_wanted(is_terminal, no_color.map(OsStr::new), term.map(OsStr::new))
        };
        assert!(is_wanted(true, None, Some("xterm")) && is_wanted(true, Some(""), Some("xterm")));
        assert!(!is_wanted(false, None, Some("xterm")), "a pipe");
        assert!(!is_wanted(true, Some("1"), Some("xterm")), "NO_COLOR");
        assert!(!is_wanted(true, None, Some("dumb")) && !is_wanted(true, None, None));
        assert_eq!(Colours::NONE.paint(Meaning::Worse, "x"), "x");
        assert_eq!(Colours { enabled: true }.paint(Meaning::Worse, "x"), "\x1b[31mx\x1b[0m");
    }
}
