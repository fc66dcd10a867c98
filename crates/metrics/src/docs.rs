//! The metric tables of the documentation, generated from the definitions so that they cannot
//! diverge.

use std::{fs, path::Path};

use crate::family::{Def, Layer};

/// A Markdown table with one row for each definition: name, type, labels, meaning.
#[must_use]
pub fn table(defs: &[&Def]) -> String {
    let mut out = String::from("| name | type | labels | meaning |\n|---|---|---|---|\n");
    for def in defs {
        let labels = def.labels.join(", ");
        let help = def.help.replace('|', "\\|");
        let compat = if def.layer == Layer::Compat { " *(kept for existing queries)*" } else { "" };
        out.push_str(&format!("| `{}` | {} | {labels} | {help}{compat} |\n", def.name, def.kind.as_str()));
    }
    out
}

/// Compares the section of `file` between `<!-- NAME -->` and `<!-- /NAME -->` with the table of
/// the definitions. With `WATTCAST_WRITE_DOCS=1` in the environment the section is written instead.
///
/// # Errors
/// If the file cannot be read or written, has no such section, or the section differs from the
/// definitions.
pub fn check(file: &Path, name: &str, defs: &[&Def]) -> Result<(), String> {
    let page = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let parts = page.split_once(&open).and_then(|(head, rest)| Some((head, rest.split_once(&close)?)));
    let Some((head, (old, tail))) = parts else {
        return Err(format!("{} has no section {name}", file.display()));
    };
    let new = table(defs);
    if old == new {
        return Ok(());
    }
    if std::env::var_os("WATTCAST_WRITE_DOCS").is_some() {
        return fs::write(file, format!("{head}{open}{new}{close}{tail}"))
            .map_err(|error| format!("{}: {error}", file.display()));
    }
    Err(format!(
        "{}: section {name} differs from the metric definitions. Run: WATTCAST_WRITE_DOCS=1 cargo test",
        file.display()
    ))
}
