//! Port 9600: how every target stands, under the names of both checkers that are replaced, and in base units.

use std::{
    sync::mpsc,
    time::{Duration, Instant, SystemTime},
};

use exporter::{
    family::{Def, Families, Family, Kind},
    process, program,
};

use jiff::Timestamp;

use super::{
    check::State,
    notices::{self, Notices},
    round::{Round, Watched},
};
use crate::sheet::{Sheet, Table};

const WHO: &[&str] = &["target", "url"];
const SEED: &[&str] = &["exporter"];
const SEED_URL: &[&str] = &["exporter", "url"];

static HEALTHY: Def = Def::gauge(
    "wattcast_target_healthy",
    WHO,
    "1 while a target answers with a page of metrics that has all that it should have, by a clock like ours, with data of now; absent before the first look. \
     Nothing is healthy on old data.",
);
static STATE: Def = Def::gauge(
    "wattcast_target_state",
    &["target", "state"],
    "1 for the state that a target is in, 0 for the others: healthy, unready (it says itself, on /ready, that something is missing), unproven (nothing has changed yet), stale, clock, empty (what it should have is not there), wrong_type, \
     too_large, status, denied, tls, hanging, down, settings (a file that we were told of cannot be used).",
);
static REACHABLE: Def =
    Def::gauge("wattcast_target_reachable", WHO, "1 while a target answers over HTTP, whatever it says.");
static PARSED: Def =
    Def::gauge("wattcast_target_parsed", WHO, "1 while its answer is a page of metrics; absent while there is none.");
static COMPLETE: Def = Def::gauge(
    "wattcast_target_complete",
    WHO,
    "1 while all families that it should have are there with samples; absent while there is no page.",
);
static FRESH: Def = Def::gauge(
    "wattcast_target_fresh",
    WHO,
    "1 while its data is of now, by Last-Modified, the samples' own times, or that values change; absent while nothing tells, or nothing should.",
);
static AGE: Def = Def::gauge(
    "wattcast_target_data_age_seconds",
    WHO,
    "How old its data is, by its own clock; or for how long nothing has changed, once that is too long.",
);
static SKEW: Def = Def::gauge(
    "wattcast_target_clock_skew_seconds",
    WHO,
    "Its clock less ours, by its Date, within half a second and half of the answer's time.",
);
static RESPONSE: Def =
    Def::gauge("wattcast_target_response_seconds", WHO, "From asking to the end of its answer, the last time.");
static LATENCY: Def =
    Def::histogram("wattcast_target_latency_seconds", WHO, "From asking to the end of its answers, since the start.");
static FAMILIES: Def = Def::gauge("wattcast_target_families", WHO, "Families with samples on its page.");
static SAMPLES: Def = Def::gauge("wattcast_target_samples", WHO, "Samples on its page.");
static CHECKED: Def =
    Def::gauge("wattcast_target_check_timestamp_seconds", WHO, "When it was looked at last, unix seconds.");
static LAST_HEALTHY: Def = Def::gauge(
    "wattcast_target_healthy_timestamp_seconds",
    WHO,
    "When it was healthy last, unix seconds; absent while it never was.",
);
static WANTED: Def =
    Def::gauge("wattcast_target_wanted", WHO, "1 when its absence is a fault; 0 for what not every host has.");
static TARGETS: Def =
    Def::gauge("wattcast_targets", &["state"], "Targets in each state; those that were not looked at yet are in none.");

static SEED_UP: Def = Def::gauge("exporter_health_checker_up", &[], "1 while targets are looked at.").seed();
static SEED_HEALTHY: Def = Def::gauge("exporter_healthy", SEED_URL, "As wattcast_target_healthy.").seed();
static SEED_RESPONSE: Def = Def::gauge(
    "exporter_response_time_ms",
    SEED_URL,
    "Milliseconds from asking to the end of the last answer; absent while none came.",
)
.seed();
static SEED_CHECKED: Def =
    Def::gauge("exporter_last_check_timestamp", SEED, "When it was looked at last, unix seconds.").seed();
