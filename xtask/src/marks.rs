//! Tables of the documents that a command writes, between marks that name the document and the
//! section: `<!-- accuracy memory -->` and `<!-- /accuracy memory -->` in docs/accuracy.md.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use testkit::shell::root;

/// The path of a document, by its name without the extension.
pub(crate) fn path(document: &str) -> PathBuf {
    root().join(format!("docs/{document}.md"))
}

/// The page with other tables between the marks of a section.
///
/// # Errors
/// When the page lacks a mark.
pub(crate) fn replace(page: &str, document: &str, section: &str, tables: &str) -> Result<String> {
    let (open, close) = (format!("<!-- {document} {section} -->\n"), format!("<!-- /{document} {section} -->"));
    let parts = page.split_once(&open).and_then(|(head, rest)| Some((head, rest.split_once(&close)?.1)));
    let (head, tail) = parts.with_context(|| format!("docs/{document}.md has no {} and {close}", open.trim_end()))?;
    Ok(format!("{head}{open}{}\n{close}{tail}", tables.trim_end()))
}

/// Checks that a document has the marks of these sections.
///
/// # Errors
/// When it cannot be read, or lacks a mark.
pub(crate) fn check(document: &str, sections: &[&str]) -> Result<()> {
    let path = path(document);
    let page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    sections.iter().try_for_each(|section| replace(&page, document, section, "").map(drop))
}

/// Writes the tables of one section to its document.
///
/// # Errors
/// When the document cannot be read or written, or lacks a mark.
pub(crate) fn write(document: &str, section: &str, tables: &str) -> Result<()> {
    let path = path(document);
    let page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    fs::write(&path, replace(&page, document, section, tables)?).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tables_between_the_marks_are_replaced() {
        let page = "a\n<!-- accuracy memory -->\nold\n<!-- /accuracy memory -->\nb\n";
        let new = replace(page, "accuracy", "memory", "one\ntwo\n\n").unwrap();
        assert_eq!(new, "a\n<!-- accuracy memory -->\none\ntwo\n<!-- /accuracy memory -->\nb\n");
        assert_eq!(replace(&new, "accuracy", "memory", "one\ntwo").unwrap(), new);
        assert!(replace(page, "accuracy", "idle", "").unwrap_err().to_string().contains("<!-- accuracy idle -->"));
    }

    #[test]
    fn documents_have_the_marks_of_their_sections() {
        check("performance", &["peers", "scale", "sizes"]).unwrap();
        check("scale", &["hosts", "load"]).unwrap();
        assert!(check("scale", &["peers"]).is_err());
    }
}
