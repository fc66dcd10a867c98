//! What is looked at: the defaults, `NAME=URL` of a flag or the environment, and the configuration file.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use exporter::label;
use serde::Deserialize;
use ureq::http::Uri;

use crate::client::Access;

/// Most targets; a site of a thousand hosts asks its Prometheus, whose work that is.
pub const MOST: usize = 500;
/// Longest that an answer may take.
pub const LONGEST: Duration = Duration::from_secs(60);
/// Data that is older is stale, where nobody says otherwise. Our slowest page is written every few seconds, cAdvisor's figures are some 15 s old.
pub const MAX_AGE: Duration = Duration::from_secs(60);

/// One thing to look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// As it is called on pages.
    pub name: String,
    /// The whole URL.
    pub url: String,
    /// How it is reached.
    pub access: Access,
    /// What it should show.
    pub shows: Shows,
    /// Its data is stale beyond this age.
    pub max_age: Duration,
    /// Absent is in order: not every host has one.
    pub optional: bool,
    /// It is one of ours, and says on `/ready` whether what it shows is whole.
    pub ready: bool,
}

/// What an answer should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Shows {
    /// A page of metrics.
    Metrics {
        /// Families that must be there with at least one sample; each may have alternatives.
        expect: Vec<Vec<String>>,
        /// What tells whether the data is of now.
        fresh: Fresh,
    },
    /// Anything, with status 200.
    Anything,
}

/// What tells that data is of now.
#[derive(Clone, Debug, PartialEq)]
pub enum Fresh {
    /// `Last-Modified`, or the samples' own times, or else that any sample has changed.
    Any,
    /// That a sample of these families has changed.
    Moves(Vec<String>),
    /// The newest value of a family, unix seconds.
    Timestamp(String),
    /// Nothing: the page is meant to stand still.
    Static,
}

/// A target as the configuration file has it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    name: String,
    url: String,
    #[serde(default)]
    expect: Vec<String>,
    /// Families of which a sample has to change.
    #[serde(default)]
    moves: Vec<String>,
    /// A family whose value is a moment.
    timestamp: Option<String>,
    /// The page is meant to stand still.
    #[serde(default, rename = "static")]
    still: bool,
    /// It shows no metrics; status 200 is enough.
    #[serde(default)]
    answer: bool,
    max_age: Option<String>,
    #[serde(default)]
    optional: bool,
    /// How it is reached; nobody's secret but its own is shown to it.
    #[serde(default)]
    access: Access,
}

impl Written {
    /// What it means: what the same name and URL would on the command line, and what is said besides.
    ///
    /// # Errors
    /// What makes no sense.
    pub fn read(&self, max_age: Duration) -> Result<Target, String> {
        let wrong = |what: &str| format!("health.target {:?}: {what}", self.name);
        let ways =
            usize::from(!self.moves.is_empty()) + usize::from(self.timestamp.is_some()) + usize::from(self.still);
        if ways > 1 {
            return Err(wrong("one of moves, timestamp and static"));
        }
        if self.answer && (ways > 0 || !self.expect.is_empty()) {
            return Err(wrong("with answer = true no metrics are looked at"));
        }
        let timeout = self.access.timeout.as_deref().and_then(|text| humantime::parse_duration(text).ok());
        if timeout.is_some_and(|timeout| timeout > LONGEST) {
            return Err(wrong("access.timeout: up to 1m"));
        }
        let usual = at(&self.name, &self.url, self.answer, &self.access, max_age).map_err(|why| wrong(&why))?;
        let (expect, fresh) = match usual.shows {
            Shows::Metrics { expect, fresh } => (expect, fresh),
            Shows::Anything => (Vec::new(), Fresh::Any),
        };
        let fresh = match (&self.timestamp, self.still) {
            (Some(family), _) => Fresh::Timestamp(family.clone()),
            (None, true) => Fresh::Static,
            (None, false) if self.moves.is_empty() => fresh,
            (None, false) => Fresh::Moves(self.moves.clone()),
        };
        let max_age = match &self.max_age {
            None => max_age,
            Some(text) => humantime::parse_duration(text).map_err(|error| wrong(&format!("max_age: {error}")))?,
        };
        if max_age.is_zero() {
            return Err(wrong("max_age: nothing is that young"));
        }
        let expect = if self.expect.is_empty() { expect } else { expected(&self.expect) };
        let shows = if self.answer { Shows::Anything } else { Shows::Metrics { expect, fresh } };
        Ok(Target { shows, max_age, optional: self.optional, access: self.access.clone(), ..usual })
    }
}

