//! Alerts received from Alertmanager by webhook: `POST /api/v1/alerts`.
//!
//! Each change is one line of the log, and the health page shows the active alerts. It is a default
//! receiver for a stack without a configured one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::post,
};
use jiff::{SignedDuration, Timestamp};
use metrics::{
    family::{Def, Family},
    label,
};
use serde::Deserialize;
use tracing::{info, warn};

use crate::rendered_page::Table;

/// Largest request body in bytes.
const MAX_BODY: usize = 1 << 20;
/// Time within which a request body must arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of labels of an alert, and of their bytes in total.
const MAX_LABELS: (usize, usize) = (64, 4 << 10);
/// Maximum number of active alerts; further ones are only counted.
pub const MAX_ALERTS: usize = 1000;
/// Time without repetition after which an alert is dropped. Alertmanager repeats after 2 to 4
/// hours.
const EXPIRY: SignedDuration = SignedDuration::from_hours(24);
/// Characters of a text that are kept.
const MAX_TEXT: usize = 300;

pub(super) static FIRING: Def =
    Def::gauge("wattcast_alerts_firing", &["severity"], "Alerts from Alertmanager that are firing.");
pub(super) static RECEIVED: Def = Def::counter(
    "wattcast_alerts_told_total",
    &["status"],
    "Alerts received from Alertmanager. status: firing, resolved, dropped (over the limit of \
     1000, with too many labels, or truncated by Alertmanager).",
);

