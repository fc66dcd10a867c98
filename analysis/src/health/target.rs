//! Health targets: the default ones, `NAME=URL` of a flag or the environment, and the configuration
//! file.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use metrics::label;
use serde::Deserialize;
use ureq::http::Uri;

use client::Access;

/// Maximum number of targets; larger sites have a Prometheus for this.
pub const MAX_TARGETS: usize = 500;
/// Longest timeout of a request.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// Default age after which data is stale. Our pages are written every few seconds, and cAdvisor's
/// values are some 15 s old.
pub const MAX_AGE: Duration = Duration::from_secs(60);

/// A target of the health check.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The label `target`.
    pub name: String,
    pub url: String,
    pub access: Access,
    pub expected: Expected,
    /// Age after which its data is stale.
    pub max_age: Duration,
    /// Its absence is no fault.
    pub optional: bool,
    /// It is a Wattcast exporter, whose `/ready` reports missing data.
    pub has_ready: bool,
}

/// The expected response of a target.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// A metrics page.
    Metrics {
        /// Families with at least one sample; each may have alternatives.
        families: Vec<Vec<String>>,
        freshness: Freshness,
    },
    /// Any response with status 200.
    AnyPage,
}

/// The evidence that data is current.
#[derive(Clone, Debug, PartialEq)]
pub enum Freshness {
    /// `Last-Modified`, else the timestamps of samples, else a change of any sample.
    Any,
    /// A change of a sample of these families.
    Changes(Vec<String>),
    /// The newest value of a family, in Unix seconds.
    Timestamp(String),
    /// None: the page does not change.
    Static,
}

/// A target in the configuration file, `[[health.target]]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetConfig {
    name: String,
    url: String,
    #[serde(default)]
    expect: Vec<String>,
    /// Families with a sample that must change.
    #[serde(default)]
    moves: Vec<String>,
    /// A family whose value is a Unix time.
    timestamp: Option<String>,
    /// The page does not change.
    #[serde(default, rename = "static")]
    is_static: bool,
    /// Any response with status 200 is healthy.
    #[serde(default)]
    answer: bool,
    max_age: Option<String>,
    #[serde(default)]
    optional: bool,
    /// Credentials for this target only; those of the flags are not sent to it.
    #[serde(default)]
    access: Access,
}

impl TargetConfig {
    /// The target of these settings; the rest is that of the same name and URL on the command line.
    ///
    /// # Errors
    /// An invalid or contradictory setting.
    pub fn target(&self, max_age: Duration) -> Result<Target, String> {
        let invalid = |reason: &str| format!("health.target {:?}: {reason}", self.name);
        let evidence =
            usize::from(!self.moves.is_empty()) + usize::from(self.timestamp.is_some()) + usize::from(self.is_static);
        if evidence > 1 {
            return Err(invalid("set only one of moves, timestamp and static"));
        }
        if self.answer && (evidence > 0 || !self.expect.is_empty()) {
            return Err(invalid("answer = true excludes expect, moves, timestamp and static"));
        }
        let timeout = self.access.timeout.as_deref().and_then(|text| humantime::parse_duration(text).ok());
        if timeout.is_some_and(|timeout| timeout > MAX_TIMEOUT) {
            return Err(invalid("access.timeout: up to 1m"));
        }
        let target =
            parse_url(&self.name, &self.url, self.answer, &self.access, max_age).map_err(|why| invalid(&why))?;
        let (families, freshness) = match target.expected {
            Expected::Metrics { families, freshness } => (families, freshness),
            Expected::AnyPage => (Vec::new(), Freshness::Any),
        };
        let freshness = match (&self.timestamp, self.is_static) {
            (Some(family), _) => Freshness::Timestamp(family.clone()),
            (None, true) => Freshness::Static,
            (None, false) if self.moves.is_empty() => freshness,
            (None, false) => Freshness::Changes(self.moves.clone()),
        };
        let max_age = match &self.max_age {
            None => max_age,
            Some(text) => humantime::parse_duration(text).map_err(|error| invalid(&format!("max_age: {error}")))?,
        };
        if max_age.is_zero() {
            return Err(invalid("max_age: must be above zero"));
        }
        let families = if self.expect.is_empty() { families } else { alternatives(&self.expect) };
        let expected = if self.answer { Expected::AnyPage } else { Expected::Metrics { families, freshness } };
        Ok(Target { expected, max_age, optional: self.optional, access: self.access.clone(), ..target })
    }
}

