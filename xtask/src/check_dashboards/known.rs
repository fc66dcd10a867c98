//! Which series there are: ours, as docs/metrics.md lists them from the code; those of recording rules; and the few of others that we ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, ensure};

use super::rules;
use testkit::shell::root;

/// What is known of a family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Family {
    /// True for counters, and for the parts of histograms, which count too.
    pub counts: bool,
    /// Its labels; `None` where they follow from a rule.
    pub labels: Option<BTreeSet<String>>,
    /// The port that serves it; empty for those of others, of rules, and of every port.
    pub port: String,
}

/// Of others: name, whether it counts, labels.
const OTHERS: [(&str, bool, &[&str]); 6] = [
    ("up", false, &[]),
    ("ALERTS", false, &["alertname", "alertstate", "severity"]),
    ("node_cpu_seconds_total", true, &["cpu", "mode"]),
    ("node_memory_MemAvailable_bytes", false, &[]),
    ("container_memory_usage_bytes", false, &["id", "image", "name"]),
    ("DCGM_FI_DEV_POWER_USAGE", false, &["gpu", "modelName"]),
];

/// All that may be asked for, by name.
///
/// # Errors
/// When the page of metrics or a file of rules cannot be read.
pub(super) fn families() -> Result<BTreeMap<String, Family>> {
    let path = root().join("docs/metrics.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut all = listed(&text);
    ensure!(all.len() > 100, "{} lists {} families: has its form changed?", path.display(), all.len());
    for (name, counts, labels) in OTHERS {
        let labels = Some(labels.iter().map(|label| (*label).to_owned()).collect());
        all.insert(name.to_owned(), Family { counts, labels, port: String::new() });
    }
    for rule in rules::all()?.iter().filter(|rule| !rule.record.is_empty()) {
        let counts = rule.record.ends_with("_total");
        all.insert(rule.record.clone(), Family { counts, labels: None, port: String::new() });
    }
    Ok(all)
}

/// The tables of the page: name, type, labels, between comments that name the port.
fn listed(text: &str) -> BTreeMap<String, Family> {
    let (mut all, mut port) = (BTreeMap::new(), String::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->")) {
            port = name.rsplit(' ').next().filter(|word| word.parse::<u16>().is_ok()).unwrap_or_default().to_owned();
        }
        let mut cells = line.split('|').map(str::trim).skip(1);
        let (Some(name), Some(kind), Some(labels)) = (cells.next(), cells.next(), cells.next()) else { continue };
        let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) else { continue };
        let mut labels: BTreeSet<String> =
            labels.split(',').map(str::trim).filter(|label| !label.is_empty()).map(str::to_owned).collect();
        let mut put = |name: String, counts: bool, labels: &BTreeSet<String>| {
            all.insert(name, Family { counts, labels: Some(labels.clone()), port: port.clone() });
        };
        match kind {
            "gauge" | "counter" => put(name.to_owned(), kind == "counter", &labels),
            "histogram" => {
                put(format!("{name}_sum"), true, &labels);
                put(format!("{name}_count"), true, &labels);
                labels.insert("le".to_owned());
                put(format!("{name}_bucket"), true, &labels);
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
    fn the_page_of_metrics_is_read_as_it_is_written() {
        let all = listed(
            "<!-- probe 9500 -->\n| name | type | labels | meaning |\n|---|---|---|---|\n| `a_total` | counter | x, y | . |\n\
             | `b_seconds` | histogram |  | . |\n<!-- /probe 9500 -->\n<!-- every port -->\n| `c` | gauge | z | . |\n",
        );
        let labels = |all: &[&str]| Some(all.iter().map(|label| (*label).to_owned()).collect());
        let port = || "9500".to_owned();
        assert_eq!(all["a_total"], Family { counts: true, labels: labels(&["x", "y"]), port: port() });
        assert_eq!(all["b_seconds_bucket"], Family { counts: true, labels: labels(&["le"]), port: port() });
        assert_eq!(all["c"], Family { counts: false, labels: labels(&["z"]), port: String::new() });
    }
}
