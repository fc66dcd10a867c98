//! Alert rules on runs and budgets.
//!
//! [`evaluate`] finds the alerts that fire, [`AlertState`] finds those that started or ended, and
//! [`webhook`] sends each event once. An alert whose value is unknown keeps its state.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use cli::file::{read_limited, replace_json};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use crate::qoe::qoe_score;
use results::{
    convert::timestamp,
    cost::{budget::BudgetStatus, money::float},
    model::{Entry, Model},
};

/// Largest state file that is read, of alerts or of queued notifications.
const MAX_STATE: u64 = 64 << 20;

pub mod webhook;

/// The value that a rule compares with its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    Vmaf,
    Psnr,
    Ssim,
    /// Quality of experience from 1 to 5.
    Qoe,
    /// Dropped frames per frame, encoded or dropped.
    DropRatio,
    JoulesPerFrame,
    /// Total cost in the currency of the prices.
    Cost,
    /// Total cost per stream hour.
    CostPerStreamHour,
    /// Spent part of a budget.
    BudgetSpent,
    /// Forecast of the month's spending as a part of the budget.
    BudgetForecast,
}

impl Metric {
    /// The label `metric`.
    fn as_str(self) -> &'static str {
        match self {
            Self::Vmaf => "vmaf",
            Self::Psnr => "psnr",
            Self::Ssim => "ssim",
            Self::Qoe => "qoe",
            Self::DropRatio => "drop_ratio",
            Self::JoulesPerFrame => "joules_per_frame",
            Self::Cost => "cost",
            Self::CostPerStreamHour => "cost_per_stream_hour",
            Self::BudgetSpent => "budget_spent",
            Self::BudgetForecast => "budget_forecast",
        }
    }

    fn is_budget_metric(self) -> bool {
        matches!(self, Self::BudgetSpent | Self::BudgetForecast)
    }
}

/// An alert rule of the configuration file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The label `alertname`.
    pub name: String,
    pub metric: Metric,
    /// Upper limit.
    #[serde(default)]
    pub above: Option<f64>,
    /// Lower limit.
    #[serde(default)]
    pub below: Option<f64>,
    /// The label `severity`.
    #[serde(default = "warning")]
    pub severity: String,
    /// Restricts the rule to scenarios, or budgets, whose name contains this text.
    #[serde(default)]
    pub contains: String,
}

fn warning() -> String {
    "warning".to_owned()
}

impl Rule {
    /// Key that is unique among rules; their alerts get these labels.
    #[must_use]
    pub fn identity(&self) -> (&str, &str, &'static str) {
        (&self.name, &self.severity, self.metric.as_str())
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// The rule has no limit, or two.
    pub fn check(&self) -> Result<(), String> {
        match (self.above, self.below) {
            (Some(limit), None) | (None, Some(limit)) if limit.is_finite() => Ok(()),
            _ => Err(format!("rule {:?}: set either above or below", self.name)),
        }
    }

    fn is_violated_by(&self, value: f64) -> bool {
        self.above.is_some_and(|limit| value > limit) || self.below.is_some_and(|limit| value < limit)
    }

    fn describe_limit(&self) -> String {
        match (self.above, self.below) {
            (Some(limit), _) => format!("above {limit}"),
            (_, Some(limit)) => format!("below {limit}"),
            _ => String::new(),
        }
    }

    fn entry_value(&self, entry: &Entry) -> Option<f64> {
        let quality = &entry.scenario().quality;
        let figures = &entry.derived;
        // An energy that may still change, or covers a part of the window, does not trigger an
        // alert.
        let is_final = entry.lookup.is_settled() && figures.is_whole;
        match self.metric {
            Metric::Vmaf => Some(quality.vmaf.as_ref()?.value),
            Metric::Psnr => Some(quality.psnr.as_ref()?.value),
            Metric::Ssim => Some(quality.ssim.as_ref()?.value),
            Metric::Qoe => Some(qoe_score(entry)?.score),
            Metric::DropRatio => figures.drop_ratio,
            Metric::JoulesPerFrame => figures.joules_per(figures.frames).filter(|_| is_final),
            Metric::Cost => entry.cost.total.map(float).filter(|_| is_final),
            Metric::CostPerStreamHour => {
                entry.cost.per(figures.media_seconds.map(|seconds| seconds / 3600.0)).map(float).filter(|_| is_final)
            }
            Metric::BudgetSpent | Metric::BudgetForecast => None,
        }
    }

    fn budget_value(&self, status: &BudgetStatus) -> Option<f64> {
        let spending = status.spending.as_ref().ok()?;
        let amount = Some(float(status.amount)).filter(|amount| *amount > 0.0)?;
        match self.metric {
            Metric::BudgetSpent => Some(spending.spent / amount),
            Metric::BudgetForecast => Some(spending.forecast[1]? / amount),
            _ => None,
        }
    }
}

/// An alert that fires, or has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    starts_at: Timestamp,
    ends_at: Option<Timestamp>,
}

