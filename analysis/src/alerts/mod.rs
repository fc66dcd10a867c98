//! Rules on runs and budgets: what is bad, since when, and when it is over. Each event is told once ([`post`]), and what cannot be told neither begins nor ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use exporter::file::{read_whole, replace};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use crate::{
    cost::{budget::Standing, money::float},
    energy::Energy,
    figures::{Entry, Model, timestamp},
    qoe::experience,
};

/// Largest file of alerts, or of posts that wait.
const MAX_STATE: u64 = 64 << 20;

pub mod post;

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// VMAF.
    Vmaf,
    /// PSNR in dB.
    Psnr,
    /// SSIM.
    Ssim,
    /// The score from 1 to 5.
    Qoe,
    /// Frames lost over frames encoded.
    DropRatio,
    /// Joules for a frame.
    JoulesPerFrame,
    /// The total, in the currency of prices.
    Cost,
    /// The total for an hour of a stream.
    CostPerStreamHour,
    /// Of a budget: what was spent, as a part of it.
    BudgetSpent,
    /// Of a budget: what the month will come to, as a part of it.
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

    fn is_of_budgets(self) -> bool {
        matches!(self, Self::BudgetSpent | Self::BudgetForecast)
    }
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The label `alertname`.
    pub name: String,
    /// What it looks at.
    pub metric: Metric,
    /// Bad above this.
    #[serde(default)]
    pub above: Option<f64>,
    /// Bad below this.
    #[serde(default)]
    pub below: Option<f64>,
    /// The label `severity`.
    #[serde(default = "warning")]
    pub severity: String,
    /// Only scenarios, or budgets, whose name contains this.
    #[serde(default)]
    pub contains: String,
}

fn warning() -> String {
    "warning".to_owned()
}

impl Rule {
    /// What tells its alerts from those of other rules.
    #[must_use]
    pub fn identity(&self) -> (&str, &str, &'static str) {
        (&self.name, &self.severity, self.metric.as_str())
    }

    /// Says what is wrong with it.
    ///
    /// # Errors
    /// When it has no limit, or two.
    pub fn check(&self) -> Result<(), String> {
        match (self.above, self.below) {
            (Some(limit), None) | (None, Some(limit)) if limit.is_finite() => Ok(()),
            _ => Err(format!("rule {:?}: give one of above and below", self.name)),
        }
    }

    fn is_bad(&self, value: f64) -> bool {
        self.above.is_some_and(|limit| value > limit) || self.below.is_some_and(|limit| value < limit)
    }

    /// In words.
    fn limit(&self) -> String {
        match (self.above, self.below) {
            (Some(limit), _) => format!("above {limit}"),
            (_, Some(limit)) => format!("below {limit}"),
            _ => String::new(),
        }
    }

    fn of_entry(&self, entry: &Entry) -> Option<f64> {
        let quality = &entry.scenario().quality;
        let figures = &entry.figures;
        // A figure that may still change, or is of a part of the window, is no reason to wake somebody.
        let sure = entry.answer.is_settled() && entry.answer.energy.as_ref().is_some_and(Energy::is_whole);
        match self.metric {
            Metric::Vmaf => Some(quality.vmaf.as_ref()?.value),
            Metric::Psnr => Some(quality.psnr.as_ref()?.value),
            Metric::Ssim => Some(quality.ssim.as_ref()?.value),
            Metric::Qoe => Some(experience(entry)?.score),
            Metric::DropRatio => figures.drop_ratio,
            Metric::JoulesPerFrame => figures.joules_per(figures.frames).filter(|_| sure),
            Metric::Cost => entry.cost.total.map(float).filter(|_| sure),
            Metric::CostPerStreamHour => {
                entry.cost.per(figures.media_seconds.map(|seconds| seconds / 3600.0)).map(float).filter(|_| sure)
            }
            Metric::BudgetSpent | Metric::BudgetForecast => None,
        }
    }

    fn of_budget(&self, standing: &Standing) -> Option<f64> {
        let followed = standing.followed.as_ref().ok()?;
        let amount = Some(float(standing.amount)).filter(|amount| *amount > 0.0)?;
        match self.metric {
            Metric::BudgetSpent => Some(followed.spent / amount),
            Metric::BudgetForecast => Some(followed.forecast[1]? / amount),
            _ => None,
        }
    }
}

/// Something that is bad.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    starts_at: Timestamp,
    ends_at: Option<Timestamp>,
}

impl Alert {
    /// What tells alerts apart: a digest of the labels.
    fn fingerprint(&self) -> String {
        let mut all = Sha256::new();
        for (name, value) in &self.labels {
            all.update(name.as_bytes());
            all.update([0xff]);
            all.update(value.as_bytes());
            all.update([0xff]);
        }
        hex(&all.finalize())[..16].to_owned()
    }
}

/// What a look at everything gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// What is bad.
    pub bad: Vec<Alert>,
    /// What cannot be told now, by fingerprint: what was bad of it goes on.
    pub unknown: BTreeSet<String>,
    /// True while no run is known: what was bad of runs goes on.
    pub no_runs: bool,
    /// True while no budget was followed yet.
    pub no_budgets: bool,
}

