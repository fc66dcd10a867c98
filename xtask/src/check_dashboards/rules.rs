//! The Prometheus rule files.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use testkit::shell::root;

pub(super) fn dir() -> PathBuf {
    root().join("deploy/prometheus/rules")
}

#[derive(Debug, Deserialize)]
struct File {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

/// The part of a promtool test file that is checked.
#[derive(Debug, Deserialize)]
struct Cases {
    tests: Vec<RuleTest>,
}

#[derive(Debug, Deserialize)]
struct RuleTest {
    #[serde(default)]
    alert_rule_test: Vec<RuleCase>,
}

#[derive(Debug, Deserialize)]
struct RuleCase {
    alertname: String,
    #[serde(default)]
    exp_alerts: Vec<serde_json::Value>,
}

/// A recording rule, with `record`, or an alert, with `alert`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Rule {
    pub record: String,
    pub alert: String,
    pub expr: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

impl Rule {
    pub(super) fn name(&self) -> &str {
        if self.record.is_empty() { &self.alert } else { &self.record }
    }
}

/// The rule files, without the test files.
pub(crate) fn files() -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|path| {
        let name = path.to_string_lossy();
        name.ends_with(".yml") && !name.ends_with(".test.yml")
    });
    files.sort();
    Ok(files)
}

/// All rules of all files.
pub(super) fn all() -> Result<Vec<Rule>> {
    let mut all = Vec::new();
    for path in files()? {
        let text = fs::read_to_string(&path)?;
        let file: File = serde_saphyr::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
        all.extend(file.groups.into_iter().flat_map(|group| group.rules));
    }
    ensure!(!all.is_empty(), "no rules in {}", dir().display());
    Ok(all)
}

/// Faults in names, annotations and runbooks, and alerts that no test case fires.
pub(super) fn faults(all: &[Rule]) -> Result<Vec<String>> {
    let tests: Cases = serde_saphyr::from_str(&fs::read_to_string(dir().join("alerts.test.yml"))?)?;
    let cases: Vec<&RuleCase> = tests.tests.iter().flat_map(|test| &test.alert_rule_test).collect();
    let runbooks = fs::read_to_string(root().join("docs/runbooks.md"))?;
    let mut faults = Vec::new();
    for rule in all {
        let name = rule.name();
        let mut fault = |message: &str| faults.push(format!("rule {name}: {message}"));
        if rule.alert.is_empty() {
            if !name.contains(':') {
                fault("the name of a recording rule must contain a colon");
            }
            continue;
        }
        if !["critical", "warning", "info"].contains(&rule.labels.get("severity").map_or("", String::as_str)) {
            fault("severity must be critical, warning or info");
        }
        for wanted in ["summary", "description", "runbook_url"] {
            if rule.annotations.get(wanted).is_none_or(String::is_empty) {
                fault(&format!("no {wanted}"));
            }
        }
        let anchor =
            rule.annotations.get("runbook_url").and_then(|url| url.split_once('#')).map_or("", |(_, anchor)| anchor);
        let heading = |line: &str| line.strip_prefix("## ").is_some_and(|title| title.to_lowercase() == anchor);
        if !runbooks.lines().any(heading) {
            fault("its runbook is not in docs/runbooks.md");
        }
        let is_tested =
            |fires: bool| cases.iter().any(|case| case.alertname == name && case.exp_alerts.is_empty() != fires);
        if !is_tested(true) || !is_tested(false) {
            fault("alerts.test.yml must test it both firing and not firing");
        }
    }
    Ok(faults)
}
