//! `wattcast-analysis advise`.

use std::{process::ExitCode, sync::Arc};

use analysis::{
    advise::{AdviceRequest, advise},
    config::Advise,
};
use anyhow::{Result, bail};
use cli::terminal::View;
use results::{
    cost::PriceOrigin,
    energy::{EnergyLookup, QueryRound},
    model::Model,
    run::Run,
    store::run_cache::RunCache,
};
use toml::Table;

use super::{INCOMPLETE, exit_code, log_errors, print, read_settings, report_check};

/// Number of newest runs among which one with quality scores is searched.
const SEARCHED: usize = 10;

/// Runs the command.
pub(crate) fn run(config: &Advise, file: &Table) -> ExitCode {
    if config.shared.file.check {
        return report_check(read_settings(&config.shared, file).map(|_| ()));
    }
    log_errors();
    match print_advice(config, file) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(INCOMPLETE),
        Err(error) => exit_code(Err(error)),
    }
}

/// Prints the advice. Returns false if a recommendation was requested and there is none.
fn print_advice(config: &Advise, file: &Table) -> Result<bool> {
    let (data, _) = read_settings(&config.shared, file)?;
    let read = if config.vmaf.is_some() { config.keep.max(SEARCHED) } else { config.keep };
    let mut cache = RunCache::new(&config.shared.results_dir, read, usize::MAX);
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
    let runs: Vec<_> = shown(&cache, config).into_iter().map(&mut with_energy).collect();
    let model = Model::new(&runs, data.compared_scope, &data.prices);
    let request = AdviceRequest {
        vmaf: config.vmaf,
        resolution: config.resolution.clone(),
        objective: config.objective,
        streams: config.streams,
    };
    let has_default_prices = data.prices.energy_origin == PriceOrigin::Default;
    let advice = advise(&model, &request, &data.prices.currency, has_default_prices);
    let json = || serde_json::to_string_pretty(&advice).map(|text| text + "\n");
    print(&if config.json { json()? } else { advice.text(View::stdout()) });
    Ok(!matches!(advice.recommendation, Some(Err(_))))
}

/// The newest runs, and if none of them has quality scores, which a live run never has, the newest
/// one that does.
fn shown<'a>(cache: &'a RunCache, config: &Advise) -> Vec<&'a Arc<Run>> {
    let runs = || cache.runs().iter().map(|(_, run)| run);
    let is_scored = |run: &&Arc<Run>| run.scenarios.iter().any(|scenario| scenario.quality.vmaf.is_some());
    let keep = config.keep.max(1);
    let mut shown: Vec<&Arc<Run>> = runs().take(keep).collect();
    if config.vmaf.is_some() && !shown.iter().any(is_scored) {
        shown.extend(runs().skip(keep).find(is_scored));
    }
    shown
}
