//! All targets at once, again and again: bounded threads ask, each URL once, and what was seen is remembered until the next time.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use exporter::family::Buckets;
use tracing::{info, warn};
use ureq::http::Uri;

use super::{
    check::{self, Finding, MAX_PAGE, Seen, State},
    target::{LONGEST, Target},
};
use crate::client::{Client, Failed};

/// Targets that are asked at once.
const AT_ONCE: usize = 16;
/// Time after which what says nothing of its age is looked at again, when nothing is remembered of it.
const SECOND_LOOK: Duration = Duration::from_secs(2);
/// Largest answer of `/ready`, in bytes: a line for each source.
const MAX_READY: u64 = 64 << 10;
/// Upper bounds of the histogram of latency, in seconds.
const LATENCIES: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 5.0];

/// How targets are looked at.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is looked at.
    pub targets: Vec<Target>,
    /// How often.
    pub interval: Duration,
    /// Longest that an answer may take.
    pub timeout: Duration,
    /// A clock that is further off is off.
    pub most_skew: Duration,
    /// Jobs of a scrape configuration that are not looked at, with the reason.
    pub left_out: Vec<String>,
}

impl Plan {
    /// Longest that one round may take, with all targets hanging: each is asked twice, and whether it is ready.
    #[must_use]
    pub fn longest(&self) -> Duration {
        let turns = u32::try_from(self.targets.len().div_ceil(AT_ONCE)).unwrap_or(u32::MAX);
        let has_own = self.targets.iter().any(|target| target.access.timeout.is_some());
        let each = if has_own { LONGEST } else { self.timeout };
        each.saturating_mul(turns).saturating_mul(3) + SECOND_LOOK
    }
}

/// A target with all that is known of it.
#[derive(Debug)]
pub struct Watched {
    /// What it is.
    pub target: Target,
    /// How it stands; `None` before the first look.
    pub finding: Option<Finding>,
    /// When it was looked at last.
    pub at: Option<SystemTime>,
    /// When it was healthy last.
    pub healthy_at: Option<SystemTime>,
    /// How long its answers took.
    pub latency: Buckets,
    client: usize,
    seen: Option<Seen>,
}

impl Watched {
    /// True when it is healthy, as far as is known.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.finding.as_ref().is_some_and(|finding| finding.state == State::Healthy)
    }

    fn take(&mut self, finding: Finding, at: SystemTime) {
        let before = self.finding.as_ref().map(|finding| finding.state);
        let (name, state) = (&self.target.name, finding.state);
        if before != Some(state) {
            match (state, self.target.optional && before.is_none()) {
                (State::Healthy, _) if before.is_none() => {}
                (State::Healthy, _) => info!("{name}: healthy again"),
                // Half a minute will tell.
                (State::Unproven, _) => {}
                (_, true) => info!("{name}: {}; not every host has one", state.as_str()),
                _ => warn!("{name}: {}: {}", state.as_str(), finding.why),
            }
        }
        if let Some(latency) = finding.latency {
            observe(&mut self.latency, latency.as_secs_f64());
        }
        if finding.state == State::Healthy {
            self.healthy_at = Some(at);
        }
        (self.finding, self.at) = (Some(finding), Some(at));
    }
}

fn observe(buckets: &mut Buckets, value: f64) {
    for (bound, count) in &mut buckets.cumulative {
        *count += u64::from(value <= *bound);
    }
    buckets.count += 1;
    buckets.sum += value;
}

/// Somebody to ask, for all targets of the same URL and access.
#[derive(Debug)]
struct Asked {
    /// Or why nobody can be asked.
    client: Result<Client, String>,
    /// Its `/ready`, where it is one of ours.
    ready: Option<Client>,
    /// Which targets it is.
    targets: Vec<usize>,
}

/// Everything that is looked at.
#[derive(Debug)]
pub struct Round {
    /// In the order in which they were named.
    pub all: Vec<Watched>,
    asked: Vec<Asked>,
    most_skew: Duration,
}

