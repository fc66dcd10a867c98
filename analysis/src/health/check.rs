//! One target: asked, and judged by what it said. The judgement is pure.
//!
//! Healthy is what can be reached, is a page of metrics, has the families that it should have, with samples, by a clock like ours, and whose data is of now. Where nothing tells
//! that it is of now, it is not yet called healthy.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant, SystemTime},
};

use exporter::parse::{Exposition, Sample, parse_as};

use tracing::debug;

use super::target::{Fresh, Shows, Target};
use crate::client::{Client, Failed, Obstacle};

/// Largest page that is read, in bytes; a cAdvisor of a large host gives some ten million.
pub const MAX_PAGE: u64 = 64 << 20;
/// What both of our programs and every scraper take.
const ACCEPT: (&str, &str) = ("Accept", "text/plain;version=0.0.4;q=1,*/*;q=0.1");

/// How a target stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Reachable, right, complete, and of now.
    Healthy,
    /// All that, and it says itself, on `/ready`, that something it should have is missing or broken.
    Unready,
    /// All that, but for a proof that its data is of now: nothing has changed since it is looked at.
    Unproven,
    /// Its data is of a while ago.
    Stale,
    /// Its clock is not ours; every rate and every join by time is off.
    Clock,
    /// A page, without what should be on it.
    Empty,
    /// An answer that is no page of metrics.
    WrongType,
    /// A page larger than anybody wants.
    TooLarge,
    /// An answer with a status of failure.
    Status,
    /// It wants a password or a certificate that we do not have, or refuses ours.
    Denied,
    /// TLS was refused, on either side.
    Tls,
    /// It does not answer in time.
    Hanging,
    /// Nobody answers.
    Down,
    /// What we were told of it cannot be used: a file of a secret, mostly.
    Settings,
}

impl State {
    /// All of them.
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

    /// As labels and tables have it.
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

/// What came of looking at a target once. What was not come to is absent.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// How it stands.
    pub state: State,
    /// Why, for people; empty when healthy.
    pub why: String,
    /// Whether it answered over HTTP, whatever it said.
    pub reached: bool,
    /// From asking to the end of the answer.
    pub latency: Option<Duration>,
    /// Its clock less ours, in seconds, within half of one.
    pub skew: Option<f64>,
    /// How old its data is, in seconds.
    pub age: Option<f64>,
    /// Families and samples on its page.
    pub counts: Option<(usize, usize)>,
    /// Whether all that is expected is there, with samples.
    pub complete: Option<bool>,
    /// Whether its data is of now.
    pub fresh: Option<bool>,
}

impl Finding {
    fn new(state: State, why: impl Into<String>) -> Self {
        let (latency, skew, age, counts, complete, fresh) = (None, None, None, None, None, None);
        Self { state, why: why.into(), reached: false, latency, skew, age, counts, complete, fresh }
    }
}

/// What of a page is remembered until the next: whether it moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    values: u64,
    since: Instant,
    moved: bool,
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Of HTTP.
    pub status: u16,
    /// As it was said; empty when it was not.
    pub content_type: String,
    /// Its own clock.
    pub date: Option<SystemTime>,
    /// When its page was made, by its own clock.
    pub modified: Option<SystemTime>,
    /// The page.
    pub body: Vec<u8>,
    /// How long it took.
    pub latency: Duration,
}

/// Asks. The second is our clock, half-way.
///
/// # Errors
/// Why there is no whole answer.
pub fn ask(client: &Client) -> Result<(Answer, SystemTime), Failed> {
    let (began, start) = (SystemTime::now(), Instant::now());
    let reply = client.get_with("", &[], &[ACCEPT])?;
    let latency = start.elapsed();
    let header = |name: &str| reply.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let moment = |name: &str| httpdate::parse_http_date(header(name)).ok();
    let answer = Answer {
        status: reply.status,
        content_type: header("content-type").to_owned(),
        date: moment("date"),
        modified: moment("last-modified"),
        latency,
        body: Vec::new(),
    };
    debug!(
        status = reply.status,
        bytes = reply.body.len(),
        "{}: {} after {:.1} ms; its clock {:?}, its page of {:?}",
        client.shown(),
        answer.content_type,
        latency.as_secs_f64() * 1000.0,
        header("date"),
        header("last-modified"),
    );
    Ok((Answer { body: reply.body, ..answer }, began + latency / 2))
}

/// What one of ours says that it lacks; `None` when nothing, or when it does not say.
#[must_use]
pub fn unready(client: &Client) -> Option<String> {
    let reply = client.get("", &[]).ok()?;
    (reply.status == 503).then(|| reply.excerpt())
}

