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
    counter::{Growth, Sample, growth_since_birth},
    same_host,
};
use crate::client::{Access, Client, Failed, Reply};

/// Longest that a database may take to answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Largest answer: an hour of a host with 8 packages, scraped each second, is 2 MB.
const MAX_ANSWER: u64 = 64 << 20;
/// Most series of an answer that are looked at.
const MAX_SERIES: usize = 10_000;
/// How far beyond the window's edges a sample is looked for: four scrapes of 15 s.
pub const REACH: Duration = Duration::from_secs(60);

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

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        self.client.base()
    }

    fn read(&self, reply: Reply) -> Result<Vec<Series>, Refused> {
        let whole = parse(&reply.body);
        let why = |why: String| format!("{}: status {}: {why}", self.client.shown(), reply.status);
        match whole {
            Ok(series) if reply.status == 200 => Ok(series),
            // Overloaded, starting, or behind a proxy that says so.
            Ok(_) | Err(_) if reply.status >= 500 || reply.status == 429 => {
                Err(Refused::Unreachable(why(reply.excerpt())))
            }
            Ok(_) => Err(Refused::Unreachable(why(reply.excerpt()))),
            Err(error) if reply.status == 200 => Err(Refused::Unreachable(why(error))),
            Err(error) => {
                Err(Refused::Never("refused".to_owned(), why(if error.is_empty() { reply.excerpt() } else { error })))
            }
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
        self.read(reply.map_err(|error| Refused::Unreachable(error.to_string()))?)
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
        self.read(reply.map_err(|error| Refused::Unreachable(error.to_string()))?)
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
        let of_host = host.map(|host| format!(",{}=~\"{}\"", self.host_label, host_pattern(host))).unwrap_or_default();
        let series = self.raw(&format!("wattcast_energy_joules_total{{zone=~\"{ROOTS}\"{of_host}}}"), seconds, at)?;
        let host = self.one_host(&series, host)?;
        let ours = |series: Vec<Series>| -> Vec<Series> {
            series.into_iter().filter(|one| one.label(&self.host_label) == host).collect()
        };
        let mut roots = ours(series);
        // A machine's psys holds its packages.
        if roots.iter().any(|one| one.label("zone") == "package") {
            roots.retain(|one| one.label("zone") != "psys");
        }
        let roots = once(roots, &["package", "zone", "source"]);
        let mut grown: Vec<(String, Growth)> = Vec::new();
        for one in &roots {
            grown.push((one.label("source").to_owned(), growth_since_birth(&one.counter(), start, end)));
        }
        let before = grown.iter().map(|(_, grown)| grown.missing_before).fold(f64::INFINITY, f64::min);
        let after = grown.iter().map(|(_, grown)| grown.missing_after).fold(f64::INFINITY, f64::min);
        if after > 0.0 && now < at {
            return Err(Refused::NotYet("the database has no sample after the window yet".to_owned()));
        }
        if before > 0.0 || after > 0.0 {
            return Err(Refused::Never(
                "incomplete".to_owned(),
                format!(
                    "the database has no sample of {host} for {:.1} s of the window's edges",
                    before.min(end - start) + after.min(end - start)
                ),
            ));
        }
        // A root that ended inside of the window, while another went on, did not measure to its end.
        if let Some((source, lost)) = grown.iter().find(|(_, grown)| grown.missing_after > 0.0) {
            return Err(Refused::Never(
                "incomplete".to_owned(),
                format!("{source} gave nothing for the last {:.1} s of the window", lost.missing_after),
            ));
        }
        let mut energy = Energy {
            way: Way::Database,
            rows: rows(Scope::Host, &grown),
            coverage: 1.0,
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
                let found = once(self.raw(&selector, seconds, at)?, &["container", "id", "package", "zone", "source"]);
                if found.is_empty() {
                    continue;
                }
                let grown: Vec<_> = found
                    .iter()
                    .map(|one| (one.label("source").to_owned(), growth_since_birth(&one.counter(), start, end)))
                    .collect();
                energy.rows.extend(rows(Scope::Container, &grown));
                energy.resets =
                    energy.resets.max(grown.iter().map(|(_, grown)| grown.resets).max().unwrap_or_default());
                let selector = format!("wattcast_container_cpu_seconds_total{{{by}{of_host}}}");
                let ran = once(self.raw(&selector, seconds, at)?, &["container", "id", "package", "mode"]);
                let ran = ran.iter().map(|one| growth_since_birth(&one.counter(), start, end).micro).sum::<u64>();
                energy.cpu_seconds = Some(Microjoules(ran).joules());
                break;
            }
        }
        Ok(energy)
    }

    /// The one host whose series these are.
    fn one_host(&self, series: &[Series], wanted: Option<&str>) -> Result<String, Refused> {
        let mut hosts: Vec<&str> = series.iter().map(|one| one.label(&self.host_label)).collect();
        hosts.sort_unstable();
        hosts.dedup();
        if let Some(wanted) = wanted {
            hosts.retain(|host| same_host(host, wanted));
        }
        match &*hosts {
            [] => Err(Refused::Never(
                "no_samples".to_owned(),
                format!(
                    "{} has no wattcast_energy_joules_total in that time{}",
                    self.client.shown(),
                    wanted.map(|host| format!(" of {host}")).unwrap_or_default()
                ),
            )),
            [one] => Ok((*one).to_owned()),
            several => Err(Refused::Never(
                "which_host".to_owned(),
                format!(
                    "the run does not say on which host it ran, and the database has {}: {}; write `host` into its file",
                    several.len(),
                    several.iter().take(5).copied().collect::<Vec<_>>().join(", ")
                ),
            )),
        }
    }
}

/// One series for each value of `labels`: the same counter may have been scraped twice, by two jobs or two replicas. The one with the most samples stays.
fn once(series: Vec<Series>, labels: &[&str]) -> Vec<Series> {
    let mut all: BTreeMap<Vec<String>, Series> = BTreeMap::new();
    for one in series {
        let key = labels.iter().map(|label| one.label(label).to_owned()).collect();
        match all.get(&key) {
            Some(known) if known.values.len() >= one.values.len() => {}
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
        let series = once(parse(body).unwrap(), &["package"]);
        assert_eq!((series.len(), series[0].label("job")), (1, "y"));
        assert_eq!(series[0].counter().len(), 2, "a marker of staleness is no sample");
        assert!(parse(br#"{"status":"error","error":"parse error"}"#).unwrap_err().contains("parse error"));
    }

    #[test]
    fn tenants_are_numbers() {
        let path = |tenant: &str| Settings { tenant: Some(tenant.into()), ..Settings::default() }.tenant_path("select");
        assert_eq!(path("12:3").unwrap(), "/select/12:3/prometheus");
        assert!(path("../../x").is_err() && path("1:").is_err());
        assert_eq!(Settings::default().tenant_path("select").unwrap(), "");
    }
}