/// Alternatives are divided by a bar.
fn expected(words: &[String]) -> Vec<Vec<String>> {
    words.iter().map(|word| word.split('|').map(|name| name.trim().to_owned()).collect()).collect()
}

pub(super) fn named(name: &str) -> Result<String, String> {
    let name = label::clean(name.trim());
    if name.is_empty() { Err("a target without a name".to_owned()) } else { Ok(name) }
}

/// Of the defaults: name, port, path, families with alternatives, what tells that it is fresh, whether every host has it.
type Usual = (&'static str, u16, &'static str, &'static [&'static str], &'static [&'static str], bool);

/// The nine of the checker that is replaced, under its names, and what it left out. What is expected is what is there whenever there is data; of runs the results
/// exporter's page tells, for scores and streams may rightly be none.
const DEFAULTS: [Usual; 13] = [
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

/// Where Wattcast's own pages are, and how they are reached.
#[derive(Clone, Debug)]
pub struct Ours {
    /// Probes by their hosts' names, with the URLs of their ports 9500; the first has the others of a probe beside it.
    pub probes: Vec<(String, String, Access)>,
    /// The service's scheme, path of metrics, and its access.
    pub scheme: &'static str,
    /// As of `--web.telemetry-path`.
    pub telemetry: String,
    /// Where its ports are, by what they usually are, where that is known.
    pub addresses: Vec<(u16, SocketAddr)>,
    /// The name under which the service is known, where its certificate is for that.
    pub host: Option<String>,
    /// How the service is reached.
    pub access: Access,
    /// Data that is older is stale.
    pub max_age: Duration,
}

impl Ours {
    /// One on this host with the usual ports.
    #[must_use]
    pub fn usual(scheme: &'static str, access: &Access) -> Self {
        Self {
            probes: vec![(String::new(), format!("{scheme}://127.0.0.1:9500"), access.clone())],
            scheme,
            telemetry: "/metrics".to_owned(),
            addresses: Vec::new(),
            host: None,
            access: access.clone(),
            max_age: MAX_AGE,
        }
    }

    /// The URL of what usually is on a port, and how it is reached; `None` for what is not ours.
    fn find(&self, port: u16) -> Option<(String, Access)> {
        match port {
            9500 | 9501 | 9505 => {
                let (_, url, access) = self.probes.first()?;
                let base = url.trim_end_matches('/');
                let beside = || Some(format!("{}:{port}", base_of(base)?));
                Some((format!("{}/metrics", if port == 9500 { base.to_owned() } else { beside()? }), access.clone()))
            }
            9502 | 9503 | 9504 | 9506 | 9728 => {
                let there = self.addresses.iter().find(|(usual, _)| *usual == port).map(|(_, address)| *address);
                let mut there = there.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, port).into());
                if there.ip().is_unspecified() {
                    // [::] takes both kinds.
                    there.set_ip(Ipv4Addr::LOCALHOST.into());
                }
                let host = match &self.host {
                    Some(host) => format!("{host}:{}", there.port()),
                    None => there.to_string(),
                };
                Some((format!("{}://{host}{}", self.scheme, self.telemetry), self.access.clone()))
            }
            _ => None,
        }
    }
}

/// Scheme and host of a URL, without its port and path.
fn base_of(url: &str) -> Option<String> {
    let url: Uri = url.parse().ok()?;
    Some(format!("{}://{}", url.scheme_str()?, url.host()?))
}

/// The targets of a stack on one host, and the probes of others.
#[must_use]
pub fn defaults(ours: &Ours) -> Vec<Target> {
    let of = |usual: &Usual, name: String, url: String, access: Access| {
        let (_, port, .., everywhere) = *usual;
        let (max_age, ready) = (ours.max_age, is_ours(port));
        Target { name, url, access, shows: shown(usual), max_age, optional: !everywhere, ready }
    };
    let mut all: Vec<Target> = DEFAULTS
        .iter()
        .map(|usual| {
            let (name, port, path, ..) = *usual;
            let elsewhere = || (format!("http://127.0.0.1:{port}{path}"), Access::default());
            let (url, access) = ours.find(port).unwrap_or_else(elsewhere);
            of(usual, name.to_owned(), url, access)
        })
        .collect();
    let probe = DEFAULTS.iter().find(|(name, ..)| *name == "wattcast-probe");
    for (host, url, access) in ours.probes.iter().skip(1) {
        if let Some(usual) = probe {
            let url = format!("{}/metrics", url.trim_end_matches('/'));
            all.push(of(usual, label::clean(&format!("wattcast-probe {host}")), url, access.clone()));
        }
    }
    all
}

