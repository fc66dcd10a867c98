//! `cargo xtask sim-rapl DIR`: the flags of the simulated powercap tree, and its run until Ctrl-C.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use testkit::simulator::{Simulator, Spec};

use crate::stop;

/// Flags of `sim-rapl`.
#[derive(Debug, clap::Args)]
pub struct SimRapl {
    /// Where the tree goes; give the probe --path.sysfs=DIR/sys
    dir: PathBuf,

    /// Sockets that the tree says this machine has; its CPUs are dealt out among them in order [default: as it is]
    #[arg(long, value_name = "COUNT")]
    packages: Option<u32>,

    /// Watts of each package when nothing runs
    #[arg(long, value_name = "WATTS", default_value_t = 8.0)]
    idle: f64,

    /// Watts that a busy CPU adds; a list gives each package its own, the last goes for the rest
    #[arg(long, value_name = "WATTS", value_delimiter = ',', default_value = "12")]
    busy: Vec<f64>,

    /// Joules after which a counter starts again at zero; small ones show wraps
    #[arg(long, value_name = "JOULES", default_value_t = 262_143.328_85)]
    range: f64,

    /// Also write core, uncore and dram of each package, as fixed parts of it, and psys over all
    #[arg(long)]
    parts: bool,
}

/// Runs until Ctrl-C.
///
/// # Errors
/// When the tree cannot be written.
pub fn sim_rapl(args: &SimRapl) -> Result<()> {
    stop::catch_signals();
    let spec = Spec {
        packages: args.packages,
        idle: args.idle,
        busy: args.busy.clone(),
        range: args.range,
        parts: args.parts,
    };
    let simulator = Simulator::start(&args.dir, &spec)?;
    eprintln!("A simulated RAPL under {}; nothing in it was measured. In another terminal:", args.dir.display());
    eprintln!("  wattcast-probe --path.sysfs={}", simulator.sysfs().display());
    eprintln!("Ctrl-C ends it; the tree stays, and its counters stand.");
    while !stop::stopped() {
        simulator.alive()?;
        stop::pause(Duration::from_secs(1));
    }
    Ok(())
}