impl Round {
    /// Asks nobody yet. What cannot be used of a target is what is found of it.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let (mut asked, mut known): (Vec<Asked>, HashMap<&str, Vec<usize>>) = (Vec::new(), HashMap::new());
        let mut all: Vec<Watched> = Vec::new();
        for target in &plan.targets {
            let same = known.entry(&target.url).or_default();
            let twin = same.iter().copied().find(|at| {
                let Watched { target: other, .. } = &all[*at];
                other.access == target.access && other.ready == target.ready
            });
            let client = match twin {
                Some(at) => all[at].client,
                None => {
                    asked.push(Asked::new(target, plan.timeout));
                    asked.len() - 1
                }
            };
            same.push(all.len());
            asked[client].targets.push(all.len());
            let latency = Buckets { cumulative: LATENCIES.map(|bound| (bound, 0)).to_vec(), count: 0, sum: 0.0 };
            let (finding, at, healthy_at, seen) = (None, None, None, None);
            all.push(Watched { target: target.clone(), finding, at, healthy_at, latency, client, seen });
        }
        Self { all, asked, most_skew: plan.most_skew }
    }

    /// What of targets cannot be used.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let trouble = |asked: &Asked| {
            let why = asked.client.as_ref().err()?;
            let name = asked.targets.first().map_or("", |at| &self.all[*at].target.name);
            Some(format!("target {name}: {why}"))
        };
        self.asked.iter().filter_map(trouble).collect()
    }

    /// Looks at everything once; twice at what has to move and was not seen before. `stop` ends the wait between the two early.
    pub fn look(&mut self, stop: impl FnOnce(Duration) -> bool) {
        let every: Vec<usize> = (0..self.asked.len()).collect();
        self.ask(&every);
        if self.is_unproven() && !stop(SECOND_LOOK) {
            self.look_again();
        }
    }

    /// True while something has not yet shown that its data is of now.
    #[must_use]
    pub fn is_unproven(&self) -> bool {
        !self.unproven().is_empty()
    }

    /// Looks again at what has not yet shown that its data is of now.
    pub fn look_again(&mut self) {
        self.ask(&self.unproven());
    }

    fn unproven(&self) -> Vec<usize> {
        let so = |asked: &Asked| {
            let state = |at: &usize| self.all[*at].finding.as_ref().map(|finding| finding.state);
            asked.targets.iter().any(|at| state(at) == Some(State::Unproven))
        };
        self.asked.iter().enumerate().filter(|(_, asked)| so(asked)).map(|(at, _)| at).collect()
    }

    /// Asks some, so many at once, and judges for every target of theirs.
    fn ask(&mut self, some: &[usize]) {
        let next = AtomicUsize::new(0);
        let found = Mutex::new(Vec::new());
        let (all, asked, most_skew) = (&self.all, &self.asked, self.most_skew);
        let work = || {
            while let Some(one) = some.get(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| asked.get(*at)) {
                // The page is gone before the next is asked for.
                let judged = one.judge(all, most_skew);
                found.lock().unwrap_or_else(PoisonError::into_inner).extend(judged);
            }
        };
        thread::scope(|scope| {
            for number in 1..some.len().min(AT_ONCE) {
                // Where no thread is to be had, those that are do its work.
                let _ = thread::Builder::new().name(format!("health-{number}")).spawn_scoped(scope, work);
            }
            work();
        });
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_by_key(|(at, ..)| *at);
        for (at, finding, seen) in found {
            self.all[at].seen = seen;
            self.all[at].take(finding, SystemTime::now());
        }
    }

    /// When it is due again, after a look that began at `began`.
    #[must_use]
    pub fn due(began: Instant, interval: Duration) -> Duration {
        // Never without a pause, however slow the targets are.
        (began + interval).saturating_duration_since(Instant::now()).max(Duration::from_millis(100))
    }
}

impl Asked {
    fn new(target: &Target, timeout: Duration) -> Self {
        let open = |url: &str, most| Client::new(url, &target.access, timeout, most).map_err(|error| error.to_string());
        let at = target.url.parse::<Uri>().ok().filter(|_| target.ready);
        let at = at.and_then(|url| Some(format!("{}://{}/ready", url.scheme_str()?, url.authority()?)));
        let ready = at.and_then(|url| open(&url, MAX_READY).ok());
        Self { client: open(&target.url, MAX_PAGE), ready, targets: Vec::new() }
    }

    /// Asks, and judges for each of its targets.
    fn judge(&self, all: &[Watched], most_skew: Duration) -> Vec<(usize, Finding, Option<Seen>)> {
        let answer = match &self.client {
            Ok(client) => check::ask(client),
            Err(why) => Err(Failed::Settings(why.clone())),
        };
        let judged = |at: &usize| {
            let one = &all[*at];
            match &answer {
                Err(error) => (*at, check::failed(error), one.seen),
                Ok((answer, moment)) => {
                    let (finding, seen) = check::judge(&one.target, answer, *moment, one.seen, most_skew);
                    (*at, finding, seen)
                }
            }
        };
        let mut found: Vec<_> = self.targets.iter().map(judged).collect();
        // Only of what is well otherwise: what is wrong with the rest says more.
        if found.iter().any(|(_, finding, _)| finding.state == State::Healthy)
            && let Some(why) = self.ready.as_ref().and_then(check::unready)
        {
            for (_, finding, _) in found.iter_mut().filter(|(_, finding, _)| finding.state == State::Healthy) {
                (finding.state, finding.why) = (State::Unready, why.clone());
            }
        }
        found
    }
}
