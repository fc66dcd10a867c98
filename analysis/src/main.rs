//! wattcast-analysis: energy, quality and cost of encoding runs.

mod commands;

use std::process::ExitCode;

use analysis::{
    config::{Command, Config, SHOWN},
    settings::PROGRAM_KEYS,
};
use anyhow::{Context as _, Error};
use cli::program;

fn main() -> ExitCode {
    let (Config { command }, file) = match program::parse(PROGRAM_KEYS, SHOWN) {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    match &command {
        Command::Serve(config) => commands::serve::run(config, &file),
        Command::Advise(config) => commands::advise::run(config, &file),
        Command::Backfill(config) => commands::backfill::run(config, &file),
        Command::Bill(config) => commands::bill::run(config, &file),
        Command::Run(config) => commands::run::run(config, &file),
        Command::Compare(config) => commands::compare::run(config, &file),
        Command::Report(config) => commands::report::run(config, &file),
        Command::Check(config) => commands::check::run(config, &file),
        Command::Healthcheck { address } => {
            commands::exit_code(http::healthcheck::healthcheck(address).map_err(Error::msg))
        }
        Command::Completions { shell } => {
            program::completions::<Config>(*shell);
            ExitCode::SUCCESS
        }
        Command::Man { dir } => commands::exit_code(
            program::manual::<Config>(SHOWN, dir.as_deref()).context("cannot write the manual pages"),
        ),
    }
}
