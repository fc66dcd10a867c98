//! The check of one target: a request, and a pure function that evaluates the response.
//!
//! A target is healthy if it is reachable, serves a metrics page with samples of all expected
//! families, has a clock like ours and current data. Without evidence that the data is current it
//! is not yet healthy.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant, SystemTime},
};

use metrics::parse::{Exposition, Sample, decode, parse_as};

use tracing::debug;

use super::target::{Expected, Freshness, Target};
use client::{Client, ClientError, ConnectError};

/// Largest page in bytes that is read; cAdvisor on a large host serves some ten million.
pub const MAX_PAGE: u64 = 64 << 20;
/// The text format, which every exporter serves.
const ACCEPT: (&str, &str) = ("Accept", "text/plain;version=0.0.4;q=1,*/*;q=0.1");

/// The state of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetState {
    /// Reachable, complete and current.
    Healthy,
    /// Healthy, but its `/ready` reports missing data.
    Unready,
    /// Complete, but no value has changed yet since the first check.
    Unproven,
    /// Its data is too old.
    Stale,
    /// Its clock differs from ours, which distorts rates and joins by time.
    Clock,
    /// An expected family has no sample.
    Empty,
    /// The response is no metrics page.
    WrongType,
    /// The page exceeds [`MAX_PAGE`].
    TooLarge,
    /// The response has an error status.
    Status,
    /// It rejects our credentials.
    Denied,
    /// The TLS handshake failed.
    Tls,
    /// The response timed out.
    Hanging,
    /// The connection failed.
    Down,
    /// Its configuration is unusable, such as a file with a secret.
    Settings,
}

impl TargetState {
    pub const ALL: [Self; 14] = [
        Self::Healthy,
        Self::Unready,
        Self::Unproven,
        Self::Stale,
        Self::Clock,
        Self::Empty,
        Self::WrongType,
        Self::TooLarge,
        Self::Status,
        Self::Denied,
        Self::Tls,
        Self::Hanging,
        Self::Down,
        Self::Settings,
    ];

    /// The label `state`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unready => "unready",
            Self::Unproven => "unproven",
            Self::Stale => "stale",
            Self::Clock => "clock",
            Self::Empty => "empty",
            Self::WrongType => "wrong_type",
            Self::TooLarge => "too_large",
            Self::Status => "status",
            Self::Denied => "denied",
            Self::Tls => "tls",
            Self::Hanging => "hanging",
            Self::Down => "down",
            Self::Settings => "settings",
        }
    }
}

/// The result of one check of a target; values that were not determined are `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckResult {
    pub state: TargetState,
    /// Explanation of the state; empty if healthy.
    pub why: String,
    /// The first violation of the format that scrapers accept; usually empty.
    pub warning: String,
    /// Whether it answered over HTTP, with any status.
    pub reached: bool,
    pub latency: Option<Duration>,
    /// Its clock minus ours in seconds, accurate to half a second.
    pub skew: Option<f64>,
    /// Age of its data in seconds.
    pub age: Option<f64>,
    /// Number of families and samples.
    pub counts: Option<(usize, usize)>,
    /// Whether all expected families have samples.
    pub complete: Option<bool>,
    /// Whether its data is current.
    pub fresh: Option<bool>,
}

impl CheckResult {
    fn new(state: TargetState, why: impl Into<String>) -> Self {
        let (latency, skew, age, counts, complete, fresh) = (None, None, None, None, None, None);
        let (why, warning) = (why.into(), String::new());
        Self { state, why, warning, reached: false, latency, skew, age, counts, complete, fresh }
    }
}

/// The previous values of a page, to detect changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PreviousValues {
    /// Hash of the values.
    hash: u64,
    since: Instant,
    /// Whether they have changed since the first check.
    changed: bool,
}

/// The response of a target.
#[derive(Clone, Debug, Default)]
pub struct Response {
    pub status: u16,
    /// Empty if absent.
    pub content_type: String,
    /// The header `Date`, its clock.
    pub date: Option<SystemTime>,
    /// The header `Last-Modified`, by its clock.
    pub modified: Option<SystemTime>,
    pub body: Vec<u8>,
    pub latency: Duration,
}

