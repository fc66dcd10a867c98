//! Metrics of port 9600: health of every target, and the legacy names of both earlier checkers.

use std::{
    sync::mpsc,
    time::{Duration, Instant, SystemTime},
};

use cli::program;
use metrics::{
    family::{Def, Families, Family, Kind},
    process,
};

use jiff::Timestamp;

use super::{
    alertmanager::{self, SharedAlertLog},
    check::TargetState,
    checker::{HealthChecker, TargetStatus},
};
use crate::rendered_page::{RenderedPage, Table};

const TARGET: &[&str] = &["target", "url"];
const LEGACY: &[&str] = &["exporter"];
const LEGACY_URL: &[&str] = &["exporter", "url"];

static HEALTHY: Def = Def::gauge(
    "wattcast_target_healthy",
    TARGET,
    "1 while a target is healthy: it serves a metrics page with all expected families, current \
     data and a clock like ours; absent before the first check.",
);
static STATE: Def = Def::gauge(
    "wattcast_target_state",
    &["target", "state"],
    "1 for the current state of a target, 0 for the others: healthy, unready (its /ready reports \
     missing data), unproven (no value has changed yet), stale, clock, empty (an expected family \
     is missing), wrong_type, too_large, status, denied, tls, hanging, down, settings (a \
     configured file is unusable).",
);
static REACHABLE: Def =
    Def::gauge("wattcast_target_reachable", TARGET, "1 while a target answers over HTTP, with any status.");
static PARSED: Def = Def::gauge(
    "wattcast_target_parsed",
    TARGET,
    "1 while a target's response is a metrics page; absent without a response.",
);
static COMPLETE: Def = Def::gauge(
    "wattcast_target_complete",
    TARGET,
    "1 while all expected families have samples; absent without a metrics page.",
);
static FRESH: Def = Def::gauge(
    "wattcast_target_fresh",
    TARGET,
    "1 while a target's data is current, by Last-Modified, sample timestamps or changing values; \
     absent while that is unknown or not required.",
);
static AGE: Def = Def::gauge(
    "wattcast_target_data_age_seconds",
    TARGET,
    "Age of the data in seconds by the target's clock, or time since the last change of a value \
     once that exceeds the limit.",
);
static SKEW: Def = Def::gauge(
    "wattcast_target_clock_skew_seconds",
    TARGET,
    "Target's clock minus ours in seconds, from its Date header, accurate to half a second plus \
     half of the response time.",
);
static RESPONSE: Def =
    Def::gauge("wattcast_target_response_seconds", TARGET, "Duration of the last request in seconds.");
static LATENCY: Def = Def::histogram("wattcast_target_latency_seconds", TARGET, "Duration of requests in seconds.");
static FAMILIES: Def = Def::gauge("wattcast_target_families", TARGET, "Families with samples on a target's page.");
static SAMPLES: Def = Def::gauge("wattcast_target_samples", TARGET, "Samples on a target's page.");
static CHECKED: Def =
    Def::gauge("wattcast_target_check_timestamp_seconds", TARGET, "Time of the last check in Unix seconds.");
static LAST_HEALTHY: Def = Def::gauge(
    "wattcast_target_healthy_timestamp_seconds",
    TARGET,
    "Last time the target was healthy in Unix seconds; absent if it never was.",
);
static REQUIRED: Def = Def::gauge("wattcast_target_wanted", TARGET, "1 for a required target, 0 for an optional one.");
static TARGETS: Def =
    Def::gauge("wattcast_targets", &["state"], "Targets by state; unchecked targets are not counted.");

static LEGACY_UP: Def = Def::gauge("exporter_health_checker_up", &[], "1 while targets are checked.").compat();
static LEGACY_HEALTHY: Def = Def::gauge("exporter_healthy", LEGACY_URL, "Same as wattcast_target_healthy.").compat();
static LEGACY_RESPONSE: Def = Def::gauge(
    "exporter_response_time_ms",
    LEGACY_URL,
    "Duration of the last request in milliseconds; absent without a response.",
)
.compat();
static LEGACY_CHECKED: Def =
    Def::gauge("exporter_last_check_timestamp", LEGACY, "Time of the last check in Unix seconds.").compat();
