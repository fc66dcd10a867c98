//! Energy of a window from a Prometheus or VictoriaMetrics that scraped the probe.
//!
//! The raw samples of a range selector are evaluated here ([`super::counter`]), because
//! `increase()` extrapolates to the edges of the window, hides resets and gaps, and sums everything
//! that matches. Only the series of exactly one host are used.

pub mod usage;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;
use units::Microjoules;

use super::{
    counter::{Growth, Sample, growth},
    host::same_host,
    reading::{EnergyReading, Scope},
    window::{EnergyMethod, SourceError, WindowEnergy},
};
use client::{Access, Client, ClientError, Reply};

/// Default timeout of a query.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of a response, in bytes. A sample takes about 30 bytes, so it holds two million: 24
/// counters for a day at 1 Hz.
const MAX_RESPONSE: u64 = 64 << 20;
/// Maximum number of series of a response.
const MAX_SERIES: usize = 10_000;
/// Default time outside the window in which samples around its edges are searched: four scrapes of
/// 15 s.
pub const REACH: Duration = Duration::from_secs(60);

/// Maximum delay of a sample from the scrape to the database in seconds, including an interrupted
/// remote write. Missing samples are a transient error for this long.
const MAX_LAG: f64 = 600.0;

/// Zones whose energy adds up to the host's; other zones are parts of these.
const ROOTS: &str = "package|dram|gpu|psys";

/// A Prometheus or VictoriaMetrics.
#[derive(Clone)]
pub struct Database {
    client: Client,
    /// The path before `/api/v1/…`.
    path: String,
    host_label: String,
    reach: Duration,
}

/// The keys below `[database]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseSettings {
    /// URL of queries, `http://HOST:8428`.
    pub url: Option<String>,
    /// URL of writes if it differs, for example that of `vminsert` of a cluster.
    pub write_url: Option<String>,
    /// Tenant of a VictoriaMetrics cluster, `0` or `12:3`.
    pub tenant: Option<String>,
    /// The label that identifies the host; default `instance`.
    pub host_label: Option<String>,
    /// Time outside the window in which samples around its edges are searched, default `60s`. It
    /// must exceed the scrape interval.
    pub reach: Option<String>,
    /// PEM file of the trusted certificate authorities.
    pub ca_file: Option<std::path::PathBuf>,
    /// PEM file of the client certificate.
    pub cert_file: Option<std::path::PathBuf>,
    /// PEM file of its key.
    pub key_file: Option<std::path::PathBuf>,
    /// User name for basic authentication.
    pub username: Option<String>,
    /// File of its password.
    pub password_file: Option<std::path::PathBuf>,
    /// File of a bearer token.
    pub bearer_token_file: Option<std::path::PathBuf>,
    /// Timeout of a query, default `20s`.
    pub timeout: Option<String>,
}

impl DatabaseSettings {
    /// The client settings.
    #[must_use]
    pub fn access(&self) -> Access {
        Access {
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            bearer_token_file: self.bearer_token_file.clone(),
            timeout: self.timeout.clone(),
        }
    }

    /// The URL path of the tenant, empty without one; `kind` is `select` or `insert`.
    ///
    /// # Errors
    /// If the tenant is not ACCOUNT or ACCOUNT:PROJECT in numbers.
    pub fn tenant_path(&self, kind: &str) -> Result<String, ClientError> {
        let Some(tenant) = &self.tenant else { return Ok(String::new()) };
        let is_number = |text: &str| text.parse::<u32>().is_ok();
        let is_valid = match tenant.split_once(':') {
            Some((account, project)) => is_number(account) && is_number(project),
            None => is_number(tenant),
        };
        if is_valid {
            Ok(format!("/{kind}/{tenant}/prometheus"))
        } else {
            Err(ClientError::Settings(format!("tenant {tenant:?}: expected the number ACCOUNT, or ACCOUNT:PROJECT")))
        }
    }
}

