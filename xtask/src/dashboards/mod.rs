//! Dashboards for Grafana, made from one description each: `cargo xtask generate` writes them, and a test holds the files against this.

mod health;
mod panel;
mod power;
mod runs;

use std::path::PathBuf;

use anyhow::Result;

pub use panel::{Board, Panel};

use testkit::shell::root;

/// All of them.
#[must_use]
pub fn all() -> Vec<Board> {
    vec![
        power::attribution(),
        power::monitoring(),
        power::gpu(),
        runs::efficiency(),
        runs::results(),
        runs::qoe(),
        runs::cost(),
        runs::qoe_cost(),
        health::health(),
    ]
}

/// Where Grafana's provisioning reads them from.
#[must_use]
pub fn dir() -> PathBuf {
    root().join("grafana/dashboards")
}

/// The files, with what should be in them.
///
/// # Errors
/// When one cannot be written as JSON.
pub fn files() -> Result<Vec<(PathBuf, String)>> {
    all()
        .iter()
        .map(|board| {
            let text = serde_json::to_string_pretty(&board.json())?;
            Ok((dir().join(format!("{}.json", board.uid)), text + "\n"))
        })
        .collect()
}
