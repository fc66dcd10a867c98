//! Checks of the sources that no compiler makes: plain words, the width of comments, and import
//! cycles between the modules of a crate.

mod comments;
mod import_cycles;
mod rust_tokens;
mod words;

use std::{fs, process::Command};

use testkit::{
    or_skip,
    shell::{output, root},
};

/// A file of the repository.
struct SourceFile {
    /// From the root of the repository.
    path: String,
    text: String,
}

/// Captured data and generated lists, whose text is not ours to choose.
const DATA: [&str; 4] = ["/fixtures/", "/tests/data/", "package-lock.json", "Cargo.lock"];

/// Every file that git tracks or would track, without binary files and [`DATA`].
fn files() -> anyhow::Result<Vec<SourceFile>> {
    let mut list = Command::new("git");
    list.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let list = output(&mut list)?;
    let paths = list.lines().filter(|path| !DATA.iter().any(|part| path.contains(part)));
    // A deleted file is still listed before the commit; a binary file is not UTF-8.
    let files = paths.filter_map(|path| {
        Some(SourceFile { path: path.to_owned(), text: fs::read_to_string(root().join(path)).ok()? })
    });
    Ok(files.collect())
}

/// Fails with all faults, one line each.
#[track_caller]
fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn sources_use_plain_words() {
    assert_none(&words::check(&or_skip!(files())));
}

#[test]
fn comments_are_at_most_100_columns_wide() {
    assert_none(&comments::check(&or_skip!(files())));
}

#[test]
fn modules_have_no_import_cycles() {
    assert_none(&import_cycles::check(&or_skip!(files())));
}
