//! The joules of a window from a Prometheus or a VictoriaMetrics that scraped the probe.
//!
//! Raw samples are asked for, by a range selector, and summed here ([`super::counter`]): `increase()` extrapolates to the window's edges, does not
//! say where a counter was reset or nobody scraped, and sums whatever matches. The series of exactly one host are taken.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use exporter::units::Microjoules;
use serde::Deserialize;

use super::{
    Energy, Joules, Refused, Scope, Way,
    counter::{Growth, Sample, growth},
    same_host,
};
use crate::client::{Access, Client, Failed, Reply};

/// Longest that a database may take to answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Largest answer. A sample is some 30 bytes of text: two million of them, or a day of 24 counters at one a second.
const MAX_ANSWER: u64 = 64 << 20;
/// Most series of an answer that are looked at.
const MAX_SERIES: usize = 10_000;
/// How far beyond the window's edges a sample is looked for: four scrapes of 15 s.
pub const REACH: Duration = Duration::from_secs(60);

/// Seconds that a sample may take from the scrape to the database, over a remote write that was away for a while: until then a window is not given up.
const LAG: f64 = 600.0;

/// Of the host's joules, by accounting root; cores and twins are parts of packages.
const ROOTS: &str = "package|dram|gpu|psys";

/// One database.
#[derive(Clone)]
pub struct Database {
    client: Client,
    /// The path before `/api/v1/…`.
    path: String,
    /// The label that tells hosts apart.
    host_label: String,
    reach: Duration,
}

/// The settings of a database.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where it is asked, `http://HOST:8428`.
    pub url: Option<String>,
    /// Where it takes samples, if that is another: `vminsert` of a cluster.
    pub write_url: Option<String>,
    /// The tenant of a VictoriaMetrics cluster: `0`, or `12:3`.
    pub tenant: Option<String>,
    /// The label that tells hosts apart; `instance`.
    pub host_label: Option<String>,
    /// How far beyond a window's edges a sample is looked for, `60s`; more than the scrape interval.
    pub reach: Option<String>,
    /// Authorities.
    pub ca_file: Option<std::path::PathBuf>,
    /// What we show, where it wants a certificate.
    pub cert_file: Option<std::path::PathBuf>,
    /// Its key.
    pub key_file: Option<std::path::PathBuf>,
    /// For basic auth.
    pub username: Option<String>,
    /// Its password.
    pub password_file: Option<std::path::PathBuf>,
    /// For `Authorization: Bearer`.
    pub bearer_token_file: Option<std::path::PathBuf>,
    /// Longest time that an answer may take.
    pub timeout: Option<String>,
}

impl Settings {
    /// How it is reached.
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

    /// The path of the tenant; `kind` is `select` or `insert`.
    ///
    /// # Errors
    /// When the tenant is no tenant.
    pub fn tenant_path(&self, kind: &str) -> Result<String, Failed> {
        let Some(tenant) = &self.tenant else { return Ok(String::new()) };
        let number = |text: &str| text.parse::<u32>().is_ok();
        let sound = match tenant.split_once(':') {
            Some((account, project)) => number(account) && number(project),
            None => number(tenant),
        };
        if sound {
            Ok(format!("/{kind}/{tenant}/prometheus"))
        } else {
            Err(Failed::Settings(format!("tenant {tenant:?}: write the account's number, or ACCOUNT:PROJECT")))
        }
    }
}

/// What `/api/v1/query` and `/api/v1/query_range` answer.
#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    /// Of VictoriaMetrics' cluster: a node that keeps some of the series did not answer.
    #[serde(default, rename = "isPartial")]
    is_partial: bool,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    result: Vec<Series>,
}

/// One series with its samples.
#[derive(Clone, Debug, Deserialize)]
pub struct Series {
    metric: BTreeMap<String, String>,
    #[serde(default)]
    values: Vec<(f64, String)>,
}

impl Series {
    fn label(&self, name: &str) -> &str {
        self.metric.get(name).map(String::as_str).unwrap_or_default()
    }

