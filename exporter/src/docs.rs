//! The metric tables of the documentation, made from the definitions, so that page and code cannot part.

use std::{fs, path::Path};

use crate::family::{Def, Layer};

/// A Markdown table of definitions.
#[must_use]
pub fn table(defs: &[&Def]) -> String {
    let mut out = String::from("| name | type | labels | meaning |\n|---|---|---|---|\n");
    for def in defs {
        let labels = def.labels.join(", ");
        let help = def.help.replace('|', "\\|");
        let seed = if def.layer == Layer::Seed { " *(kept for existing queries)*" } else { "" };
        out.push_str(&format!("| `{}` | {} | {labels} | {help}{seed} |\n", def.name, def.kind.as_str()));
    }
    out
}

/// Holds the section of `file` between `<!-- NAME -->` and `<!-- /NAME -->` against the definitions. With
/// `WATTCAST_WRITE_DOCS=1` in the environment it writes the section instead.
///
/// # Errors
/// What is wrong, and how to mend it.
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
    Err(format!("{}: section {name} is not what the code says. Run: WATTCAST_WRITE_DOCS=1 cargo test", file.display()))
}
