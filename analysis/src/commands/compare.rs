//! `wattcast-analysis compare`.

use std::process::ExitCode;

use analysis::config::Compare;
use anyhow::Result;
use experiment::compare::{Verdict, compare};
use toml::Table;

use super::{INCOMPLETE, log_errors, print, read_settings, report_check, result_file::read_model};

/// Runs the command. An error has the exit code of a wrong command line, because 1 means that
/// something became worse.
pub(crate) fn run(config: &Compare, file: &Table) -> ExitCode {
    log_errors();
    print_comparison(config, file).unwrap_or_else(|error| report_check(Err(error)))
}

fn print_comparison(config: &Compare, file: &Table) -> Result<ExitCode> {
    let (data, _) = read_settings(&config.shared, file)?;
    let (baseline, _) = read_model(&config.baseline, &data)?;
    let (candidate, _) = read_model(&config.candidate, &data)?;
    let comparison = compare(&baseline, &candidate, &config.metrics, config.threshold);
    print(&if config.json { serde_json::to_string_pretty(&comparison)? + "\n" } else { comparison.table() });
    let nothing_compared = comparison.rows.iter().all(|row| row.verdict == Verdict::Unknown);
    Ok(ExitCode::from(if comparison.count(Verdict::Worse) > 0 {
        1
    } else if nothing_compared || comparison.is_incomplete() && !config.allow_missing {
        INCOMPLETE
    } else {
        0
    }))
}