/// What there is to say when no answer came.
#[must_use]
pub fn failed(error: &Failed) -> Finding {
    debug!("{error}");
    match error {
        Failed::Settings(why) => Finding::new(State::Settings, why.clone()),
        Failed::TooLarge(_) => {
            Finding { reached: true, ..Finding::new(State::TooLarge, format!("more than {} MiB", MAX_PAGE >> 20)) }
        }
        Failed::Unreachable { why, obstacle, .. } => {
            let (state, advice) = match obstacle {
                Obstacle::Nobody => (State::Down, "is it started, and does it listen where we look?"),
                Obstacle::Time => {
                    (State::Hanging, "it takes connections and does not answer, or nothing comes through")
                }
                Obstacle::Tls => (State::Tls, "check ca_file, the name in its certificate, and our own certificate"),
                Obstacle::Broken => (
                    State::Down,
                    "it ended the connection; a port of TLS that is asked without, or the other way round?",
                ),
            };
            Finding::new(state, format!("{why}; {advice}"))
        }
    }
}

/// Judges an answer. `now` is our clock half-way, `seen` what was remembered of the page before.
#[must_use]
pub fn judge(
    target: &Target,
    answer: &Answer,
    now: SystemTime,
    seen: Option<Seen>,
    most_skew: Duration,
) -> (Finding, Option<Seen>) {
    // A date has whole seconds, cut off.
    let skew = answer.date.map(|date| difference(date, now) + 0.5);
    let known =
        |state, why: String| Finding { reached: true, latency: Some(answer.latency), skew, ..Finding::new(state, why) };
    match answer.status {
        200 => {}
        401 | 403 => {
            let why = format!("status {}: it wants a user or a token, or does not know ours", answer.status);
            return (known(State::Denied, why), seen);
        }
        status => return (known(State::Status, format!("status {status}")), seen),
    }
    // Its date is of some moment of the answer's time.
    let most = most_skew.as_secs_f64().max(1.0) + answer.latency.as_secs_f64() / 2.0;
    let clock = |otherwise: Finding| match skew {
        Some(skew) if skew.abs() > most => {
            let which = if skew > 0.0 { "ahead of" } else { "behind" };
            let why = format!("its clock is {:.0} s {which} ours; does a time service run on both?", skew.abs());
            Finding { state: State::Clock, why, ..otherwise }
        }
        _ => otherwise,
    };
    let Shows::Metrics { expect, fresh } = &target.shows else {
        return (clock(known(State::Healthy, String::new())), seen);
    };
    let kind = answer.content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let page = if matches!(&*kind, "text/html" | "application/json") {
        Err(format!("it answers with {kind}"))
    } else {
        match std::str::from_utf8(&answer.body) {
            Ok(text) => parse_as(text, kind == "application/openmetrics-text")
                .map_err(|error| format!("no page of metrics: {error}")),
            Err(_) => Err("no page of metrics: not UTF-8".to_owned()),
        }
    };
    let page = match page {
        Ok(page) => page,
        Err(why) => return (known(State::WrongType, why), seen),
    };
    let counts = Some((families(&page), page.samples.len()));
    let has =
        |name: &String| page.samples.iter().any(|sample| sample.name == *name || page.family(&sample.name) == name);
    let missing: Vec<String> =
        expect.iter().filter(|names| !names.iter().any(has)).map(|names| names.join(" or ")).collect();
    let complete = missing.is_empty() && !page.samples.is_empty();
    let of = |state, why| Finding { counts, complete: Some(complete), ..known(state, why) };
    if !complete {
        let why = if page.samples.is_empty() {
            "a page without a sample".to_owned()
        } else {
            format!("nothing of {}", missing.join(", "))
        };
        return (clock(of(State::Empty, why)), seen);
    }
    let (freshness, seen) = freshness(fresh, &page, answer, now, seen);
    let finding = match freshness {
        Freshness::Missing(family) => {
            Finding { complete: Some(false), ..of(State::Empty, format!("nothing of {family}")) }
        }
        Freshness::Known(age) if age < -most => {
            let why = format!("its data is of {:.0} s from now, by its own clock", -age);
            Finding { fresh: Some(false), ..of(State::Stale, why) }
        }
        Freshness::Known(age) if age > target.max_age.as_secs_f64() => {
            let why = format!("its data is {age:.0} s old; at most {} s is wanted", target.max_age.as_secs());
            Finding { age: Some(age), fresh: Some(false), ..of(State::Stale, why) }
        }
        Freshness::Known(age) => {
            Finding { age: Some(age.max(0.0)), fresh: Some(true), ..of(State::Healthy, String::new()) }
        }
        Freshness::Moved => Finding { fresh: Some(true), ..of(State::Healthy, String::new()) },
        Freshness::NotAsked => of(State::Healthy, String::new()),
        Freshness::Still(for_so_long) if for_so_long > target.max_age => {
            let why = format!("nothing on its page has changed for {} s", for_so_long.as_secs());
            Finding { age: Some(for_so_long.as_secs_f64()), fresh: Some(false), ..of(State::Stale, why) }
        }
        Freshness::Still(_) if seen.is_some_and(|seen| seen.moved) => {
            Finding { fresh: Some(true), ..of(State::Healthy, String::new()) }
        }
        Freshness::Still(_) => {
            of(State::Unproven, "nothing on its page has changed yet since it is looked at".to_owned())
        }
    };
    (clock(finding), seen)
}

