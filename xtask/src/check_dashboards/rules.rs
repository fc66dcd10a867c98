//! The files of rules: what they record, and what they warn of.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use testkit::shell::root;

/// Where they lie.
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

/// A file of promtool's cases, as far as it concerns us.
#[derive(Debug, Deserialize)]
struct Cases {
    tests: Vec<Test>,
}

#[derive(Debug, Deserialize)]
struct Test {
    #[serde(default)]
    alert_rule_test: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    alertname: String,
    #[serde(default)]
    exp_alerts: Vec<serde_json::Value>,
}

/// A rule: `record` or `alert` says which kind.
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

/// The files, without those of tests.
pub(super) fn files() -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|path| {
        let name = path.to_string_lossy();
        name.ends_with(".yml") && !name.ends_with(".test.yml")
    });
    files.sort();
    Ok(files)
}

/// Every rule of every file.
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

/// What is wrong with the words around them: a name without a colon, an alert that does not say what to do, or that no test fires.
pub(super) fn faults(all: &[Rule]) -> Result<Vec<String>> {
    let tests: Cases = serde_saphyr::from_str(&fs::read_to_string(dir().join("alerts.test.yml"))?)?;
    let cases: Vec<&Case> = tests.tests.iter().flat_map(|test| &test.alert_rule_test).collect();
    let runbooks = fs::read_to_string(root().join("docs/runbooks.md"))?;
    let mut faults = Vec::new();
    for rule in all {
        let name = rule.name();
        let mut fault = |what: &str| faults.push(format!("rule {name}: {what}"));
        if rule.alert.is_empty() {
            if !name.contains(':') {
                fault("the name of a recorded series has a colon");
            }
            continue;
        }
        if !["critical", "warning", "info"].contains(&rule.labels.get("severity").map_or("", String::as_str)) {
            fault("severity is critical, warning or info");
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
        let shown =
            |fires: bool| cases.iter().any(|case| case.alertname == name && case.exp_alerts.is_empty() != fires);
        if !shown(true) || !shown(false) {
            fault("alerts.test.yml does not show it quiet and firing");
        }
    }
    Ok(faults)
}