/// Splits each text into alternatives at its bars.
fn alternatives(texts: &[String]) -> Vec<Vec<String>> {
    texts.iter().map(|text| text.split('|').map(|name| name.trim().to_owned()).collect()).collect()
}

/// A name as it is shown, without control characters.
pub(super) fn clean_name(name: &str) -> Result<String, String> {
    let name = label::sanitize(name.trim());
    if name.is_empty() { Err("the name of the target is empty".to_owned()) } else { Ok(name) }
}

/// A default target: name, port, path, expected families, families that must change, whether it is
/// required.
type DefaultTarget = (&'static str, u16, &'static str, &'static [&'static str], &'static [&'static str], bool);

/// The nine targets of the legacy checker under its names, and four more. The expected families
/// exist whenever there is data; scores and streams may be absent without a fault, so only the
/// results exporter must have runs.
const DEFAULTS: [DefaultTarget; 13] = [
    ("nginx-exporter", 9728, "/metrics", &["nginx_rtmp_connections", "nginx_rtmp_streams"], &[], false),
    ("cpu-exporter-go", 9500, "/metrics", &["rapl_energy_joules_total|wattcast_energy_joules_total"], &[], true),
    (
        "docker-stats-exporter",
        9501,
        "/metrics",
        &["docker_containers_total|wattcast_engine_memory_bytes|wattcast_container_memory_bytes"],
        &[],
        true,
    ),
    (
        "node-exporter",
        9100,
        "/metrics",
        &["node_cpu_seconds_total", "node_memory_MemAvailable_bytes"],
        &["node_cpu_seconds_total"],
        false,
    ),
    ("cadvisor", 8080, "/metrics", &["container_cpu_usage_seconds_total", "container_memory_usage_bytes"], &[], false),
    ("results-exporter", 9502, "/metrics", &["wattcast_run_info"], &[], true),
    ("qoe-exporter", 9503, "/metrics", &["qoe_scenarios_total|wattcast_build_info"], &[], true),
    ("cost-exporter", 9504, "/metrics", &["wattcast_price_amount"], &[], true),
    ("ffmpeg-exporter", 9506, "/metrics", &["ffmpeg_exporter_up|wattcast_progress_dropped_total"], &[], true),
    ("gpu-exporter", 9505, "/metrics", &["gpu_count|wattcast_gpus"], &[], true),
    ("wattcast-probe", 9500, "/metrics", &["wattcast_energy_joules_total", "wattcast_tick_seconds"], &[], true),
    ("victoriametrics", 8428, "/metrics", &["vm_app_version", "process_cpu_seconds_total"], &[], false),
    ("grafana", 3000, "/api/health", &[], &[], false),
];

/// Addresses and credentials of Wattcast's own exporters.
#[derive(Clone, Debug)]
pub struct OwnExporters {
    /// Probes as host name, URL of port 9500 and credentials; ports 9501 and 9505 are those of the
    /// first.
    pub probes: Vec<(String, String, Access)>,
    /// URL scheme of the service.
    pub scheme: &'static str,
    /// `--web.telemetry-path` of the service.
    pub telemetry_path: String,
    /// Known addresses of the service by default port.
    pub addresses: Vec<(u16, SocketAddr)>,
    /// Host name of the service, if its certificate is for a name.
    pub host: Option<String>,
    /// Credentials for the service.
    pub access: Access,
    /// Age after which data is stale.
    pub max_age: Duration,
}

