//! The power model on CPU models that were left out when it was fitted: the tables of the script
//! that fits it.

use std::{path::Path, process::Command};

use anyhow::Result;
use testkit::shell::{output, root, step, which};

const SCRIPT: &str = "scripts/fit_model.py";

/// The tables as Markdown; empty where they cannot be made here.
pub(super) fn tables(data: &Path) -> Result<String> {
    let script = root().join(SCRIPT);
    let Some(python) = which("python3").filter(|_| script.exists()) else {
        step(format!("skipped: {SCRIPT} needs python3"));
        return Ok(String::new());
    };
    let tables = output(Command::new(python).arg(script).arg("--check").arg("--data").arg(data))?;
    Ok(format!("{tables}\n\n"))
}
