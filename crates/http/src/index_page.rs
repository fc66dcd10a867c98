//! The HTML page at `/`: the program, links to its endpoints, and tables of its state. It uses no
//! script and no external file.

use std::fmt::Write as _;

/// The content of the page. Texts are escaped when the page is rendered.
#[derive(Clone, Debug, Default)]
pub struct IndexPage {
    /// The name of the program; title and heading.
    pub name: String,
    /// One sentence on the purpose of the program.
    pub about: String,
    /// Version and revision.
    pub version: String,
    /// Sentences at the top of the page that must not be overlooked.
    pub banners: Vec<String>,
    /// Paths and their descriptions.
    pub links: Vec<(String, String)>,
    /// Tables: heading, column titles, and rows.
    pub tables: Vec<(String, Vec<String>, Vec<Vec<String>>)>,
}

impl IndexPage {
    /// Renders the page as HTML.
    #[must_use]
    pub fn html(&self) -> String {
        let mut out = String::new();
        let _ = write!(
            out,
            "<h1>{}</h1><p>{}</p><p class=\"version\">{}</p>",
            escape(&self.name),
            escape(&self.about),
            escape(&self.version),
        );
        for banner in &self.banners {
            let _ = write!(out, "<p class=\"banner\">{}</p>", escape(banner));
        }
        out.push_str("<ul>");
        for (path, description) in &self.links {
            let path = escape(path);
            let _ = write!(out, "<li><a href=\"{path}\">{path}</a> {}</li>", escape(description));
        }
        out.push_str("</ul>");
        for (title, columns, rows) in &self.tables {
            let _ = write!(out, "<h2>{}</h2><table><tr>", escape(title));
            for column in columns {
                let _ = write!(out, "<th>{}</th>", escape(column));
            }
            out.push_str("</tr>");
            for row in rows {
                out.push_str("<tr>");
                for cell in row {
                    let _ = write!(out, "<td>{}</td>", escape(cell));
                }
                out.push_str("</tr>");
            }
            out.push_str("</table>");
        }
        document(&self.name, &out)
    }
}

/// A complete HTML document with the given title (text) and body (HTML).
#[must_use]
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><link rel=\"icon\" href=\"data:,\"><title>{}</title><style>{STYLE}</style></head>\
         <body>{body}</body></html>\n",
        escape(title)
    )
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse}th,td{text-align:left;padding:.2rem 1rem .2rem 0;border-bottom:1px solid #ccc;vertical-align:top}\
.version{color:#666}.banner{border:2px solid #c60;padding:.3rem .6rem;font-weight:bold}@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8cf}}";

/// Escapes a text for HTML content and quoted attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_cells_are_escaped() {
        let page = IndexPage {
            name: "probe".into(),
            tables: vec![("t".into(), vec!["c".into()], vec![vec!["<script>'\"&".into()]])],
            ..IndexPage::default()
        }
        .html();
        assert!(page.contains("<td>&lt;script&gt;&#39;&quot;&amp;</td>"));
        assert!(!page.contains("<script>"));
    }

    #[test]
    fn banners_are_above_the_tables() {
        let page = IndexPage {
            banners: vec!["1 < 2".into()],
            tables: vec![("t".into(), vec![], vec![])],
            ..IndexPage::default()
        }
        .html();
        let (banner, table) = (page.find("<p class=\"banner\">1 &lt; 2</p>"), page.find("<table>"));
        assert!(banner.is_some() && banner < table, "{page}");
    }
}
