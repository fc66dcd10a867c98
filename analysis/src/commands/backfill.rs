//! `wattcast-analysis backfill`.

use std::process::ExitCode;

use analysis::{
    backfill::{Destination, backfill},
    config::Backfill,
};
use anyhow::{Result, bail};
use toml::Table;

use super::{exit_code, log_errors, read_settings, report_check};

/// Runs the command.
pub(crate) fn run(config: &Backfill, file: &Table) -> ExitCode {
    if config.shared.file.check {
        return report_check(read_settings(&config.shared, file).map(|_| ()));
    }
    log_errors();
    exit_code(write_history(config, file))
}

fn write_history(config: &Backfill, file: &Table) -> Result<()> {
    let (mut data, _) = read_settings(&config.shared, file)?;
    if !data.probe_is_configured {
        // Without a configured probe, runs of the past must not wait for the default one.
        data.sources.probes.clear();
    }
    let mut out = std::io::stdout().lock();
    let mut destination =
        if config.dry_run { Destination::Text(&mut out) } else { Destination::database(&data.database)? };
    let summary = backfill(&config.shared.results_dir, &data, &mut destination)?;
    eprintln!("{} runs, {} samples written; {} files skipped", summary.runs, summary.samples, summary.skipped);
    if summary.open > 0 {
        bail!(
            "{} scenarios were left out: a probe or database that may have their energy did not answer; run the command \
             again when it does",
            summary.open
        );
    }
    Ok(())
}