/// The response of `/api/v1/query` and `/api/v1/query_range`.
#[derive(Deserialize)]
struct QueryResponse {
    status: String,
    #[serde(default)]
    error: String,
    /// Set by a VictoriaMetrics cluster if a storage node did not respond, so that series may be
    /// missing.
    #[serde(default, rename = "isPartial")]
    is_partial: bool,
    #[serde(default)]
    data: Option<QueryData>,
}

#[derive(Deserialize)]
struct QueryData {
    result: Vec<Series>,
}

/// One series with its samples.
#[derive(Clone, Debug, Deserialize)]
pub struct Series {
    metric: BTreeMap<String, String>,
    #[serde(default)]
    values: Vec<(f64, String)>,
    /// The only sample, in the answer for a single moment.
    #[serde(default)]
    value: Option<(f64, String)>,
}

impl Series {
    fn label(&self, name: &str) -> &str {
        self.metric.get(name).map(String::as_str).unwrap_or_default()
    }

    /// The samples as a counter, sorted by time. Values that are not numbers, such as staleness
    /// markers, are left out.
    fn counter(&self) -> Vec<Sample> {
        let mut samples: Vec<Sample> = self
            .values
            .iter()
            .filter_map(|(at, value)| {
                let value: f64 = value.parse().ok()?;
                let is_valid = value.is_finite() && value >= 0.0 && at.is_finite();
                is_valid.then(|| Sample { at: *at, micro: Microjoules::from_joules(value).0 })
            })
            .collect();
        samples.sort_by(|a, b| a.at.total_cmp(&b.at));
        samples.dedup_by(|a, b| a.at == b.at);
        samples
    }

    /// The finite samples: unix seconds and value, in the order of the response.
    #[must_use]
    pub fn points(&self) -> Vec<(f64, f64)> {
        let number = |(at, value): &(f64, String)| Some((*at, value.parse::<f64>().ok().filter(|v| v.is_finite())?));
        self.values.iter().chain(&self.value).filter_map(number).collect()
    }
}

/// Parses a query response.
///
/// # Errors
/// If it is not a query response, is partial, has more than 10000 series, or contains an error of
/// the database.
pub fn parse(body: &[u8]) -> Result<Vec<Series>, String> {
    let response: QueryResponse =
        serde_json::from_slice(body).map_err(|error| format!("not a query response ({error})"))?;
    if response.is_partial {
        return Err("partial response: a storage node did not respond".to_owned());
    }
    match response.data {
        Some(data) if response.status == "success" => {
            if data.result.len() > MAX_SERIES {
                return Err(format!("{} series; the selector is too broad", data.result.len()));
            }
            Ok(data.result)
        }
        _ => Err(metrics::label::sanitize(&response.error)),
    }
}