impl OwnExporters {
    /// The exporters of this host on the default ports.
    #[must_use]
    pub fn local(scheme: &'static str, access: &Access) -> Self {
        Self {
            probes: vec![(String::new(), format!("{scheme}://127.0.0.1:9500"), access.clone())],
            scheme,
            telemetry_path: "/metrics".to_owned(),
            addresses: Vec::new(),
            host: None,
            access: access.clone(),
            max_age: MAX_AGE,
        }
    }

    /// URL and credentials of the exporter with this default port; `None` for other exporters.
    fn find(&self, port: u16) -> Option<(String, Access)> {
        match port {
            9500 | 9501 | 9505 => {
                let (_, url, access) = self.probes.first()?;
                let base = url.trim_end_matches('/');
                let base = if port == 9500 { base.to_owned() } else { format!("{}:{port}", scheme_and_host(base)?) };
                Some((format!("{base}/metrics"), access.clone()))
            }
            9502 | 9503 | 9504 | 9506 | 9728 => {
                let known = self.addresses.iter().find(|(default, _)| *default == port).map(|(_, address)| *address);
                let mut address = known.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, port).into());
                if address.ip().is_unspecified() {
                    // [::] accepts IPv4 too.
                    address.set_ip(Ipv4Addr::LOCALHOST.into());
                }
                let host = match &self.host {
                    Some(host) => format!("{host}:{}", address.port()),
                    None => address.to_string(),
                };
                Some((format!("{}://{host}{}", self.scheme, self.telemetry_path), self.access.clone()))
            }
            _ => None,
        }
    }
}

/// Scheme and host of a URL, without port and path.
fn scheme_and_host(url: &str) -> Option<String> {
    let url: Uri = url.parse().ok()?;
    Some(format!("{}://{}", url.scheme_str()?, url.host()?))
}

/// The default targets of this host, and the probes of other hosts.
#[must_use]
pub fn defaults(own: &OwnExporters) -> Vec<Target> {
    let target = |default: &DefaultTarget, name: String, url: String, access: Access| {
        let (_, port, .., required) = *default;
        let (max_age, has_ready) = (own.max_age, is_own_port(port));
        Target { name, url, access, expected: default_expectation(default), max_age, optional: !required, has_ready }
    };
    let mut all: Vec<Target> = DEFAULTS
        .iter()
        .map(|default| {
            let (name, port, path, ..) = *default;
            let local = || (format!("http://127.0.0.1:{port}{path}"), Access::default());
            let (url, access) = own.find(port).unwrap_or_else(local);
            target(default, name.to_owned(), url, access)
        })
        .collect();
    let probe = DEFAULTS.iter().find(|(name, ..)| *name == "wattcast-probe");
    for (host, url, access) in own.probes.iter().skip(1) {
        if let Some(default) = probe {
            let url = format!("{}/metrics", url.trim_end_matches('/'));
            all.push(target(default, label::sanitize(&format!("wattcast-probe {host}")), url, access.clone()));
        }
    }
    all
}

fn default_expectation(default: &DefaultTarget) -> Expected {
    let (_, _, path, families, changes, _) = *default;
    let owned = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
    if path != "/metrics" {
        return Expected::AnyPage;
    }
    let freshness = if changes.is_empty() { Freshness::Any } else { Freshness::Changes(owned(changes)) };
    Expected::Metrics { families: alternatives(&owned(families)), freshness }
}

/// True for the default ports of Wattcast, which other exporters do not use by default.
fn is_own_port(port: u16) -> bool {
    (9500..=9506).contains(&port) || port == 9728
}

