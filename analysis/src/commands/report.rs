//! `wattcast-analysis report`.

use std::{io::Write as _, process::ExitCode};

use analysis::config::Report;
use anyhow::{Context as _, Result};
use experiment::{report, runner};
use results::store;
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
            let newest = store::list(&config.shared.results_dir)?.into_iter().next();
            newest.context("the results directory has no result file")?.path
        }
    };
    let (model, value) = read_model(&path, &data, config.shared.scope.is_some())?;
    let page = report::html(&model, &value, &data.prices);
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
