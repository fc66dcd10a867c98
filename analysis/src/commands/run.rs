//! `wattcast-analysis run`.

use std::process::ExitCode;

use anyhow::Error;
use experiment::runner::{self, Exit, RunError, flags::Run};
use toml::Table;

use super::{log_errors, read_settings, report_check};

/// Runs the command.
pub(crate) fn run(config: &Run, file: &Table) -> ExitCode {
    if config.shared.file.check {
        let plan = || config.plan().map_err(|error| Error::msg(format!("the command line: {error}")));
        return report_check(read_settings(&config.shared, file).and_then(|_| plan()).map(|_| ()));
    }
    log_errors();
    match measure(config, file) {
        Ok(exit) => exit.code(),
        Err(error) => {
            cli::program::print_error(&format!("wattcast-analysis: {error}"));
            error.exit.code()
        }
    }
}

fn measure(config: &Run, file: &Table) -> Result<Exit, RunError> {
    let (data, _) =
        read_settings(&config.shared, file).map_err(|error| RunError::new(Exit::Usage, format!("{error:#}")))?;
    runner::run(config, &data.first_probe, &data.prices)
}
