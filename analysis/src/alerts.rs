//! Rules on runs and budgets, and who is told: posts in Alertmanager's webhook format, signed, tried again, each event once, and again when it is over.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use hmac::{Hmac, Mac as _};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use crate::{
    client::{Access, Client, Failed, read_whole, secret},
    cost::{budget::Standing, money::float},
    energy::Energy,
    figures::{Entry, Model, timestamp},
    qoe::experience,
};

/// Longest that a receiver may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer of one that is read.
const MAX_ANSWER: u64 = 64 << 10;
/// A post that fails is tried again after this long, doubled each time up to the second figure.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// After this long it is given up.
const GIVE_UP: i64 = 6 * 3600;
/// Posts that wait for one receiver; the oldest goes first when there are more.
const MAX_WAITING: usize = 1000;
/// Largest file of alerts, or of posts that wait.
const MAX_STATE: u64 = 64 << 20;
/// Most alerts in one post.
const MAX_ALERTS: usize = 100;

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

/// Who is told.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// As it is called in posts and logs.
    #[serde(default = "webhook")]
    pub name: String,
    /// Where posts go.
    pub url: String,
    /// The file of the key that they are signed with.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// How it is reached.
    #[serde(default)]
    pub access: Access,
}

fn webhook() -> String {
    "webhook".to_owned()
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
            && let Err(error) = write(file, &self.active)
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

/// Beside, and then in its place: a file is never half.
fn write(file: &Path, kept: &impl Serialize) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    fs::write(&beside, serde_json::to_vec(kept).map_err(std::io::Error::other)?)?;
    fs::rename(beside, file)
}

/// The bodies of posts that tell of events: one for each name and status, as Alertmanager groups them.
fn bodies(events: &[Alert], receiver: &str, home: &str) -> Vec<String> {
    let mut groups: BTreeMap<(&str, bool), Vec<&Alert>> = BTreeMap::new();
    for alert in events {
        let name = alert.labels.get("alertname").map(String::as_str).unwrap_or_default();
        groups.entry((name, alert.ends_at.is_some())).or_default().push(alert);
    }
    let status = |over: bool| if over { "resolved" } else { "firing" };
    groups
        .into_iter()
        .flat_map(|((name, over), alerts)| {
            alerts.chunks(MAX_ALERTS).map(move |chunk| (name, over, chunk.to_vec())).collect::<Vec<_>>()
        })
        .map(|(name, over, alerts)| {
            let common = |of: fn(&Alert) -> &BTreeMap<String, String>| -> BTreeMap<&String, &String> {
                let first = alerts.first().map(|alert| of(alert)).into_iter().flatten();
                first.filter(|(key, value)| alerts.iter().all(|alert| of(alert).get(*key) == Some(value))).collect()
            };
            let each: Vec<_> = alerts
                .iter()
                .map(|alert| {
                    json!({
                        "status": status(over),
                        "labels": alert.labels,
                        "annotations": alert.annotations,
                        "startsAt": alert.starts_at.to_string(),
                        "endsAt": alert.ends_at.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |at| at.to_string()),
                        "generatorURL": home,
                        "fingerprint": alert.fingerprint(),
                    })
                })
                .collect();
            let body = json!({
                "version": "4",
                "groupKey": format!("{{}}:{{alertname={name:?}}}"),
                "truncatedAlerts": 0,
                "status": status(over),
                "receiver": receiver,
                "groupLabels": {"alertname": name},
                "commonLabels": common(|alert| &alert.labels),
                "commonAnnotations": common(|alert| &alert.annotations),
                "externalURL": home,
                "alerts": each,
            });
            body.to_string()
        })
        .collect()
}