    /// As a counter of millionths. What is no number, a marker of staleness, is no sample.
    fn counter(&self) -> Vec<Sample> {
        let mut all: Vec<Sample> = self
            .values
            .iter()
            .filter_map(|(at, value)| {
                let value: f64 = value.parse().ok()?;
                let sound = value.is_finite() && value >= 0.0 && at.is_finite();
                sound.then(|| Sample { at: *at, micro: Microjoules::from_joules(value).0 })
            })
            .collect();
        all.sort_by(|a, b| a.at.total_cmp(&b.at));
        all.dedup_by(|a, b| a.at == b.at);
        all
    }

    /// The samples as they are.
    #[must_use]
    pub fn points(&self) -> Vec<(f64, f64)> {
        let number = |(at, value): &(f64, String)| Some((*at, value.parse::<f64>().ok().filter(|v| v.is_finite())?));
        self.values.iter().filter_map(number).collect()
    }
}

/// The series of an answer.
///
/// # Errors
/// What is wrong with it.
pub fn parse(body: &[u8]) -> Result<Vec<Series>, String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| format!("an answer that is none ({error})"))?;
    if answer.is_partial {
        return Err("a partial answer: a storage node is away".to_owned());
    }
    match answer.data {
        Some(data) if answer.status == "success" => {
            if data.result.len() > MAX_SERIES {
                return Err(format!("{} series; a selector is too wide", data.result.len()));
            }
            Ok(data.result)
        }
        _ => Err(exporter::label::clean(&answer.error)),
    }
}

/// A label's value in a selector.
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

