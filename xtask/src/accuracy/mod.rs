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
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use testkit::shell::{self, root, step};

use self::{broadwell::Broadwell, probe::Probe, table::Table};

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
    /// How often the truth is inside the stated uncertainty
    Coverage,
}

impl Section {
    const ALL: [Self; 5] = [Self::Model, Self::Idle, Self::CrossSocket, Self::Memory, Self::Coverage];

    /// Its name in the marks of docs/accuracy.md.
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Idle => "idle",
            Self::CrossSocket => "cross-socket",
            Self::Memory => "memory",
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
            Self::Memory => memory::tables(data)?,
            Self::Coverage => coverage::tables(probes)?,
        };
        Ok(tables.iter().map(Table::markdown).collect())
    }

    /// True for the sections that replay recordings.
    fn needs_probe(self) -> bool {
        matches!(self, Self::Idle | Self::CrossSocket | Self::Coverage)
    }
}

/// Prints the tables.
pub fn accuracy(args: &Accuracy) -> Result<()> {
    let data = &args.data;
    ensure!(data.is_dir(), "{}: no directory; name that of the measurements with --data", data.display());
    let sections = if args.sections.is_empty() { &Section::ALL[..] } else { &args.sections[..] };
    let probes = if sections.iter().any(|section| section.needs_probe()) { probes(args)? } else { Vec::new() };
    let mut page = if args.write { Some(fs::read_to_string(page_path()).context("docs/accuracy.md")?) } else { None };
    if let Some(page) = &page {
        // A missing mark is found before the replays, not after them.
        sections.iter().try_for_each(|section| replace(page, section.name(), "").map(|_| ()))?;
    }
    for section in sections {
        step(section.name());
        let text = section.markdown(data, &probes)?;
        match &mut page {
            // A section that cannot be made here stays as it is.
            Some(page) if !text.is_empty() => *page = replace(page, section.name(), &text)?,
            Some(_) => {}
            None => print!("{text}"),
        }
    }
    page.map_or(Ok(()), |page| fs::write(page_path(), page).context("docs/accuracy.md"))
}

fn page_path() -> PathBuf {
    root().join("docs/accuracy.md")
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

/// The page with other tables between the marks of a section.
fn replace(page: &str, section: &str, tables: &str) -> Result<String> {
    let (open, close) = (format!("<!-- accuracy {section} -->\n"), format!("<!-- /accuracy {section} -->"));
    let parts = page.split_once(&open).and_then(|(head, rest)| Some((head, rest.split_once(&close)?.1)));
    let (head, tail) = parts.with_context(|| format!("docs/accuracy.md has no {} and {close}", open.trim_end()))?;
    Ok(format!("{head}{open}{}\n{close}{tail}", tables.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tables_between_the_marks_are_replaced() {
        let page = "a\n<!-- accuracy memory -->\nold\n<!-- /accuracy memory -->\nb\n";
        let new = replace(page, "memory", "one\ntwo\n\n").unwrap();
        assert_eq!(new, "a\n<!-- accuracy memory -->\none\ntwo\n<!-- /accuracy memory -->\nb\n");
        assert_eq!(replace(&new, "memory", "one\ntwo").unwrap(), new);
        assert!(replace(page, "idle", "").unwrap_err().to_string().contains("<!-- accuracy idle -->"));
    }
}