/// Families by name, of samples that are there.
fn families(page: &Exposition) -> usize {
    let mut names: Vec<&str> = page.samples.iter().map(|sample| page.family(&sample.name)).collect();
    names.sort_unstable();
    names.dedup();
    names.len()
}

enum Freshness {
    /// It says so itself, in seconds; less than 0 is in the future.
    Known(f64),
    /// The family that should tell is not there.
    Missing(String),
    /// Something changed since the look before.
    Moved,
    /// Nothing changed for so long.
    Still(Duration),
    /// It is meant to stand still.
    NotAsked,
}

fn freshness(
    fresh: &Fresh,
    page: &Exposition,
    answer: &Answer,
    now: SystemTime,
    seen: Option<Seen>,
) -> (Freshness, Option<Seen>) {
    // Ages are by its own clock, so that a clock that is off is told as that.
    let its_now = answer.date.unwrap_or(now);
    let age = |at: f64| unix(its_now) - at;
    let newest =
        |values: &mut dyn Iterator<Item = f64>| values.filter(|value| value.is_finite()).max_by(f64::total_cmp);
    match fresh {
        Fresh::Static => return (Freshness::NotAsked, None),
        Fresh::Timestamp(family) => {
            let values = page.samples.iter().filter(|sample| sample.name == *family).map(|sample| sample.value);
            let newest = newest(&mut { values });
            return (newest.map_or_else(|| Freshness::Missing(family.clone()), |at| Freshness::Known(age(at))), None);
        }
        Fresh::Any => {
            if let Some(modified) = answer.modified {
                return (Freshness::Known(difference(its_now, modified)), None);
            }
            if let Some(at) = newest(&mut page.samples.iter().filter_map(|sample| sample.at)) {
                return (Freshness::Known(age(at)), None);
            }
        }
        Fresh::Moves(_) => {}
    }
    let only_own = page.samples.iter().all(|sample| is_of_the_program(&sample.name));
    let counts = |name: &str| match fresh {
        Fresh::Moves(families) => families.iter().any(|family| family == name || page.family(name) == family),
        _ => only_own || !is_of_the_program(name),
    };
    // Of each by itself: some write their lines in another order each time.
    let one = |sample: &Sample| {
        let mut hasher = DefaultHasher::new();
        (&sample.name, &sample.labels, sample.value.to_bits()).hash(&mut hasher);
        hasher.finish()
    };
    let values = page.samples.iter().filter(|sample| counts(&sample.name)).map(one).fold(0, u64::wrapping_add);
    let at = Instant::now();
    match seen {
        None => (Freshness::Still(Duration::ZERO), Some(Seen { values, since: at, moved: false })),
        Some(before) if before.values != values => (Freshness::Moved, Some(Seen { values, since: at, moved: true })),
        Some(before) => (Freshness::Still(at - before.since), Some(before)),
    }
}

