//! `cargo xtask`: everything one does with this tree, so that no build logic lives in shell.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, build_ebpf, sim, test, up, vm};

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
    Test,
    /// Measure what the probe costs, beside the claims of the exporters it replaces. Needs root
    Bench(bench::Bench),
    /// Build the programs that run inside the kernel, and the toolchain for it where it is missing
    BuildEbpf,
    /// Write a RAPL tree whose energy follows this machine's load, for machines that have none
    SimRapl(sim::SimRapl),
    /// Boot other kernels in QEMU, with two sockets and with two threads a core, and run the probe there
    VmTest,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Up(args) => up::up(&args),
        Command::Test => test::test(),
        Command::Bench(args) => bench::bench(&args),
        Command::BuildEbpf => build_ebpf::build_ebpf().map(|_| ()),
        Command::SimRapl(args) => sim::sim_rapl(&args),
        Command::VmTest => vm::vm_test(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
