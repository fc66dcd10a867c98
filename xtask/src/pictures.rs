//! `cargo xtask pictures`: takes pictures of the live page and of a report, and renders every
//! dashboard with Grafana's own panel code in a browser, with data of the stack that
//! `check-dashboards` starts.
//!
//! The data of the dashboards come from a simulated processor and a fake GPU: their pictures show
//! the dashboards, and no measurements.

mod live;

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{check_dashboards, stop};
use testkit::shell::{root, run, step, which};

/// A group of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The live page with three streams, and the report of a run; about 25 minutes
    Live,
    /// The dashboards
    Dashboards,
}

#[derive(Debug, clap::Args)]
pub struct Pictures {
    /// Take only these pictures [default: all]
    #[arg(long, value_name = "PART", value_enum)]
    only: Option<Part>,

    /// Run time of the stack of the dashboards before rendering
    #[arg(long, value_name = "SECONDS", default_value_t = 420)]
    seconds: u64,

    /// Output directory
    #[arg(long, value_name = "DIR", default_value = "docs/pictures")]
    out: PathBuf,
}

/// Takes all pictures, or a part of them.
pub fn pictures(args: &Pictures) -> Result<()> {
    stop::catch_signals();
    if args.only != Some(Part::Dashboards) {
        live::draw(&root().join(&args.out))?;
    }
    if args.only == Some(Part::Live) {
        return Ok(());
    }
    dashboards(args)
}

/// Renders all dashboards.
fn dashboards(args: &Pictures) -> Result<()> {
    for (name, package) in [("node", "nodejs"), ("npm", "npm"), ("chromium", "chromium")] {
        ensure!(which(name).is_some(), "{name} is not in PATH (Debian: apt-get install {package})");
    }
    let dir = root().join("grafana/render");
    if !dir.join("node_modules").exists() {
        run("installing Grafana's panel code (npm ci, 560 MB)", Command::new("npm").arg("ci").current_dir(&dir))?;
    }
    run("building the renderer", Command::new("npm").args(["run", "build"]).current_dir(&dir))?;
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map(|time| time.as_secs());
    let stack = check_dashboards::live_stack()?;
    step(format!("the stack runs; rendering in {} s", args.seconds));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(args.seconds) {
        if stop::stopped() {
            bail!("stopped");
        }
        stop::sleep(Duration::from_secs(1));
    }
    let to = now()?;
    let mut draw = Command::new("node");
    draw.arg(dir.join("draw.mjs")).arg("--dashboards").arg(crate::dashboards::dir());
    draw.args(["--prometheus", stack.prometheus(), "--out"]).arg(root().join(&args.out));
    draw.args(["--from", &(to - args.seconds.min(300)).to_string(), "--to", &to.to_string()]);
    let status = draw.status().context("cannot run node")?;
    ensure!(status.success(), "not all panels could be rendered");
    Ok(())
}
