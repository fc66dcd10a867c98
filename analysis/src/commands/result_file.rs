//! A single result file as a model.

use std::{path::Path, sync::Arc, time::SystemTime};

use anyhow::Result;
use results::{
    energy::{EnergyLookup, QueryRound},
    model::Model,
    settings::DataSettings,
    store,
};

/// Reads a result file, and the energy of its scenarios from the data sources. Returns the text of
/// the file too, as strict JSON.
pub(crate) fn read_model(path: &Path, data: &DataSettings) -> Result<(Model, String)> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let id = stem.strip_prefix("test_results_").unwrap_or(&stem);
    let file =
        store::ResultFile { path: path.to_owned(), id: id.to_owned(), modified: SystemTime::UNIX_EPOCH, bytes: 0 };
    let mut run = store::read(&file)?;
    let text = std::mem::take(&mut run.text);
    for problem in &run.problems {
        eprintln!("{}: {problem}", path.display());
    }
    let (run, mut round) = (Arc::new(run), QueryRound::default());
    let lookups =
        run.scenarios.iter().map(|one| data.sources.look_up(&run, one, &EnergyLookup::default(), &mut round)).collect();
    let model = Model::new(&[(run, lookups)], data.compared_scope, &data.prices);
    Ok((model, text))
}
