//! Webhooks: sends alerts in the format of Alertmanager's webhook.
//!
//! Notifications are signed, sent in order, retried, and kept over restarts until they are
//! delivered or given up.

use std::{
    collections::{BTreeMap, VecDeque},
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
use cli::{
    file::{read_limited, replace_json},
    line_file::{self, LineFormat},
};

use client::{Access, Client, ClientError, secret};

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest response that is read.
const MAX_RESPONSE: u64 = 64 << 10;
/// Pause before a failed notification is retried: the first one, doubled each time up to the
/// second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Seconds after which a notification is given up.
const GIVE_UP: i64 = 6 * 3600;
/// Queued notifications of one receiver; the oldest is given up beyond it.
const MAX_QUEUED: usize = 1000;
/// Alerts in one notification.
const MAX_ALERTS: usize = 100;

/// A receiver of alerts, of the configuration file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Name in notifications and logs.
    #[serde(default = "default_name")]
    pub name: String,
    pub url: String,
    /// File with the key of the signature.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    #[serde(default)]
    pub access: Access,
}

fn default_name() -> String {
    "webhook".to_owned()
}

/// The bodies of notifications, grouped by name and status as Alertmanager does.
fn bodies(events: &[Alert], receiver: &str, external_url: &str) -> Vec<String> {
    let mut groups: BTreeMap<(&str, bool), Vec<&Alert>> = BTreeMap::new();
    for alert in events {
        let name = alert.labels.get("alertname").map(String::as_str).unwrap_or_default();
        groups.entry((name, alert.ends_at.is_some())).or_default().push(alert);
    }
    let status = |ended: bool| if ended { "resolved" } else { "firing" };
    groups
        .into_iter()
        .flat_map(|((name, ended), alerts)| {
            alerts.chunks(MAX_ALERTS).map(move |chunk| (name, ended, chunk.to_vec())).collect::<Vec<_>>()
        })
        .map(|(name, ended, alerts)| {
            let common = |map_of: fn(&Alert) -> &BTreeMap<String, String>| -> BTreeMap<&String, &String> {
                let first = alerts.first().map(|alert| map_of(alert)).into_iter().flatten();
                first.filter(|(key, value)| alerts.iter().all(|alert| map_of(alert).get(*key) == Some(value))).collect()
            };
            let each: Vec<_> = alerts
                .iter()
                .map(|alert| {
                    json!({
                        "status": status(ended),
                        "labels": alert.labels,
                        "annotations": alert.annotations,
                        "startsAt": alert.starts_at.to_string(),
                        "endsAt": alert.ends_at.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |at| at.to_string()),
                        "generatorURL": external_url,
                        "fingerprint": alert.fingerprint(),
                    })
                })
                .collect();
            let body = json!({
                "version": "4",
                "groupKey": format!("{{}}:{{alertname={name:?}}}"),
                "truncatedAlerts": 0,
                "status": status(ended),
                "receiver": receiver,
                "groupLabels": {"alertname": name},
                "commonLabels": common(|alert| &alert.labels),
                "commonAnnotations": common(|alert| &alert.annotations),
                "externalURL": external_url,
                "alerts": each,
            });
            body.to_string()
        })
        .collect()
}

/// `t=UNIX,v1=HEX`: HMAC-SHA-256 over the time, a dot and the body. The time prevents replays.
#[must_use]
pub fn signature(key: &str, unix: i64, body: &[u8]) -> String {
    // HMAC has keys of any length (RFC 2104).
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.as_bytes()) else { return String::new() };
    mac.update(format!("{unix}.").as_bytes());
    mac.update(body);
    format!("t={unix},v1={}", hex(&mac.finalize().into_bytes()))
}

/// A queued notification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    body: String,
    /// Idempotency key, the same for every attempt: a digest of the body and the time of the event,
    /// as the same alert can start twice.
    key: String,
    /// Time of the event in Unix seconds.
    since: i64,
}

/// The HTTP client of a receiver.
fn client(webhook: &Webhook) -> Result<Client, ClientError> {
    let client = Client::new(&webhook.url, &webhook.access, TIMEOUT, MAX_RESPONSE)?;
    if let Some(file) = &webhook.secret_file {
        secret(file)?;
    }
    Ok(client)
}

/// Checks the settings of all receivers.
///
/// # Errors
/// A receiver's settings are invalid.
pub fn check(webhooks: &[Webhook]) -> Result<(), ClientError> {
    webhooks.iter().try_for_each(|webhook| client(webhook).map(|_| ()))
}

/// The sending threads, one per receiver, so that a hanging receiver does not delay the others.
pub struct WebhookSender {
    receivers: Vec<(String, mpsc::Sender<Notification>)>,
    external_url: String,
}

impl WebhookSender {
    /// Starts the threads. Files next to `state`, the file of [`AlertState`](super::AlertState),
    /// keep queued and given up notifications.
    ///
    /// # Errors
    /// A receiver's settings are invalid.
    pub fn start(webhooks: &[Webhook], external_url: &str, state: Option<&Path>) -> Result<Self, ClientError> {
        let mut receivers = Vec::new();
        for (number, webhook) in webhooks.iter().enumerate() {
            let client = client(webhook)?;
            let file = |kind: &str| state.map(|file| file.with_extension(format!("{number}.{kind}")));
            let (queue_file, dead_file) = (file("waiting"), file("dead"));
            let queue = queue_file.as_deref().filter(|file| file.exists()).map(read_queue).unwrap_or_default();
            let (sender, receiver) = mpsc::channel();
            let delivery = Delivery { client, webhook: webhook.clone(), queue, queue_file, dead_file };
            thread::Builder::new()
                .name("webhook".into())
                .spawn(move || delivery.run(&receiver))
                .map_err(|error| ClientError::Settings(error.to_string()))?;
            receivers.push((webhook.name.clone(), sender));
        }
        Ok(Self { receivers, external_url: external_url.to_owned() })
    }