/// Parses `NAME=URL` or a URL. The expected response is that of the default target with this name,
/// or of the own exporter with this port. Secrets of `access` are used only over TLS and for this
/// machine.
///
/// # Errors
/// The text is invalid; the error does not contain it, as it may hold a secret.
pub fn parse(text: &str, access: &Access, max_age: Duration) -> Result<Target, String> {
    let (name, url) = match text.split_once('=') {
        Some((name, url)) if !name.contains(['/', ':', '?']) => (name.trim(), url.trim()),
        _ => ("", text.trim()),
    };
    parse_url(name, url, false, access, max_age)
}

/// A target by name and URL. An empty path means `/metrics`, unless `keep_path` is true.
pub(super) fn parse_url(
    name: &str,
    url: &str,
    keep_path: bool,
    access: &Access,
    max_age: Duration,
) -> Result<Target, String> {
    let prefix = if name.is_empty() { String::new() } else { format!("target {}: ", label::sanitize(name)) };
    let invalid = |reason: &str| format!("{prefix}{reason}");
    let uri = url.parse::<Uri>().ok().filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    let Some((scheme, authority)) = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.authority()?))) else {
        return Err(invalid("not a URL; write NAME=http://HOST:PORT/metrics"));
    };
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(invalid("the URL must not contain a user; use --client.username or access in the file"));
    }
    let url_path = uri.as_ref().map_or("", Uri::path);
    let path = if url_path.len() < 2 && !keep_path { "/metrics" } else { url_path };
    let query = uri.as_ref().and_then(Uri::query).map(|query| format!("?{query}")).unwrap_or_default();
    let (host, port) = (authority.as_str(), authority.port_u16());
    let default = DEFAULTS.iter().find(|(known, ..)| *known == name);
    let default = default.or_else(|| {
        let by_port = |(_, known, ..): &&DefaultTarget| name.is_empty() && Some(*known) == port && is_own_port(*known);
        DEFAULTS.iter().find(by_port)
    });
    let expected = match default.map(default_expectation) {
        // Grafana has a metrics page too, not only a health page.
        Some(Expected::AnyPage) if path == "/metrics" => None,
        expected => expected,
    };
    let has_ready = default.is_some_and(|(_, port, ..)| is_own_port(*port));
    let url = format!("{scheme}://{host}{path}{query}");
    Ok(Target {
        name: clean_name(if name.is_empty() { host } else { name })?,
        access: access.without_exposed_secrets(&url),
        url,
        expected: expected.unwrap_or(Expected::Metrics { families: Vec::new(), freshness: Freshness::Any }),
        max_age,
        optional: false,
        has_ready,
    })
}

/// True for the name of a default target.
pub(super) fn is_default(name: &str) -> bool {
    DEFAULTS.iter().any(|(known, ..)| *known == name)
}

