//! The runbooks of the alerts, from `docs/runbooks.md`; each heading has its lower-case name as an
//! anchor, which alerts link to.

use std::sync::LazyLock;

use pulldown_cmark::{Event, HeadingLevel, Parser, Tag, TagEnd, html};

/// The content of the page. The document has a heading of its own.
pub static BODY: LazyLock<String> = LazyLock::new(|| render(include_str!("../../../docs/runbooks.md")));

fn render(markdown: &str) -> String {
    let is_title = |event: &Event<'_>| matches!(event, Event::Start(Tag::Heading { level: HeadingLevel::H1, .. }));
    let is_end = |event: &Event<'_>| matches!(event, Event::End(TagEnd::Heading(HeadingLevel::H1)));
    let mut events: Vec<Event<'_>> = Parser::new(markdown).collect();
    if events.first().is_some_and(is_title) {
        let end = events.iter().position(is_end).map_or(0, |end| end + 1);
        events.drain(..end);
    }
    for at in 0..events.len() {
        let title = match events.get(at + 1) {
            Some(Event::Text(title)) => title.to_lowercase().replace(' ', "-"),
            _ => continue,
        };
        if let Some(Event::Start(Tag::Heading { id, .. })) = events.get_mut(at) {
            *id = Some(title.into());
        }
    }
    let mut out = String::new();
    html::push_html(&mut out, events.into_iter());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_heading_of_the_runbooks_has_an_anchor() {
        for heading in include_str!("../../../docs/runbooks.md").lines().filter_map(|line| line.strip_prefix("## ")) {
            assert!(BODY.contains(&format!("id=\"{}\"", heading.to_lowercase())), "{heading}");
        }
        assert!(!BODY.contains("<h1") && !BODY.contains("<script"), "the page has a heading of its own");
    }
}