/// Requests the page. The time is that of our clock halfway between request and response.
///
/// # Errors
/// There is no complete response.
pub fn fetch(client: &Client) -> Result<(Response, SystemTime), ClientError> {
    let (clock, start) = (SystemTime::now(), Instant::now());
    let reply = client.get_with("", &[], &[ACCEPT])?;
    let latency = start.elapsed();
    let header = |name: &str| reply.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let date = |name: &str| httpdate::parse_http_date(header(name)).ok();
    let response = Response {
        status: reply.status,
        content_type: header("content-type").to_owned(),
        date: date("date"),
        modified: date("last-modified"),
        latency,
        body: Vec::new(),
    };
    debug!(
        status = reply.status,
        bytes = reply.body.len(),
        "{}: {} after {:.1} ms; Date {:?}, Last-Modified {:?}",
        client.display_url(),
        response.content_type,
        latency.as_secs_f64() * 1000.0,
        header("date"),
        header("last-modified"),
    );
    Ok((Response { body: reply.body, ..response }, clock + latency / 2))
}

/// Requests `/ready` and returns the missing data that it reports, if any.
#[must_use]
pub fn fetch_missing(client: &Client) -> Option<String> {
    let reply = client.get("", &[]).ok()?;
    (reply.status == 503).then(|| reply.excerpt())
}

/// The result for a request without a response.
#[must_use]
pub fn failure(error: &ClientError) -> CheckResult {
    debug!("{error}");
    match error {
        ClientError::Settings(why) => CheckResult::new(TargetState::Settings, why.clone()),
        ClientError::TooLarge(_) => CheckResult {
            reached: true,
            ..CheckResult::new(TargetState::TooLarge, format!("more than {} MiB", MAX_PAGE >> 20))
        },
        ClientError::Unreachable { why, cause, .. } => {
            let (state, hint) = match cause {
                ConnectError::Unreachable => (TargetState::Down, "check that it runs and listens on this address"),
                ConnectError::Timeout => {
                    (TargetState::Hanging, "it accepts connections without answering, or packets are dropped")
                }
                ConnectError::Tls => {
                    (TargetState::Tls, "check ca_file, the name in its certificate, and our client certificate")
                }
                ConnectError::Protocol => {
                    (TargetState::Down, "it closed the connection; check that both sides agree on TLS")
                }
            };
            CheckResult::new(state, format!("{why}; {hint}"))
        }
    }
}

/// Evaluates a response. `now` is our clock halfway between request and response, `previous` the
/// values of the last check.
#[must_use]
pub fn evaluate(
    target: &Target,
    response: &Response,
    now: SystemTime,
    previous: Option<PreviousValues>,
    max_skew: Duration,
) -> (CheckResult, Option<PreviousValues>) {
    TargetEvaluation::new(target, response, now, max_skew).run(previous)
}

struct TargetEvaluation<'a> {
    target: &'a Target,
    response: &'a Response,
    now: SystemTime,
    skew: Option<f64>,
    /// Largest skew in seconds that is no fault.
    max_skew: f64,
}

impl<'a> TargetEvaluation<'a> {
    fn new(target: &'a Target, response: &'a Response, now: SystemTime, max_skew: Duration) -> Self {
        // A Date has whole seconds, rounded down.
        let skew = response.date.map(|date| seconds_between(date, now) + 0.5);
        // It may be of any moment during the request.
        let max_skew = max_skew.as_secs_f64().max(1.0) + response.latency.as_secs_f64() / 2.0;
        Self { target, response, now, skew, max_skew }
    }

    fn result(&self, state: TargetState, why: String) -> CheckResult {
        let latency = Some(self.response.latency);
        CheckResult { reached: true, latency, skew: self.skew, ..CheckResult::new(state, why) }
    }

    fn run(&self, previous: Option<PreviousValues>) -> (CheckResult, Option<PreviousValues>) {
        match self.response.status {
            200 => {}
            401 | 403 => {
                let why = format!("status {}: credentials are missing or wrong", self.response.status);
                return (self.result(TargetState::Denied, why), previous);
            }
            status => return (self.result(TargetState::Status, format!("status {status}")), previous),
        }
        let (result, previous) = match &self.target.expected {
            Expected::AnyPage => (self.result(TargetState::Healthy, String::new()), previous),
            Expected::Metrics { families, freshness } => match parse_page(self.response) {
                Ok(page) => {
                    let (result, previous) = self.check_page(&page, families, freshness, previous);
                    let warning = page.warnings.first().map(|fault| format!("warning: {fault}")).unwrap_or_default();
                    (CheckResult { warning, ..result }, previous)
                }
                Err(why) => return (self.result(TargetState::WrongType, why), previous),
            },
        };
        (self.check_clock(result), previous)
    }

