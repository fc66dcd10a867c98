//! `cargo xtask generate`: writes the generated files, and checks that they are up to date.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::{chart, dashboards, scrape_config};

fn files() -> Result<Vec<(PathBuf, String)>> {
    let mut files = scrape_config::files();
    files.extend(dashboards::files()?);
    files.extend(chart::files()?);
    Ok(files)
}

/// Writes all generated files.
pub fn write() -> Result<()> {
    for (path, text) in files()? {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Checks that all generated files are up to date, and that their directories have no other.
///
/// # Errors
/// With the outdated files.
pub fn fresh() -> Result<()> {
    let files = files()?;
    let stale: Vec<String> = files
        .iter()
        .filter(|(path, text)| fs::read_to_string(path).ok().as_ref() != Some(text))
        .map(|(path, _)| path.display().to_string())
        .collect();
    if !stale.is_empty() {
        bail!("out of date: {}; run cargo xtask generate", stale.join(", "));
    }
    for dir in [dashboards::dir(), dashboards::legacy_dir(), chart::dashboards_dir(), chart::rules_dir()] {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if !files.iter().any(|(known, _)| *known == path) {
                bail!("{} is not a generated file", path.display());
            }
        }
    }
    Ok(())
}
