//! `cargo xtask sim-rapl DIR`: runs a simulated powercap tree until Ctrl-C.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use testkit::simulator::{Simulator, Spec};

use crate::stop;

#[derive(Debug, clap::Args)]
pub struct SimRapl {
    /// Directory of the tree; run the probe with --path.sysfs=DIR/sys
    dir: PathBuf,

    /// Number of simulated sockets, among which the CPUs are split [default: actual]
    #[arg(long, value_name = "COUNT")]
    packages: Option<u32>,

    /// Idle power of each package
    #[arg(long, value_name = "WATTS", default_value_t = 8.0)]
    idle: f64,

    /// Additional power per busy CPU, by package; the last applies to the rest
    #[arg(long, value_name = "WATTS", value_delimiter = ',', default_value = "12")]
    busy: Vec<f64>,

    /// Range of a counter, after which it wraps to zero
    #[arg(long, value_name = "JOULES", default_value_t = 262_143.328_85)]
    range: f64,

    /// Also simulate core, uncore and dram of each package, and psys
    #[arg(long)]
    parts: bool,
}

/// Runs until Ctrl-C.
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
    eprintln!("Simulating RAPL in {}; its energy is not measured. In another terminal, run:", args.dir.display());
    eprintln!("  wattcast-probe --path.sysfs={}", simulator.sysfs().display());
    eprintln!("Ctrl-C stops the simulation and leaves the tree.");
    while !stop::stopped() {
        simulator.alive()?;
        stop::sleep(Duration::from_secs(1));
    }
    Ok(())
}
