//! The metric families that queries may use: ours from docs/metrics.md, those of recording rules,
//! and the external ones of our dashboards.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, ensure};

use super::rules;
use testkit::shell::root;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Family {
    /// True for counters and for the counters of histograms.
    pub is_counter: bool,
    /// `None` for recording rules, whose labels follow from their expression.
    pub labels: Option<BTreeSet<String>>,
    /// The port that serves it; empty for external families, rules, and families of every port.
    pub port: String,
}

/// External families: name, whether it is a counter, labels.
const EXTERNAL: [(&str, bool, &[&str]); 6] = [
    ("up", false, &[]),
    ("ALERTS", false, &["alertname", "alertstate", "severity"]),
    ("node_cpu_seconds_total", true, &["cpu", "mode"]),
    ("node_memory_MemAvailable_bytes", false, &[]),
    ("container_memory_usage_bytes", false, &["id", "image", "name"]),
    ("DCGM_FI_DEV_POWER_USAGE", false, &["gpu", "modelName"]),
];

/// Reads all families by name.
pub(super) fn read() -> Result<BTreeMap<String, Family>> {
    let path = root().join("docs/metrics.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut all = parse_page(&text);
    ensure!(all.len() > 100, "{} lists only {} families: its format may have changed", path.display(), all.len());
    for (name, is_counter, labels) in EXTERNAL {
        let labels = Some(labels.iter().map(|label| (*label).to_owned()).collect());
        all.insert(name.to_owned(), Family { is_counter, labels, port: String::new() });
    }
    for rule in rules::all()?.iter().filter(|rule| !rule.record.is_empty()) {
        let is_counter = rule.record.ends_with("_total");
        all.insert(rule.record.clone(), Family { is_counter, labels: None, port: String::new() });
    }
    Ok(all)
}

/// Reads the tables of the page: name, type and labels, between comments that name the port.
fn parse_page(text: &str) -> BTreeMap<String, Family> {
    let (mut all, mut port) = (BTreeMap::new(), String::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->")) {
            port = name.rsplit(' ').next().filter(|word| word.parse::<u16>().is_ok()).unwrap_or_default().to_owned();
        }
        let mut columns = line.split('|').map(str::trim).skip(1);
        let (Some(name), Some(kind), Some(labels)) = (columns.next(), columns.next(), columns.next()) else { continue };
        let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) else { continue };
        let mut labels: BTreeSet<String> =
            labels.split(',').map(str::trim).filter(|label| !label.is_empty()).map(str::to_owned).collect();
        let mut add = |name: String, is_counter: bool, labels: &BTreeSet<String>| {
            all.insert(name, Family { is_counter, labels: Some(labels.clone()), port: port.clone() });
        };
        match kind {
            "gauge" | "counter" => add(name.to_owned(), kind == "counter", &labels),
            "histogram" => {
                add(format!("{name}_sum"), true, &labels);
                add(format!("{name}_count"), true, &labels);
                labels.insert("le".to_owned());
                add(format!("{name}_bucket"), true, &labels);
            }
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_page_is_parsed() {
        let all = parse_page(
            "<!-- probe 9500 -->\n| name | type | labels | meaning |\n|---|---|---|---|\n| `a_total` | counter | x, y | . |\n\
             | `b_seconds` | histogram |  | . |\n<!-- /probe 9500 -->\n<!-- every port -->\n| `c` | gauge | z | . |\n",
        );
        let labels = |all: &[&str]| Some(all.iter().map(|label| (*label).to_owned()).collect());
        let port = || "9500".to_owned();
        assert_eq!(all["a_total"], Family { is_counter: true, labels: labels(&["x", "y"]), port: port() });
        assert_eq!(all["b_seconds_bucket"], Family { is_counter: true, labels: labels(&["le"]), port: port() });
        assert_eq!(all["c"], Family { is_counter: false, labels: labels(&["z"]), port: String::new() });
    }
}
