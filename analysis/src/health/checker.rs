//! The checks of all targets: a bounded number of threads requests each URL once, and results are
//! kept.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use metrics::family::Buckets;
use tracing::{info, warn};
use ureq::http::Uri;

use super::{
    check::{self, CheckResult, MAX_PAGE, PreviousValues, TargetState},
    target::{MAX_TIMEOUT, Target},
};
use client::{Client, ClientError};

/// Maximum number of concurrent requests.
const MAX_CONCURRENT: usize = 16;
/// Pause before the second request of a page whose age is unknown.
const SECOND_CHECK: Duration = Duration::from_secs(2);
/// Largest response of `/ready` in bytes; it has a line per source.
const MAX_READY: u64 = 64 << 10;
/// Upper bounds of the latency histogram in seconds.
const LATENCY_BOUNDS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 5.0];

/// The targets and the parameters of their checks.
#[derive(Clone, Debug)]
pub struct CheckPlan {
    pub targets: Vec<Target>,
    pub interval: Duration,
    /// Timeout of a request.
    pub timeout: Duration,
    /// Largest clock skew of a healthy target.
    pub max_skew: Duration,
    /// Skipped jobs of a scrape configuration, with the reasons.
    pub skipped: Vec<String>,
}

impl CheckPlan {
    /// Longest duration of a round in which all targets hang: two requests each, and one of
    /// `/ready`.
    #[must_use]
    pub fn max_duration(&self) -> Duration {
        let batches = u32::try_from(self.targets.len().div_ceil(MAX_CONCURRENT)).unwrap_or(u32::MAX);
        let has_own = self.targets.iter().any(|target| target.access.timeout.is_some());
        let timeout = if has_own { MAX_TIMEOUT } else { self.timeout };
        timeout.saturating_mul(batches).saturating_mul(3) + SECOND_CHECK
    }
}

/// A target and the results of its checks.
#[derive(Debug)]
pub struct TargetStatus {
    pub target: Target,
    /// The last result; `None` before the first check.
    pub result: Option<CheckResult>,
    /// Time of the last check.
    pub checked_at: Option<SystemTime>,
    /// Last time the target was healthy.
    pub healthy_at: Option<SystemTime>,
    pub latency: Buckets,
    /// Index of its endpoint.
    endpoint: usize,
    previous: Option<PreviousValues>,
}

impl TargetStatus {
    /// True if the last result is healthy.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.result.as_ref().is_some_and(|result| result.state == TargetState::Healthy)
    }

    fn update(&mut self, result: CheckResult, at: SystemTime) {
        let before = self.result.as_ref().map(|result| result.state);
        let (name, state) = (&self.target.name, result.state);
        if before != Some(state) {
            match (state, self.target.optional && before.is_none()) {
                (TargetState::Healthy, _) if before.is_none() => {}
                (TargetState::Healthy, _) => info!("{name}: healthy again"),
                // The next checks decide.
                (TargetState::Unproven, _) => {}
                (_, true) => info!("{name}: {} (optional target)", state.as_str()),
                _ => warn!("{name}: {}: {}", state.as_str(), result.why),
            }
        }
        if let Some(latency) = result.latency {
            observe(&mut self.latency, latency.as_secs_f64());
        }
        if result.state == TargetState::Healthy {
            self.healthy_at = Some(at);
        }
        (self.result, self.checked_at) = (Some(result), Some(at));
    }
}

fn observe(buckets: &mut Buckets, value: f64) {
    for (bound, count) in &mut buckets.cumulative {
        *count += u64::from(value <= *bound);
    }
    buckets.count += 1;
    buckets.sum += value;
}

/// A URL and the targets that share it, so that it is requested once.
#[derive(Debug)]
struct Endpoint {
    /// The client, or the reason why the settings are unusable.
    client: Result<Client, String>,
    /// The client of `/ready`, for Wattcast exporters.
    ready: Option<Client>,
    /// Indices of its targets.
    targets: Vec<usize>,
}

/// All targets and their status.
#[derive(Debug)]
pub struct HealthChecker {
    /// In the order of the configuration.
    pub targets: Vec<TargetStatus>,
    endpoints: Vec<Endpoint>,
    max_skew: Duration,
}

impl HealthChecker {
    /// A checker that has requested nothing yet. Unusable settings of a target become the result of
    /// its checks.
    #[must_use]
    pub fn new(plan: &CheckPlan) -> Self {
        let (mut endpoints, mut by_url): (Vec<Endpoint>, HashMap<&str, Vec<usize>>) = (Vec::new(), HashMap::new());
        let mut targets: Vec<TargetStatus> = Vec::new();
        for target in &plan.targets {
            let same_url = by_url.entry(&target.url).or_default();
            let shared = same_url.iter().copied().find(|at| {
                let TargetStatus { target: other, .. } = &targets[*at];
                other.access == target.access && other.has_ready == target.has_ready
            });
            let endpoint = match shared {
                Some(at) => targets[at].endpoint,
                None => {
                    endpoints.push(Endpoint::new(target, plan.timeout));
                    endpoints.len() - 1
                }
            };
            same_url.push(targets.len());
            endpoints[endpoint].targets.push(targets.len());
            let latency = Buckets { cumulative: LATENCY_BOUNDS.map(|bound| (bound, 0)).to_vec(), count: 0, sum: 0.0 };
            let (result, checked_at, healthy_at, previous) = (None, None, None, None);
            targets.push(TargetStatus {
                target: target.clone(),
                result,
                checked_at,
                healthy_at,
                latency,
                endpoint,
                previous,
            });
        }
        Self { targets, endpoints, max_skew: plan.max_skew }
    }