/// A label value quoted for a selector.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// An RE2 pattern that matches exactly `text`, escaped for the quotes of a selector.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut pattern = String::new();
    for c in text.chars() {
        if c.is_ascii_punctuation() && c != '_' && c != '-' {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    let quoted = quoted(&pattern);
    quoted[1..quoted.len() - 1].to_owned()
}

/// An RE2 pattern that matches a host with or without a port, escaped for the quotes of a selector.
#[must_use]
pub fn host_pattern(host: &str) -> String {
    format!("{}(:[0-9]+)?", escaped(host))
}

/// An error of the connection, with what to do.
fn unreachable(error: &ClientError) -> SourceError {
    SourceError::Unreachable(format!("{error}. Start the database, or set its URL with --database.url"))
}

impl Database {
    /// The database of the settings; `None` without a URL. It is not connected yet.
    ///
    /// # Errors
    /// If a setting is invalid.
    pub fn new(settings: &DatabaseSettings) -> Result<Option<Self>, ClientError> {
        let Some(url) = settings.url.as_deref().filter(|url| !url.trim().is_empty()) else { return Ok(None) };
        let reach = match &settings.reach {
            None => REACH,
            Some(text) => humantime::parse_duration(text)
                .map_err(|error| ClientError::Settings(format!("reach {text:?}: {error}")))?,
        };
        Ok(Some(Self {
            client: Client::new(url, &settings.access(), TIMEOUT, MAX_RESPONSE)?,
            path: settings.tenant_path("select")?,
            host_label: settings.host_label.clone().unwrap_or_else(|| "instance".to_owned()),
            reach,
        }))
    }

    /// Checks that the database responds to a query.
    ///
    /// # Errors
    /// If it does not respond with status 200.
    pub fn alive(&self) -> Result<(), SourceError> {
        let reply = self.client.get(&format!("{}/api/v1/query", self.path), &[("query", "1")]);
        match reply {
            Ok(reply) if matches!(reply.status, 401 | 403) => Err(SourceError::Permanent(
                "denied".to_owned(),
                format!("{}: status {}", self.client.display_url(), reply.status),
            )),
            Ok(Reply { status: 200, .. }) => Ok(()),
            Ok(reply) => {
                Err(SourceError::Unreachable(format!("{}: status {}", self.client.display_url(), reply.status)))
            }
            Err(error) => Err(unreachable(&error)),
        }
    }

    /// The base URL of queries.
    #[must_use]
    pub fn url(&self) -> &str {
        self.client.base()
    }

    fn read(&self, reply: Result<Reply, ClientError>) -> Result<Vec<Series>, SourceError> {
        let reply = match reply {
            Ok(reply) => reply,
            Err(ClientError::TooLarge(url)) => {
                let message = format!("{url}: the samples of the window exceed {} MiB", MAX_RESPONSE >> 20);
                return Err(SourceError::Permanent("too_large".to_owned(), message));
            }
            Err(error) => return Err(unreachable(&error)),
        };
        let message = |detail: &str| format!("{}: status {}: {detail}", self.client.display_url(), reply.status);
        match (parse(&reply.body), reply.status) {
            (Ok(series), 200) => Ok(series),
            // An invalid expression, or one over the limits of the database: 400 and 422 in
            // Prometheus and VictoriaMetrics.
            (Err(error), 400 | 422) if !error.is_empty() => {
                Err(SourceError::Permanent("refused".to_owned(), message(&error)))
            }
            // Everything else may be transient: an overload, a proxy, a changed password, an
            // incomplete cluster.
            (Err(error), 200) => Err(SourceError::Invalid(message(&error))),
            _ => Err(SourceError::Unreachable(message(&reply.excerpt()))),
        }
    }

    /// The raw samples of `selector` in the `seconds` before `at`, in unix seconds.
    ///
    /// # Errors
    /// If the query fails.
    pub fn raw(&self, selector: &str, seconds: u64, at: f64) -> Result<Vec<Series>, SourceError> {
        let query = format!("{selector}[{seconds}s]");
        let path = format!("{}/api/v1/query", self.path);
        let reply = self.client.get(&path, &[("query", &query), ("time", &format!("{at:.3}"))]);
        self.read(reply)
    }

    /// The values of `expression` from `start` to `end` in unix seconds, every `step` seconds. In
    /// the last 30 s before now VictoriaMetrics answers with the step before.
    ///
    /// # Errors
    /// If the query fails.
    pub fn range(&self, expression: &str, start: f64, end: f64, step: u64) -> Result<Vec<Series>, SourceError> {
        let path = format!("{}/api/v1/query_range", self.path);
        let (start, end, step) = (format!("{start:.0}"), format!("{end:.0}"), step.to_string());
        let query = [("query", expression), ("start", &start), ("end", &end), ("step", &step)];
        let reply = self.client.get(&path, &query);
        self.read(reply)
    }

    /// The values of `expression` at a moment in unix seconds.
    ///
    /// Not a range of one step: VictoriaMetrics replaces the last 30 s of a range
    /// (`-search.latencyOffset`) by the step before, so that a range of one step is empty.
    ///
    /// # Errors
    /// If the query fails.
    pub fn instant(&self, expression: &str, at: f64) -> Result<Vec<Series>, SourceError> {
        let path = format!("{}/api/v1/query", self.path);
        let reply = self.client.get(&path, &[("query", expression), ("time", &format!("{at:.0}"))]);
        self.read(reply)
    }

    /// The label that identifies the host.
    #[must_use]
    pub fn host_label(&self) -> &str {
        &self.host_label
    }

    /// The energy of a window on one host, and of a container on it. Without `host` the database
    /// must have scraped only one.
    ///
    /// # Errors
    /// If a query fails, the host is ambiguous, or samples at an edge of the window are missing.
    pub fn window(
        &self,
        start: f64,
        end: f64,
        host: Option<&str>,
        container: Option<&str>,
    ) -> Result<WindowEnergy, SourceError> {
        let host = match host {
            Some(host) => host.to_owned(),
            // Queried first, because the samples of a whole fleet are of no use if the host is
            // ambiguous.
            None => self.only_host(end)?,
        };
        let range = SampleRange::new(start, end, self.reach.as_secs_f64());
        let (address, roots) = self.root_series(&host, &range)?;
        let mut increases: Vec<(String, Growth)> = Vec::new();
        for series in &roots {
            let samples = series.counter();
            let mut growth = growth(&samples, start, end);
            if growth.missing_before > 0.0 && !growth.add_first_value(&samples) {
                return Err(incomplete(format!(
                    "a counter of {address} has no sample for the first {:.1} s of the window",
                    growth.missing_before
                )));
            }
            increases.push((series.label("source").to_owned(), growth));
        }
        check_edges(&increases, &address, end - start)?;
        let mut energy = WindowEnergy {
            method: EnergyMethod::Database,
            rows: rows(Scope::Host, &increases),
            coverage: Some(1.0),
            seconds: Some(end - start),
            gap_seconds: increases.iter().map(|(_, growth)| growth.gap_seconds).fold(0.0, f64::max),
            resets: max_resets(&increases),
            watts: watts(&increases),
            cpu_seconds: None,
            idle_known: None,
        };
        if let Some(container) = container {
            self.add_container(&mut energy, container, &address, &range)?;
        }
        energy.resets = energy.resets.saturating_add(self.continued_restarts(&address, &range)?);
        Ok(energy)
    }

    /// Number of restarts of the probe over which its counters continued. No counter fell, but the
    /// energy between the end and the start is in none.
    fn continued_restarts(&self, address: &str, range: &SampleRange) -> Result<u32, SourceError> {
        let selector = format!("wattcast_totals_restarts_total{{{}={}}}", self.host_label, quoted(address));
        let series = self.raw(&selector, range.seconds, range.at)?;
        // A probe may be scraped by two jobs or replicas.
        Ok(series.iter().map(|one| restarts(&one.counter(), range)).max().unwrap_or_default())
    }

    /// The address of `host` in the database, and its counters of accounting roots.
    fn root_series(&self, host: &str, range: &SampleRange) -> Result<(String, Vec<Series>), SourceError> {
        let of_host = format!("{}=~\"{}\"", self.host_label, host_pattern(host));
        let selector = format!("wattcast_energy_joules_total{{zone=~\"{ROOTS}\",{of_host}}}");
        // Before the query, so that its duration does not count as delay of the samples.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let series = self.raw(&selector, range.seconds, range.at)?;
        let ends_early = |one: &Series| one.values.last().is_none_or(|last| last.0 < range.end);
        if now < range.end + MAX_LAG.max(self.reach.as_secs_f64()) && series.iter().all(ends_early) {
            return Err(SourceError::NotYet("the database has no sample after the window yet".to_owned()));
        }
        let address = self.address(&series, host)?;
        let mut roots: Vec<Series> = series.into_iter().filter(|one| one.label(&self.host_label) == address).collect();
        // A series that ended before the window belongs to another source or an earlier start of
        // the probe.
        roots.retain(|one| one.values.last().is_some_and(|last| last.0 >= range.start));
        retain_roots(&mut roots);
        Ok((address, deduplicated(roots, &["package", "zone", "source"], range)))
    }

    /// Adds energy and CPU time of a container, by name or else by id, if the database has any.
    fn add_container(
        &self,
        energy: &mut WindowEnergy,
        container: &str,
        address: &str,
        range: &SampleRange,
    ) -> Result<(), SourceError> {
        let of_host = format!(",{}={}", self.host_label, quoted(address));
        let id: String = container.chars().take(12).collect();
        for by in [format!("container={}", quoted(container)), format!("id={}", quoted(&id))] {
            let query = |metric: &str, labels: &[&str]| {
                let series = self.raw(&format!("{metric}{{{by}{of_host}}}"), range.seconds, range.at)?;
                Ok::<_, SourceError>(deduplicated(series, labels, range))
            };
            let labels = ["container", "id", "package", "zone", "source"];
            let counters = query("wattcast_container_energy_joules_total", &labels)?;
            if counters.is_empty() {
                continue;
            }
            let mut increases = Vec::new();
            for series in &counters {
                let samples = series.counter();
                let mut growth = growth(&samples, range.start, range.end);
                // A container that is older than its first sample has a gap at the start of the
                // window.
                if growth.missing_before > 0.0 && !growth.add_first_value(&samples) {
                    energy.gap_seconds = energy.gap_seconds.max(growth.missing_before);
                }
                increases.push((series.label("source").to_owned(), growth));
            }
            energy.rows.extend(rows(Scope::Container, &increases));
            energy.resets = energy.resets.max(max_resets(&increases));
            let cpu = query("wattcast_container_cpu_seconds_total", &["container", "id", "package", "mode"])?;
            let increase = |series: &Series| {
                let samples = series.counter();
                let mut growth = growth(&samples, range.start, range.end);
                growth.add_first_value(&samples);
                growth.micro
            };
            energy.cpu_seconds = (!cpu.is_empty()).then(|| Microjoules(cpu.iter().map(increase).sum::<u64>()).joules());
            break;
        }
        Ok(())
    }

    /// The only host that was scraped at `at`.
    fn only_host(&self, at: f64) -> Result<String, SourceError> {
        let label = &self.host_label;
        let expression = format!("group by ({label}) (wattcast_energy_joules_total{{zone=~\"{ROOTS}\"}})");
        let series = self.instant(&expression, at)?;
        match &*series {
            [] => Err(self.no_samples("")),
            [one] => Ok(one.label(label).to_owned()),
            several => {
                let hosts: Vec<&str> = several.iter().take(5).map(|one| one.label(label)).collect();
                let (count, hosts) = (several.len(), hosts.join(", "));
                Err(SourceError::Permanent(
                    "which_host".to_owned(),
                    format!("the run names no host, and the database has {count}: {hosts}; add `host` to its file"),
                ))
            }
        }
    }

    fn no_samples(&self, host: &str) -> SourceError {
        let of = if host.is_empty() { String::new() } else { format!(" of {host}") };
        let message = format!("{} has no wattcast_energy_joules_total{of} in the window", self.client.display_url());
        SourceError::Permanent("no_samples".to_owned(), message)
    }

    /// The address under which `host` is scraped; an error if there are several.
    fn address(&self, series: &[Series], host: &str) -> Result<String, SourceError> {
        let mut addresses: Vec<&str> = series.iter().map(|one| one.label(&self.host_label)).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.retain(|address| same_host(address, host));
        match &*addresses {
            [] => Err(self.no_samples(host)),
            [one] => Ok((*one).to_owned()),
            several => Err(SourceError::Permanent(
                "which_host".to_owned(),
                format!("{host} is scraped as {}; set `host` in the file to one of them", several.join(", ")),
            )),
        }
    }
}

/// A window, and the range of samples that is queried for it.
struct SampleRange {
    start: f64,
    end: f64,
    /// End of the range in unix seconds.
    at: f64,
    /// Length of the range.
    seconds: u64,
}

impl SampleRange {
    fn new(start: f64, end: f64, reach: f64) -> Self {
        let seconds = Duration::try_from_secs_f64((end - start + 2.0 * reach).ceil()).unwrap_or_default().as_secs();
        Self { start, end, at: end + reach, seconds }
    }
}

fn incomplete(message: String) -> SourceError {
    SourceError::Permanent("incomplete".to_owned(), message)
}

/// An error if no counter covers the start of the window, or one does not cover its end.
fn check_edges(increases: &[(String, Growth)], address: &str, length: f64) -> Result<(), SourceError> {
    let before = increases.iter().map(|(_, growth)| growth.missing_before).fold(f64::INFINITY, f64::min);
    if before > 0.0 {
        let before = before.min(length);
        return Err(incomplete(format!(
            "the database has no sample of {address} for the first {before:.1} s of the window"
        )));
    }
    if let Some((source, growth)) = increases.iter().find(|(_, growth)| growth.missing_after > 0.0) {
        let after = growth.missing_after;
        return Err(incomplete(format!(
            "the database has no sample of {source} on {address} for the last {after:.1} s of the window"
        )));
    }
    Ok(())
}

/// Restarts between the samples within a window and around its edges.
fn restarts(samples: &[Sample], range: &SampleRange) -> u32 {
    let pairs = samples.windows(2).filter(|pair| pair[1].at > range.start && pair[0].at < range.end);
    let grown = pairs.map(|pair| pair[1].micro.saturating_sub(pair[0].micro));
    let micro = grown.fold(0, u64::saturating_add);
    u32::try_from(micro / 1_000_000).unwrap_or(u32::MAX)
}

fn max_resets(increases: &[(String, Growth)]) -> u32 {
    increases.iter().map(|(_, growth)| growth.resets).max().unwrap_or_default()
}

/// Keeps accounting roots, like the probe: packages, DRAM and GPUs. On a host without packages a
/// platform sensor is the only root, because it includes DRAM and GPUs.
fn retain_roots(series: &mut Vec<Series>) {
    let has = |zone: &str| series.iter().any(|one| one.label("zone") == zone);
    let (packages, platform) = (has("package"), has("psys"));
    series.retain(|one| match one.label("zone") {
        "psys" => !packages,
        "dram" => packages,
        "gpu" => packages || !platform,
        _ => true,
    });
}

/// One series for each combination of values of `labels`, because a counter may be scraped by two
/// jobs or replicas. The series that covers more edges of the window is kept, or else the one with
/// more samples.
fn deduplicated(series: Vec<Series>, labels: &[&str], range: &SampleRange) -> Vec<Series> {
    let rank = |one: &Series| {
        let covers_start = one.values.first().is_some_and(|first| first.0 <= range.start);
        let covers_end = one.values.last().is_some_and(|last| last.0 >= range.end);
        (u8::from(covers_start) + u8::from(covers_end), one.values.len())
    };
    let mut best: BTreeMap<Vec<String>, Series> = BTreeMap::new();
    for one in series {
        let key = labels.iter().map(|label| one.label(label).to_owned()).collect();
        match best.get(&key) {
            Some(known) if rank(known) >= rank(&one) => {}
            _ => {
                best.insert(key, one);
            }
        }
    }
    best.into_values().collect()
}

/// One row for each source.
fn rows(scope: Scope, increases: &[(String, Growth)]) -> Vec<EnergyReading> {
    let mut rows: Vec<EnergyReading> = Vec::new();
    for (source, growth) in increases {
        let (joules, edge_error) = (Microjoules(growth.micro), growth.edge_micro / 1e6);
        match rows.iter_mut().find(|row| row.source == *source) {
            Some(row) => {
                row.joules += joules;
                row.edge_error += edge_error;
            }
            None => {
                let source = metrics::label::sanitize(source);
                rows.push(EnergyReading { scope, source, joules, edge_error, model_interval: None });
            }
        }
    }
    rows
}

/// The host's power between scrapes, summed over all roots; empty if they were not scraped at the
/// same times.
fn watts(increases: &[(String, Growth)]) -> Vec<f64> {
    let Some((_, first)) = increases.first() else { return Vec::new() };
    let has_same_times = |other: &Growth| {
        other.pieces.len() == first.pieces.len()
            && other.pieces.iter().zip(&first.pieces).all(|(a, b)| (a.0 - b.0).abs() < 1e-3 && (a.1 - b.1).abs() < 1e-3)
    };
    if !increases.iter().all(|(_, other)| has_same_times(other)) {
        return Vec::new();
    }
    let power = |index: usize| {
        let (from, to, _) = first.pieces[index];
        let micro = increases.iter().map(|(_, growth)| growth.pieces[index].2).sum::<u64>();
        Microjoules(micro).joules() / (to - from)
    };
    (0..first.pieces.len()).map(power).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_escaped_in_selectors() {
        assert_eq!(quoted("a\"b\\c\nd"), r#""a\"b\\c\nd""#);
        assert_eq!(host_pattern("10.0.0.5"), r"10\\.0\\.0\\.5(:[0-9]+)?");
        assert_eq!(host_pattern("a|b"), r"a\\|b(:[0-9]+)?");
        for (address, host, same) in [
            ("enc-1:9500", "enc-1", true),
            ("enc-1", "enc-1", true),
            ("enc-10:9500", "enc-1", false),
            ("enc-1:x", "enc-1", false),
            ("enc-1:9500", "enc-1:9500", true),
        ] {
            assert_eq!(same_host(address, host), same, "{address} {host}");
        }
    }

    #[test]
    fn duplicate_series_of_a_counter_are_merged() {
        let body = br#"{"status":"success","data":{"resultType":"matrix","result":[
            {"metric":{"instance":"a","job":"x","package":"0"},"values":[[1,"5"],[2,"6"]]},
            {"metric":{"instance":"a","job":"y","package":"0"},"values":[[1,"5"],[2,"6"],[3,"NaN"]]}]}}"#;
        let series = deduplicated(parse(body).unwrap(), &["package"], &SampleRange::new(1.0, 3.0, 0.0));
        assert_eq!((series.len(), series[0].label("job")), (1, "y"));
        assert_eq!(series[0].counter().len(), 2, "a staleness marker is not a sample");
        assert!(parse(br#"{"status":"error","error":"parse error"}"#).unwrap_err().contains("parse error"));
        let partial = br#"{"status":"success","isPartial":true,"data":{"result":[]}}"#;
        assert!(parse(partial).unwrap_err().contains("partial"), "missing series are missing energy");
    }

    /// The energy of a window with such a restart in it was short, and nothing said so.
    #[test]
    fn restarts_over_which_the_counters_continued_are_counted() {
        let counts = [(0.0, 1), (10.0, 1), (20.0, 2), (30.0, 2), (40.0, 0), (50.0, 3)];
        let samples = counts.map(|(at, count): (f64, u64)| Sample { at, micro: count * 1_000_000 });
        let within = |start, end| restarts(&samples, &SampleRange::new(start, end, 0.0));
        assert_eq!([within(0.0, 10.0), within(12.0, 15.0), within(0.0, 40.0), within(20.0, 50.0)], [0, 1, 1, 3]);
    }

    #[test]
    fn platform_sensor_is_a_root_only_without_packages() {
        let of = |zones: &[&str]| -> Vec<String> {
            let one = |zone: &&str| Series {
                metric: [("zone".to_owned(), (*zone).to_owned())].into(),
                values: vec![],
                value: None,
            };
            let mut series = zones.iter().map(one).collect();
            retain_roots(&mut series);
            series.iter().map(|one| one.label("zone").to_owned()).collect()
        };
        assert_eq!(of(&["package", "dram", "gpu", "psys"]), ["package", "dram", "gpu"]);
        assert_eq!(of(&["psys", "gpu", "dram"]), ["psys"]);
        assert_eq!(of(&["gpu"]), ["gpu"]);
    }

    #[test]
    fn tenant_is_a_number_or_a_pair_of_numbers() {
        let path = |tenant: &str| {
            DatabaseSettings { tenant: Some(tenant.into()), ..DatabaseSettings::default() }.tenant_path("select")
        };
        assert_eq!(path("12:3").unwrap(), "/select/12:3/prometheus");
        assert!(path("../../x").is_err() && path("1:").is_err());
        assert_eq!(DatabaseSettings::default().tenant_path("select").unwrap(), "");
    }
}
