//! Comment lines have at most 100 columns.

use std::path::Path;

use super::SourceFile;

const COLUMNS: usize = 100;

/// The marker at the start of comment lines in a file of this name.
fn marker(path: &str) -> Option<&'static str> {
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
    match extension {
        Some("rs") => Some("//"),
        Some("toml" | "sh" | "yml" | "yaml") => Some("#"),
        _ if path == ".ci/run" => Some("#"),
        _ => None,
    }
}

pub(super) fn check(files: &[SourceFile]) -> Vec<String> {
    files.iter().flat_map(faults).collect()
}

fn faults(file: &SourceFile) -> Vec<String> {
    let Some(marker) = marker(&file.path) else { return Vec::new() };
    let long = |line: &str| line.trim_start().starts_with(marker) && line.chars().count() > COLUMNS;
    // A URL cannot be broken.
    let faults = (1..).zip(file.text.lines()).filter(|(_, line)| long(line) && !line.contains("://"));
    let width = |line: &str| line.chars().count();
    faults.map(|(number, line)| format!("{}:{number}: comment of {} columns", file.path, width(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        faults(&SourceFile { path: path.to_owned(), text: text.to_owned() }).len()
    }

    #[test]
    fn finds_comments_wider_than_the_limit() {
        let width = |marker: &str, columns: usize| marker.to_owned() + &"é".repeat(columns - marker.len());
        assert_eq!(count("a.rs", &width("/// ", 100)), 0);
        assert_eq!(count("a.rs", &width("    // ", 101)), 1);
        assert_eq!(count("a.toml", &width("# ", 101)), 1);
        assert_eq!(count(".ci/run", &width("# ", 101)), 1);
    }

    #[test]
    fn leaves_code_urls_and_other_files() {
        let long = "x".repeat(101);
        assert_eq!(count("a.rs", &format!("let a = {long};")), 0);
        assert_eq!(count("a.rs", &format!("// https://example.org/{long}")), 0);
        assert_eq!(count("a.md", &format!("# {long}")), 0);
    }
}
