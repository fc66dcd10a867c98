//! `wattcast-analysis check`.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use analysis::{
    config::Check,
    health::{
        checker::{CheckPlan, HealthChecker},
        compare::{PageSource, compare},
        report,
        target::OwnExporters,
    },
    settings,
};
use anyhow::{Error, Result};
use cli::{
    log::{self, LogFormat},
    terminal::View,
};
use toml::Table;

use super::{print, read_settings, report_check, serve::check_targets};

/// Pause between checks while the age of data is unknown.
const RECHECK_EVERY: Duration = Duration::from_secs(5);

/// Runs the command. An error has the exit code of a wrong command line, because 1 means that a
/// target is unhealthy.
pub(crate) fn run(config: &Check, file: &Table) -> ExitCode {
    log::start(if config.debug { "debug" } else { "error" }, LogFormat::Logfmt);
    let plan = match check_plan(config, file) {
        Ok(plan) => plan,
        Err(error) => return report_check(Err(error)),
    };
    if config.shared.file.check {
        return report_check(check_targets(&plan));
    }
    let result =
        if let [old, new] = &*config.compare { compare_exporters(config, old, new) } else { check(config, &plan) };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => report_check(Err(error)),
    }
}

fn check_plan(config: &Check, file: &Table) -> Result<CheckPlan> {
    let (data, service) = read_settings(&config.shared, file)?;
    let access = config.shared.client.access();
    // The service is expected to have TLS if the probe has it, or if there is a CA file.
    let secure = access.ca_file.is_some() || data.probes.first().is_some_and(|(_, url, _)| url.starts_with("https"));
    let mut own = OwnExporters::local(if secure { "https" } else { "http" }, &access);
    if data.probe_is_configured {
        own.probes.clone_from(&data.probes);
    }
    settings::check_plan(&config.health, &service.targets, &config.shared.client, &own)
}

/// Compares the metrics of two exporters; returns true if the new one lacks nothing.
fn compare_exporters(config: &Check, old: &str, new: &str) -> Result<bool> {
    let access = config.shared.client.access();
    let source = |text| PageSource::new(text, &access, config.health.timeout).map_err(Error::msg);
    let (old, new) = (source(old)?, source(new)?);
    eprintln!("comparing over {:.0} s", config.over.as_secs_f64());
    let comparison = compare(&old, &new, config.over).map_err(Error::msg)?;
    let json = || serde_json::to_string(&comparison).map(|text| text + "\n");
    print(&if config.json { json()? } else { comparison.table(View::stdout()) });
    Ok(comparison.complete)
}

/// Checks all targets; returns true if the required ones are healthy.
fn check(config: &Check, plan: &CheckPlan) -> Result<bool> {
    let (start, mut checker) = (Instant::now(), HealthChecker::new(plan));
    checker.check_all(|pause| {
        eprintln!("checking again in {:.0} s whether values change", pause.as_secs_f64());
        std::thread::sleep(pause);
        false
    });
    while checker.has_unproven() && start.elapsed() < config.wait {
        eprintln!("some values have not changed yet; checking again for up to {:.0} s", config.wait.as_secs_f64());
        std::thread::sleep(RECHECK_EVERY.min(config.wait));
        checker.recheck_unproven();
    }
    if config.json {
        print(&(report::json(&checker)? + "\n"));
    } else {
        let skipped = plan.skipped.iter().map(|job| format!("skipped: {job}\n"));
        let view = View::stdout();
        print(&(report::table(&checker, view) + &view.fit(&skipped.collect::<String>())));
    }
    Ok(report::is_healthy(&checker))
}
