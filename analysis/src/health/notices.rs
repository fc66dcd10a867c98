//! What an Alertmanager tells us: `POST /api/v1/alerts` takes its webhook, each change is one line of the log, and the page of health shows what is going on. With this a
//! stack that nobody has configured yet has somewhere for alerts to go.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::{get, post},
};
use exporter::{
    family::{Def, Family},
    label, landing,
};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tracing::{info, warn};

use crate::sheet::Table;

/// Largest post that is read.
const MAX_POST: usize = 1 << 20;
/// For how long a post may come.
const PATIENCE: Duration = Duration::from_secs(10);
/// Labels of an alert that is kept, and their bytes together: what is kept of an alert is not what somebody sends.
const MAX_LABELS: (usize, usize) = (64, 4 << 10);
/// Alerts that are kept; further ones are counted only.
pub const MAX_ALERTS: usize = 1000;
/// Of who told of an alert, nothing was heard for so long: it is not known any more whether it goes on. Alertmanager repeats after 2 to 4 hours.
const SILENT: SignedDuration = SignedDuration::from_hours(24);
/// Letters of a summary that are shown.
const SHOWN: usize = 300;

pub(super) static FIRING: Def = Def::gauge(
    "wattcast_alerts_firing",
    &["severity"],
    "Alerts that an Alertmanager told of and that are not resolved.",
);
pub(super) static TOLD: Def = Def::counter(
    "wattcast_alerts_told_total",
    &["status"],
    "Alerts that an Alertmanager told of, by what it said of them: firing, resolved; dropped, those that found no room (1000), have more labels than an alert has, or did not fit into a post.",
);

/// A post, as Alertmanager's documentation has it (`webhook_config`, version 4); what else is in it is passed over.
#[derive(Debug, Deserialize)]
struct Post {
    alerts: Vec<Alert>,
    /// How many more there were than its `max_alerts`.
    #[serde(default, rename = "truncatedAlerts")]
    truncated: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Alert {
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

/// An alert that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Notice {
    name: String,
    severity: String,
    summary: String,
    runbook: String,
    since: Option<Timestamp>,
    heard: Timestamp,
}

/// All that go on, and what was told since the start.
#[derive(Debug, Default)]
pub struct Book {
    /// By all of an alert's labels, which is what an alert is.
    active: BTreeMap<BTreeMap<String, String>, Notice>,
    firing: u64,
    resolved: u64,
    dropped: u64,
}

/// A book that requests write and the page reads.
#[derive(Clone, Debug, Default)]
pub struct Notices(Arc<Mutex<Book>>);

impl Notices {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many alerts were told of since the start: another number is another page.
    #[must_use]
    pub fn told(&self) -> u64 {
        let book = self.book();
        book.firing + book.resolved + book.dropped
    }

    /// The families of the page.
    #[must_use]
    pub fn families(&self, now: Timestamp) -> Vec<Family> {
        let book = self.book();
        let (mut firing, mut told) = (Family::new(&FIRING), Family::new(&TOLD));
        for severity in ["critical", "warning", "info", "other"] {
            let of = |notice: &&Notice| notice.severity == severity;
            let count = book.fresh(now).filter(of).count();
            firing.push(&[severity], f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        }
        for (status, count) in [("firing", book.firing), ("resolved", book.resolved), ("dropped", book.dropped)] {
            #[expect(clippy::cast_precision_loss, reason = "a count of posts")]
            told.push(&[status], count as f64);
        }
        vec![firing, told]
    }

    /// The table for people; none while nothing goes on.
    #[must_use]
    pub fn table(&self, now: Timestamp) -> Option<Table> {
        let rows: Vec<Vec<String>> = self
            .book()
            .fresh(now)
            .map(|notice| {
                let since = notice.since.map_or_else(String::new, |since| format!("{since:.0}"));
                let Notice { name, severity, summary, runbook, .. } = notice.clone();
                vec![name, severity, since, summary, runbook]
            })
            .collect();
        let heads = ["alert", "severity", "since", "", "what to do"].map(str::to_owned).to_vec();
        (!rows.is_empty()).then(|| ("Alerts".to_owned(), heads, rows))
    }
}

impl Book {
    fn fresh(&self, now: Timestamp) -> impl Iterator<Item = &Notice> {
        self.active.values().filter(move |notice| now.duration_since(notice.heard) < SILENT)
    }