    /// A wrong clock overrides the other states of a metrics page.
    fn check_clock(&self, result: CheckResult) -> CheckResult {
        match self.skew {
            Some(skew) if skew.abs() > self.max_skew => {
                let direction = if skew > 0.0 { "ahead of" } else { "behind" };
                let why =
                    format!("its clock is {:.0} s {direction} ours; check time synchronisation on both", skew.abs());
                CheckResult { state: TargetState::Clock, why, ..result }
            }
            _ => result,
        }
    }

    /// Checks that the expected families have samples, and the age of the data.
    fn check_page(
        &self,
        page: &Exposition,
        families: &[Vec<String>],
        freshness: &Freshness,
        previous: Option<PreviousValues>,
    ) -> (CheckResult, Option<PreviousValues>) {
        let has =
            |name: &String| page.samples.iter().any(|sample| sample.name == *name || page.family(&sample.name) == name);
        let missing: Vec<String> =
            families.iter().filter(|names| !names.iter().any(has)).map(|names| names.join(" or ")).collect();
        let counts = Some((count_families(page), page.samples.len()));
        let complete = missing.is_empty() && !page.samples.is_empty();
        let result = |state, why| CheckResult { counts, complete: Some(complete), ..self.result(state, why) };
        if !complete {
            let why = if page.samples.is_empty() {
                "a page without samples".to_owned()
            } else {
                format!("no samples of {}", missing.join(", "))
            };
            return (result(TargetState::Empty, why), previous);
        }
        let (evidence, previous) = evidence(freshness, page, self.response, self.now, previous);
        let healthy = || result(TargetState::Healthy, String::new());
        let result = match evidence {
            Evidence::Missing(family) => {
                let why = format!("no samples of {family}");
                CheckResult { complete: Some(false), ..result(TargetState::Empty, why) }
            }
            Evidence::Age(age) if age < -self.max_skew => {
                let why = format!("its data is {:.0} s in the future, by its own clock", -age);
                CheckResult { fresh: Some(false), ..result(TargetState::Stale, why) }
            }
            Evidence::Age(age) if age > self.target.max_age.as_secs_f64() => {
                let why = format!("its data is {age:.0} s old, more than {} s", self.target.max_age.as_secs());
                CheckResult { age: Some(age), fresh: Some(false), ..result(TargetState::Stale, why) }
            }
            Evidence::Age(age) => CheckResult { age: Some(age.max(0.0)), fresh: Some(true), ..healthy() },
            Evidence::Changed => CheckResult { fresh: Some(true), ..healthy() },
            Evidence::NotRequired => healthy(),
            Evidence::UnchangedFor(time) if time > self.target.max_age => {
                let why = format!("no value has changed for {} s", time.as_secs());
                CheckResult { age: Some(time.as_secs_f64()), fresh: Some(false), ..result(TargetState::Stale, why) }
            }
            Evidence::UnchangedFor(_) if previous.is_some_and(|previous| previous.changed) => {
                CheckResult { fresh: Some(true), ..healthy() }
            }
            Evidence::UnchangedFor(_) => {
                result(TargetState::Unproven, "no value has changed yet since the first check".to_owned())
            }
        };
        (result, previous)
    }
}

fn parse_page(response: &Response) -> Result<Exposition, String> {
    let kind = response.content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if matches!(&*kind, "text/html" | "application/json") {
        return Err(format!("the response is {kind}"));
    }
    let page = decode(&response.body).and_then(|text| parse_as(&text, kind == "application/openmetrics-text"));
    page.map_err(|error| format!("no metrics page: {error}"))
}

/// Number of families with samples.
fn count_families(page: &Exposition) -> usize {
    let mut names: Vec<&str> = page.samples.iter().map(|sample| page.family(&sample.name)).collect();
    names.sort_unstable();
    names.dedup();
    names.len()
}

/// Evidence for the age of the data.
enum Evidence {
    /// Its age in seconds; negative in the future.
    Age(f64),
    /// The family with its time has no samples.
    Missing(String),
    /// A value has changed since the previous check.
    Changed,
    /// No value has changed for this long.
    UnchangedFor(Duration),
    /// The page need not change.
    NotRequired,
}

