//! Pages in a real browser: `browser-tests/check.mjs` opens them in Chromium and reports what a
//! reader would see.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    lock::{self, Resource},
    shell::{root, which},
};

fn dir() -> PathBuf {
    root().join("browser-tests")
}

/// Node.js, Chromium and the packages of `browser-tests`, which are installed at the first use.
///
/// # Errors
/// What is missing, or why the packages cannot be installed.
pub fn requirement() -> Result<(), String> {
    for (name, package) in [("node", "nodejs"), ("npm", "npm"), ("chromium", "chromium")] {
        which(name).ok_or_else(|| format!("{name} is not in PATH (apt-get install {package})"))?;
    }
    let _one_at_a_time = lock::hold(Resource::BrowserPackages);
    if dir().join("node_modules/axe-core").exists() {
        return Ok(());
    }
    let mut install = Command::new("npm");
    install.args(["ci", "--no-audit", "--no-fund", "--silent"]).current_dir(dir()).stdin(Stdio::null());
    let output = install.output().map_err(|error| format!("npm: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "npm ci in browser-tests: {}",
        String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("failed")
    ))
}

/// Opens pages and returns what was found, in their order: see `check.mjs` for both. Pictures are
/// written to `out`.
///
/// # Errors
/// When the browser cannot be run.
pub fn open(pages: &[Value], out: Option<&Path>) -> Result<Vec<Value>> {
    let chromium = which("chromium").context("chromium is not in PATH")?;
    let input = json!({ "chromium": chromium, "out": out, "pages": pages });
    let mut command = Command::new("node");
    command.arg("check.mjs").current_dir(dir()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("node")?;
    child.stdin.take().context("no standard input")?.write_all(input.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "check.mjs: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What is wrong with a page: messages of the console, exceptions, parts beyond the window, and
/// serious findings of axe-core. Empty for a good one.
#[must_use]
pub fn faults(found: &Value) -> Vec<String> {
    let list = |key: &str| found[key].as_array().cloned().unwrap_or_default();
    let all = ["errors", "overflow", "axe"].into_iter().flat_map(|key| {
        let name = found["name"].as_str().unwrap_or_default().to_owned();
        list(key).into_iter().map(move |fault| format!("{name}: {key}: {fault}"))
    });
    all.collect()
}
