//! Energy of a window from the API of the probe that observed it.
//!
//! The probe may be another host's, and another server may answer at its address: a response is
//! checked before it is used ([`parse_window`], [`parse_jobs`]). One that cannot be true is an
//! invalid answer, which differs from no answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use metrics::label;
use serde::Deserialize;
use units::{Microjoules, model_interval::ModelInterval};

use super::{
    jobs::Jobs,
    reading::{EnergyReading, Scope, merged},
    window::{EnergyMethod, SourceError, WindowEnergy},
};
use client::{Access, Client, ClientError, Reply};

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a response; a host with 512 containers on 8 packages has under 2 MB.
const MAX_RESPONSE: u64 = 16 << 20;
/// How often, and at what interval, a window is asked for again whose energy is not split yet.
/// Drivers of GPUs report the use of a process some seconds late.
const SETTLE_TRIES: u32 = 5;
const SETTLE_INTERVAL: Duration = Duration::from_secs(1);

/// Highest plausible power of one accounting root, in watts: more than a rack of GPUs. It finds
/// other units (30 W in microjoules per second are 30 MW) and values of broken counters.
const MAX_WATTS: f64 = 100_000.0;
/// Longest time without readings, in seconds, whose energy the reading after it may add to a
/// window.
const MAX_REACH: f64 = 86_400.0;
/// Maximum number of CPUs of Linux (`NR_CPUS`).
const MAX_CPUS: f64 = 8192.0;
/// Largest rounding of a time in a response, in seconds: the probe rounds requested times to the
/// microsecond, and a double holds unix time to a quarter of one.
const TIME_ROUNDING: f64 = 1e-5;
/// Times of a response must lie before this one, the year 2200 in unix seconds.
const MAX_TIME: f64 = 7_258_118_400.0;

/// The response of `/api/v1/window`, as far as it is used here.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct WindowResponse {
    /// The requested start in unix seconds; absent from probes before this field, as the next
    /// three.
    #[serde(default)]
    pub start: Option<f64>,
    /// The requested end in unix seconds.
    #[serde(default)]
    pub end: Option<f64>,
    /// Start of the first tick of the window in unix seconds.
    #[serde(default)]
    pub from: Option<f64>,
    /// End of its last tick in unix seconds.
    #[serde(default)]
    pub to: Option<f64>,
    /// The host's energy by accounting root, which do not overlap.
    pub accounts: Vec<Account>,
    /// Containers with energy or CPU time in the window.
    pub containers: Vec<Container>,
}

/// Energy of the host from one accounting root.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Account {
    /// The label `package`.
    pub package: String,
    /// The label `zone`.
    pub zone: String,
    /// The label `source`.
    pub source: String,
    /// All energy of the root, including idle energy.
    pub measured_joules: f64,
    /// Bound of the error at the edges of the window.
    pub edge_error_joules: f64,
    /// Time of the window without readings.
    pub missing_seconds: f64,
    /// Measured energy that the probe has not split yet, as GPUs report the use of a process late;
    /// zero from probes before this field. It is part of `measured_joules`.
    #[serde(default)]
    pub unsettled_joules: f64,
    /// True if the idle power was known in the whole window; `None` from probes before this field.
    #[serde(default)]
    pub idle_known: Option<bool>,
    /// How far modelled energy may be from the truth; absent if it is measured.
    #[serde(default)]
    pub model_interval_ratio: Option<ModelInterval>,
}

/// Energy and CPU time of one container.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Container {
    /// Name of the container.
    pub container: String,
    /// The label `id`: the first 12 characters of the container id.
    pub id: String,
    /// Attributed energy by accounting root.
    pub energy: Vec<Attribution>,
    /// CPU time by package.
    #[serde(default)]
    pub cpu: Vec<ContainerCpu>,
}

impl Container {
    /// True if `name_or_id` is the name, the short id, or the full id of the container.
    #[must_use]
    pub fn matches(&self, name_or_id: &str) -> bool {
        let is_full_id = name_or_id.len() == 64 && self.id.len() == 12 && name_or_id.starts_with(&self.id);
        self.container == name_or_id || self.id == name_or_id || is_full_id
    }
}

