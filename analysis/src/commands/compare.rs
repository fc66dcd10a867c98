//! `wattcast-analysis compare`.

use std::{path::Path, process::ExitCode};

use analysis::config::Compare;
use anyhow::{Context as _, Error, Result, anyhow};
use cli::terminal::View;
use experiment::compare::{
    Verdict,
    by::{compare_by, verdict_of_runs},
    compare,
};
use results::store;
use toml::Table;

use super::{INCOMPLETE, log_errors, print, read_settings, report_check, result_file::read_model};

/// Number of files that are suggested for one that does not exist.
const SUGGESTED: usize = 3;

/// Runs the command. An error has the exit code of a wrong command line, because 1 means that
/// something became worse.
pub(crate) fn run(config: &Compare, file: &Table) -> ExitCode {
    log_errors();
    let done = match &config.by {
        Some(by) => print_dimension(config, by, file),
        None => print_comparison(config, file),
    };
    done.unwrap_or_else(|error| report_check(Err(error)))
}

/// Compares the configurations of one file.
fn print_dimension(config: &Compare, by: &str, file: &Table) -> Result<ExitCode> {
    let (data, _) = read_settings(&config.shared, file)?;
    let (model, _) = read_model(&config.baseline, &data)?;
    let found = compare_by(&model, by, &config.metrics, config.threshold)
        .map_err(|why| Error::msg(format!("{}: {why}", config.baseline.display())))?;
    let text = || View::stdout().fit(&found.text(config.verbose));
    print(&if config.json { serde_json::to_string_pretty(&found)? + "\n" } else { text() });
    Ok(ExitCode::from(if found.is_empty() { INCOMPLETE } else { 0 }))
}

fn print_comparison(config: &Compare, file: &Table) -> Result<ExitCode> {
    let (data, _) = read_settings(&config.shared, file)?;
    let candidate = config.candidate.as_ref().context("no candidate result file")?;
    let read = |path: &Path| {
        let model = read_model(path, &data).map(|(model, _)| model);
        model.map_err(|error| if path.exists() { error } else { with_existing(&error, &config.shared.results_dir) })
    };
    let (baseline, candidate) = (read(&config.baseline)?, read(candidate)?);
    let comparison = compare(&baseline, &candidate, &config.metrics, config.threshold);
    let view = View::stdout();
    let verdict = || view.fit(&format!("Verdict: {}.\n", verdict_of_runs(&comparison)));
    let text = || verdict() + &comparison.text(view);
    print(&if config.json { serde_json::to_string_pretty(&comparison)? + "\n" } else { text() });
    let nothing_compared = comparison.rows.iter().all(|row| row.verdict == Verdict::Unknown);
    Ok(ExitCode::from(if comparison.count(Verdict::Worse) > 0 {
        1
    } else if nothing_compared || comparison.is_incomplete() && !config.allow_missing {
        INCOMPLETE
    } else {
        0
    }))
}

/// The error with the newest result files that could have been meant.
fn with_existing(error: &Error, dir: &Path) -> Error {
    let files = store::list(dir).unwrap_or_default();
    let names: Vec<String> = files.iter().take(SUGGESTED).map(|file| file.path.display().to_string()).collect();
    if names.is_empty() {
        anyhow!("{error:#}; {} has no result files either (--results-dir)", dir.display())
    } else {
        anyhow!("{error:#}; the newest result files are {}", names.join(", "))
    }
}