/// A webhook request of Alertmanager (`webhook_config`, version 4); other fields are ignored.
#[derive(Debug, Deserialize)]
struct WebhookRequest {
    alerts: Vec<PostedAlert>,
    /// Number of alerts beyond `max_alerts`.
    #[serde(default, rename = "truncatedAlerts")]
    truncated: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PostedAlert {
    status: Status,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    starts_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Status {
    Firing,
    Resolved,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ActiveAlert {
    name: String,
    severity: String,
    summary: String,
    runbook: String,
    since: Option<Timestamp>,
    received: Timestamp,
}

/// The active alerts, and the number of received ones since the start.
#[derive(Debug, Default)]
pub struct AlertLog {
    /// By labels, which identify an alert.
    active: BTreeMap<BTreeMap<String, String>, ActiveAlert>,
    firing: u64,
    resolved: u64,
    dropped: u64,
}

/// An alert log that requests write and the page reads.
#[derive(Clone, Debug, Default)]
pub struct SharedAlertLog(Arc<Mutex<AlertLog>>);

impl SharedAlertLog {
    fn lock(&self) -> MutexGuard<'_, AlertLog> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of alerts received since the start; the page changes with it.
    #[must_use]
    pub fn received(&self) -> u64 {
        let log = self.lock();
        log.firing + log.resolved + log.dropped
    }

    /// The families of the page.
    #[must_use]
    pub fn families(&self, now: Timestamp) -> Vec<Family> {
        let log = self.lock();
        let (mut firing, mut received) = (Family::new(&FIRING), Family::new(&RECEIVED));
        for severity in ["critical", "warning", "info", "other"] {
            let count = log.current(now).filter(|alert| alert.severity == severity).count();
            firing.push(&[severity], f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        }
        for (status, count) in [("firing", log.firing), ("resolved", log.resolved), ("dropped", log.dropped)] {
            #[expect(clippy::cast_precision_loss, reason = "a count, for output")]
            received.push(&[status], count as f64);
        }
        vec![firing, received]
    }

    /// The table of active alerts for the index page, if there are any.
    #[must_use]
    pub fn table(&self, now: Timestamp) -> Option<Table> {
        let rows: Vec<Vec<String>> = self
            .lock()
            .current(now)
            .map(|alert| {
                let since = alert.since.map_or_else(String::new, |since| format!("{since:.0}"));
                let ActiveAlert { name, severity, summary, runbook, .. } = alert.clone();
                vec![name, severity, since, summary, runbook]
            })
            .collect();
        let heads = ["alert", "severity", "since", "", "runbook"].map(str::to_owned).to_vec();
        (!rows.is_empty()).then(|| ("Alerts".to_owned(), heads, rows))
    }
}

impl AlertLog {
    /// The alerts that have not expired.
    fn current(&self, now: Timestamp) -> impl Iterator<Item = &ActiveAlert> {
        self.active.values().filter(move |alert| now.duration_since(alert.received) < EXPIRY)
    }

    /// Reads a webhook request; returns its number of alerts.
    ///
    /// # Errors
    /// The body is no request of Alertmanager.
    pub fn receive(&mut self, body: &[u8], now: Timestamp) -> Result<usize, String> {
        let request: WebhookRequest =
            serde_json::from_slice(body).map_err(|error| format!("not a webhook request of Alertmanager: {error}"))?;
        self.active.retain(|_, alert| now.duration_since(alert.received) < EXPIRY);
        let count = request.alerts.len();
        self.dropped += u64::from(request.truncated);
        for alert in request.alerts {
            self.update(alert, now);
        }
        Ok(count)
    }

    fn update(&mut self, alert: PostedAlert, now: Timestamp) {
        // The texts are untrusted: they must not add lines to our log or move the cursor of a
        // terminal.
        let text = |from: &BTreeMap<String, String>, key: &str| -> String {
            let text: String = from.get(key).map(String::as_str).unwrap_or_default().chars().take(MAX_TEXT).collect();
            text.chars().map(|c| if is_unsafe(c) { '\u{fffd}' } else { c }).collect()
        };
        let name = label::sanitize(&text(&alert.labels, "alertname"));
        let severity = match alert.labels.get("severity").map(String::as_str) {
            Some(known @ ("critical" | "warning" | "info")) => known.to_owned(),
            _ => "other".to_owned(),
        };
        let summary = text(&alert.annotations, "summary");
        match alert.status {
            Status::Firing => {
                self.firing += 1;
                let bytes: usize = alert.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
                let too_large = alert.labels.len() > MAX_LABELS.0 || bytes > MAX_LABELS.1;
                if too_large || self.active.len() >= MAX_ALERTS && !self.active.contains_key(&alert.labels) {
                    self.dropped += 1;
                    return;
                }
                let active = ActiveAlert {
                    runbook: text(&alert.annotations, "runbook_url"),
                    since: alert.starts_at,
                    received: now,
                    name,
                    severity,
                    summary,
                };
                let line = format!("alert {} ({}): {}", active.name, active.severity, active.summary);
                // Alertmanager repeats active alerts.
                if self.active.insert(alert.labels, active).is_none() {
                    warn!("{line}");
                }
            }
            Status::Resolved => {
                self.resolved += 1;
                if let Some(resolved) = self.active.remove(&alert.labels) {
                    info!("alert {} resolved: {}", resolved.name, resolved.summary);
                }
            }
        }
    }
}

/// Control characters, line separators and bidirectional controls (Unicode 15, table 23-3 and UAX
/// 9).
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `POST /api/v1/alerts`.
pub fn routes(alerts: SharedAlertLog) -> Router {
    Router::new().route("/api/v1/alerts", post(receive)).with_state(alerts)
}

async fn receive(State(alerts): State<SharedAlertLog>, headers: HeaderMap, body: Body) -> Response {
    // Browsers send this type to another site only after a preflight request, unlike forms.
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().is_none_or(|kind| !kind.trim().eq_ignore_ascii_case("application/json")) {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type: application/json\n").into_response();
    }
    let too_large = "larger than 1 MiB; set max_alerts of Alertmanager's webhook\n";
    let body = match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return (StatusCode::PAYLOAD_TOO_LARGE, too_large).into_response(),
        Err(_) => return (StatusCode::REQUEST_TIMEOUT, "body not received within 10 s\n").into_response(),
    };
    let received = alerts.lock().receive(&body, Timestamp::now());
    match received {
        Ok(_) => StatusCode::NO_CONTENT.into_response(),
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn post(status: &str, name: &str, severity: &str) -> Vec<u8> {
        let alert = json!({
            "status": status, "labels": { "alertname": name, "severity": severity },
            "annotations": { "summary": "it\nis\u{1b}[2Jbad" }, "startsAt": "2026-11-22T10:00:00Z", "endsAt": "0001-01-01T00:00:00Z",
        });
        json!({ "version": "4", "alerts": [alert] }).to_string().into_bytes()
    }

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + hour * 3600).unwrap()
    }

    #[test]
    fn alerts_are_shown_until_they_resolve_or_expire() {
        let alerts = SharedAlertLog::default();
        let rows = |hour| alerts.table(at(hour)).map(|(.., rows)| rows).unwrap_or_default();
        assert_eq!(rows(0).len(), 0);
        alerts.lock().receive(&post("firing", "A", "critical"), at(0)).unwrap();
        alerts.lock().receive(&post("firing", "A", "critical"), at(1)).unwrap();
        alerts.lock().receive(&post("firing", "B", "made up"), at(0)).unwrap();
        assert_eq!(rows(1).len(), 2);
        assert_eq!(rows(1)[0][..4], ["A", "critical", "2026-11-22T10:00:00Z", "it\u{fffd}is\u{fffd}[2Jbad"]);
        assert_eq!(rows(1)[1][1], "other");
        assert_eq!(rows(24).len(), 1, "B was received 24 h ago");
        alerts.lock().receive(&post("resolved", "A", "critical"), at(2)).unwrap();
        assert_eq!(rows(2).len(), 1);
        let mut writer = metrics::page::Writer::compat(false);
        writer.write("health", alerts.families(at(2))).unwrap();
        let page = String::from_utf8(writer.finish().text().to_vec()).unwrap();
        for line in [
            "wattcast_alerts_firing{severity=\"critical\"} 0\n",
            "wattcast_alerts_firing{severity=\"other\"} 1\n",
            "wattcast_alerts_told_total{status=\"firing\"} 3\n",
            "wattcast_alerts_told_total{status=\"resolved\"} 1\n",
        ] {
            assert!(page.contains(line), "{page}");
        }
    }

    #[test]
    fn alerts_beyond_the_limit_are_dropped() {
        let mut log = AlertLog::default();
        for number in 0..MAX_ALERTS + 2 {
            log.receive(&post("firing", &format!("A{number}"), "info"), at(0)).unwrap();
        }
        assert_eq!((log.active.len(), log.dropped), (MAX_ALERTS, 2));
        // A known alert is updated.
        log.receive(&post("firing", "A0", "info"), at(0)).unwrap();
        assert_eq!(log.dropped, 2);
    }

    #[test]
    fn alerts_with_too_many_labels_are_dropped() {
        let mut log = AlertLog::default();
        let many: BTreeMap<String, String> = (0..65).map(|number| (format!("l{number}"), String::new())).collect();
        let long = BTreeMap::from([("alertname".to_owned(), "x".repeat(4096))]);
        for labels in [many, long] {
            let post = json!({ "alerts": [{ "status": "firing", "labels": labels }], "truncatedAlerts": 3 });
            log.receive(post.to_string().as_bytes(), at(0)).unwrap();
        }
        assert_eq!((log.active.len(), log.dropped), (0, 8));
    }

    #[test]
    fn requests_of_another_format_are_rejected() {
        let mut log = AlertLog::default();
        for wrong in
            ["", "[]", "{}", r#"{"alerts":[{"status":"odd"}]}"#, r#"{"alerts":[{"status":"firing","startsAt":"x"}]}"#]
        {
            assert!(log.receive(wrong.as_bytes(), at(0)).is_err(), "{wrong}");
        }
        assert_eq!(log.receive(br#"{"alerts":[]}"#, at(0)), Ok(0));
    }
}
