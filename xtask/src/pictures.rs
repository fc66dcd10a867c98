//! `cargo xtask pictures`: draws every dashboard with Grafana's own panel code in a browser, over the stack that the dashboards are checked with.
//!
//! What is drawn comes from a simulated processor and a library that stands in for a GPU's: the pictures show the dashboards, and measure nothing.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{check_dashboards, dashboards, stop};
use testkit::shell::{root, run, step, which};

/// Flags of `pictures`.
#[derive(Debug, clap::Args)]
pub struct Pictures {
    /// For how long the stack runs before it is drawn
    #[arg(long, value_name = "SECONDS", default_value_t = 420)]
    seconds: u64,

    /// Where they go
    #[arg(long, value_name = "DIR", default_value = "docs/pictures")]
    out: PathBuf,
}

/// Draws them.
///
/// # Errors
/// When Node, npm or Chromium is not installed, the stack does not come up, or a panel cannot be drawn.
pub fn pictures(args: &Pictures) -> Result<()> {
    stop::catch_signals();
    for (name, package) in [("node", "nodejs"), ("npm", "npm"), ("chromium", "chromium")] {
        ensure!(which(name).is_some(), "{name} is needed to draw (Debian: apt-get install {package})");
    }
    let place = root().join("grafana/render");
    if !place.join("node_modules").exists() {
        run("installing Grafana's panel code (npm ci, 560 MB)", Command::new("npm").arg("ci").current_dir(&place))?;
    }
    run("building it", Command::new("npm").args(["run", "build"]).current_dir(&place))?;
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map(|time| time.as_secs());
    let stage = check_dashboards::live_stage()?;
    step(format!("the stack runs; {} s until it is drawn", args.seconds));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(args.seconds) {
        if stop::stopped() {
            bail!("stopped");
        }
        stop::pause(Duration::from_secs(1));
    }
    let to = now()?;
    let mut draw = Command::new("node");
    draw.arg(place.join("draw.mjs")).arg("--dashboards").arg(dashboards::dir());
    draw.args(["--prometheus", stage.prometheus(), "--out"]).arg(root().join(&args.out));
    draw.args(["--from", &(to - args.seconds.min(300)).to_string(), "--to", &to.to_string()]);
    let done = draw.status().context("cannot run node")?;
    ensure!(done.success(), "not everything could be drawn");
    Ok(())
}