    /// Takes a post; gives how many alerts were in it.
    ///
    /// # Errors
    /// Why it is none of Alertmanager's.
    pub fn take(&mut self, body: &[u8], now: Timestamp) -> Result<usize, String> {
        let post: Post =
            serde_json::from_slice(body).map_err(|error| format!("not a post of Alertmanager's webhook: {error}"))?;
        self.active.retain(|_, notice| now.duration_since(notice.heard) < SILENT);
        let count = post.alerts.len();
        self.dropped += u64::from(post.truncated);
        for alert in post.alerts {
            self.alert(alert, now);
        }
        Ok(count)
    }

    fn alert(&mut self, alert: Alert, now: Timestamp) {
        // Who writes rules writes these; nobody may write lines of our log, or move a terminal's cursor.
        let word = |from: &BTreeMap<String, String>, key: &str| -> String {
            let text: String = from.get(key).map(String::as_str).unwrap_or_default().chars().take(SHOWN).collect();
            text.chars().map(|letter| if unsightly(letter) { '\u{fffd}' } else { letter }).collect()
        };
        let name = label::clean(&word(&alert.labels, "alertname"));
        let severity = match alert.labels.get("severity").map(String::as_str) {
            Some(known @ ("critical" | "warning" | "info")) => known.to_owned(),
            _ => "other".to_owned(),
        };
        let summary = word(&alert.annotations, "summary");
        match alert.status {
            Status::Firing => {
                self.firing += 1;
                let bytes: usize = alert.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
                let too_large = alert.labels.len() > MAX_LABELS.0 || bytes > MAX_LABELS.1;
                if too_large || self.active.len() >= MAX_ALERTS && !self.active.contains_key(&alert.labels) {
                    self.dropped += 1;
                    return;
                }
                let notice = Notice {
                    runbook: word(&alert.annotations, "runbook_url"),
                    since: alert.starts_at,
                    heard: now,
                    name,
                    severity,
                    summary,
                };
                let line = format!("alert {} ({}): {}", notice.name, notice.severity, notice.summary);
                // Alertmanager repeats what goes on.
                if self.active.insert(alert.labels, notice).is_none() {
                    warn!("{line}");
                }
            }
            Status::Resolved => {
                self.resolved += 1;
                if let Some(was) = self.active.remove(&alert.labels) {
                    info!("alert {} is over: {}", was.name, was.summary);
                }
            }
        }
    }
}

/// Control characters, and those that end a line or turn the direction of a text (Unicode 15, table 23-3 and UAX 9).
fn unsightly(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `POST /api/v1/alerts`, and the page that alerts link to.
pub fn routes(notices: Notices) -> Router {
    Router::new().route("/api/v1/alerts", post(take)).with_state(notices).route("/runbooks", get(runbooks))
}

async fn take(State(notices): State<Notices>, headers: HeaderMap, body: Body) -> Response {
    // A browser asks before it sends this kind to another site, and does not before it sends a form.
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().is_none_or(|kind| !kind.trim().eq_ignore_ascii_case("application/json")) {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type: application/json\n").into_response();
    }
    let too_large = "more than 1 MiB; give Alertmanager's webhook a max_alerts\n";
    let body = match tokio::time::timeout(PATIENCE, to_bytes(body, MAX_POST)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return (StatusCode::PAYLOAD_TOO_LARGE, too_large).into_response(),
        Err(_) => return (StatusCode::REQUEST_TIMEOUT, "not within 10 s\n").into_response(),
    };
    let taken = notices.book().take(&body, Timestamp::now());
    match taken {
        Ok(_) => StatusCode::NO_CONTENT.into_response(),
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}

/// What is shown at `/runbooks`, each heading with its name in small letters as an anchor, which is what alerts link to.
static RUNBOOKS: std::sync::LazyLock<String> =
    std::sync::LazyLock::new(|| landing::document("Runbooks", &html(include_str!("../../../docs/runbooks.md"))));

async fn runbooks() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
    ];
    (headers, RUNBOOKS.as_str()).into_response()
}

fn html(markdown: &str) -> String {
    use pulldown_cmark::{Event, Parser, Tag, html};
    let mut events: Vec<Event<'_>> = Parser::new(markdown).collect();
    for at in 0..events.len() {
        let title = match events.get(at + 1) {
            Some(Event::Text(title)) => title.to_lowercase().replace(' ', "-"),
            _ => continue,
        };
        if let Some(Event::Start(Tag::Heading { id, .. })) = events.get_mut(at) {
            *id = Some(title.into());
        }
    }
    let mut out = String::new();
    html::push_html(&mut out, events.into_iter());
    out
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
    fn what_begins_is_shown_until_it_is_over_or_nobody_says_it_any_more() {
        let notices = Notices::default();
        let rows = |hour| notices.table(at(hour)).map(|(.., rows)| rows).unwrap_or_default();
        assert_eq!(rows(0).len(), 0);
        notices.book().take(&post("firing", "A", "critical"), at(0)).unwrap();
        notices.book().take(&post("firing", "A", "critical"), at(1)).unwrap();
        notices.book().take(&post("firing", "B", "made up"), at(0)).unwrap();
        assert_eq!(rows(1).len(), 2);
        assert_eq!(rows(1)[0][..4], ["A", "critical", "2026-11-22T10:00:00Z", "it\u{fffd}is\u{fffd}[2Jbad"]);
        assert_eq!(rows(1)[1][1], "other");
        assert_eq!(rows(24).len(), 1, "B was last heard of 24 h ago");
        notices.book().take(&post("resolved", "A", "critical"), at(2)).unwrap();
        assert_eq!(rows(2).len(), 1);
        let mut writer = exporter::page::Writer::compat(false);
        writer.write("health", notices.families(at(2))).unwrap();
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
    fn no_more_are_kept_than_there_is_room_for() {
        let mut book = Book::default();
        for number in 0..MAX_ALERTS + 2 {
            book.take(&post("firing", &format!("A{number}"), "info"), at(0)).unwrap();
        }
        assert_eq!((book.active.len(), book.dropped), (MAX_ALERTS, 2));
        // One that is known is no new one.
        book.take(&post("firing", "A0", "info"), at(0)).unwrap();
        assert_eq!(book.dropped, 2);
    }

    #[test]
    fn what_is_larger_than_an_alert_is_not_kept() {
        let mut book = Book::default();
        let many: BTreeMap<String, String> = (0..65).map(|number| (format!("l{number}"), String::new())).collect();
        let long = BTreeMap::from([("alertname".to_owned(), "x".repeat(4096))]);
        for labels in [many, long] {
            let post = json!({ "alerts": [{ "status": "firing", "labels": labels }], "truncatedAlerts": 3 });
            book.take(post.to_string().as_bytes(), at(0)).unwrap();
        }
        assert_eq!((book.active.len(), book.dropped), (0, 8));
    }

    #[test]
    fn what_is_no_post_of_an_alertmanager_is_refused() {
        let mut book = Book::default();
        for wrong in
            ["", "[]", "{}", r#"{"alerts":[{"status":"odd"}]}"#, r#"{"alerts":[{"status":"firing","startsAt":"x"}]}"#]
        {
            assert!(book.take(wrong.as_bytes(), at(0)).is_err(), "{wrong}");
        }
        assert_eq!(book.take(br#"{"alerts":[]}"#, at(0)), Ok(0));
    }

    #[test]
    fn every_heading_of_the_runbooks_has_its_anchor() {
        for heading in include_str!("../../../docs/runbooks.md").lines().filter_map(|line| line.strip_prefix("## ")) {
            assert!(RUNBOOKS.contains(&format!("id=\"{}\"", heading.to_lowercase())), "{heading}");
        }
    }
}