/// A text as a regular expression of RE2 for itself, within the quotes of a selector.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut pattern = String::new();
    for c in text.chars() {
        if c.is_ascii_punctuation() && c != '_' && c != '-' {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    let within = quoted(&pattern);
    within[1..within.len() - 1].to_owned()
}

/// A host, with whatever port, as a regular expression within the quotes of a selector.
#[must_use]
pub fn host_pattern(host: &str) -> String {
    format!("{}(:[0-9]+)?", escaped(host))
}

impl Database {
    /// Connects to nothing yet; `None` where the settings name none.
    ///
    /// # Errors
    /// When the settings are wrong.
    pub fn new(settings: &Settings) -> Result<Option<Self>, Failed> {
        let Some(url) = settings.url.as_deref().filter(|url| !url.trim().is_empty()) else { return Ok(None) };
        let reach = match &settings.reach {
            None => REACH,
            Some(text) => {
                humantime::parse_duration(text).map_err(|error| Failed::Settings(format!("reach {text:?}: {error}")))?
            }
        };
        Ok(Some(Self {
            client: Client::new(url, &settings.access(), TIMEOUT, MAX_ANSWER)?,
            path: settings.tenant_path("select")?,
            host_label: settings.host_label.clone().unwrap_or_else(|| "instance".to_owned()),
            reach,
        }))
    }

    /// True while it answers.
    ///
    /// # Errors
    /// Why nobody can tell.
    pub fn alive(&self) -> Result<(), Refused> {
        let reply = self.client.get(&format!("{}/api/v1/query", self.path), &[("query", "1")]);
        match reply {
            Ok(reply) if matches!(reply.status, 401 | 403) => {
                Err(Refused::Never("denied".to_owned(), format!("{}: status {}", self.client.shown(), reply.status)))
            }
            Ok(Reply { status: 200, .. }) => Ok(()),
            Ok(reply) => Err(Refused::Unreachable(format!("{}: status {}", self.client.shown(), reply.status))),
            Err(error) => Err(Refused::Unreachable(error.to_string())),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        self.client.base()
    }

    fn read(&self, reply: Result<Reply, Failed>) -> Result<Vec<Series>, Refused> {
        let reply = match reply {
            Ok(reply) => reply,
            Err(Failed::TooLarge(url)) => {
                let why = format!("{url}: the window's samples are more than {} MiB", MAX_ANSWER >> 20);
                return Err(Refused::Never("too_large".to_owned(), why));
            }
            Err(error) => return Err(Refused::Unreachable(error.to_string())),
        };
        let why = |why: &str| format!("{}: status {}: {why}", self.client.shown(), reply.status);
        match (parse(&reply.body), reply.status) {
            (Ok(series), 200) => Ok(series),
            // The expression itself is wrong, or asks for more than the database gives: Prometheus and VictoriaMetrics say 400 and 422.
            (Err(error), 400 | 422) if !error.is_empty() => Err(Refused::Never("refused".to_owned(), why(&error))),
            // Everything else may pass: an overload, a proxy, a password that was changed, a part of a cluster.
            (Err(error), 200) => Err(Refused::Unreachable(why(&error))),
            _ => Err(Refused::Unreachable(why(&reply.excerpt()))),
        }
    }

    /// The last `seconds` before `at` of everything that matches, as it was scraped.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn raw(&self, selector: &str, seconds: u64, at: f64) -> Result<Vec<Series>, Refused> {
        let query = format!("{selector}[{seconds}s]");
        let path = format!("{}/api/v1/query", self.path);
        let reply = self.client.get(&path, &[("query", &query), ("time", &format!("{at:.3}"))]);
        self.read(reply)
    }

    /// An expression at equal distances.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn range(&self, expression: &str, start: f64, end: f64, step: u64) -> Result<Vec<Series>, Refused> {
        let path = format!("{}/api/v1/query_range", self.path);
        let (start, end, step) = (format!("{start:.0}"), format!("{end:.0}"), step.to_string());
        let query = [("query", expression), ("start", &start), ("end", &end), ("step", &step)];
        let reply = self.client.get(&path, &query);
        self.read(reply)
    }

    /// The label that tells hosts apart.
    #[must_use]
    pub fn host_label(&self) -> &str {
        &self.host_label
    }

    /// The joules of a window on one host, and of a container there.
    ///
    /// # Errors
    /// When there is no answer, the host cannot be told, or the window has no sample at one of its edges.
    pub fn window(&self, start: f64, end: f64, host: Option<&str>, container: Option<&str>) -> Result<Energy, Refused> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let reach = self.reach.as_secs_f64();
        let at = end + reach;
        let seconds = Duration::try_from_secs_f64((end - start + 2.0 * reach).ceil()).unwrap_or_default().as_secs();
        let host = match host {
            Some(host) => host.to_owned(),
            // A fleet's samples are not fetched to find out that nobody says whose they are.
            None => self.only_host(end)?,
        };
        let of_host = format!("{}=~\"{}\"", self.host_label, host_pattern(&host));
        let selector = format!("wattcast_energy_joules_total{{zone=~\"{ROOTS}\",{of_host}}}");
        let series = self.raw(&selector, seconds, at)?;
        if now < end + LAG.max(reach) && series.iter().all(|one| one.values.last().is_none_or(|last| last.0 < end)) {
            return Err(Refused::NotYet("the database has no sample after the window yet".to_owned()));
        }
        let host = self.one_host(&series, &host)?;
        let mut roots: Vec<Series> = series.into_iter().filter(|one| one.label(&self.host_label) == host).collect();
        // What ended before the window is of another time: another source, another start of the probe.
        roots.retain(|one| one.values.last().is_some_and(|last| last.0 >= start));
        only_roots(&mut roots);
        let roots = once(roots, &["package", "zone", "source"], start, end);
        let incomplete = |why: String| Err(Refused::Never("incomplete".to_owned(), why));
        let mut grown: Vec<(String, Growth)> = Vec::new();
        for one in &roots {
            let samples = one.counter();
            let mut growth = growth(&samples, start, end);
            if growth.missing_before > 0.0 && !growth.add_birth(&samples) {
                return incomplete(format!(
                    "a counter of {host} has no sample for the first {:.1} s of the window",
                    growth.missing_before
                ));
            }
            grown.push((one.label("source").to_owned(), growth));
        }
        let before = grown.iter().map(|(_, grown)| grown.missing_before).fold(f64::INFINITY, f64::min);
        if before > 0.0 {
            let before = before.min(end - start);
            return incomplete(format!(
                "the database has no sample of {host} for the first {before:.1} s of the window"
            ));
        }
        // One that ended inside of the window did not measure to its end.
        if let Some((source, lost)) = grown.iter().find(|(_, grown)| grown.missing_after > 0.0) {
            let after = lost.missing_after;
            return incomplete(format!(
                "the database has no sample of {source} on {host} for the last {after:.1} s of the window"
            ));
        }
        let mut energy = Energy {
            way: Way::Database,
            rows: rows(Scope::Host, &grown),
            coverage: Some(1.0),
            seconds: Some(end - start),
            gap_seconds: grown.iter().map(|(_, grown)| grown.gap_seconds).fold(0.0, f64::max),
            resets: grown.iter().map(|(_, grown)| grown.resets).max().unwrap_or_default(),
            watts: watts(&grown),
            cpu_seconds: None,
        };
        if let Some(container) = container {
            let of_host = format!(",{}={}", self.host_label, quoted(&host));
            let id: String = container.chars().take(12).collect();
            for by in [format!("container={}", quoted(container)), format!("id={}", quoted(&id))] {
                let selector = format!("wattcast_container_energy_joules_total{{{by}{of_host}}}");
                let found = once(
                    self.raw(&selector, seconds, at)?,
                    &["container", "id", "package", "zone", "source"],
                    start,
                    end,
                );
                if found.is_empty() {
                    continue;
                }
                let mut grown = Vec::new();
                for one in &found {
                    let samples = one.counter();
                    let mut growth = growth(&samples, start, end);
                    // One that was there longer than its samples say has a gap at the beginning.
                    if growth.missing_before > 0.0 && !growth.add_birth(&samples) {
                        energy.gap_seconds = energy.gap_seconds.max(growth.missing_before);
                    }
                    grown.push((one.label("source").to_owned(), growth));
                }
                energy.rows.extend(rows(Scope::Container, &grown));
                let resets = grown.iter().map(|(_, grown)| grown.resets).max().unwrap_or_default();
                energy.resets = energy.resets.max(resets);
                let selector = format!("wattcast_container_cpu_seconds_total{{{by}{of_host}}}");
                let labels = ["container", "id", "package", "mode"];
                let ran = once(self.raw(&selector, seconds, at)?, &labels, start, end);
                let of = |one: &Series| {
                    let samples = one.counter();
                    let mut growth = growth(&samples, start, end);
                    growth.add_birth(&samples);
                    growth.micro
                };
                energy.cpu_seconds = (!ran.is_empty()).then(|| Microjoules(ran.iter().map(of).sum::<u64>()).joules());
                break;
            }
        }
        Ok(energy)
    }

    /// The only host that was scraped then.
    fn only_host(&self, at: f64) -> Result<String, Refused> {
        let label = &self.host_label;
        let expression = format!("group by ({label}) (wattcast_energy_joules_total{{zone=~\"{ROOTS}\"}})");
        let series = self.range(&expression, at, at, 1)?;
        match &*series {
            [] => Err(self.nothing_of("")),
            [one] => Ok(one.label(label).to_owned()),
            several => {
                let hosts: Vec<&str> = several.iter().take(5).map(|one| one.label(label)).collect();
                let (count, hosts) = (several.len(), hosts.join(", "));
                Err(Refused::Never(
                    "which_host".to_owned(),
                    format!(
                        "the run does not say on which host it ran, and the database has {count}: {hosts}; write `host` into its file"
                    ),
                ))
            }
        }
    }

    fn nothing_of(&self, host: &str) -> Refused {
        let of = if host.is_empty() { String::new() } else { format!(" of {host}") };
        let why = format!("{} has no wattcast_energy_joules_total in that time{of}", self.client.shown());
        Refused::Never("no_samples".to_owned(), why)
    }

    /// The one address of the host that these series are of.
    fn one_host(&self, series: &[Series], wanted: &str) -> Result<String, Refused> {
        let mut hosts: Vec<&str> = series.iter().map(|one| one.label(&self.host_label)).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts.retain(|host| same_host(host, wanted));
        match &*hosts {
            [] => Err(self.nothing_of(wanted)),
            [one] => Ok((*one).to_owned()),
            several => Err(Refused::Never(
                "which_host".to_owned(),
                format!("{wanted} is scraped under {}; write one of them as `host` into the file", several.join(", ")),
            )),
        }
    }
}