static SEED_TOTAL: Def = Def::gauge("exporter_total", &[], "Targets.").seed();
static SEED_HEALTHY_TOTAL: Def = Def::gauge("exporter_healthy_total", &[], "Targets that are healthy.").seed();
static SEED_STATUS: Def = Def::gauge("exporter_health_status", SEED, "As wattcast_target_healthy.").seed();
static SEED_REACHABLE: Def = Def::gauge("exporter_reachable", SEED, "As wattcast_target_reachable.").seed();
static SEED_METRICS: Def = Def::gauge("exporter_metric_count", SEED, "As wattcast_target_families.").seed();
static SEED_SAMPLES: Def = Def::gauge("exporter_sample_count", SEED, "As wattcast_target_samples.").seed();
static SEED_DATA: Def =
    Def::gauge("exporter_has_data", SEED, "As wattcast_target_complete; 0 while there is no page.").seed();
static SEED_INFO: Def =
    Def::gauge("exporter_health_checker_info", &["version", "language"], "1; which checker this is.").seed();

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
    &WANTED,
    &TARGETS,
    &notices::FIRING,
    &notices::TOLD,
    &SEED_UP,
    &SEED_HEALTHY,
    &SEED_RESPONSE,
    &SEED_CHECKED,
    &SEED_TOTAL,
    &SEED_HEALTHY_TOTAL,
    &SEED_STATUS,
    &SEED_REACHABLE,
    &SEED_METRICS,
    &SEED_SAMPLES,
    &SEED_DATA,
    &SEED_INFO,
];

/// The first look comes so long after the start: our own pages, and a probe that starts with us, are there then.
const BEFORE: Duration = Duration::from_secs(2);

/// How often it is asked whether an alert came meanwhile; the page is written again only where one did.
const SHOW_EVERY: Duration = Duration::from_secs(5);

/// Looks at everything and writes the page, until `stop` says so.
pub fn run(mut round: Round, interval: Duration, notices: &Notices, sheet: &Sheet, stop: &mpsc::Receiver<()>) {
    let stopped = |pause: Duration| !matches!(stop.recv_timeout(pause), Err(mpsc::RecvTimeoutError::Timeout));
    let write = |round: &Round, missing: Vec<String>| {
        let now = Timestamp::now();
        let families = families(round).into_iter().chain(notices.families(now)).collect();
        let tables = notices.table(now).into_iter().chain(tables(round)).collect();
        sheet.write(families, tables, missing);
    };
    write(&round, vec!["targets were not looked at yet".to_owned()]);
    if stopped(BEFORE) {
        return;
    }
    loop {
        let began = Instant::now();
        round.look(stopped);
        let mut told = notices.told();
        write(&round, Vec::new());
        // Alerts come between two looks.
        let mut left = Round::due(began, interval);
        while !left.is_zero() {
            let pause = left.min(SHOW_EVERY);
            if stopped(pause) {
                return;
            }
            left -= pause;
            let now = notices.told();
            if now != told {
                told = now;
                write(&round, Vec::new());
            }
        }
    }
}

/// The page's families.
#[must_use]
pub fn families(round: &Round) -> Vec<Family> {
    let mut all = Families::new(DEFS);
    let mut latencies = Family::new(&LATENCY);
    for one in &round.all {
        target(&mut all, one);
        if one.latency.count > 0 {
            latencies.push_buckets(&[&one.target.name, &shown(&one.target.url)], &one.latency);
        }
    }
    for state in State::ALL {
        let there = round.all.iter().filter(|one| one.finding.as_ref().is_some_and(|finding| finding.state == state));
        all.push(&TARGETS, &[state.as_str()], count(there.count()));
    }
    all.push(&SEED_UP, &[], 1.0);
    all.push(&SEED_TOTAL, &[], count(round.all.len()));
    all.push(&SEED_HEALTHY_TOTAL, &[], count(round.all.iter().filter(|one| one.is_healthy()).count()));
    all.push(&SEED_INFO, &[program::VERSION, "rust"], 1.0);
    let mut all: Vec<Family> = all
        .into_vec()
        .into_iter()
        .filter(|family| family.def().kind != Kind::Histogram)
        .chain(std::iter::once(latencies))
        .collect();
    all.push(program::build_info());
    all.extend(process::families());
    all
}

