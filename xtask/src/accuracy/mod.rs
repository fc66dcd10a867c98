//! `cargo xtask accuracy --data DIR`: how far the probe's figures are from measurements that others
//! made on real machines, as the tables of docs/accuracy.md.
//!
//! The data is the user's: it is downloaded from the sources that docs/accuracy.md names, and never
//! part of this repository. Where the probe's arithmetic is tested, a recording is made from the
//! measured watts, and `wattcast-probe account` replays it: the truth of each row is then known.

mod broadwell;
mod coverage;
mod cross_socket;
mod csv;
mod idle;
mod intervals;
mod memory;
mod model;
mod probe;
mod synthetic;
pub(crate) mod table;
mod weights;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use testkit::shell::{self, step};

use self::{broadwell::Broadwell, probe::Probe, table::Table};
use crate::marks;

#[derive(Debug, clap::Args)]
pub struct Accuracy {
    /// Directory of the measurements
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Tables to print [default: all]
    #[arg(value_enum, value_name = "TABLE")]
    sections: Vec<Section>,

    /// Probe whose arithmetic is tested [default: build it]
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,

    /// Older probe, for columns before and after
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,

    /// Replace the tables in docs/accuracy.md
    #[arg(long)]
    write: bool,
}

/// A group of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Section {
    /// Power model on CPU models that it has not seen
    Model,
    /// Idle power from subsets of loads
    Idle,
    /// Power of a socket that only a thread on the other one keeps awake
    CrossSocket,
    /// Memory by cache misses and by CPU time
    Memory,
    /// Programs with unequal cycles by CPU time, by cycles and by a fitted mix
    Weights,
    /// How often the truth is inside the stated uncertainty
    Coverage,
}

impl Section {
    const ALL: [Self; 6] = [Self::Model, Self::Idle, Self::CrossSocket, Self::Memory, Self::Weights, Self::Coverage];

    /// Its name in the marks of docs/accuracy.md.
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Idle => "idle",
            Self::CrossSocket => "cross-socket",
            Self::Memory => "memory",
            Self::Weights => "weights",
            Self::Coverage => "coverage",
        }
    }

    /// Its tables; empty where they cannot be made here.
    fn markdown(self, data: &Path, probes: &[Probe]) -> Result<String> {
        let tables = match self {
            Self::Model => return model::tables(data),
            Self::Idle => {
                let mut tables = idle::tables(&Broadwell::read(data)?, probes)?;
                tables.extend(intervals::tables(probes)?);
                tables
            }
            Self::CrossSocket => cross_socket::tables(&Broadwell::read(data)?, probes)?,
            Self::Memory => memory::tables(data, probes)?,
            Self::Weights => weights::tables(data, probes)?,
            Self::Coverage => coverage::tables(probes)?,
        };
        Ok(tables.iter().map(Table::markdown).collect())
    }

    /// True for the sections that replay recordings.
    fn needs_probe(self) -> bool {
        self != Self::Model
    }
}

/// Prints the tables.
pub fn accuracy(args: &Accuracy) -> Result<()> {
    let data = &args.data;
    ensure!(data.is_dir(), "{}: no directory; name that of the measurements with --data", data.display());
    let sections = if args.sections.is_empty() { &Section::ALL[..] } else { &args.sections[..] };
    let probes = if sections.iter().any(|section| section.needs_probe()) { probes(args)? } else { Vec::new() };
    let read = || fs::read_to_string(marks::path("accuracy")).context("docs/accuracy.md");
    let mut page = if args.write { Some(read()?) } else { None };
    if let Some(page) = &page {
        // A missing mark is found before the replays, not after them.
        sections.iter().try_for_each(|section| marks::replace(page, "accuracy", section.name(), "").map(|_| ()))?;
    }
    for section in sections {
        step(section.name());
        let text = section.markdown(data, &probes)?;
        match &mut page {
            // A section that cannot be made here stays as it is.
            Some(page) if !text.is_empty() => *page = marks::replace(page, "accuracy", section.name(), &text)?,
            Some(_) => {}
            None => print!("{text}"),
        }
    }
    page.map_or(Ok(()), |page| fs::write(marks::path("accuracy"), page).context("docs/accuracy.md"))
}

fn probes(args: &Accuracy) -> Result<Vec<Probe>> {
    let built = || shell::programs().map(|dir| dir.join("wattcast-probe"));
    let path = args.probe.clone().map_or_else(built, Ok)?;
    let label = if args.before.is_some() { "after" } else { "" };
    let before = args.before.iter().map(|path| Probe { label: "before", path: path.clone() });
    let probes: Vec<Probe> = before.chain([Probe { label, path }]).collect();
    for probe in &probes {
        ensure!(probe.path.is_file(), "{}: no program", probe.path.display());
    }
    Ok(probes)
}