static LEGACY_TOTAL: Def = Def::gauge("exporter_total", &[], "Targets.").compat();
static LEGACY_HEALTHY_TOTAL: Def = Def::gauge("exporter_healthy_total", &[], "Healthy targets.").compat();
static LEGACY_STATUS: Def = Def::gauge("exporter_health_status", LEGACY, "Same as wattcast_target_healthy.").compat();
static LEGACY_REACHABLE: Def = Def::gauge("exporter_reachable", LEGACY, "Same as wattcast_target_reachable.").compat();
static LEGACY_METRICS: Def = Def::gauge("exporter_metric_count", LEGACY, "Same as wattcast_target_families.").compat();
static LEGACY_SAMPLES: Def = Def::gauge("exporter_sample_count", LEGACY, "Same as wattcast_target_samples.").compat();
static LEGACY_DATA: Def =
    Def::gauge("exporter_has_data", LEGACY, "Same as wattcast_target_complete, but 0 without a metrics page.").compat();
static LEGACY_INFO: Def = Def::gauge(
    "exporter_health_checker_info",
    &["version", "language"],
    "Always 1; version and language of the health checker.",
)
.compat();

/// In the order of the page.
pub static DEFS: &[&Def] = &[
    &HEALTHY,
    &STATE,
    &REACHABLE,
    &PARSED,
    &COMPLETE,
    &FRESH,
    &AGE,
    &SKEW,
    &RESPONSE,
    &LATENCY,
    &FAMILIES,
    &SAMPLES,
    &CHECKED,
    &LAST_HEALTHY,
    &REQUIRED,
    &TARGETS,
    &alertmanager::FIRING,
    &alertmanager::RECEIVED,
    &LEGACY_UP,
    &LEGACY_HEALTHY,
    &LEGACY_RESPONSE,
    &LEGACY_CHECKED,
    &LEGACY_TOTAL,
    &LEGACY_HEALTHY_TOTAL,
    &LEGACY_STATUS,
    &LEGACY_REACHABLE,
    &LEGACY_METRICS,
    &LEGACY_SAMPLES,
    &LEGACY_DATA,
    &LEGACY_INFO,
];

/// Delay of the first check after the start, so that our own pages and a probe that starts with us
/// are ready.
const START_DELAY: Duration = Duration::from_secs(2);

/// Interval between checks for received alerts, which update the page between rounds.
const ALERTS_EVERY: Duration = Duration::from_secs(5);

/// Checks all targets and writes the page, until `stop` is dropped.
pub fn run(
    mut checker: HealthChecker,
    interval: Duration,
    alerts: &SharedAlertLog,
    page: &RenderedPage,
    stop: &mpsc::Receiver<()>,
) {
    let stopped = |pause: Duration| !matches!(stop.recv_timeout(pause), Err(mpsc::RecvTimeoutError::Timeout));
    let write = |checker: &HealthChecker, missing: Vec<String>| {
        let now = Timestamp::now();
        let families = families(checker).into_iter().chain(alerts.families(now)).collect();
        let tables = alerts.table(now).into_iter().chain(tables(checker)).collect();
        page.write(families, tables, missing);
    };
    write(&checker, vec!["the targets have not been checked yet".to_owned()]);
    if stopped(START_DELAY) {
        return;
    }
    loop {
        let start = Instant::now();
        checker.check_all(stopped);
        let mut received = alerts.received();
        write(&checker, Vec::new());
        let mut left = HealthChecker::pause(start, interval);
        while !left.is_zero() {
            let pause = left.min(ALERTS_EVERY);
            if stopped(pause) {
                return;
            }
            left -= pause;
            let now = alerts.received();
            if now != received {
                received = now;
                write(&checker, Vec::new());
            }
        }
    }
}

/// The families of the page.
#[must_use]
pub fn families(checker: &HealthChecker) -> Vec<Family> {
    let mut all = Families::new(DEFS);
    let mut latencies = Family::new(&LATENCY);
    for status in &checker.targets {
        push_target(&mut all, status);
        if status.latency.count > 0 {
            let labels = [&*status.target.name, &url_without_query(&status.target.url)];
            latencies.push_buckets(&labels, &status.latency);
        }
    }
    for state in TargetState::ALL {
        let has_state = |status: &&TargetStatus| status.result.as_ref().is_some_and(|result| result.state == state);
        all.push(&TARGETS, &[state.as_str()], count(checker.targets.iter().filter(has_state).count()));
    }
    all.push(&LEGACY_UP, &[], 1.0);
    all.push(&LEGACY_TOTAL, &[], count(checker.targets.len()));
    all.push(&LEGACY_HEALTHY_TOTAL, &[], count(checker.targets.iter().filter(|status| status.is_healthy()).count()));
    all.push(&LEGACY_INFO, &[program::VERSION, "rust"], 1.0);
    let mut all: Vec<Family> = all
        .into_vec()
        .into_iter()
        .filter(|family| family.def().kind != Kind::Histogram)
        .chain(std::iter::once(latencies))
        .collect();
    all.push(program::build_info());
    #[cfg(feature = "export")]
    all.extend(export::counters::families());
    all.extend(process::families());
    all
}