/// Checks that names are unique and the number of targets is within the limit.
///
/// # Errors
/// The first duplicate name, or the number of targets.
pub fn check_unique(all: &[Target]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    if let Some(duplicate) = all.iter().find(|target| !names.insert(&target.name)) {
        return Err(format!("two targets have the name {:?}", duplicate.name));
    }
    if all.len() > MAX_TARGETS { Err(format!("{} targets; at most {MAX_TARGETS}", all.len())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_targets_cover_the_legacy_checker_and_more() {
        let access = Access { username: Some("u".into()), ..Access::default() };
        let all = defaults(&OwnExporters::local("https", &access));
        check_unique(&all).unwrap();
        assert_eq!(all.len(), 13);
        let of = |name: &str| all.iter().find(|target| target.name == name).unwrap();
        assert_eq!(of("results-exporter").url, "https://127.0.0.1:9502/metrics");
        assert_eq!(of("node-exporter").url, "http://127.0.0.1:9100/metrics");
        assert!(of("node-exporter").access.username.is_none(), "our password is for our exporters only");
        assert!(of("wattcast-probe").access.username.is_some());
        assert_eq!((&of("grafana").expected, of("grafana").optional), (&Expected::AnyPage, true));
    }

    #[test]
    fn own_targets_have_the_configured_addresses() {
        let mut own = OwnExporters::local("https", &Access::default());
        own.addresses = vec![(9502, ([0, 0, 0, 0], 1234).into()), (9600, ([127, 0, 0, 1], 1).into())];
        own.telemetry_path = "/energy".into();
        let probe = |host: &str, url: &str| (host.to_owned(), url.to_owned(), Access::default());
        own.probes = vec![probe("enc-1", "http://enc-1:9510/"), probe("enc-2", "https://enc-2")];
        let all = defaults(&own);
        check_unique(&all).unwrap();
        let of =
            |name: &str| all.iter().find(|target| target.name == name).map(|target| &*target.url).unwrap_or_default();
        assert_eq!(of("results-exporter"), "https://127.0.0.1:1234/energy");
        assert_eq!(of("cost-exporter"), "https://127.0.0.1:9504/energy");
        assert_eq!(of("cpu-exporter-go"), "http://enc-1:9510/metrics");
        assert_eq!(of("gpu-exporter"), "http://enc-1:9505/metrics");
        assert_eq!(of("wattcast-probe enc-2"), "https://enc-2/metrics");
        own.probes = vec![probe("", "https://gw.example/enc-1/")];
        let all = defaults(&own);
        let of =
            |name: &str| all.iter().find(|target| target.name == name).map(|target| &*target.url).unwrap_or_default();
        assert_eq!(of("wattcast-probe"), "https://gw.example/enc-1/metrics");
        assert_eq!(of("gpu-exporter"), "https://gw.example:9505/metrics", "ports are the host's");
    }

    #[test]
    fn a_name_or_a_port_selects_the_expected_families() {
        let read = |text: &str| parse(text, &Access::default(), MAX_AGE);
        let target = read("node-exporter=http://enc-1:9100").unwrap();
        assert_eq!((&*target.name, &*target.url), ("node-exporter", "http://enc-1:9100/metrics"));
        assert!(matches!(&target.expected, Expected::Metrics { freshness: Freshness::Changes(_), .. }));
        let target = read("http://enc-1:9500/energy").unwrap();
        assert_eq!((&*target.name, &*target.url), ("enc-1:9500", "http://enc-1:9500/energy"));
        assert!(matches!(&target.expected, Expected::Metrics { families, .. } if families.len() == 1));
        let target = read("mine=https://enc-1:9500?a=b").unwrap();
        assert_eq!(target.url, "https://enc-1:9500/metrics?a=b");
        assert!(matches!(&target.expected, Expected::Metrics { families, .. } if families.is_empty()));
        // Other programs use 8080 and 3000 too.
        for url in ["http://h:8080", "http://h:3000/"] {
            assert!(
                matches!(&read(url).unwrap().expected, Expected::Metrics { families, .. } if families.is_empty()),
                "{url}"
            );
        }
        assert_eq!(read("grafana=http://h:3000/api/health").unwrap().expected, Expected::AnyPage);
        for wrong in ["enc-1:9100", "x=ftp://y", "=http://", "", "http://u:hunter2@h:9500", "http://?hunter2"] {
            let why = read(wrong).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn secrets_are_sent_over_tls_or_locally_only() {
        let access = Access { username: Some("u".into()), password_file: Some("p".into()), ..Access::default() };
        let is_sent = |url: &str| parse(url, &access, MAX_AGE).unwrap().access.username.is_some();
        assert!(is_sent("https://enc-1:9500") && is_sent("http://127.0.0.1:9500"));
        assert!(!is_sent("http://enc-1:9500"));
        let config: TargetConfig = toml::from_str("name = \"a\"\nurl = \"https://partner.example\"").unwrap();
        assert_eq!(config.target(MAX_AGE).unwrap().access, Access::default());
    }

    proptest! {
        #[test]
        fn any_text_gives_a_target_or_an_error(text in any::<String>()) {
            let _ = parse(&text, &Access::default(), MAX_AGE);
        }
    }
}
