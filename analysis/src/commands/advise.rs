//! `wattcast-analysis advise`.

use std::{process::ExitCode, sync::Arc};

use analysis::{
    advise::{AdviceRequest, advise},
    config::Advise,
};
use anyhow::{Result, bail};
use results::{
    cost::PriceOrigin,
    energy::{EnergyLookup, QueryRound},
    model::Model,
    run::Run,
    store::run_cache::RunCache,
};
use toml::Table;

use super::{exit_code, log_errors, print, read_settings, report_check};

/// Runs the command.
pub(crate) fn run(config: &Advise, file: &Table) -> ExitCode {
    if config.shared.file.check {
        return report_check(read_settings(&config.shared, file).map(|_| ()));
    }
    log_errors();
    exit_code(print_advice(config, file))
}

fn print_advice(config: &Advise, file: &Table) -> Result<()> {
    let (data, _) = read_settings(&config.shared, file)?;
    let mut cache = RunCache::new(&config.shared.results_dir, config.keep, usize::MAX);
    cache.refresh();
    if cache.runs().is_empty() {
        bail!("{}", cache.problems().join("\n"));
    }
    for problem in cache.problems() {
        eprintln!("{problem}");
    }
    let mut round = QueryRound::default();
    let mut with_energy = |run: &Arc<Run>| {
        let energy = |scenario| data.sources.look_up(run, scenario, &EnergyLookup::default(), &mut round);
        (run.clone(), run.scenarios.iter().map(energy).collect())
    };
    let runs: Vec<_> = cache.runs().iter().map(|(_, run)| with_energy(run)).collect();
    let model = Model::new(&runs, data.scope, &data.prices);
    let request = AdviceRequest {
        vmaf: config.vmaf,
        resolution: config.resolution.clone(),
        objective: config.objective,
        streams: config.streams,
    };
    let has_default_prices = [data.prices.energy_origin, data.prices.core_hour.origin].contains(&PriceOrigin::Default);
    let advice = advise(&model, &request, &data.prices.currency, has_default_prices);
    let json = || serde_json::to_string_pretty(&advice).map(|text| text + "\n");
    print(&if config.json { json()? } else { advice.table() });
    Ok(())
}