fn push_target(all: &mut Families, status: &TargetStatus) {
    let url = url_without_query(&status.target.url);
    let (labels, legacy) = ([&*status.target.name, &url], [&*status.target.name]);
    all.push(&REQUIRED, &labels, flag(!status.target.optional));
    let (Some(result), Some(at)) = (&status.result, status.checked_at) else { return };
    let healthy = flag(result.state == TargetState::Healthy);
    let reachable = flag(result.reached);
    for state in TargetState::ALL {
        all.push(&STATE, &[&status.target.name, state.as_str()], flag(state == result.state));
    }
    for (def, value) in [(&HEALTHY, healthy), (&REACHABLE, reachable)] {
        all.push(def, &labels, value);
    }
    let parsed = match result.state {
        TargetState::WrongType | TargetState::TooLarge => Some(0.0),
        _ => result.counts.map(|_| 1.0),
    };
    let optional = [
        (&PARSED, parsed),
        (&COMPLETE, result.complete.map(flag)),
        (&FRESH, result.fresh.map(flag)),
        (&AGE, result.age),
        (&SKEW, result.skew),
        (&RESPONSE, result.latency.map(|latency| latency.as_secs_f64())),
        (&FAMILIES, result.counts.map(|(families, _)| count(families))),
        (&SAMPLES, result.counts.map(|(_, samples)| count(samples))),
        (&CHECKED, Some(unix(at))),
        (&LAST_HEALTHY, status.healthy_at.map(unix)),
        (&LEGACY_HEALTHY, Some(healthy)),
        (&LEGACY_RESPONSE, result.latency.map(|latency| latency.as_secs_f64() * 1000.0)),
    ];
    for (def, value) in optional {
        if let Some(value) = value {
            all.push(def, &labels, value);
        }
    }
    all.push(&LEGACY_CHECKED, &legacy, unix(at));
    all.push(&LEGACY_STATUS, &legacy, healthy);
    all.push(&LEGACY_REACHABLE, &legacy, reachable);
    all.push(&LEGACY_DATA, &legacy, result.complete.map_or(0.0, flag));
    if let Some((families, samples)) = result.counts {
        all.push(&LEGACY_METRICS, &legacy, count(families));
        all.push(&LEGACY_SAMPLES, &legacy, count(samples));
    }
}

/// The table of targets for the index page.
#[must_use]
pub fn tables(checker: &HealthChecker) -> Vec<Table> {
    let heads = ["target", "state", "", "response", "clock", "families", "samples", "URL"].map(str::to_owned).to_vec();
    let rows = checker.targets.iter().map(|status| row(status).to_vec()).collect();
    vec![("Targets".to_owned(), heads, rows)]
}

/// A row of that table: name, state, explanation or warning, response time, clock skew, families,
/// samples, URL.
#[must_use]
pub fn row(status: &TargetStatus) -> [String; 8] {
    let url = url_without_query(&status.target.url);
    let Some(result) = &status.result else {
        let name = status.target.name.clone();
        return [name, "not checked yet".into(), String::new(), "–".into(), "–".into(), "–".into(), "–".into(), url];
    };
    let or = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    [
        status.target.name.clone(),
        result.state.as_str().to_owned(),
        if result.why.is_empty() { result.warning.clone() } else { result.why.clone() },
        or(result.latency.map(|latency| format!("{:.1} ms", latency.as_secs_f64() * 1000.0))),
        or(result.skew.map(|skew| if skew.abs() < 1.0 { "ok".to_owned() } else { format!("{skew:+.0} s") })),
        or(result.counts.map(|(families, _)| families.to_string())),
        or(result.counts.map(|(_, samples)| samples.to_string())),
        url,
    ]
}

/// A URL without its query, which may hold a secret.
#[must_use]
pub fn url_without_query(url: &str) -> String {
    metrics::label::sanitize(url.split(['?', '#']).next().unwrap_or_default())
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

fn unix(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