impl Container {
    /// Checks the ranges of all values. `seconds` is the length of the window.
    fn check(&self, seconds: f64) -> Result<(), String> {
        let what = |what: &str| format!("{what} of container {}", self.container);
        let mut roots = BTreeSet::new();
        for part in &self.energy {
            // Old probes name only the source, of which there may be several packages.
            let is_named = !part.package.is_empty() || !part.zone.is_empty();
            if is_named && !roots.insert((&part.package, &part.zone, &part.source)) {
                let (package, zone) = (&part.package, &part.zone);
                return Err(format!("package {package} zone {zone} occurs twice in {}", what("the energy")));
            }
            let max = MAX_WATTS * seconds;
            check_range(part.edge_error_joules, max + MAX_WATTS * MAX_REACH, &what("edge error"))?;
            check_range(part.joules, max + part.edge_error_joules, &what("energy"))?;
            check_range(part.uncertainty_joules.unwrap_or_default(), f64::MAX, &what("uncertainty"))?;
        }
        for cpu in &self.cpu {
            check_range(cpu.seconds, MAX_CPUS * seconds, &what("CPU time"))?;
        }
        Ok(())
    }
}

/// The difference that rounding may cause between a total and its parts, in joules: energy is
/// exact to the microjoule, and a double to 16 digits. A thousandth is far above both, and far
/// below a part that is counted twice.
fn tolerance(joules: f64) -> f64 {
    joules / 1000.0 + 1e-3
}

/// CPU time on one package.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ContainerCpu {
    /// CPU time in seconds.
    pub seconds: f64,
}

/// Energy that one accounting root attributes to a container.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Attribution {
    /// The label `package`.
    #[serde(default)]
    pub package: String,
    /// The label `zone`.
    #[serde(default)]
    pub zone: String,
    /// The label `source`.
    pub source: String,
    /// Dynamic energy.
    pub joules: f64,
    /// Bound of the error at the edges of the window.
    pub edge_error_joules: f64,
    /// Uncertainty of the attribution; absent if unknown.
    #[serde(default)]
    pub uncertainty_joules: Option<f64>,
}

/// State of one of the probe's sources.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct SourceStatus {
    /// Name of the source, `powercap` or `cpu`.
    pub source: String,
    /// `usable`, `absent`, `denied` or `broken`.
    pub state: String,
    /// What the source measures, or how to enable it.
    pub detail: String,
    /// True if the configuration of the probe requires the source.
    pub wanted: bool,
    /// The sentence to show with its energy, if nothing of it is measured.
    #[serde(default)]
    pub banner: Option<String>,
}

#[derive(Deserialize)]
struct MarkResponse {
    time: f64,
}

#[derive(Deserialize)]
struct ErrorResponse {
    code: String,
    error: String,
}

/// Client of one probe.
#[derive(Clone)]
pub struct Probe {
    client: Client,
}

impl Probe {
    /// The client of the probe at `url`. It is not connected yet.
    ///
    /// # Errors
    /// If the URL or a file of `access` is invalid.
    pub fn new(url: &str, access: &Access) -> Result<Self, ClientError> {
        Ok(Self { client: Client::new(url, access, TIMEOUT, MAX_RESPONSE)? })
    }

    /// Checks that the probe is healthy.
    ///
    /// # Errors
    /// If `/health` does not respond with status 200.
    pub fn alive(&self) -> Result<(), SourceError> {
        match self.client.get("/health", &[]) {
            Ok(reply) if reply.status == 200 => Ok(()),
            Ok(reply) if matches!(reply.status, 401 | 403) => Err(SourceError::Permanent(
                "denied".to_owned(),
                format!("{}: status {}", self.client.display_url(), reply.status),
            )),
            Ok(reply) => Err(Self::unreachable(format!("{}: status {}", self.client.display_url(), reply.status))),
            Err(error) => Err(Self::unreachable(error)),
        }
    }

    /// The base URL of the probe.
    #[must_use]
    pub fn url(&self) -> &str {
        self.client.base()
    }

    fn invalid(url: &str, error: &str) -> SourceError {
        SourceError::Invalid(format!(
            "{url}: invalid answer: {error}. Check that --probe-url is the address of a Wattcast probe of this version"
        ))
    }

    fn unreachable(error: impl std::fmt::Display) -> SourceError {
        SourceError::Unreachable(format!("{error}. Start the probe, or set its URL with --probe-url"))
    }

    /// The ffmpeg jobs that run or ended recently.
    ///
    /// # Errors
    /// If the probe is unreachable, or its response invalid.
    pub fn jobs(&self) -> Result<Jobs, SourceError> {
        let path = "/api/v1/streams";
        let reply = self.client.get(path, &[]).map_err(Self::unreachable)?;
        let url = format!("{}{path}", self.client.display_url());
        if reply.status != 200 {
            return Err(SourceError::NotYet(format!("{url}: status {}", reply.status)));
        }
        parse_jobs(&reply.body).map_err(|error| Self::invalid(&url, &error))
    }

