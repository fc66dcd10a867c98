//! Energy of a window from the API of the probe that observed it.

use std::time::Duration;

use metrics::label;
use serde::Deserialize;
use units::Microjoules;

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

/// The response of `/api/v1/window`, as far as it is used here.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct WindowResponse {
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
        serde_json::from_slice(&reply.body)
            .map_err(|error| SourceError::Permanent("alien".to_owned(), format!("{url}: {error}")))
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
        self.read(self.client.get("/api/v1/window", &query))
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
        roots.map(|sample| sample.value).reduce(|sum, watts| sum + watts)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, reply: Result<Reply, ClientError>) -> Result<T, SourceError> {
        let reply = reply.map_err(Self::unreachable)?;
        let (status, base) = (reply.status, self.client.display_url());
        if status != 200 {
            return Err(match serde_json::from_slice::<ErrorResponse>(&reply.body) {
                Ok(problem) if status == 425 || status == 503 => SourceError::NotYet(problem.error),
                Ok(problem) => SourceError::Permanent(label::sanitize(&problem.code), problem.error),
                Err(_) => Self::unreachable(format!("{base}: status {status}; is it a Wattcast probe?")),
            });
        }
        serde_json::from_slice(&reply.body)
            .map_err(|error| Self::unreachable(format!("{base}: not a response of a Wattcast probe ({error})")))
    }
}

impl WindowResponse {
    /// The accounting roots with energy that is not split yet.
    pub fn unsettled(&self) -> impl Iterator<Item = &Account> {
        self.accounts.iter().filter(|account| account.unsettled_joules > 0.0)
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
    let mut add = |scope, source: &str, joules: f64, edge_error: f64| {
        rows.push(EnergyReading {
            scope,
            source: label::sanitize(source),
            joules: Microjoules::from_joules(joules),
            edge_error,
        });
    };
    for account in &response.check_complete()?.accounts {
        add(Scope::Host, &account.source, account.measured_joules, account.edge_error_joules);
    }
    let mut cpu_seconds = None;
    if let Some(name_or_id) = container {
        for row in response.containers.iter().filter(|row| row.matches(name_or_id)) {
            for attribution in &row.energy {
                add(Scope::Container, &attribution.source, attribution.joules, attribution.edge_error_joules);
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
        };
        let own = EnergyReading {
            scope: Scope::Container,
            source: "powercap".into(),
            joules: Microjoules(7_000_000),
            edge_error: 1.0,
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
    fn response_of_another_server_is_unreachable() {
        for (status, body) in [("200 OK", "<html>"), ("404 Not Found", "<html>"), ("200 OK", "{}")] {
            let error = query(status, body, None).unwrap_err();
            assert_eq!(error.reason(), "unreachable");
            assert!(error.to_string().contains("--probe-url"), "{error}");
        }
        let error = Probe::new("http://127.0.0.1:1", &Access::default()).unwrap().window(1.0, 2.0, None).unwrap_err();
        assert!(error.is_transient());
    }
}
