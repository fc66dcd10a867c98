//! Telling whom it concerns: posts in Alertmanager's webhook format, signed, in order, tried again, and kept over restarts until they were taken or given up.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use super::{Alert, MAX_STATE, hex};
use exporter::file::{read_whole, replace};

use crate::client::{Access, Client, Failed, secret};

/// Longest that a receiver may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer of one that is read.
const MAX_ANSWER: u64 = 64 << 10;
/// A post that fails is tried again after this long, doubled each time up to the second figure.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// After so many seconds it is given up.
const GIVE_UP: i64 = 6 * 3600;
/// Posts that wait for one receiver; the oldest goes first when there are more.
const MAX_WAITING: usize = 1000;
/// Most alerts in one post.
const MAX_ALERTS: usize = 100;

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

/// A post that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Post {
    body: String,
    /// The same for the same event, however often it is sent: of the body, and of the moment at which it was told, for the same thing can be bad twice.
    key: String,
    /// Unix seconds.
    since: i64,
}

/// Who posts to a receiver.
fn client(webhook: &Webhook) -> Result<Client, Failed> {
    let client = Client::new(&webhook.url, &webhook.access, TIMEOUT, MAX_ANSWER)?;
    if let Some(file) = &webhook.secret_file {
        secret(file)?;
    }
    Ok(client)
}

/// Whether all of them could be told.
///
/// # Errors
/// When a receiver's settings are wrong.
pub fn usable(webhooks: &[Webhook]) -> Result<(), Failed> {
    webhooks.iter().try_for_each(|webhook| client(webhook).map(|_| ()))
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
            let client = client(webhook)?;
            let beside = |what: &str| state.map(|file| file.with_extension(format!("{number}.{what}")));
            let (waits, dead) = (beside("waiting"), beside("dead"));
            let waiting = waits.as_deref().filter(|file| file.exists()).map(waited).unwrap_or_default();
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

/// What waited when the service ended.
fn waited(file: &Path) -> VecDeque<Post> {
    let text = read_whole(file, MAX_STATE).map_err(|error| error.to_string());
    let kept = text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
    kept.unwrap_or_else(|error| {
        warn!("{}: {error}; what waited to be posted is lost", file.display());
        VecDeque::new()
    })
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
            && let Err(error) = replace(file, &self.waiting)
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
    use super::{super::tests::alert, *};

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