fn evidence(
    freshness: &Freshness,
    page: &Exposition,
    response: &Response,
    now: SystemTime,
    previous: Option<PreviousValues>,
) -> (Evidence, Option<PreviousValues>) {
    // Ages are by its own clock, so that a wrong clock is reported as such.
    let its_now = response.date.unwrap_or(now);
    let age = |at: f64| unix(its_now) - at;
    let newest =
        |values: &mut dyn Iterator<Item = f64>| values.filter(|value| value.is_finite()).max_by(f64::total_cmp);
    match freshness {
        Freshness::Static => return (Evidence::NotRequired, None),
        Freshness::Timestamp(family) => {
            let values = page.samples.iter().filter(|sample| sample.name == *family).map(|sample| sample.value);
            let newest = newest(&mut { values });
            return (newest.map_or_else(|| Evidence::Missing(family.clone()), |at| Evidence::Age(age(at))), None);
        }
        Freshness::Any => {
            if let Some(modified) = response.modified {
                return (Evidence::Age(seconds_between(its_now, modified)), None);
            }
            if let Some(at) = newest(&mut page.samples.iter().filter_map(|sample| sample.timestamp)) {
                return (Evidence::Age(age(at)), None);
            }
        }
        Freshness::Changes(_) => {}
    }
    let only_self_metrics = page.samples.iter().all(|sample| is_self_metric(&sample.name));
    let counts = |name: &str| match freshness {
        Freshness::Changes(families) => families.iter().any(|family| family == name || page.family(name) == family),
        _ => only_self_metrics || !is_self_metric(name),
    };
    // A sum of hashes, as some exporters change the order of their lines.
    let hash = |sample: &Sample| {
        let mut hasher = DefaultHasher::new();
        (&sample.name, &sample.labels, sample.value.to_bits()).hash(&mut hasher);
        hasher.finish()
    };
    let hash = page.samples.iter().filter(|sample| counts(&sample.name)).map(hash).fold(0, u64::wrapping_add);
    let since = Instant::now();
    match previous {
        None => (Evidence::UnchangedFor(Duration::ZERO), Some(PreviousValues { hash, since, changed: false })),
        Some(previous) if previous.hash != hash => {
            (Evidence::Changed, Some(PreviousValues { hash, since, changed: true }))
        }
        Some(previous) => (Evidence::UnchangedFor(since - previous.since), Some(previous)),
    }
}