impl Alert {
    /// Identifies the alert: a digest of its labels.
    fn fingerprint(&self) -> String {
        let mut digest = Sha256::new();
        for (name, value) in &self.labels {
            digest.update(name.as_bytes());
            digest.update([0xff]);
            digest.update(value.as_bytes());
            digest.update([0xff]);
        }
        hex(&digest.finalize())[..16].to_owned()
    }
}

/// The result of evaluating all rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    pub firing: Vec<Alert>,
    /// Fingerprints of alerts whose value is unknown; they keep their state.
    pub unknown: BTreeSet<String>,
    /// True while no run is known; alerts of runs keep their state.
    pub no_runs: bool,
    /// True before the first update of the budgets; alerts of budgets keep their state.
    pub no_budgets: bool,
}

/// Evaluates all rules. The newest run of each scenario counts, so that a good run ends the alert
/// of an older one.
#[must_use]
pub fn evaluate(rules: &[Rule], model: &Model, budgets: &[BudgetStatus], now: Timestamp) -> Evaluation {
    let mut newest: BTreeMap<(&str, &str, &str), &Entry> = BTreeMap::new();
    for entry in &model.entries {
        let scenario = entry.scenario();
        newest.entry((&scenario.name, &scenario.bitrate, &scenario.encoder)).or_insert(entry);
    }
    let mut evaluation =
        Evaluation { no_runs: model.entries.is_empty(), no_budgets: budgets.is_empty(), ..Evaluation::default() };
    for rule in rules {
        let mut check = |labels: &[(&str, &str)], subject: &str, value: Option<f64>, starts_at: Timestamp| {
            let mut all_labels = BTreeMap::from([
                ("alertname".to_owned(), rule.name.clone()),
                ("severity".to_owned(), rule.severity.clone()),
                ("metric".to_owned(), rule.metric.as_str().to_owned()),
            ]);
            all_labels.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            let mut alert = Alert { labels: all_labels, annotations: BTreeMap::new(), starts_at, ends_at: None };
            let Some(value) = value else {
                evaluation.unknown.insert(alert.fingerprint());
                return;
            };
            if rule.is_violated_by(value) {
                alert.annotations = BTreeMap::from([
                    ("summary".to_owned(), format!("{}: {subject}", rule.name)),
                    ("description".to_owned(), format!("{subject}: {value} is {}", rule.describe_limit())),
                    ("value".to_owned(), value.to_string()),
                ]);
                evaluation.firing.push(alert);
            }
        };
        if rule.metric.is_budget_metric() {
            for status in budgets.iter().filter(|status| status.name.contains(&*rule.contains)) {
                let subject = format!("budget {}", status.name);
                check(&[("budget", &status.name)], &subject, rule.budget_value(status), now);
            }
            continue;
        }
        for ((name, bitrate, encoder), entry) in newest.iter().filter(|((name, ..), _)| name.contains(&*rule.contains))
        {
            let at = entry.scenario().window().and_then(|(_, end)| timestamp(end)).unwrap_or(now);
            let labels = [("scenario", *name), ("bitrate", *bitrate), ("encoder", *encoder)];
            check(&labels, &format!("{name} of run {}", entry.run.id), rule.entry_value(entry), at);
        }
    }
    evaluation
}

/// The active alerts, which make each event known once; a file keeps them over restarts.
pub struct AlertState {
    active: BTreeMap<String, Alert>,
    file: Option<PathBuf>,
}

