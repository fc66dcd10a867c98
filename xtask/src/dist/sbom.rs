//! Lists of the components of each program (CycloneDX), from Cargo.lock.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use testkit::shell::{output, root, run, step};

/// The name that the tool gives to the file of each crate of the workspace.
const NAME: &str = "wattcast-components";

/// Writes `PROGRAM-VERSION.cdx.json` for each program, with its package and name; returns their
/// paths. cargo-cyclonedx, at `tool`, has no output directory: it writes one file to each crate,
/// which are removed again. `time` is that of the lists in Unix seconds.
pub(super) fn write(tool: &Path, programs: &[(&str, &str)], out: &Path, time: &str) -> Result<Vec<PathBuf>> {
    let crates = crates()?;
    let mut command = Command::new(tool);
    command.args(["cyclonedx", "--format=json", "--spec-version=1.5", "--target=all", "--quiet"]);
    command.args(["--override-filename", NAME]).current_dir(root()).env("SOURCE_DATE_EPOCH", time);
    let ran = run("listing the components (cargo cyclonedx)", &mut command);
    let mut files = Vec::new();
    for dir in &crates {
        let made = dir.join(format!("{NAME}.json"));
        let Ok(text) = fs::read_to_string(&made) else { continue };
        fs::remove_file(&made)?;
        let Some((_, name)) = programs.iter().find(|(package, _)| dir.ends_with(package)) else { continue };
        let path = out.join(format!("{name}-{}.cdx.json", env!("CARGO_PKG_VERSION")));
        // Crates of the workspace have their path on this machine.
        fs::write(&path, text.replace(&*root().to_string_lossy(), "/wattcast"))?;
        step(path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default());
        files.push(path);
    }
    ran?;
    ensure!(files.len() == programs.len(), "cargo cyclonedx wrote {} files", files.len());
    Ok(files)
}

/// The directories of the crates of the workspace.
fn crates() -> Result<Vec<PathBuf>> {
    let mut command = Command::new("cargo");
    command.args(["metadata", "--no-deps", "--format-version=1"]).current_dir(root());
    let metadata: serde_json::Value = serde_json::from_str(&output(&mut command)?)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let dir = |package: &serde_json::Value| Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_owned());
    Ok(packages.iter().filter_map(dir).collect())
}