/// What the rules find. Of each scenario the newest run speaks: an older one that was bad is over when a newer is well.
#[must_use]
pub fn judge(rules: &[Rule], model: &Model, budgets: &[Standing], now: Timestamp) -> Found {
    let mut newest: BTreeMap<(&str, &str, &str), &Entry> = BTreeMap::new();
    for entry in &model.entries {
        let scenario = entry.scenario();
        newest.entry((&scenario.name, &scenario.bitrate, &scenario.encoder)).or_insert(entry);
    }
    let mut found = Found { no_runs: model.entries.is_empty(), no_budgets: budgets.is_empty(), ..Found::default() };
    for rule in rules {
        let mut add = |labels: &[(&str, &str)], what: &str, value: Option<f64>, starts_at: Timestamp| {
            let mut named = BTreeMap::from([
                ("alertname".to_owned(), rule.name.clone()),
                ("severity".to_owned(), rule.severity.clone()),
                ("metric".to_owned(), rule.metric.as_str().to_owned()),
            ]);
            named.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            let mut alert = Alert { labels: named, annotations: BTreeMap::new(), starts_at, ends_at: None };
            let Some(value) = value else {
                found.unknown.insert(alert.fingerprint());
                return;
            };
            if rule.is_bad(value) {
                alert.annotations = BTreeMap::from([
                    ("summary".to_owned(), format!("{}: {what}", rule.name)),
                    ("description".to_owned(), format!("{what}: {value} is {}", rule.limit())),
                    ("value".to_owned(), value.to_string()),
                ]);
                found.bad.push(alert);
            }
        };
        if rule.metric.is_of_budgets() {
            for standing in budgets.iter().filter(|standing| standing.name.contains(&*rule.contains)) {
                let what = format!("budget {}", standing.name);
                add(&[("budget", &standing.name)], &what, rule.of_budget(standing), now);
            }
            continue;
        }
        for ((name, bitrate, encoder), entry) in newest.iter().filter(|((name, ..), _)| name.contains(&*rule.contains))
        {
            let at = entry.scenario().window().and_then(|(_, end)| timestamp(end)).unwrap_or(now);
            let labels = [("scenario", *name), ("bitrate", *bitrate), ("encoder", *encoder)];
            add(&labels, &format!("{name} of run {}", entry.run.id), rule.of_entry(entry), at);
        }
    }
    found
}

/// What is bad now, so that each event is told once; kept in a file, so that it is also once over restarts.
pub struct Book {
    active: BTreeMap<String, Alert>,
    file: Option<PathBuf>,
}

impl Book {
    /// As the file left it.
    #[must_use]
    pub fn open(file: Option<&Path>) -> Self {
        let kept = file.filter(|file| file.exists()).map(|file| {
            let text = read_whole(file, MAX_STATE).map_err(|error| error.to_string())?;
            serde_json::from_str(&text).map_err(|error| error.to_string())
        });
        let active = kept.transpose().unwrap_or_else(|error| {
            let file = file.unwrap_or(Path::new(""));
            warn!("{}: {error}; alerts that go on are told again", file.display());
            None
        });
        Self { active: active.unwrap_or_default(), file: file.map(Path::to_owned) }
    }

    /// The alerts that began or ended since the last call. What cannot be told now neither begins nor ends.
    pub fn turn(&mut self, found: Found, now: Timestamp) -> Vec<Alert> {
        let mut events = Vec::new();
        let mut still = BTreeMap::new();
        for alert in found.bad {
            let key = alert.fingerprint();
            if still.contains_key(&key) {
                continue;
            }
            match self.active.remove(&key) {
                // It goes on: when it began stays, what is said of it may change.
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
            let blind = if alert.labels.contains_key("budget") { found.no_budgets } else { found.no_runs };
            if blind || found.unknown.contains(&key) {
                still.insert(key, alert);
            } else {
                events.push(Alert { ends_at: Some(now.max(alert.starts_at)), ..alert });
            }
        }
        self.active = still;
        if !events.is_empty()
            && let Some(file) = &self.file
            && let Err(error) = replace(file, &self.active)
        {
            warn!("{}: {error}; after a restart alerts that go on are told again", file.display());
        }
        events
    }

    /// How many there are.
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

    /// Since ten in the morning.
    pub(super) fn alert(name: &str, scenario: &str) -> Alert {
        let labels = [("alertname", name), ("scenario", scenario)].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let starts_at = "2026-11-20T10:00:00Z".parse().unwrap();
        Alert { labels: labels.into(), annotations: BTreeMap::new(), starts_at, ends_at: None }
    }

    #[test]
    fn an_event_is_told_once_and_again_when_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("alerts.json");
        let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        let bad = |all: &[&str]| Found { bad: all.iter().map(|name| alert("a", name)).collect(), ..Found::default() };
        let mut book = Book::open(Some(&file));
        assert_eq!(book.turn(bad(&["x", "y"]), now).len(), 2);
        assert!(book.turn(bad(&["x", "y"]), now).is_empty());
        let mut book = Book::open(Some(&file));
        let events = book.turn(bad(&["y"]), now);
        assert_eq!((events.len(), events[0].ends_at, book.active()), (1, Some(now), 1));
        assert_eq!(events[0].labels["scenario"], "x");
        // Two rules that find the same thing are one event.
        let mut twice = Book::open(None);
        assert_eq!(twice.turn(bad(&["x", "x"]), now).len(), 1);
        assert!(twice.turn(bad(&["x", "x"]), now).is_empty());
        // A service that has read nothing yet, or does not know a figure yet, ends nothing.
        assert!(book.turn(Found { no_runs: true, ..Found::default() }, now).is_empty());
        let unknown = Found { unknown: [alert("a", "y").fingerprint()].into(), ..Found::default() };
        assert!(book.turn(unknown, now).is_empty() && book.active() == 1);
        assert_eq!(book.turn(Found::default(), now).len(), 1);
    }
}
