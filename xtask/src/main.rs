//! `cargo xtask`: everything one does with this tree, so that no build logic lives in shell.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, build_ebpf, check_dashboards, dist, generate, package_test, pictures, sim, test, up, vm};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Build, run, test and measure Wattcast")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything and run both programs in the foreground, with a live table of containers. Needs root
    Up(up::Up),
    /// Run every check and every test; what cannot run here is counted with its reason
    Test(test::Test),
    /// Measure what the probe costs, beside the claims of the exporters it replaces. Needs root
    Bench(bench::Bench),
    /// Build the programs that run inside the kernel, and the toolchain for it where it is missing
    BuildEbpf,
    /// Write a RAPL tree whose energy follows this machine's load, for machines that have none
    SimRapl(sim::SimRapl),
    /// Write the files that are made from descriptions: dashboards, scrape configurations, data sources
    Generate,
    /// Run every query of every dashboard and rule against a real Prometheus and a real VictoriaMetrics that hold real and recorded data
    CheckDashboards,
    /// Draw every dashboard into docs/pictures, with Grafana's own panel code in a browser. Needs root, Node and Chromium
    Pictures(pictures::Pictures),
    /// Build both programs for x86_64 and aarch64, as archives and as Debian packages
    Dist(dist::Dist),
    /// Boot other kernels in QEMU, with two sockets and with two threads a core, and run the probe there
    VmTest,
    /// Install, start, upgrade, remove and purge both Debian packages in a throw-away root. Needs root
    PackageTest,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Up(args) => up::up(&args),
        Command::Test(args) => test::test(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::BuildEbpf => build_ebpf::build_ebpf().map(|_| ()),
        Command::SimRapl(args) => sim::sim_rapl(&args),
        Command::Generate => generate::write(),
        Command::CheckDashboards => check_dashboards::check_dashboards(),
        Command::Pictures(args) => pictures::pictures(&args),
        Command::Dist(args) => dist::dist(&args),
        Command::VmTest => vm::vm_test(),
        Command::PackageTest => package_test::package_test(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
