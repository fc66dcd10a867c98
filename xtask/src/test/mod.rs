//! `cargo xtask test`: runs all checks and tests, and reports skipped tests with their reasons and
//! the time of each phase.
//!
//! Builds come first, one after another. Then the tests run while the remaining checks compile in
//! the background at the lowest priority: most end-to-end tests wait, and a niced compiler does not
//! slow them down.

mod checks;
mod engine;
mod report;
mod suite;

use std::{thread, time::Instant};

use anyhow::{Result, anyhow, bail};
use testkit::shell::{build_programs, step};

use self::{
    engine::Engine,
    report::Report,
    suite::{Set, Suite},
};
use crate::{background, build_ebpf};

#[derive(Debug, clap::Args)]
pub struct Test {
    /// Skip tests that need root or services
    ///
    /// Runs format, clippy, source checks, and unit, property and golden tests.
    #[arg(long)]
    fast: bool,

    /// Run only tests whose name contains NAME, and no checks
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Runs checks and tests, and prints the report.
pub fn test(args: &Test) -> Result<()> {
    let (mut report, start) = (Report::default(), Instant::now());
    if args.fast {
        fast(args, &mut report)?;
    } else {
        full(args, &mut report)?;
    }
    report.print(start.elapsed());
    match report.failed() {
        0 => Ok(()),
        count => bail!("{count} failed"),
    }
}

fn fast(args: &Test, report: &mut Report) -> Result<()> {
    if args.names.is_empty() {
        eprintln!("Checks");
        report.phase("checks", checks::first);
        report.phase("clippy", checks::clippy);
    }
    eprintln!("Tests");
    let suite = Suite { set: Set::Fast, names: &args.names, programs: None };
    report.phase("building tests", |_| suite.build())?;
    report.phase("tests", |report| suite.run(report))
}

fn full(args: &Test, report: &mut Report) -> Result<()> {
    let everything = args.names.is_empty();
    eprintln!("Builds");
    if everything {
        report.phase("first checks", checks::first);
    }
    report.phase("eBPF programs", |report| match build_ebpf::Toolchain::find() {
        Ok(toolchain) => report.outcome("cargo xtask build-ebpf", toolchain.build().map(drop)),
        Err(error) => report.skip(&format!("eBPF programs: no toolchain: {error:#}")),
    });
    // With the profile of `up`, and before the first test that needs them.
    step("building the programs (profile e2e)");
    let programs = report.phase("programs", |_| build_programs())?;
    let suite = Suite { set: Set::All, names: &args.names, programs: Some(&programs) };
    report.phase("building tests", |_| suite.build())?;
    let engine = Engine::start();
    if let Err(reason) = &engine {
        step(format!("no Docker engine: {reason:#}"));
    }
    eprintln!("Tests");
    thread::scope(|scope| {
        let background = everything.then(|| {
            scope.spawn(|| {
                let mut report = Report::default();
                report.phase("checks, during the tests", checks::background);
                report
            })
        });
        let ran = report.phase("tests", |report| suite.run(report));
        background::raise_priority();
        if let Some(checks) = background {
            match report.phase("checks, after the tests", |_| checks.join()) {
                Ok(checks) => report.merge(checks),
                Err(_) => report.outcome("checks", Err(anyhow!("the thread of the checks panicked"))),
            }
        }
        ran
    })
}