/// What a default shows.
fn shown(usual: &Usual) -> Shows {
    let (_, _, path, expect, moves, _) = *usual;
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(|word| (*word).to_owned()).collect() };
    if path != "/metrics" {
        return Shows::Anything;
    }
    let fresh = if moves.is_empty() { Fresh::Any } else { Fresh::Moves(words(moves)) };
    Shows::Metrics { expect: expected(&words(expect)), fresh }
}

/// Ports that nobody else has by habit.
fn is_ours(port: u16) -> bool {
    (9500..=9506).contains(&port) || port == 9728
}

/// `NAME=URL`, or a URL alone; what is expected of it is what is expected of the default of that name, or, of a port that only we have, of that. A secret of `access` is shown
/// over TLS and to this machine only.
///
/// # Errors
/// What makes no sense; without the text, which may hold a secret.
pub fn given(text: &str, access: &Access, max_age: Duration) -> Result<Target, String> {
    let (name, url) = match text.split_once('=') {
        Some((name, url)) if !name.contains(['/', ':', '?']) => (name.trim(), url.trim()),
        _ => ("", text.trim()),
    };
    at(name, url, false, access, max_age)
}

/// A target by name and URL. `whole` takes the path as it is, even without one.
pub(super) fn at(name: &str, url: &str, whole: bool, access: &Access, max_age: Duration) -> Result<Target, String> {
    let named_so = if name.is_empty() { String::new() } else { format!("target {}: ", label::clean(name)) };
    let wrong = |what: &str| format!("{named_so}{what}");
    let uri = url.parse::<Uri>().ok().filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    let Some((scheme, authority)) = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.authority()?))) else {
        return Err(wrong("no URL; write NAME=http://HOST:PORT/metrics"));
    };
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(wrong("a host without a user; users and passwords are for --client.username and access"));
    }
    let given_path = uri.as_ref().map_or("", Uri::path);
    let path = if given_path.len() < 2 && !whole { "/metrics" } else { given_path };
    let query = uri.as_ref().and_then(Uri::query).map(|query| format!("?{query}")).unwrap_or_default();
    let (host, port) = (authority.as_str(), authority.port_u16());
    let usual = DEFAULTS.iter().find(|(known, ..)| *known == name);
    let usual = usual.or_else(|| {
        let by_port = |(_, known, ..): &&Usual| name.is_empty() && Some(*known) == port && is_ours(*known);
        DEFAULTS.iter().find(by_port)
    });
    let shows = match usual.map(shown) {
        // Grafana has a page of metrics too, where it is not asked for its health.
        Some(Shows::Anything) if path == "/metrics" => None,
        usual => usual,
    };
    let ready = usual.is_some_and(|(_, port, ..)| is_ours(*port));
    let url = format!("{scheme}://{host}{path}{query}");
    Ok(Target {
        name: named(if name.is_empty() { host } else { name })?,
        access: access.discreet(&url),
        url,
        shows: shows.unwrap_or(Shows::Metrics { expect: Vec::new(), fresh: Fresh::Any }),
        max_age,
        optional: false,
        ready,
    })
}

/// True for the name of a target whose page we know.
pub(super) fn is_known(name: &str) -> bool {
    DEFAULTS.iter().any(|(known, ..)| *known == name)
}