    /// The energy of a window in unix seconds, of the host and of `container` if there is one.
    ///
    /// # Errors
    /// If the probe is unreachable, does not have the window, or has it only partially.
    pub fn window(&self, start: f64, end: f64, container: Option<&str>) -> Result<WindowEnergy, SourceError> {
        energy(&self.window_response(start, end)?, end - start, container)
    }

    /// The window in unix seconds with all containers, as returned by the probe.
    ///
    /// # Errors
    /// If the probe is unreachable or does not have the window.
    pub fn window_response(&self, start: f64, end: f64) -> Result<WindowResponse, SourceError> {
        let query = [("start", &*start.to_string()), ("end", &*end.to_string())];
        let body = self.body(self.client.get("/api/v1/window", &query))?;
        parse_window(&body, start, end).map_err(|error| Self::invalid(self.client.display_url(), &error))
    }

    /// The same, asked for again while a part of the energy is not split yet, for 5 s at most. What
    /// is still not split then is an edge error of each container. `wait` waits for a time, and
    /// returns false to stop waiting.
    ///
    /// # Errors
    /// As [`Probe::window_response`], for the first answer.
    pub fn settled_window(
        &self,
        start: f64,
        end: f64,
        mut wait: impl FnMut(Duration) -> bool,
    ) -> Result<WindowResponse, SourceError> {
        let mut response = self.window_response(start, end)?;
        for _ in 0..SETTLE_TRIES {
            if response.unsettled().next().is_none() || !wait(SETTLE_INTERVAL) {
                break;
            }
            // An answer that is missing now does not refute the one before.
            let Ok(later) = self.window_response(start, end) else { break };
            response = later;
        }
        Ok(response)
    }

    /// Requests a tick now and returns its time in unix seconds, an exact edge for a window.
    ///
    /// # Errors
    /// If the probe is unreachable or rejects the request.
    pub fn mark(&self) -> Result<f64, SourceError> {
        let mark: MarkResponse = self.read(self.client.post("/api/v1/mark", &[], &[]))?;
        if !(0.0..MAX_TIME).contains(&mark.time) {
            return Err(Self::invalid(self.client.display_url(), &format!("the time of a mark is {}", mark.time)));
        }
        Ok(mark.time)
    }

    /// The state of the probe's sources.
    ///
    /// # Errors
    /// If the probe is unreachable.
    pub fn sources(&self) -> Result<Vec<SourceStatus>, SourceError> {
        self.read(self.client.get("/api/v1/sources", &[]))
    }

    /// Power of the machine in watts in the last tick: packages, DRAM and GPUs. `None` if the probe
    /// exports none. Unlike [`Probe::mark`], it requests no tick.
    #[must_use]
    pub fn watts(&self) -> Option<f64> {
        let reply = self.client.get("/metrics", &[]).ok().filter(|reply| reply.status == 200)?;
        let page = metrics::parse::parse(std::str::from_utf8(&reply.body).ok()?).ok()?;
        let roots = page.samples.iter().filter(|sample| {
            sample.name == "wattcast_power_watts" && ["package", "dram", "gpu"].contains(&sample.label("zone"))
        });
        let watts: Vec<f64> = roots.map(|sample| sample.value).collect();
        // A sum with a part that cannot be true is no power.
        let is_valid = watts.iter().all(|watts| (0.0..=MAX_WATTS).contains(watts));
        watts.into_iter().filter(|_| is_valid).reduce(|sum, watts| sum + watts)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, reply: Result<Reply, ClientError>) -> Result<T, SourceError> {
        let body = self.body(reply)?;
        serde_json::from_slice(&body).map_err(|error| Self::invalid(self.client.display_url(), &error.to_string()))
    }

    /// The body of a response with status 200.
    fn body(&self, reply: Result<Reply, ClientError>) -> Result<Vec<u8>, SourceError> {
        let reply = reply.map_err(Self::unreachable)?;
        let (status, base) = (reply.status, self.client.display_url());
        if status != 200 {
            return Err(match serde_json::from_slice::<ErrorResponse>(&reply.body) {
                Ok(problem) if status == 425 || status == 503 => SourceError::NotYet(problem.error),
                Ok(problem) => SourceError::Permanent(label::sanitize(&problem.code), problem.error),
                Err(_) => Self::unreachable(format!("{base}: status {status}; is it a Wattcast probe?")),
            });
        }
        Ok(reply.body)
    }
}

