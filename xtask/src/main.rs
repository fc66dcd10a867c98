//! `cargo xtask`: build, run, test, measure and package this repository, without shell scripts.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{
    accuracy, bench, build_ebpf, chart, check_dashboards, dist, generate, package_test, pictures, sim, test, up, vm,
};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Build, run, test and measure Wattcast")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build and run both programs in the foreground, with a live table (needs root)
    Up(up::Up),
    /// Run all checks and tests, and count those that cannot run here
    Test(test::Test),
    /// Measure the overhead of the programs (needs root)
    Bench(bench::Bench),
    /// Compare the probe with measurements of real machines, as in docs/accuracy.md
    Accuracy(accuracy::Accuracy),
    /// Build the eBPF programs, and install their toolchain if it is missing
    BuildEbpf,
    /// Simulate a powercap tree whose energy follows the load of this machine
    SimRapl(sim::SimRapl),
    /// Generate dashboards, scrape configurations and data sources
    Generate,
    /// Run all queries of dashboards and rules in Prometheus and VictoriaMetrics
    CheckDashboards,
    /// Check the Helm chart with Helm and the schemas of Kubernetes
    Chart,
    /// Take the pictures of docs/pictures (needs root, Node and Chromium)
    Pictures(pictures::Pictures),
    /// Build archives, packages and images for x86_64 and aarch64
    Dist(dist::Dist),
    /// Test the probe on other kernels and CPU topologies in QEMU
    VmTest(vm::VmTest),
    /// Test installation, upgrade and removal of the Debian packages (needs root)
    PackageTest,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(args) => up::up(&args),
        Command::Test(args) => test::test(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Accuracy(args) => accuracy::accuracy(&args),
        Command::BuildEbpf => build_ebpf::build_ebpf().map(|_| ()),
        Command::SimRapl(args) => sim::sim_rapl(&args),
        Command::Generate => generate::write(),
        Command::CheckDashboards => check_dashboards::check_dashboards(),
        Command::Chart => chart::chart(),
        Command::Pictures(args) => pictures::pictures(&args),
        Command::Dist(args) => dist::dist(&args),
        Command::VmTest(args) => vm::vm_test(&args),
        Command::PackageTest => package_test::package_test(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
