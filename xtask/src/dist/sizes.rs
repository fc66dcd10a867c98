//! The sizes of programs, packages and images, as a table for the documentation.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};

use crate::marks;

/// A file with its size.
pub(super) struct Artefact {
    name: String,
    bytes: u64,
}

impl Artefact {
    pub(super) fn new(path: &Path, name: String) -> Result<Self> {
        let bytes = fs::metadata(path).with_context(|| format!("no {}", path.display()))?.len();
        Ok(Self { name, bytes })
    }

    pub(super) fn of_file(path: &Path) -> Result<Self> {
        Self::new(path, path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
    }
}

/// What the documentation of the legacy exporters states for such a file.
fn legacy(name: &str) -> &'static str {
    match name {
        name if name.starts_with("wattcast-probe") && name.contains(", ") => "5.3 MB",
        name if name.contains("-image-") => "1.2 GB, all images",
        _ => "",
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes, for output")]
fn table(all: &[Artefact]) -> String {
    let mut text = "| file | MB | legacy exporters (claimed) |\n|---|---|---|\n".to_owned();
    for artefact in all {
        let megabytes = artefact.bytes as f64 / 1e6;
        let _ = writeln!(text, "| `{}` | {megabytes:.1} | {} |", artefact.name, legacy(&artefact.name));
    }
    text
}

/// Prints the table, or writes it to docs/performance.md.
pub(super) fn report(all: &[Artefact], write: bool) -> Result<()> {
    let table = table(all);
    if write {
        return marks::write("performance", "sizes", &table);
    }
    print!("{table}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_their_size_next_to_what_the_legacy_exporters_state() {
        let all = [
            Artefact { name: "wattcast-probe, x86_64".into(), bytes: 10_440_000 },
            Artefact { name: "wattcast-probe-image-0.2.0-amd64.tar.gz".into(), bytes: 4_000_000 },
        ];
        let table = table(&all);
        assert!(table.contains("| `wattcast-probe, x86_64` | 10.4 | 5.3 MB |\n"), "{table}");
        assert!(table.contains("-image-0.2.0-amd64.tar.gz` | 4.0 | 1.2 GB, all images |\n"), "{table}");
    }
}
