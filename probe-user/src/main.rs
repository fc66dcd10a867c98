//! wattcast-probe: read flags and configuration, then run one subcommand. Without a subcommand,
//! serve.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use cli::{config_file::ProgramKeys, log, program};
use probe_user::{
    commands::{account, doctor, exec, record, serve},
    config::{Config, ProbeCommand},
    tick::recording::Reader,
};

fn main() -> ExitCode {
    let config: Config = match program::parse(ProgramKeys::default()) {
        Ok((config, _)) => config,
        Err(code) => return code,
    };
    log::start(config.log_level(), config.log.format);
    if let Err(why) = config.check() {
        program::print_error(&format!("error: {why}"));
        return ExitCode::from(program::EX_USAGE);
    }
    for fault in config.path_faults() {
        tracing::warn!("{fault}");
    }
    if config.file.check {
        return program::report_check(check_files(&config).map_err(|error| format!("{error:#}")));
    }
    let outcome = match config.subcommand() {
        None => match config.serving() {
            Ok(serving) => serve::run(&config, &serving),
            Err(error) => return program::report_check(Err(error.to_string())),
        },
        Some(ProbeCommand::Record { file, time }) => record::run(&config, file, *time),
        Some(ProbeCommand::Account { file }) => account::run(&config, file),
        Some(ProbeCommand::Exec { json, output, price, currency, command }) => {
            let request = exec::ExecRequest { command, price: *price, currency };
            return exec::run(&config, &request, *json, output.as_deref());
        }
        Some(ProbeCommand::Healthcheck { address }) => {
            http::healthcheck::healthcheck(address).map_err(anyhow::Error::msg)
        }
        Some(ProbeCommand::Completions { shell }) => {
            program::completions::<Config>(*shell);
            Ok(())
        }
        Some(ProbeCommand::Man { dir }) => program::manual::<Config>(dir.as_deref()).context("the manual pages"),
        Some(ProbeCommand::Doctor { json }) => return doctor::run(&config, *json),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            program::print_error(&format!("wattcast-probe: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Reads every file that the configuration names.
fn check_files(config: &Config) -> Result<()> {
    config.serving()?;
    if let Some(fault) = config.path_faults().first() {
        anyhow::bail!("{fault}");
    }
    if let Some(file) = config.recording()? {
        Reader::open(file)?;
    }
    Ok(())
}
