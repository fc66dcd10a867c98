//! `wattcast-analysis report`.

use std::{io::Write as _, process::ExitCode};

use analysis::config::Report;
use anyhow::{Context as _, Result, bail};
use experiment::{report, runner};
use results::{repeats::configurations, store};
use toml::Table;

use super::{exit_code, log_errors, read_settings, result_file::read_model};

/// Runs the command.
pub(crate) fn run(config: &Report, file: &Table) -> ExitCode {
    log_errors();
    exit_code(write_report(config, file))
}

fn write_report(config: &Report, file: &Table) -> Result<()> {
    let (data, _) = read_settings(&config.shared, file)?;
    let path = match &config.file {
        Some(path) => path.clone(),
        None => {
            let dir = &config.shared.results_dir;
            let remedy = || format!("{}: choose another directory with --results-dir, or name a file", dir.display());
            let newest = store::list(dir).with_context(remedy)?.into_iter().next();
            newest.context("no test_results_YYYYMMDD_HHMMSS.json in it").with_context(remedy)?.path
        }
    };
    let (model, text) = read_model(&path, &data)?;
    if configurations(&model).is_empty() {
        bail!("{}: nothing to report: no scenario was measured successfully; see the reasons above", path.display());
    }
    // Absent where a text in the file is no Unicode: the report then lacks the runner's details.
    let page = report::html(&model, &report::details(&text), &data.prices);
    match &config.output {
        Some(output) if output.as_os_str() == "-" => std::io::stdout().lock().write_all(page.as_bytes())?,
        output => {
            let output = output.clone().unwrap_or_else(|| path.with_extension("html"));
            runner::write_atomically(&output, page.as_bytes()).with_context(|| output.display().to_string())?;
            println!("{}", output.display());
        }
    }
    Ok(())
}