    /// Queues the events for every receiver.
    pub fn send(&self, events: &[Alert], now: Timestamp) {
        for (name, sender) in &self.receivers {
            for body in bodies(events, name, &self.external_url) {
                let mut digest = Sha256::new();
                digest.update(&body);
                digest.update(now.as_nanosecond().to_le_bytes());
                let key = hex(&digest.finalize());
                // A thread ends only with the program, so sending cannot fail.
                let _ = sender.send(Notification { body, key, since: now.as_second() });
            }
        }
    }
}

/// The notifications that were queued when the service ended.
fn read_queue(file: &Path) -> VecDeque<Notification> {
    let text = read_limited(file, MAX_STATE).map_err(|error| error.to_string());
    text.and_then(|text| parse_queue(&text)).unwrap_or_else(|error| {
        warn!("{}: {error}; the queued notifications are lost", file.display());
        VecDeque::new()
    })
}

/// Parses the file of queued notifications; the oldest beyond 1000 are left out.
///
/// # Errors
/// The text is not a queue.
pub fn parse_queue(text: &str) -> Result<VecDeque<Notification>, String> {
    let mut queue: VecDeque<Notification> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    queue.drain(..queue.len().saturating_sub(MAX_QUEUED));
    Ok(queue)
}

/// The queue of one receiver.
struct Delivery {
    client: Client,
    webhook: Webhook,
    queue: VecDeque<Notification>,
    /// Keeps the queue over restarts.
    queue_file: Option<PathBuf>,
    /// Keeps the notifications that were given up.
    dead_file: Option<PathBuf>,
}

impl Delivery {
    fn run(mut self, events: &mpsc::Receiver<Notification>) {
        let (mut pause, mut next) = (RETRY.0, Instant::now());
        loop {
            let wait = match self.queue.is_empty() {
                true => Duration::from_secs(3600),
                false => next.saturating_duration_since(Instant::now()),
            };
            match events.recv_timeout(wait) {
                Ok(notification) => {
                    if self.queue.len() >= MAX_QUEUED {
                        self.give_up(&format!("more than {MAX_QUEUED} are queued"));
                    }
                    self.queue.push_back(notification);
                    self.save_queue();
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            // In order, as the end of an alert must not arrive before its start.
            while Instant::now() >= next {
                let Some(notification) = self.queue.front() else { break };
                match self.post(notification) {
                    Ok(()) => {
                        self.queue.pop_front();
                        self.save_queue();
                        pause = RETRY.0;
                    }
                    Err((why, is_temporary)) => {
                        let age = Timestamp::now().as_second().saturating_sub(notification.since);
                        if !is_temporary || age > GIVE_UP {
                            self.give_up(&why);
                            continue;
                        }
                        info!("webhook {}: retry in {} s: {why}", self.webhook.name, pause.as_secs());
                        next = Instant::now() + pause;
                        pause = (pause * 2).min(RETRY.1);
                    }
                }
            }
        }
    }

    fn save_queue(&self) {
        if let Some(file) = &self.queue_file
            && let Err(error) = replace_json(file, &self.queue)
        {
            warn!("{}: {error}; a restart loses the queued notifications", file.display());
        }
    }

    /// Moves the oldest notification from the queue to the file of those given up.
    fn give_up(&mut self, why: &str) {
        let Some(notification) = self.queue.pop_front() else { return };
        warn!("webhook {}: notification given up: {why}", self.webhook.name);
        if let Some(file) = &self.dead_file {
            let line = format!("{}\n", notification.body);
            if let Err(error) = line_file::append(file, 0o640, LineFormat::Json, [line.as_bytes()]).result {
                warn!("{}: {error}; the notification is lost", file.display());
            }
        }
        self.save_queue();
    }

    /// Posts a notification; the error has whether a retry may help.
    fn post(&self, notification: &Notification) -> Result<(), (String, bool)> {
        let (unix, body) = (Timestamp::now().as_second(), notification.body.as_bytes());
        let mut headers =
            vec![("Content-Type", "application/json".to_owned()), ("Idempotency-Key", notification.key.clone())];
        if let Some(file) = &self.webhook.secret_file {
            let secret = secret(file).map_err(|error| (error.to_string(), true))?;
            headers.push(("X-Wattcast-Signature", signature(&secret, unix, body)));
        }
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, &**value)).collect();
        let reply = self.client.post("", &headers, body).map_err(|error| (error.to_string(), true))?;
        match reply.status {
            200..=299 => Ok(()),
            // Timeouts, rate limits and server errors are temporary; other errors are permanent.
            status @ (408 | 425 | 429 | 500..=599) => Err((format!("status {status}"), true)),
            status => Err((format!("status {status}: {}", reply.excerpt()), false)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::alert, *};

    #[test]
    fn a_notification_has_alertmanagers_format() {
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
    #[test]
    fn a_queue_file_is_limited_like_the_queue() {
        let one = r#"{"body":"{}","key":"k","since":1}"#;
        assert_eq!(parse_queue(&format!("[{}]", vec![one; MAX_QUEUED + 5].join(","))).unwrap().len(), MAX_QUEUED);
        assert!(parse_queue("{}").is_err());
    }
}
