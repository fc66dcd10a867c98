//! `cargo xtask generate`: writes the files that are made from a description, and says whether those that lie there are what it would write.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::{dashboards, scrape};

fn files() -> Result<Vec<(PathBuf, String)>> {
    let mut files = scrape::files();
    files.extend(dashboards::files()?);
    Ok(files)
}

/// Writes them.
///
/// # Errors
/// When a file cannot be written.
pub fn write() -> Result<()> {
    for (path, text) in files()? {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Whether the files are what the descriptions say, and no dashboard lies beside them.
///
/// # Errors
/// Which are not, and what to do.
pub fn fresh() -> Result<()> {
    let files = files()?;
    let stale: Vec<String> = files
        .iter()
        .filter(|(path, text)| fs::read_to_string(path).ok().as_ref() != Some(text))
        .map(|(path, _)| path.display().to_string())
        .collect();
    if !stale.is_empty() {
        bail!("not what the descriptions say: {}. Run: cargo xtask generate", stale.join(", "));
    }
    for entry in fs::read_dir(dashboards::dir())? {
        let path = entry?.path();
        if !files.iter().any(|(known, _)| *known == path) {
            bail!("{} is no dashboard of ours", path.display());
        }
    }
    Ok(())
}