/// True for metrics of client libraries on the exporter itself, which change with every scrape.
#[must_use]
pub fn is_self_metric(name: &str) -> bool {
    ["process_", "go_", "promhttp_", "python_", "net_conntrack_", "scrape_", "nodejs_", "jvm_", "http_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

fn unix(at: SystemTime) -> f64 {
    seconds_between(at, SystemTime::UNIX_EPOCH)
}

/// `later` minus `earlier` in seconds; negative in reverse order.
fn seconds_between(later: SystemTime, earlier: SystemTime) -> f64 {
    match later.duration_since(earlier) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::target::{MAX_AGE, parse as parse_target};
    use client::Access;

    fn target(freshness: Freshness) -> Target {
        let families = vec![vec!["a_total".to_owned(), "b".to_owned()]];
        Target {
            expected: Expected::Metrics { families, freshness },
            ..parse_target("t=http://x:1", &Access::default(), MAX_AGE).unwrap()
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn response(body: &str) -> Response {
        Response {
            status: 200,
            content_type: "text/plain".into(),
            body: body.into(),
            date: Some(at(0)),
            ..Response::default()
        }
    }

    fn state(target: &Target, response: &Response) -> (TargetState, String) {
        let (result, _) = evaluate(target, response, at(0), None, Duration::from_secs(5));
        (result.state, result.why)
    }

    const STATIC: Freshness = Freshness::Static;

    #[test]
    fn each_response_has_its_state() {
        let target = target(STATIC);
        let with = |change: fn(&mut Response)| {
            let mut response = response("# TYPE a_total counter\na_total 1\n");
            change(&mut response);
            state(&target, &response)
        };
        assert_eq!(with(|_| {}), (TargetState::Healthy, String::new()));
        for (change, expected, word) in [
            ((|response| response.status = 503) as fn(&mut Response), TargetState::Status, "503"),
            (|response| response.status = 302, TargetState::Status, "302"),
            (|response| response.status = 401, TargetState::Denied, "credentials"),
            (|response| response.content_type = "text/html; charset=utf-8".into(), TargetState::WrongType, "text/html"),
            (|response| response.body = b"<html>".into(), TargetState::WrongType, "line 1"),
            (|response| response.body = vec![0xff], TargetState::WrongType, "UTF-8"),
            (|response| response.body = b"c 1".into(), TargetState::Empty, "a_total or b"),
            (|response| response.body = b"# TYPE a_total counter\n".into(), TargetState::Empty, "without samples"),
            (|response| response.date = Some(at(3600)), TargetState::Clock, "3600 s ahead"),
            (|response| response.date = Some(at(0) - Duration::from_secs(3600)), TargetState::Clock, "3600 s behind"),
        ] {
            let (state, why) = with(change);
            assert!(state == expected && why.contains(word), "{expected:?}: {state:?} {why}");
        }
        assert_eq!(with(|response| response.date = Some(at(4))).0, TargetState::Healthy, "within what is allowed");
    }

    #[test]
    fn the_age_of_data_comes_from_header_timestamp_or_value() {
        let old = Duration::from_secs(61);
        let any = target(Freshness::Any);
        let mut page = response("b 1\n");
        page.modified = Some(at(0) - Duration::from_secs(59));
        assert_eq!(state(&any, &page).0, TargetState::Healthy);
        page.modified = Some(at(0) - old);
        let (stale, why) = state(&any, &page);
        assert!(stale == TargetState::Stale && why.contains("61 s old"), "{why}");
        // Its clock is an hour behind, and its data is current by that clock.
        page.date = Some(at(0) - Duration::from_secs(3600));
        page.modified = page.date;
        assert_eq!(state(&any, &page).0, TargetState::Clock);
        assert_eq!(state(&any, &response("b 1 1699999990000\n")).0, TargetState::Healthy);
        assert_eq!(state(&any, &response("b 1 1699999900000\n")).0, TargetState::Stale);
        let timestamp = target(Freshness::Timestamp("b".into()));
        assert_eq!(state(&timestamp, &response("b 1699999990\n")).0, TargetState::Healthy);
        assert_eq!(state(&timestamp, &response("b 1699999900\n")).0, TargetState::Stale);
        assert_eq!(state(&timestamp, &response("a_total 1\n")).0, TargetState::Empty, "no timestamp");
        assert_eq!(state(&timestamp, &response("b 1700003600\n")).0, TargetState::Stale, "in the future");
    }

    #[test]
    fn a_page_that_scrapers_accept_is_healthy_with_a_warning() {
        let page = response("# TYPE a_total counter\na_total{gpu=\"0\"} 1\n# TYPE a_total counter\na_total 2\n");
        let (result, _) = evaluate(&target(STATIC), &page, at(0), None, Duration::from_secs(5));
        assert_eq!((result.state, &*result.why, result.counts), (TargetState::Healthy, "", Some((1, 2))));
        assert!(result.warning.contains("line 3: second TYPE"), "{}", result.warning);
    }

    #[test]
    fn self_metrics_and_the_order_of_lines_are_no_evidence() {
        let target = target(Freshness::Any);
        let check = |body: &str, previous| evaluate(&target, &response(body), at(0), previous, Duration::from_secs(5));
        let (_, previous) =
            check("b 5\nc 6\npromhttp_metric_handler_requests_total 1\nprocess_cpu_seconds_total 1\n", None);
        let (result, previous) =
            check("promhttp_metric_handler_requests_total 2\nc 6\nprocess_cpu_seconds_total 2\nb 5\n", previous);
        assert_eq!(result.state, TargetState::Unproven);
        assert_eq!(check("b 5\nc 7\n", previous).0.state, TargetState::Healthy);
    }

    #[test]
    fn a_slow_response_is_no_clock_skew() {
        let slow = Response { latency: Duration::from_secs(12), date: Some(at(6)), ..response("b 1\n") };
        assert_eq!(state(&target(STATIC), &slow).0, TargetState::Healthy);
    }

    #[test]
    fn a_page_that_never_changes_is_never_healthy() {
        let mut target = target(Freshness::Changes(vec!["b".into()]));
        let check = |target: &Target, body: &str, previous: Option<PreviousValues>| {
            evaluate(target, &response(body), at(0), previous, Duration::from_secs(5))
        };
        let (first, previous) = check(&target, "b 1\nc 1\n", None);
        assert_eq!((first.state, first.fresh), (TargetState::Unproven, None));
        let (other, unchanged) = check(&target, "b 1\nc 2\n", previous);
        assert_eq!(other.state, TargetState::Unproven, "another family has changed");
        let (changed, previous) = check(&target, "b 2\nc 2\n", unchanged);
        assert_eq!((changed.state, changed.fresh), (TargetState::Healthy, Some(true)));
        let (later, previous) = check(&target, "b 2\nc 2\n", previous);
        assert_eq!(later.state, TargetState::Healthy, "for a while");
        target.max_age = Duration::ZERO;
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(check(&target, "b 2\nc 2\n", previous).0.state, TargetState::Stale);
    }
}