/// Keeps accounting roots, as the probe has them: packages with their memory, and GPUs; where there is no package but a sensor of the platform, that alone,
/// for it holds them all.
fn only_roots(series: &mut Vec<Series>) {
    let has = |zone: &str| series.iter().any(|one| one.label("zone") == zone);
    let (packages, platform) = (has("package"), has("psys"));
    series.retain(|one| match one.label("zone") {
        "psys" => !packages,
        "dram" => packages,
        "gpu" => packages || !platform,
        _ => true,
    });
}

/// One series for each value of `labels`: the same counter may have been scraped twice, by two jobs or two replicas. The one that reaches further over the window's
/// edges stays, and of two that do the one with more samples.
fn once(series: Vec<Series>, labels: &[&str], start: f64, end: f64) -> Vec<Series> {
    let worth = |one: &Series| {
        let begins = one.values.first().is_some_and(|first| first.0 <= start);
        let ends = one.values.last().is_some_and(|last| last.0 >= end);
        (u8::from(begins) + u8::from(ends), one.values.len())
    };
    let mut all: BTreeMap<Vec<String>, Series> = BTreeMap::new();
    for one in series {
        let key = labels.iter().map(|label| one.label(label).to_owned()).collect();
        match all.get(&key) {
            Some(known) if worth(known) >= worth(&one) => {}
            _ => {
                all.insert(key, one);
            }
        }
    }
    all.into_values().collect()
}

