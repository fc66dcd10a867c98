//! `account`: replays a recording and prints its final metrics.

use std::{io::Write as _, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{attribution::Accountant, config::Config, endpoints::pages, tick::recording::Reader};

/// Runs the attribution over the recording in `file` and prints the metrics of its last tick.
///
/// # Errors
/// When the file is not a recording, has no tick, or is truncated; the metrics up to there are
/// printed.
pub fn run(config: &Config, file: &Path) -> Result<()> {
    let mut reader = Reader::open(file)?;
    let mut accountant = Accountant::new(reader.setup().clone(), config.rules(), 0);
    accountant.set_sample_age(config.energy.sample_age * 3600);
    let mut last = None;
    let failure = loop {
        match reader.next_tick() {
            Ok(Some(tick)) => last = Some(accountant.tick(&tick)),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let Some(snapshot) = last else { bail!("{}: no tick in it", file.display()) };
    let page = pages::account(&snapshot)?;
    std::io::stdout().write_all(page.text())?;
    match failure {
        None => Ok(()),
        Some(error) => Err(error).context("the account above ends early"),
    }
}
