//! A single result file as a model.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Error, Result};
use cli::file::read_limited;
use results::{
    energy::{EnergyLookup, QueryRound, Scope},
    model::Model,
    settings::DataSettings,
    store,
};
use serde_json::Value;

/// Reads a result file, and the energy of its scenarios from the data sources. `scope_is_set` is
/// true if `--energy.scope` is; the default is the container's energy, as that of the host includes
/// other processes.
pub(crate) fn read_model(path: &Path, data: &DataSettings, scope_is_set: bool) -> Result<(Model, Value)> {
    let bytes = read_limited(path, store::MAX_FILE).with_context(|| path.display().to_string())?.into_bytes();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let id = stem.strip_prefix("test_results_").unwrap_or(&stem);
    let run = store::parse(id, &bytes).map_err(Error::msg).with_context(|| path.display().to_string())?;
    for problem in &run.problems {
        eprintln!("{}: {problem}", path.display());
    }
    let (run, mut round) = (Arc::new(run), QueryRound::default());
    let lookups =
        run.scenarios.iter().map(|one| data.sources.look_up(&run, one, &EnergyLookup::default(), &mut round)).collect();
    let scope = if scope_is_set { data.scope } else { Scope::Container };
    let model = Model::new(&[(run, lookups)], scope, &data.prices);
    Ok((model, serde_json::from_slice(&bytes)?))
}