fn target(all: &mut Families, one: &Watched) {
    let url = shown(&one.target.url);
    let (who, seed) = ([&*one.target.name, &url], [&*one.target.name]);
    all.push(&WANTED, &who, flag(!one.target.optional));
    let (Some(finding), Some(at)) = (&one.finding, one.at) else { return };
    let healthy = flag(finding.state == State::Healthy);
    let reachable = flag(finding.reached);
    for state in State::ALL {
        all.push(&STATE, &[&one.target.name, state.as_str()], flag(state == finding.state));
    }
    for (def, value) in [(&HEALTHY, healthy), (&REACHABLE, reachable)] {
        all.push(def, &who, value);
    }
    let parsed = match finding.state {
        State::WrongType | State::TooLarge => Some(0.0),
        _ => finding.counts.map(|_| 1.0),
    };
    let optional = [
        (&PARSED, parsed),
        (&COMPLETE, finding.complete.map(flag)),
        (&FRESH, finding.fresh.map(flag)),
        (&AGE, finding.age),
        (&SKEW, finding.skew),
        (&RESPONSE, finding.latency.map(|latency| latency.as_secs_f64())),
        (&FAMILIES, finding.counts.map(|(families, _)| count(families))),
        (&SAMPLES, finding.counts.map(|(_, samples)| count(samples))),
        (&CHECKED, Some(unix(at))),
        (&LAST_HEALTHY, one.healthy_at.map(unix)),
        (&SEED_HEALTHY, Some(healthy)),
        (&SEED_RESPONSE, finding.latency.map(|latency| latency.as_secs_f64() * 1000.0)),
    ];
    for (def, value) in optional {
        if let Some(value) = value {
            all.push(def, &who, value);
        }
    }
    all.push(&SEED_CHECKED, &seed, unix(at));
    all.push(&SEED_STATUS, &seed, healthy);
    all.push(&SEED_REACHABLE, &seed, reachable);
    all.push(&SEED_DATA, &seed, finding.complete.map_or(0.0, flag));
    if let Some((families, samples)) = finding.counts {
        all.push(&SEED_METRICS, &seed, count(families));
        all.push(&SEED_SAMPLES, &seed, count(samples));
    }
}

/// The page for people.
#[must_use]
pub fn tables(round: &Round) -> Vec<Table> {
    let heads = ["target", "state", "", "answer", "clock", "families", "samples", "where"].map(str::to_owned).to_vec();
    let rows = round.all.iter().map(|one| row(one).to_vec()).collect();
    vec![("Targets".to_owned(), heads, rows)]
}

/// A target in words: name, state, why, how long the answer took, how far its clock is off, families, samples, URL.
#[must_use]
pub fn row(one: &Watched) -> [String; 8] {
    let url = shown(&one.target.url);
    let Some(finding) = &one.finding else {
        let name = one.target.name.clone();
        return [name, "not looked at yet".into(), String::new(), "–".into(), "–".into(), "–".into(), "–".into(), url];
    };
    let or = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    [
        one.target.name.clone(),
        finding.state.as_str().to_owned(),
        finding.why.clone(),
        or(finding.latency.map(|latency| format!("{:.1} ms", latency.as_secs_f64() * 1000.0))),
        or(finding.skew.map(|skew| if skew.abs() < 1.0 { "right".to_owned() } else { format!("{skew:+.0} s") })),
        or(finding.counts.map(|(families, _)| families.to_string())),
        or(finding.counts.map(|(_, samples)| samples.to_string())),
        url,
    ]
}

/// A URL without what may be a secret: the query.
#[must_use]
pub fn shown(url: &str) -> String {
    exporter::label::clean(url.split(['?', '#']).next().unwrap_or_default())
}

fn flag(so: bool) -> f64 {
    f64::from(u8::from(so))
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

fn unix(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