/// Parses and checks a response of `/api/v1/window` to a request for the time from `start` to
/// `end`, in unix seconds.
///
/// # Errors
/// If it is no such response, is that of another window, or cannot be true.
pub fn parse_window(body: &[u8], start: f64, end: f64) -> Result<WindowResponse, String> {
    let response: WindowResponse = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    response.check(start, end)?;
    Ok(response)
}

/// Parses and checks a response of `/api/v1/streams`.
///
/// # Errors
/// If it is no such response, or cannot be true.
pub fn parse_jobs(body: &[u8]) -> Result<Jobs, String> {
    let jobs: Jobs = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    check_range(jobs.probe_started, MAX_TIME, "the start of the probe")?;
    if let Some(host) = &jobs.host {
        check_range(host.time, MAX_TIME, "the time of the tick")?;
        check_range(f64::from(host.cpus), MAX_CPUS, "the number of CPUs")?;
        check_range(host.alone_seconds, MAX_TIME * MAX_CPUS, "CPU time of the host")?;
        check_range(host.shared_seconds, MAX_TIME * MAX_CPUS, "CPU time of the host")?;
    }
    for engine in jobs.gpu_engines.iter().chain(jobs.jobs.iter().flat_map(|job| &job.gpu_engines)) {
        check_range(engine.seconds, MAX_TIME, "the time of a GPU engine")?;
    }
    let mut numbers = BTreeSet::new();
    for job in &jobs.jobs {
        let what = |what: &str| format!("{what} of job {}", job.job);
        if !numbers.insert(job.job) {
            return Err(format!("job {} occurs twice", job.job));
        }
        check_range(job.started, MAX_TIME, &what("the start"))?;
        check_range(job.ended.unwrap_or_default(), MAX_TIME, &what("the end"))?;
        check_range(job.counted_since_seconds.unwrap_or_default(), MAX_TIME, &what("the start of counting"))?;
        // A job runs at most from the year 1970 to 2200 on all CPUs.
        check_range(job.cpu_seconds, MAX_TIME * MAX_CPUS, &what("CPU time"))?;
        check_range(job.joules, MAX_TIME * MAX_WATTS, &what("energy"))?;
    }
    Ok(jobs)
}

/// Checks that a value is between 0 and `max`, and not NaN.
fn check_range(value: f64, max: f64, what: &str) -> Result<(), String> {
    if (0.0..=max).contains(&value) { Ok(()) } else { Err(format!("{what} is {value}, not between 0 and {max}")) }
}

impl WindowResponse {
    /// The accounting roots with energy that is not split yet.
    pub fn unsettled(&self) -> impl Iterator<Item = &Account> {
        self.accounts.iter().filter(|account| account.unsettled_joules > 0.0)
    }

    /// Checks window, ranges and conservation.
    fn check(&self, start: f64, end: f64) -> Result<(), String> {
        let seconds = self.check_edges(start, end)?;
        let mut roots = BTreeSet::new();
        for account in &self.accounts {
            let what = format!("package {} zone {} source {}", account.package, account.zone, account.source);
            if !roots.insert((&account.package, &account.zone, &account.source)) {
                return Err(format!("{what} occurs twice"));
            }
            let max = MAX_WATTS * seconds;
            check_range(account.edge_error_joules, max + MAX_WATTS * MAX_REACH, &format!("edge error of {what}"))?;
            check_range(account.measured_joules, max + account.edge_error_joules, &format!("energy of {what}"))?;
            check_range(account.missing_seconds, MAX_TIME, &format!("time without readings of {what}"))?;
            let unsettled = account.measured_joules + tolerance(account.measured_joules);
            check_range(account.unsettled_joules, unsettled, &format!("unsettled energy of {what}"))?;
        }
        let mut rows: BTreeMap<(&str, &str), &Container> = BTreeMap::new();
        for row in &self.containers {
            // A unit that was started again has a second row of the same name; only a copy has the
            // same energy to the microjoule.
            let known = rows.insert((row.container.as_str(), row.id.as_str()), row);
            if known == Some(row) && row.energy.iter().any(|part| part.joules > 0.0) {
                return Err(format!("container {} occurs twice", row.container));
            }
            row.check(seconds)?;
        }
        self.check_conservation()
    }