fn rows(scope: Scope, grown: &[(String, Growth)]) -> Vec<Joules> {
    let mut rows: Vec<Joules> = Vec::new();
    for (source, grown) in grown {
        let (joules, edge_error) = (Microjoules(grown.micro), grown.edge_micro / 1e6);
        match rows.iter_mut().find(|row| row.source == *source) {
            Some(row) => {
                row.joules += joules;
                row.edge_error += edge_error;
            }
            None => rows.push(Joules { scope, source: exporter::label::clean(source), joules, edge_error }),
        }
    }
    rows
}

/// The host's power between two scrapes, all roots together; nothing where they were not scraped together.
fn watts(grown: &[(String, Growth)]) -> Vec<f64> {
    let Some((_, first)) = grown.first() else { return Vec::new() };
    let together = |other: &Growth| {
        other.pieces.len() == first.pieces.len()
            && other.pieces.iter().zip(&first.pieces).all(|(a, b)| (a.0 - b.0).abs() < 1e-3 && (a.1 - b.1).abs() < 1e-3)
    };
    if !grown.iter().all(|(_, other)| together(other)) {
        return Vec::new();
    }
    let piece = |at: usize| {
        let (from, to, _) = first.pieces[at];
        let micro = grown.iter().map(|(_, grown)| grown.pieces[at].2).sum::<u64>();
        Microjoules(micro).joules() / (to - from)
    };
    (0..first.pieces.len()).map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_is_called_cannot_leave_its_selector() {
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
    fn a_counter_that_was_scraped_twice_is_one() {
        let body = br#"{"status":"success","data":{"resultType":"matrix","result":[
            {"metric":{"instance":"a","job":"x","package":"0"},"values":[[1,"5"],[2,"6"]]},
            {"metric":{"instance":"a","job":"y","package":"0"},"values":[[1,"5"],[2,"6"],[3,"NaN"]]}]}}"#;
        let series = once(parse(body).unwrap(), &["package"], 1.0, 3.0);
        assert_eq!((series.len(), series[0].label("job")), (1, "y"));
        assert_eq!(series[0].counter().len(), 2, "a marker of staleness is no sample");
        assert!(parse(br#"{"status":"error","error":"parse error"}"#).unwrap_err().contains("parse error"));
        let partial = br#"{"status":"success","isPartial":true,"data":{"result":[]}}"#;
        assert!(parse(partial).unwrap_err().contains("partial"), "half of the series are half of the joules");
    }

    #[test]
    fn a_platforms_sensor_holds_what_is_in_it() {
        let of = |zones: &[&str]| -> Vec<String> {
            let one = |zone: &&str| Series { metric: [("zone".to_owned(), (*zone).to_owned())].into(), values: vec![] };
            let mut series = zones.iter().map(one).collect();
            only_roots(&mut series);
            series.iter().map(|one| one.label("zone").to_owned()).collect()
        };
        assert_eq!(of(&["package", "dram", "gpu", "psys"]), ["package", "dram", "gpu"]);
        assert_eq!(of(&["psys", "gpu", "dram"]), ["psys"]);
        assert_eq!(of(&["gpu"]), ["gpu"]);
    }

    #[test]
    fn tenants_are_numbers() {
        let path = |tenant: &str| Settings { tenant: Some(tenant.into()), ..Settings::default() }.tenant_path("select");
        assert_eq!(path("12:3").unwrap(), "/select/12:3/prometheus");
        assert!(path("../../x").is_err() && path("1:").is_err());
        assert_eq!(Settings::default().tenant_path("select").unwrap(), "");
    }
}
