//! wattcast-probe: read flags and configuration, then run one subcommand. Without a subcommand,
//! serve.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use cli::{config_file::ProgramKeys, log, program};
use probe_user::{
    commands::{account, calibrate, doctor, exec, record, serve, top, view},
    config::{Config, ProbeCommand, SHOWN},
    tick::recording::Reader,
};

fn main() -> ExitCode {
    let config: Config = match program::parse(ProgramKeys::default(), SHOWN) {
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
        Some(ProbeCommand::Calibrate { duration, force, json }) => {
            calibrate::run(&config, &calibrate::CalibrateRequest { duration: *duration, force: *force, json: *json })
        }
        Some(ProbeCommand::View { file }) => match config.serving() {
            Ok(serving) => view::run(&config, &serving, file),
            Err(error) => return program::report_check(Err(error.to_string())),
        },
        Some(ProbeCommand::Exec(flags)) => return exec::run(&config, flags),
        Some(ProbeCommand::Top { url, once, json, interval }) => {
            let request = top::TopRequest { url: url.as_deref(), once: *once, json: *json, interval: *interval };
            top::run(&config, &request)
        }
        Some(ProbeCommand::Healthcheck { address }) => {
            http::healthcheck::healthcheck(address).map_err(anyhow::Error::msg)
        }
        Some(ProbeCommand::Completions { shell }) => {
            program::completions::<Config>(*shell);
            Ok(())
        }
        Some(ProbeCommand::Man { dir }) => program::manual::<Config>(SHOWN, dir.as_deref()).context("the manual pages"),
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