    /// Checks that the response is that of the requested window. Returns the length of its ticks in
    /// seconds.
    fn check_edges(&self, start: f64, end: f64) -> Result<f64, String> {
        let (from, to) = (self.from.unwrap_or(start), self.to.unwrap_or(end));
        let is_requested = |answer: Option<f64>, requested: f64| {
            answer.is_none_or(|answer| (answer - requested).abs() <= TIME_ROUNDING)
        };
        let encloses = from <= start + TIME_ROUNDING && to >= end - TIME_ROUNDING;
        if !is_requested(self.start, start) || !is_requested(self.end, end) || !encloses {
            let (first, last) =
                if encloses { (self.start.unwrap_or(from), self.end.unwrap_or(to)) } else { (from, to) };
            return Err(format!("the answer is for {first} to {last}, the question was for {start} to {end}"));
        }
        check_range(from, MAX_TIME, "the start of the first tick")?;
        check_range(to, MAX_TIME, "the end of the last tick")?;
        Ok(to - from + TIME_ROUNDING)
    }

    /// Checks that containers have no more energy of a source than was measured. Energy at the
    /// edges of the window may be that of another tick.
    fn check_conservation(&self) -> Result<(), String> {
        let mut measured: BTreeMap<&str, f64> = BTreeMap::new();
        for account in &self.accounts {
            *measured.entry(&account.source).or_default() += account.measured_joules + account.edge_error_joules;
        }
        let mut attributed: BTreeMap<&str, f64> = BTreeMap::new();
        for part in self.containers.iter().flat_map(|row| &row.energy) {
            *attributed.entry(&part.source).or_default() += part.joules;
        }
        for (source, joules) in attributed {
            let measured = measured.get(source).copied().unwrap_or_default();
            if joules > measured + tolerance(measured) {
                return Err(format!(
                    "containers have {joules} J of source {source}, which measured {measured} J at most"
                ));
            }
        }
        Ok(())
    }

    /// Whether the idle power was known in the whole window, of the accounting roots that attribute
    /// energy to `rows`; `None` if the probe does not say. Energy of a container that was
    /// attributed without it includes a part of the idle energy.
    #[must_use]
    pub fn idle_known<'a>(&self, rows: impl IntoIterator<Item = &'a Container>) -> Option<bool> {
        let mut known = None;
        // The runner cannot let the probe learn the idle power of a board.
        let parts = rows.into_iter().flat_map(|row| &row.energy);
        for part in parts.filter(|part| part.joules > 0.0 && part.zone != "gpu") {
            let of_root = self.root_of(part)?.idle_known?;
            known = Some(known.unwrap_or(true) && of_root);
        }
        known
    }

    /// How far the model of a container's energy may be from the truth: that of its accounting
    /// root.
    #[must_use]
    pub fn model_interval(&self, part: &Attribution) -> Option<ModelInterval> {
        self.root_of(part)?.model_interval_ratio
    }

    /// The accounting root that attributes this energy; `None` for old probes, which name none.
    fn root_of(&self, part: &Attribution) -> Option<&Account> {
        self.accounts.iter().find(|account| {
            (&account.package, &account.zone, &account.source) == (&part.package, &part.zone, &part.source)
        })
    }

    /// Checks that the response covers the whole window.
    ///
    /// # Errors
    /// If an accounting root has no readings for a part of the window.
    pub fn check_complete(&self) -> Result<&Self, SourceError> {
        let incomplete = self.accounts.iter().find(|account| account.missing_seconds > 0.0);
        incomplete.map_or(Ok(self), |account| {
            Err(SourceError::Permanent(
                "incomplete".into(),
                format!(
                    "{} of package {} has no readings for {:.1} s of the window",
                    account.zone, account.package, account.missing_seconds
                ),
            ))
        })
    }
}