impl AlertState {
    /// Reads the state from the file, if it exists.
    #[must_use]
    pub fn open(file: Option<&Path>) -> Self {
        let saved = file.filter(|file| file.exists()).map(|file| {
            let text = read_limited(file, MAX_STATE).map_err(|error| error.to_string())?;
            Self::parse(&text).map(|state| state.active)
        });
        let active = saved.transpose().unwrap_or_else(|error| {
            let file = file.unwrap_or(Path::new(""));
            warn!("{}: {error}; active alerts are sent again", file.display());
            None
        });
        Self { active: active.unwrap_or_default(), file: file.map(Path::to_owned) }
    }

    /// Parses the content of the file; the state is not written to one.
    ///
    /// # Errors
    /// The text is not a state.
    pub fn parse(text: &str) -> Result<Self, String> {
        let saved: BTreeMap<String, Alert> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        // Alerts are found again by their labels, whatever their keys in the file are.
        let active = saved.into_values().map(|alert| (alert.fingerprint(), alert)).collect();
        Ok(Self { active, file: None })
    }

    /// Returns the alerts that started or ended since the last call.
    pub fn update(&mut self, evaluation: Evaluation, now: Timestamp) -> Vec<Alert> {
        let mut events = Vec::new();
        let mut still = BTreeMap::new();
        for alert in evaluation.firing {
            let key = alert.fingerprint();
            if still.contains_key(&key) {
                continue;
            }
            match self.active.remove(&key) {
                // An active alert keeps its start; its annotations may change.
                Some(known) => {
                    still.insert(key, Alert { starts_at: known.starts_at, ..alert });
                }
                None => {
                    events.push(alert.clone());
                    still.insert(key, alert);
                }
            }
        }
        for (key, alert) in std::mem::take(&mut self.active) {
            let no_data = if alert.labels.contains_key("budget") { evaluation.no_budgets } else { evaluation.no_runs };
            if no_data || evaluation.unknown.contains(&key) {
                still.insert(key, alert);
            } else {
                events.push(Alert { ends_at: Some(now.max(alert.starts_at)), ..alert });
            }
        }
        self.active = still;
        if !events.is_empty()
            && let Some(file) = &self.file
            && let Err(error) = replace_json(file, &self.active)
        {
            warn!("{}: {error}; active alerts are sent again after a restart", file.display());
        }
        events
    }

    /// Number of active alerts.
    #[must_use]
    pub fn active(&self) -> usize {
        self.active.len()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn alert(name: &str, scenario: &str) -> Alert {
        let labels = [("alertname", name), ("scenario", scenario)].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let starts_at = "2026-11-20T10:00:00Z".parse().unwrap();
        Alert { labels: labels.into(), annotations: BTreeMap::new(), starts_at, ends_at: None }
    }

    #[test]
    fn start_and_end_of_an_alert_are_events_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("alerts.json");
        let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        let firing = |all: &[&str]| Evaluation {
            firing: all.iter().map(|name| alert("a", name)).collect(),
            ..Evaluation::default()
        };
        let mut state = AlertState::open(Some(&file));
        assert_eq!(state.update(firing(&["x", "y"]), now).len(), 2);
        assert!(state.update(firing(&["x", "y"]), now).is_empty());
        let mut state = AlertState::open(Some(&file));
        let events = state.update(firing(&["y"]), now);
        assert_eq!((events.len(), events[0].ends_at, state.active()), (1, Some(now), 1));
        assert_eq!(events[0].labels["scenario"], "x");
        // Two rules with the same alert make one event.
        let mut twice = AlertState::open(None);
        assert_eq!(twice.update(firing(&["x", "x"]), now).len(), 1);
        assert!(twice.update(firing(&["x", "x"]), now).is_empty());
        // Missing runs and unknown values end no alert.
        assert!(state.update(Evaluation { no_runs: true, ..Evaluation::default() }, now).is_empty());
        let unknown = Evaluation { unknown: [alert("a", "y").fingerprint()].into(), ..Evaluation::default() };
        assert!(state.update(unknown, now).is_empty() && state.active() == 1);
        assert_eq!(state.update(Evaluation::default(), now).len(), 1);
    }
}
