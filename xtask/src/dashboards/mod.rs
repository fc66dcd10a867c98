//! Grafana dashboards, each generated from one description: `cargo xtask generate` writes the
//! files, and a test compares them with the descriptions.

mod health;
mod panel;
mod power;
mod runs;

use std::path::PathBuf;

use anyhow::Result;

pub use panel::{Dashboard, Panel};

use testkit::shell::root;

#[must_use]
pub fn all() -> Vec<Dashboard> {
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

/// The directory that Grafana's provisioning reads.
#[must_use]
pub fn dir() -> PathBuf {
    root().join("grafana/dashboards")
}

/// The files with their expected content.
pub fn files() -> Result<Vec<(PathBuf, String)>> {
    all()
        .iter()
        .map(|board| {
            let text = serde_json::to_string_pretty(&board.json())?;
            Ok((dir().join(format!("{}.json", board.uid)), text + "\n"))
        })
        .collect()
}
