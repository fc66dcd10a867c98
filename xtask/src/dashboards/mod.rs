//! Grafana dashboards, each generated from one description: `cargo xtask generate` writes the
//! files, and a test compares them with the descriptions.

mod dashboard;
mod health;
mod overview;
pub(crate) mod panel;
mod power;
mod runs;

use std::path::PathBuf;

use anyhow::Result;

pub use dashboard::{Dashboard, Folder};
pub use panel::Panel;

use testkit::shell::root;

#[must_use]
pub fn all() -> Vec<Dashboard> {
    vec![
        overview::overview(),
        power::attribution(),
        power::gpu(),
        runs::efficiency(),
        runs::results(),
        runs::qoe(),
        runs::cost(),
        runs::qoe_cost(),
        health::health(),
        power::monitoring(),
        moved("power-monitoring-dashboard", "Power monitoring (old address)", power::monitoring()),
        moved("energy-efficiency-dashboard", "Energy efficiency (old address)", runs::efficiency()),
        moved("qoe-dashboard", "QoE metrics (old address)", runs::qoe()),
        moved("cost-dashboard", "Cost analysis (old address)", runs::cost()),
    ]
}

/// The dashboard at an address of the legacy stack: the first panels of its replacement, and a link
/// to it.
fn moved(uid: &'static str, title: &'static str, to: Dashboard) -> Dashboard {
    Dashboard {
        uid,
        title,
        description: "First panels of the dashboard that replaces one of the legacy stack; the link at the top leads to all of it",
        folder: Folder::Legacy,
        variables: to.variables,
        moved_to: Some((to.uid, to.title)),
        panels: to.panels.into_iter().filter(|panel| !panel.is_row()).take(2).collect(),
    }
}

/// The directory of the folder of Grafana with the dashboards of this project. Provisioning reads a
/// directory with all below, so that of the other folder is not in it.
#[must_use]
pub fn dir() -> PathBuf {
    root().join("grafana/dashboards")
}

/// The directory of the folder of Grafana with the dashboards of the legacy stack.
#[must_use]
pub fn legacy_dir() -> PathBuf {
    root().join("grafana/dashboards-legacy")
}

/// The files with their expected content.
pub fn files() -> Result<Vec<(PathBuf, String)>> {
    all()
        .iter()
        .map(|board| {
            let text = serde_json::to_string_pretty(&board.json())?;
            let dir = match board.folder {
                Folder::Wattcast => dir(),
                Folder::Legacy => legacy_dir(),
            };
            Ok((dir.join(format!("{}.json", board.uid)), text + "\n"))
        })
        .collect()
}