/// Refuses what would be two of one name, or too many.
///
/// # Errors
/// The first name that stands twice, or the number.
pub fn distinct(all: &[Target]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    if let Some(twice) = all.iter().find(|target| !names.insert(&target.name)) {
        return Err(format!("two targets are called {:?}", twice.name));
    }
    if all.len() > MOST { Err(format!("{} targets; at most {MOST}", all.len())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_defaults_are_the_replaced_checker_s_and_what_it_left_out() {
        let access = Access { username: Some("u".into()), ..Access::default() };
        let all = defaults(&Ours::usual("https", &access));
        distinct(&all).unwrap();
        assert_eq!(all.len(), 13);
        let of = |name: &str| all.iter().find(|target| target.name == name).unwrap();
        assert_eq!(of("results-exporter").url, "https://127.0.0.1:9502/metrics");
        assert_eq!(of("node-exporter").url, "http://127.0.0.1:9100/metrics");
        assert!(of("node-exporter").access.username.is_none(), "nobody else is shown our password");
        assert!(of("wattcast-probe").access.username.is_some());
        assert_eq!((&of("grafana").shows, of("grafana").optional), (&Shows::Anything, true));
    }

    #[test]
    fn targets_of_ours_are_where_ours_are() {
        let mut ours = Ours::usual("https", &Access::default());
        ours.addresses = vec![(9502, ([0, 0, 0, 0], 1234).into()), (9600, ([127, 0, 0, 1], 1).into())];
        ours.telemetry = "/energy".into();
        let probe = |host: &str, url: &str| (host.to_owned(), url.to_owned(), Access::default());
        ours.probes = vec![probe("enc-1", "http://enc-1:9510/"), probe("enc-2", "https://enc-2")];
        let all = defaults(&ours);
        distinct(&all).unwrap();
        let of =
            |name: &str| all.iter().find(|target| target.name == name).map(|target| &*target.url).unwrap_or_default();
        assert_eq!(of("results-exporter"), "https://127.0.0.1:1234/energy");
        assert_eq!(of("cost-exporter"), "https://127.0.0.1:9504/energy");
        assert_eq!(of("cpu-exporter-go"), "http://enc-1:9510/metrics");
        assert_eq!(of("gpu-exporter"), "http://enc-1:9505/metrics");
        assert_eq!(of("wattcast-probe enc-2"), "https://enc-2/metrics");
        ours.probes = vec![probe("", "https://gw.example/enc-1/")];
        let all = defaults(&ours);
        let of =
            |name: &str| all.iter().find(|target| target.name == name).map(|target| &*target.url).unwrap_or_default();
        assert_eq!(of("wattcast-probe"), "https://gw.example/enc-1/metrics");
        assert_eq!(of("gpu-exporter"), "https://gw.example:9505/metrics", "ports are the host's");
    }

    #[test]
    fn a_name_or_a_port_says_what_is_expected() {
        let read = |text: &str| given(text, &Access::default(), MAX_AGE);
        let target = read("node-exporter=http://enc-1:9100").unwrap();
        assert_eq!((&*target.name, &*target.url), ("node-exporter", "http://enc-1:9100/metrics"));
        assert!(matches!(&target.shows, Shows::Metrics { fresh: Fresh::Moves(_), .. }));
        let target = read("http://enc-1:9500/energy").unwrap();
        assert_eq!((&*target.name, &*target.url), ("enc-1:9500", "http://enc-1:9500/energy"));
        assert!(matches!(&target.shows, Shows::Metrics { expect, .. } if expect.len() == 1));
        let target = read("mine=https://enc-1:9500?a=b").unwrap();
        assert_eq!(target.url, "https://enc-1:9500/metrics?a=b");
        assert!(matches!(&target.shows, Shows::Metrics { expect, .. } if expect.is_empty()));
        // 8080 and 3000 are everybody's.
        for url in ["http://h:8080", "http://h:3000/"] {
            assert!(matches!(&read(url).unwrap().shows, Shows::Metrics { expect, .. } if expect.is_empty()), "{url}");
        }
        assert_eq!(read("grafana=http://h:3000/api/health").unwrap().shows, Shows::Anything);
        for wrong in ["enc-1:9100", "x=ftp://y", "=http://", "", "http://u:hunter2@h:9500", "http://?hunter2"] {
            let why = read(wrong).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn a_secret_is_shown_over_tls_and_to_this_machine_only() {
        let access = Access { username: Some("u".into()), password_file: Some("p".into()), ..Access::default() };
        let shown = |url: &str| given(url, &access, MAX_AGE).unwrap().access.username.is_some();
        assert!(shown("https://enc-1:9500") && shown("http://127.0.0.1:9500"));
        assert!(!shown("http://enc-1:9500"));
        let written: Written = toml::from_str("name = \"a\"\nurl = \"https://partner.example\"").unwrap();
        assert_eq!(written.read(MAX_AGE).unwrap().access, Access::default());
    }

    proptest! {
        #[test]
        fn any_text_gives_targets_or_a_reason(text in any::<String>()) {
            let _ = given(&text, &Access::default(), MAX_AGE);
        }
    }
}
