//! The commands of the command line, and what they share.

pub(crate) mod advise;
pub(crate) mod backfill;
pub(crate) mod bill;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod report;
mod result_file;
pub(crate) mod run;
pub(crate) mod serve;

use std::{io::Write as _, process::ExitCode};

use analysis::settings::{self, ServiceSettings};
use anyhow::Result;
use cli::{
    log::{self, LogFormat},
    program,
};
use results::settings::{DataFlags, DataSettings};
use toml::Table;

/// Exit code if the command ran, but cannot answer all that was asked.
const INCOMPLETE: u8 = 3;

/// Prints an error and returns the exit code of the program.
pub(crate) fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::program::print_error(&format!("wattcast-analysis: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints the result of `--config.check`, and returns the exit code of the program. It also reports
/// errors of commands whose exit code 1 has another meaning.
fn report_check(result: Result<()>) -> ExitCode {
    program::report_check(result.map_err(|error| format!("{error:#}")))
}

/// Logs errors only, for commands that print their result.
fn log_errors() {
    log::start("error", LogFormat::Logfmt);
}

/// The settings of every command. All keys of the file are checked, also those of other commands.
fn read_settings(shared: &DataFlags, file: &Table) -> Result<(DataSettings, ServiceSettings)> {
    Ok((shared.settings(file)?, settings::read_service(shared, file)?))
}

/// Prints to standard output. A closed pipe is no error, as its reader needs no more output.
fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