fn energy(response: &WindowResponse, seconds: f64, container: Option<&str>) -> Result<WindowEnergy, SourceError> {
    let mut rows: Vec<EnergyReading> = Vec::new();
    let mut add = |scope, source: &str, joules: f64, edge_error: f64, model_interval| {
        rows.push(EnergyReading {
            scope,
            source: label::sanitize(source),
            joules: Microjoules::from_joules(joules),
            edge_error,
            model_interval,
        });
    };
    if response.accounts.is_empty() {
        let message = "the probe measured no energy in the window".to_owned();
        return Err(SourceError::Permanent("incomplete".to_owned(), message));
    }
    for account in &response.check_complete()?.accounts {
        let interval = account.model_interval_ratio;
        add(Scope::Host, &account.source, account.measured_joules, account.edge_error_joules, interval);
    }
    let (mut cpu_seconds, mut idle_known) = (None, None);
    if let Some(name_or_id) = container {
        let own = || response.containers.iter().filter(move |row| row.matches(name_or_id));
        idle_known = response.idle_known(own());
        for row in own() {
            for part in &row.energy {
                let interval = response.model_interval(part);
                add(Scope::Container, &part.source, part.joules, part.edge_error_joules, interval);
            }
            if !row.cpu.is_empty() {
                let seconds = row.cpu.iter().map(|cpu| cpu.seconds).sum::<f64>();
                cpu_seconds = Some(cpu_seconds.unwrap_or(0.0) + seconds);
            }
        }
    }
    Ok(WindowEnergy {
        method: EnergyMethod::Probe,
        rows: merged(rows),
        coverage: Some(1.0),
        seconds: Some(seconds),
        gap_seconds: 0.0,
        resets: 0,
        watts: Vec::new(),
        cpu_seconds,
        idle_known,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        thread,
    };

    use super::*;

    /// The URL of a server that sends one response.
    fn serve_once(status: &str, body: &str) -> String {
        serve(&[(status, body)])
    }

    /// The URL of a server that sends these responses, one to each connection.
    fn serve(responses: &[(&str, &str)]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let reply = |(status, body): &(&str, &str)| {
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
        };
        let replies: Vec<String> = responses.iter().map(reply).collect();
        thread::spawn(move || {
            for reply in replies {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]).unwrap();
                stream.write_all(reply.as_bytes()).unwrap();
            }
        });
        url
    }

    const RESPONSE: &str = r#"{"accounts":[
        {"package":"0","zone":"package","source":"powercap","measured_joules":10.5,"edge_error_joules":1,"missing_seconds":0},
        {"package":"1","zone":"package","source":"powercap","measured_joules":20,"edge_error_joules":2,"missing_seconds":0}],
        "containers":[{"container":"enc","id":"abcdef012345","energy":[
        {"source":"powercap","joules":3,"edge_error_joules":0.5},{"source":"powercap","joules":4,"edge_error_joules":0.5}]},
        {"container":"other","id":"def","energy":[{"source":"powercap","joules":9,"edge_error_joules":0}]}]}"#;

    fn query(status: &str, body: &str, container: Option<&str>) -> Result<Vec<EnergyReading>, SourceError> {
        Probe::new(&serve_once(status, body), &Access::default())
            .unwrap()
            .window(1.0, 2.0, container)
            .map(|energy| energy.rows)
    }

    #[test]
    fn packages_are_summed_and_containers_found_by_name_or_id() {
        let host = EnergyReading {
            scope: Scope::Host,
            source: "powercap".into(),
            joules: Microjoules(30_500_000),
            edge_error: 3.0,
            model_interval: None,
        };
        let own = EnergyReading {
            scope: Scope::Container,
            source: "powercap".into(),
            joules: Microjoules(7_000_000),
            edge_error: 1.0,
            model_interval: None,
        };
        for (container, expected) in [
            (None, vec![&host]),
            (Some("enc"), vec![&host, &own]),
            (Some("abcdef012345"), vec![&host, &own]),
            (Some(&*format!("abcdef012345{}", "0".repeat(52))), vec![&host, &own]),
            (Some("unknown"), vec![&host]),
        ] {
            assert_eq!(query("200 OK", RESPONSE, container).unwrap().iter().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn modelled_energy_has_the_interval_of_its_package() {
        let body = r#"{"accounts":[
            {"package":"0","zone":"package","source":"model","measured_joules":10,"edge_error_joules":0,"missing_seconds":0,"model_interval_ratio":[0.6,1.88]},
            {"package":"1","zone":"package","source":"model","measured_joules":10,"edge_error_joules":0,"missing_seconds":0,"model_interval_ratio":[0.5,1.5]}],
            "containers":[{"container":"enc","id":"a","energy":[
            {"package":"1","zone":"package","source":"model","joules":3,"edge_error_joules":0}]}]}"#;
        let rows = query("200 OK", body, Some("enc")).unwrap();
        let limits: Vec<_> = rows.iter().map(|row| row.model_interval.map(ModelInterval::limits)).collect();
        assert_eq!(limits, [Some([0.5, 1.88]), Some([0.5, 1.5])]);
        let broken = body.replace("[0.6,1.88]", "[1.88,0.6]");
        assert_eq!(query("200 OK", &broken, None).unwrap_err().reason(), "invalid_answer");
    }

    #[test]
    fn error_has_its_reason_and_is_transient_or_permanent() {
        let too_new = query("425 Too Early", r#"{"code":"too_new","error":"wait"}"#, None).unwrap_err();
        assert!(too_new.is_transient());
        let too_old = query("410 Gone", r#"{"code":"too_old","error":"only from 5 on"}"#, None).unwrap_err();
        assert_eq!(
            (too_old.reason(), too_old.is_transient(), &*too_old.to_string()),
            ("too_old", false, "only from 5 on")
        );
    }

    #[test]
    fn partially_covered_window_is_an_error() {
        let partial = RESPONSE.replacen("\"missing_seconds\":0", "\"missing_seconds\":2", 1);
        let error = query("200 OK", &partial, None).unwrap_err();
        assert_eq!((error.reason(), error.is_transient()), ("incomplete", false));
    }

    #[test]
    fn unsettled_energy_and_idle_power_are_read_and_optional() {
        let old: WindowResponse = serde_json::from_str(RESPONSE).unwrap();
        assert_eq!((old.accounts[0].unsettled_joules, old.accounts[0].idle_known), (0.0, None));
        let fields = "\"missing_seconds\":0,\"unsettled_joules\":2.5,\"idle_known\":false";
        let new = RESPONSE.replacen("\"missing_seconds\":0", fields, 1);
        let parsed: WindowResponse = serde_json::from_str(&new).unwrap();
        assert_eq!((parsed.accounts[0].unsettled_joules, parsed.accounts[0].idle_known), (2.5, Some(false)));
        // Energy whose split waits is measured: the window is no refusal.
        assert!(query("200 OK", &new, None).is_ok());
    }

    /// The unsettled energy of the answer, and the number of waits for it.
    fn settle(responses: &[(&str, &str)], stop_after: u32) -> (f64, u32) {
        let probe = Probe::new(&serve(responses), &Access::default()).unwrap();
        let mut waits = 0;
        let wait = |time: Duration| {
            assert_eq!(time, SETTLE_INTERVAL);
            waits += 1;
            waits < stop_after
        };
        let response = probe.settled_window(1.0, 2.0, wait).unwrap();
        (response.unsettled().map(|account| account.unsettled_joules).sum(), waits)
    }

    #[test]
    fn unsettled_window_is_asked_again_until_it_is_settled() {
        let fields = "\"missing_seconds\":0,\"unsettled_joules\":2.5";
        let unsettled = RESPONSE.replacen("\"missing_seconds\":0", fields, 1);
        let (unsettled, settled) = (("200 OK", &*unsettled), ("200 OK", RESPONSE));
        assert_eq!(settle(&[settled], 9), (0.0, 0), "asked once");
        assert_eq!(settle(&[unsettled, unsettled, settled], 9), (0.0, 2));
        assert_eq!(settle(&[unsettled; 6], 9), (2.5, 5), "the remainder stays");
        assert_eq!(settle(&[unsettled], 1), (2.5, 1), "stopped");
        let gone = ("410 Gone", r#"{"code":"too_old","error":"only from 5 on"}"#);
        assert_eq!(settle(&[unsettled, gone], 9), (2.5, 1), "the first answer stays");
    }

    #[test]
    fn idle_power_is_that_of_the_roots_of_the_container() {
        let body = r#"{"accounts":[
            {"package":"0","zone":"package","source":"perf","measured_joules":10,"edge_error_joules":0,"missing_seconds":0,"idle_known":true},
            {"package":"1","zone":"package","source":"perf","measured_joules":10,"edge_error_joules":0,"missing_seconds":0,"idle_known":false}],
            "containers":[
            {"container":"one","id":"a","energy":[{"package":"0","zone":"package","source":"perf","joules":1,"edge_error_joules":0}]},
            {"container":"both","id":"b","energy":[
                {"package":"0","zone":"package","source":"perf","joules":1,"edge_error_joules":0},
                {"package":"1","zone":"package","source":"perf","joules":1,"edge_error_joules":0}]},
            {"container":"none","id":"c","energy":[]}]}"#;
        let known = |container| {
            let probe = Probe::new(&serve_once("200 OK", body), &Access::default()).unwrap();
            probe.window(1.0, 2.0, Some(container)).unwrap().idle_known
        };
        assert_eq!((known("one"), known("both"), known("none")), (Some(true), Some(false), None));
    }

    #[test]
    fn answers_that_cannot_be_true_are_invalid() {
        assert!(parse_window(RESPONSE.as_bytes(), 1.0, 2.0).is_ok());
        let edges = |start: f64, end: f64, from: f64, to: f64| {
            let edges = format!("{{\"start\":{start},\"end\":{end},\"from\":{from},\"to\":{to},");
            RESPONSE.replacen('{', &edges, 1)
        };
        assert!(parse_window(edges(1.0, 2.0, 0.5, 2.5).as_bytes(), 1.0, 2.0).is_ok());
        // The first reading after an hour without any, all of which may be from before the window.
        let late = RESPONSE.replacen("10.5,\"edge_error_joules\":1", "1080000,\"edge_error_joules\":1080000", 1);
        assert!(late != RESPONSE && parse_window(late.as_bytes(), 1.0, 2.0).is_ok());
        let account = r#"{"package":"0","zone":"package","source":"powercap","measured_joules":10.5,"edge_error_joules":1,"missing_seconds":0},"#;
        let other =
            r#"{"container":"other","id":"def","energy":[{"source":"powercap","joules":9,"edge_error_joules":0}]},"#;
        for (wrong, word) in [
            (RESPONSE.replace("10.5", "-10.5"), "-10.5"),
            (RESPONSE.replace("10.5", "1e308"), "not between"),
            (RESPONSE.replace("10.5", "10500000"), "not between"),
            (RESPONSE.replace("\"joules\":9", "\"joules\":-9"), "-9"),
            (RESPONSE.replace("\"joules\":9", "\"joules\":40"), "containers have 47 J"),
            (RESPONSE.replacen("\"edge_error_joules\":1", "\"edge_error_joules\":-1", 1), "edge error"),
            (RESPONSE.replacen("\"missing_seconds\":0", "\"missing_seconds\":-1", 1), "without readings"),
            (RESPONSE.replacen(account, &account.repeat(2), 1), "occurs twice"),
            (
                RESPONSE.replacen("{\"container\":\"other\"", &format!("{other}{{\"container\":\"other\""), 1),
                "occurs twice",
            ),
            (edges(11.0, 12.0, 11.0, 12.0), "the answer is for 11"),
            (edges(1.0, 2.0, 1.5, 2.0), "the answer is for 1"),
            (edges(1.0, 2.0, -1e300, 2.0), "first tick"),
            ("{}".to_owned(), "accounts"),
        ] {
            let error = parse_window(wrong.as_bytes(), 1.0, 2.0).unwrap_err();
            assert!(error.contains(word), "{error} has no {word}");
        }
        let error = query("200 OK", &RESPONSE.replace("10.5", "1e308"), None).unwrap_err();
        assert_eq!((error.reason(), error.is_transient()), ("invalid_answer", true));
    }

    #[test]
    fn jobs_that_cannot_be_true_are_invalid() {
        let jobs = |job: &str| parse_jobs(format!(r#"{{"probe_started":5,"jobs":[{job}]}}"#).as_bytes());
        assert_eq!(jobs(r#"{"job":1,"joules":5.5},{"job":2}"#).unwrap().jobs.len(), 2);
        for wrong in [
            r#"{"job":1},{"job":1}"#,
            r#"{"job":1,"joules":-1}"#,
            r#"{"job":1,"joules":1e308}"#,
            r#"{"job":1,"cpu_seconds":-0.5}"#,
            r#"{"job":1,"started":1e300}"#,
            r#"{"job":1,"counted_since_seconds":1e300}"#,
            "<html>",
            r#"{"job":1,"gpu_engines":[{"gpu":"0","engine":"encoder","seconds":-1}]}"#,
        ] {
            assert!(jobs(wrong).is_err(), "{wrong}");
        }
        let host = |host: &str| parse_jobs(format!(r#"{{"probe_started":5,"host":{host},"jobs":[]}}"#).as_bytes());
        assert_eq!(host(r#"{"time":7.5,"cpus":8,"alone_seconds":3}"#).unwrap().host.unwrap().cpus, 8);
        for wrong in [r#"{"cpus":100000}"#, r#"{"cpus":-1}"#, r#"{"alone_seconds":-1}"#, r#"{"time":1e300}"#] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn window_without_accounts_has_no_energy() {
        let error = query("200 OK", r#"{"accounts":[],"containers":[]}"#, None).unwrap_err();
        assert_eq!(error.reason(), "incomplete");
    }

    #[test]
    fn response_of_another_server_is_no_energy() {
        for (status, body, reason) in [
            ("200 OK", "<html>", "invalid_answer"),
            ("404 Not Found", "<html>", "unreachable"),
            ("200 OK", "{}", "invalid_answer"),
        ] {
            let error = query(status, body, None).unwrap_err();
            assert_eq!(error.reason(), reason);
            assert!(error.to_string().contains("--probe-url"), "{error}");
        }
        let error = Probe::new("http://127.0.0.1:1", &Access::default()).unwrap().window(1.0, 2.0, None).unwrap_err();
        assert!(error.is_transient());
    }
}