/// `t=UNIX,v1=HEX`: HMAC-SHA-256 over the time, a dot and the body, so that a post that was overheard cannot be sent again later.
#[must_use]
pub fn signature(key: &str, unix: i64, body: &[u8]) -> String {
    // Keys of any length are taken (RFC 2104).
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.as_bytes()) else { return String::new() };
    mac.update(format!("{unix}.").as_bytes());
    mac.update(body);
    format!("t={unix},v1={}", hex(&mac.finalize().into_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A post that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Post {
    body: String,
    /// The same for the same event, however often it is sent: of the body, and of the moment at which it was told, for the same thing can be bad twice.
    key: String,
    /// Unix seconds.
    since: i64,
}

/// The threads that post, one for each receiver: one that hangs holds up nobody else.
pub struct Posts {
    receivers: Vec<(String, mpsc::Sender<Post>)>,
    home: String,
}

impl Posts {
    /// Starts them. `home` is the URL of this service; `state` is the file of what was told, beside which posts that wait are kept, and those that were given up.
    ///
    /// # Errors
    /// When a receiver's settings are wrong.
    pub fn start(webhooks: &[Webhook], home: &str, state: Option<&Path>) -> Result<Self, Failed> {
        let mut receivers = Vec::new();
        for (number, webhook) in webhooks.iter().enumerate() {
            let client = Client::new(&webhook.url, &webhook.access, TIMEOUT, MAX_ANSWER)?;
            if let Some(file) = &webhook.secret_file {
                secret(file)?;
            }
            let beside = |what: &str| state.map(|file| file.with_extension(format!("{number}.{what}")));
            let (waits, dead) = (beside("waiting"), beside("dead"));
            let kept = waits.as_deref().filter(|file| file.exists()).and_then(|file| read_whole(file, MAX_STATE).ok());
            let waiting = kept.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            let (sender, receiver) = mpsc::channel();
            let poster = Poster { client, webhook: webhook.clone(), waiting, waits, dead };
            thread::Builder::new()
                .name("webhook".into())
                .spawn(move || poster.run(&receiver))
                .map_err(|error| Failed::Settings(error.to_string()))?;
            receivers.push((webhook.name.clone(), sender));
        }
        Ok(Self { receivers, home: home.to_owned() })
    }

    /// Tells everybody.
    pub fn tell(&self, events: &[Alert], now: Timestamp) {
        for (name, sender) in &self.receivers {
            for body in bodies(events, name, &self.home) {
                let mut digest = Sha256::new();
                digest.update(&body);
                digest.update(now.as_nanosecond().to_le_bytes());
                let key = hex(&digest.finalize());
                // A thread ends only with the program.
                let _ = sender.send(Post { body, key, since: now.as_second() });
            }
        }
    }
}

struct Poster {
    client: Client,
    webhook: Webhook,
    waiting: VecDeque<Post>,
    /// Keeps them over restarts.
    waits: Option<PathBuf>,
    /// Gets those that were given up.
    dead: Option<PathBuf>,
}

impl Poster {
    fn run(mut self, from: &mpsc::Receiver<Post>) {
        let (mut pause, mut next) = (AGAIN.0, Instant::now());
        loop {
            let wait = match self.waiting.is_empty() {
                true => Duration::from_secs(3600),
                false => next.saturating_duration_since(Instant::now()),
            };
            match from.recv_timeout(wait) {
                Ok(post) => {
                    if self.waiting.len() >= MAX_WAITING {
                        self.give_up(&format!("more than {MAX_WAITING} wait"));
                    }
                    self.waiting.push_back(post);
                    self.keep();
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            // In order: that something is over is of no use before that it began.
            while Instant::now() >= next {
                let Some(post) = self.waiting.front() else { break };
                match self.post(post) {
                    Ok(()) => {
                        self.waiting.pop_front();
                        self.keep();
                        pause = AGAIN.0;
                    }
                    Err((why, again)) => {
                        let waited = Timestamp::now().as_second().saturating_sub(post.since);
                        if !again || waited > GIVE_UP {
                            self.give_up(&why);
                            continue;
                        }
                        info!("webhook {}: tried again in {} s: {why}", self.webhook.name, pause.as_secs());
                        next = Instant::now() + pause;
                        pause = (pause * 2).min(AGAIN.1);
                    }
                }
            }
        }
    }

    /// Writes down what waits.
    fn keep(&self) {
        if let Some(file) = &self.waits
            && let Err(error) = write(file, &self.waiting)
        {
            warn!("{}: {error}; posts that wait are lost with a restart", file.display());
        }
    }

    /// Takes the oldest away, where somebody can find it.
    fn give_up(&mut self, why: &str) {
        let Some(post) = self.waiting.pop_front() else { return };
        warn!("webhook {}: a post is given up: {why}", self.webhook.name);
        if let Some(file) = &self.dead {
            let line = fs::OpenOptions::new().append(true).create(true).open(file);
            let written = line.and_then(|mut file| writeln!(file, "{}", post.body));
            if let Err(error) = written {
                warn!("{}: {error}", file.display());
            }
        }
        self.keep();
    }

    /// Posts; on failure whether trying again may help.
    fn post(&self, post: &Post) -> Result<(), (String, bool)> {
        let (unix, body) = (Timestamp::now().as_second(), post.body.as_bytes());
        let mut headers = vec![("Content-Type", "application/json".to_owned()), ("Idempotency-Key", post.key.clone())];
        if let Some(file) = &self.webhook.secret_file {
            let secret = secret(file).map_err(|error| (error.to_string(), true))?;
            headers.push(("X-Wattcast-Signature", signature(&secret, unix, body)));
        }
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, &**value)).collect();
        let reply = self.client.post("", &headers, body).map_err(|error| (error.to_string(), true))?;
        match reply.status {
            200..=299 => Ok(()),
            // Too early, too many, time-outs, and a receiver's own faults pass; a refusal does not.
            status @ (408 | 425 | 429 | 500..=599) => Err((format!("status {status}"), true)),
            status => Err((format!("status {status}: {}", reply.excerpt()), false)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(name: &str, scenario: &str) -> Alert {
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

    #[test]
    fn a_post_is_alertmanagers() {
        let over = Alert { ends_at: Some("2026-11-20T12:00:00Z".parse().unwrap()), ..alert("b", "z") };
        let all = bodies(&[alert("a", "x"), alert("a", "y"), over], "ops", "http://here:9502/");
        assert_eq!(all.len(), 2);
        let first: serde_json::Value = serde_json::from_str(&all[0]).unwrap();
        assert_eq!(
            (&first["version"], &first["status"], &first["receiver"]),
            (&json!("4"), &json!("firing"), &json!("ops"))
        );
        assert_eq!(first["commonLabels"], json!({"alertname": "a"}));
        assert_eq!(first["alerts"].as_array().unwrap().len(), 2);
        assert_eq!(first["alerts"][0]["endsAt"], "0001-01-01T00:00:00Z");
        let second: serde_json::Value = serde_json::from_str(&all[1]).unwrap();
        assert_eq!(
            (&second["status"], &second["alerts"][0]["endsAt"]),
            (&json!("resolved"), &json!("2026-11-20T12:00:00Z"))
        );
        assert_eq!(first["alerts"][0]["fingerprint"].as_str().unwrap().len(), 16);
    }

    #[test]
    fn a_signature_is_hmac_sha_256() {
        // openssl: printf '1700000000.{}' | openssl dgst -sha256 -hmac key
        assert_eq!(
            signature("key", 1_700_000_000, b"{}"),
            "t=1700000000,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae"
        );
    }
}