/// What client libraries tell of the program itself: it moves because it is asked, and whatever the data does.
#[must_use]
pub fn is_of_the_program(name: &str) -> bool {
    ["process_", "go_", "promhttp_", "python_", "net_conntrack_", "scrape_", "nodejs_", "jvm_", "http_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

fn unix(at: SystemTime) -> f64 {
    difference(at, SystemTime::UNIX_EPOCH)
}

/// The first less the second, in seconds.
fn difference(one: SystemTime, other: SystemTime) -> f64 {
    match one.duration_since(other) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::Access,
        health::target::{MAX_AGE, given},
    };

    fn target(fresh: Fresh) -> Target {
        let expect = vec![vec!["a_total".to_owned(), "b".to_owned()]];
        Target {
            shows: Shows::Metrics { expect, fresh },
            ..given("t=http://x:1", &Access::default(), MAX_AGE).unwrap()
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn answer(body: &str) -> Answer {
        Answer {
            status: 200,
            content_type: "text/plain".into(),
            body: body.into(),
            date: Some(at(0)),
            ..Answer::default()
        }
    }

    fn state(target: &Target, answer: &Answer) -> (State, String) {
        let (finding, _) = judge(target, answer, at(0), None, Duration::from_secs(5));
        (finding.state, finding.why)
    }

    const STATIC: Fresh = Fresh::Static;

    #[test]
    fn each_state_has_its_answer() {
        let target = target(STATIC);
        let with = |change: fn(&mut Answer)| {
            let mut answer = answer("# TYPE a_total counter\na_total 1\n");
            change(&mut answer);
            state(&target, &answer)
        };
        assert_eq!(with(|_| {}), (State::Healthy, String::new()));
        for (change, wanted, word) in [
            ((|answer| answer.status = 503) as fn(&mut Answer), State::Status, "503"),
            (|answer| answer.status = 302, State::Status, "302"),
            (|answer| answer.status = 401, State::Denied, "user"),
            (|answer| answer.content_type = "text/html; charset=utf-8".into(), State::WrongType, "text/html"),
            (|answer| answer.body = b"<html>".into(), State::WrongType, "line 1"),
            (|answer| answer.body = vec![0xff], State::WrongType, "UTF-8"),
            (|answer| answer.body = b"c 1".into(), State::Empty, "a_total or b"),
            (|answer| answer.body = b"# TYPE a_total counter\n".into(), State::Empty, "without a sample"),
            (|answer| answer.date = Some(at(3600)), State::Clock, "3600 s ahead"),
            (|answer| answer.date = Some(at(0) - Duration::from_secs(3600)), State::Clock, "3600 s behind"),
        ] {
            let (state, why) = with(change);
            assert!(state == wanted && why.contains(word), "{wanted:?}: {state:?} {why}");
        }
        assert_eq!(with(|answer| answer.date = Some(at(4))).0, State::Healthy, "within what is allowed");
    }

    #[test]
    fn data_says_how_old_it_is_or_shows_it() {
        let old = Duration::from_secs(61);
        let any = target(Fresh::Any);
        let mut page = answer("b 1\n");
        page.modified = Some(at(0) - Duration::from_secs(59));
        assert_eq!(state(&any, &page).0, State::Healthy);
        page.modified = Some(at(0) - old);
        let (stale, why) = state(&any, &page);
        assert!(stale == State::Stale && why.contains("61 s old"), "{why}");
        // Its clock is an hour behind, and its data is of its now.
        page.date = Some(at(0) - Duration::from_secs(3600));
        page.modified = page.date;
        assert_eq!(state(&any, &page).0, State::Clock);
        assert_eq!(state(&any, &answer("b 1 1699999990000\n")).0, State::Healthy);
        assert_eq!(state(&any, &answer("b 1 1699999900000\n")).0, State::Stale);
        let moment = target(Fresh::Timestamp("b".into()));
        assert_eq!(state(&moment, &answer("b 1699999990\n")).0, State::Healthy);
        assert_eq!(state(&moment, &answer("b 1699999900\n")).0, State::Stale);
        assert_eq!(state(&moment, &answer("a_total 1\n")).0, State::Empty, "no moment at all");
        assert_eq!(state(&moment, &answer("b 1700003600\n")).0, State::Stale, "not of now either");
    }

    #[test]
    fn what_moves_because_it_is_asked_or_in_its_order_only_is_no_proof() {
        let target = target(Fresh::Any);
        let look = |body: &str, seen| judge(&target, &answer(body), at(0), seen, Duration::from_secs(5));
        let (_, seen) = look("b 5\nc 6\npromhttp_metric_handler_requests_total 1\nprocess_cpu_seconds_total 1\n", None);
        let (finding, seen) =
            look("promhttp_metric_handler_requests_total 2\nc 6\nprocess_cpu_seconds_total 2\nb 5\n", seen);
        assert_eq!(finding.state, State::Unproven);
        assert_eq!(look("b 5\nc 7\n", seen).0.state, State::Healthy);
    }

    #[test]
    fn the_time_of_an_answer_is_no_fault_of_a_clock() {
        let slow = Answer { latency: Duration::from_secs(12), date: Some(at(6)), ..answer("b 1\n") };
        assert_eq!(state(&target(STATIC), &slow).0, State::Healthy);
    }

    #[test]
    fn what_never_moves_is_never_healthy() {
        let mut target = target(Fresh::Moves(vec!["b".into()]));
        let look = |target: &Target, body: &str, seen: Option<Seen>| {
            judge(target, &answer(body), at(0), seen, Duration::from_secs(5))
        };
        let (first, seen) = look(&target, "b 1\nc 1\n", None);
        assert_eq!((first.state, first.fresh), (State::Unproven, None));
        let (other, still) = look(&target, "b 1\nc 2\n", seen);
        assert_eq!(other.state, State::Unproven, "another family has moved");
        let (moved, seen) = look(&target, "b 2\nc 2\n", still);
        assert_eq!((moved.state, moved.fresh), (State::Healthy, Some(true)));
        let (rests, seen) = look(&target, "b 2\nc 2\n", seen);
        assert_eq!(rests.state, State::Healthy, "for a while");
        target.max_age = Duration::ZERO;
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(look(&target, "b 2\nc 2\n", seen).0.state, State::Stale);
    }
}
