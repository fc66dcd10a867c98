//! The document around every page: head, navigation, footer.

use std::fmt::Write as _;

use ::web::{ICON, STYLE};
use cli::program;
use http::index_page::escape;

/// `Content-Security-Policy` of the pages: the shared style sheet, and no script at all.
pub const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; \
                          base-uri 'none'; frame-ancestors 'none'";

/// A page of the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Overview,
    Results,
    Quality,
    Cost,
    Streams,
    Health,
    Runbooks,
}

impl Section {
    /// In the order of the navigation.
    pub const ALL: [Self; 7] =
        [Self::Overview, Self::Results, Self::Quality, Self::Cost, Self::Streams, Self::Health, Self::Runbooks];

    /// The name in the navigation.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Results => "Results",
            Self::Quality => "Quality",
            Self::Cost => "Cost",
            Self::Streams => "Streams",
            Self::Health => "Health",
            Self::Runbooks => "Runbooks",
        }
    }

    /// The path. That of health is not `/health`, which is the liveness of the service itself.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Overview => "/overview",
            Self::Results => "/results",
            Self::Quality => "/quality",
            Self::Cost => "/cost",
            Self::Streams => "/streams",
            Self::Health => "/exporters",
            Self::Runbooks => "/runbooks",
        }
    }
}

/// Where the links of a document lead.
#[derive(Clone, Debug)]
pub struct Frame {
    /// URL before the paths of the navigation, without a slash at its end; empty for a port that
    /// serves all pages itself.
    pub base: String,
    /// Path of the metrics on every port.
    pub telemetry_path: String,
}

impl Frame {
    /// A complete document. `title` is text, `body` is HTML.
    #[must_use]
    pub fn document(&self, section: Section, title: &str, body: &str) -> String {
        let (base, title) = (escape(&self.base), escape(title));
        let mut navigation = String::new();
        for other in Section::ALL {
            let current = if other == section { " aria-current=\"page\"" } else { "" };
            let _ = write!(navigation, "<a href=\"{base}{}\"{current}>{}</a>", other.path(), other.title());
        }
        format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>{title} · Wattcast</title><link rel=\"icon\" href=\"{ICON}\" type=\"image/svg+xml\">\
             <link rel=\"stylesheet\" href=\"{STYLE}\"></head><body>\
             <a class=\"skip\" href=\"#main\">Skip to content</a>\
             <header class=\"top\"><p class=\"brand\"><a href=\"{base}{}\">Wattcast analysis</a></p>\
             <nav aria-label=\"Pages\">{navigation}</nav></header>\
             <main id=\"main\"><h1 class=\"brand\">{title}</h1>{body}</main>\
             <footer class=\"foot\">wattcast-analysis {} · this port: <a href=\"{}\">metrics</a>, \
             <a href=\"/health\">liveness</a>, <a href=\"/ready\">readiness</a>, \
             <a href=\"/index\">plain index</a></footer></body></html>\n",
            Section::Overview.path(),
            escape(program::version()),
            escape(&self.telemetry_path),
        )
    }
}

/// How a state is to be seen; its text says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Ok,
    Warn,
    Bad,
    Neutral,
}

impl Tone {
    /// The class of the style sheet; empty if neutral.
    #[must_use]
    pub fn class(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
            Self::Neutral => "",
        }
    }

    /// A text with the colour of this state.
    #[must_use]
    pub fn badge(self, text: &str) -> String {
        let space = if self == Self::Neutral { "" } else { " " };
        format!("<span class=\"badge{space}{}\">{}</span>", self.class(), escape(text))
    }

    /// A paragraph at the top of a page.
    #[must_use]
    pub fn banner(self, text: &str) -> String {
        let space = if self == Self::Neutral { "" } else { " " };
        format!("<p class=\"banner{space}{}\">{}</p>", self.class(), escape(text))
    }
}

/// A muted paragraph.
#[must_use]
pub fn note(text: &str) -> String {
    format!("<p class=\"note\">{}</p>", escape(text))
}

/// A command to copy.
#[must_use]
pub fn command(text: &str) -> String {
    format!("<pre>{}</pre>", escape(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(base: &str) -> Frame {
        Frame { base: base.into(), telemetry_path: "/metrics".into() }
    }

    #[test]
    fn documents_have_no_inline_style_or_script() {
        let page = frame("").document(Section::Cost, "Cost", "<p>x</p>");
        for inline in ["<script", "<style", " style=", "onclick", "javascript:"] {
            assert!(!page.contains(inline), "{inline}\n{page}");
        }
        assert!(!POLICY.contains("unsafe") && !POLICY.contains("script-src"));
    }

    #[test]
    fn the_current_page_is_marked_once() {
        let page = frame("").document(Section::Health, "Health", "");
        assert_eq!(page.matches("aria-current").count(), 1);
        assert!(page.contains("<a href=\"/exporters\" aria-current=\"page\">Health</a>"), "{page}");
    }

    #[test]
    fn links_of_another_port_have_its_url() {
        let page = frame("http://enc-1:9502\"><script>").document(Section::Streams, "<b>", "");
        assert!(page.contains("href=\"http://enc-1:9502&quot;&gt;&lt;script&gt;/results\""), "{page}");
        assert!(page.contains("<title>&lt;b&gt; · Wattcast</title>") && !page.contains("<script>"), "{page}");
    }

    #[test]
    fn texts_are_escaped() {
        assert_eq!(Tone::Bad.badge("<script>"), "<span class=\"badge bad\">&lt;script&gt;</span>");
        assert_eq!(Tone::Neutral.badge("ended"), "<span class=\"badge\">ended</span>");
        assert_eq!(note("a<b"), "<p class=\"note\">a&lt;b</p>");
    }
}