    /// Errors of unusable settings.
    #[must_use]
    pub fn settings_errors(&self) -> Vec<String> {
        let error = |endpoint: &Endpoint| {
            let why = endpoint.client.as_ref().err()?;
            let name = endpoint.targets.first().map_or("", |at| &self.targets[*at].target.name);
            Some(format!("target {name}: {why}"))
        };
        self.endpoints.iter().filter_map(error).collect()
    }

    /// Checks all targets, and those a second time whose values must change and are new. `stop`
    /// waits for the given time in between, and returns true to skip the second check.
    pub fn check_all(&mut self, stop: impl FnOnce(Duration) -> bool) {
        let all: Vec<usize> = (0..self.endpoints.len()).collect();
        self.check(&all);
        if self.has_unproven() && !stop(SECOND_CHECK) {
            self.recheck_unproven();
        }
    }

    /// True while a target lacks evidence that its data is current.
    #[must_use]
    pub fn has_unproven(&self) -> bool {
        !self.unproven().is_empty()
    }

    /// Checks the targets again that lack evidence that their data is current.
    pub fn recheck_unproven(&mut self) {
        self.check(&self.unproven());
    }

    /// Endpoints with such targets.
    fn unproven(&self) -> Vec<usize> {
        let is_unproven = |endpoint: &Endpoint| {
            let state = |at: &usize| self.targets[*at].result.as_ref().map(|result| result.state);
            endpoint.targets.iter().any(|at| state(at) == Some(TargetState::Unproven))
        };
        self.endpoints.iter().enumerate().filter(|(_, endpoint)| is_unproven(endpoint)).map(|(at, _)| at).collect()
    }

    /// Checks the targets of some endpoints, at most [`MAX_CONCURRENT`] at once.
    fn check(&mut self, selected: &[usize]) {
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::new());
        let (targets, endpoints, max_skew) = (&self.targets, &self.endpoints, self.max_skew);
        let work = || {
            while let Some(endpoint) =
                selected.get(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| endpoints.get(*at))
            {
                // The page is dropped before the next request.
                let checked = endpoint.check(targets, max_skew);
                results.lock().unwrap_or_else(PoisonError::into_inner).extend(checked);
            }
        };
        thread::scope(|scope| {
            for number in 1..selected.len().min(MAX_CONCURRENT) {
                // If a thread cannot be created, the others do its work.
                let _ = thread::Builder::new().name(format!("health-{number}")).spawn_scoped(scope, work);
            }
            work();
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(at, ..)| *at);
        for (at, result, previous) in results {
            self.targets[at].previous = previous;
            self.targets[at].update(result, SystemTime::now());
        }
    }

    /// Pause before the next round, after one that started at `start`.
    #[must_use]
    pub fn pause(start: Instant, interval: Duration) -> Duration {
        // Never without a pause, however slow the targets are.
        (start + interval).saturating_duration_since(Instant::now()).max(Duration::from_millis(100))
    }
}

impl Endpoint {
    fn new(target: &Target, timeout: Duration) -> Self {
        let open =
            |url: &str, limit| Client::new(url, &target.access, timeout, limit).map_err(|error| error.to_string());
        let url = target.url.parse::<Uri>().ok().filter(|_| target.has_ready);
        let url = url.and_then(|url| Some(format!("{}://{}/ready", url.scheme_str()?, url.authority()?)));
        let ready = url.and_then(|url| open(&url, MAX_READY).ok());
        Self { client: open(&target.url, MAX_PAGE), ready, targets: Vec::new() }
    }

    /// Requests the page and evaluates it for each target.
    fn check(&self, targets: &[TargetStatus], max_skew: Duration) -> Vec<(usize, CheckResult, Option<PreviousValues>)> {
        let response = match &self.client {
            Ok(client) => check::fetch(client),
            Err(why) => Err(ClientError::Settings(why.clone())),
        };
        let evaluate = |at: &usize| {
            let TargetStatus { target, previous, .. } = &targets[*at];
            match &response {
                Err(error) => (*at, check::failure(error), *previous),
                Ok((response, now)) => {
                    let (result, previous) = check::evaluate(target, response, *now, *previous, max_skew);
                    (*at, result, previous)
                }
            }
        };
        let mut results: Vec<_> = self.targets.iter().map(evaluate).collect();
        // `/ready` matters for healthy targets only, as any other state says more.
        if results.iter().any(|(_, result, _)| result.state == TargetState::Healthy)
            && let Some(why) = self.ready.as_ref().and_then(check::fetch_missing)
        {
            for (_, result, _) in results.iter_mut().filter(|(_, result, _)| result.state == TargetState::Healthy) {
                (result.state, result.why) = (TargetState::Unready, why.clone());
            }
        }
        results
    }
}
