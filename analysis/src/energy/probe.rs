//! The joules of a window, from the probe that saw it.

use std::time::Duration;

use exporter::{label, units::Microjoules};
use serde::Deserialize;

use super::{Energy, Joules, Refused, Scope, Way, merged};
use crate::{
    client::{Access, Client, Failed, Reply},
    streams::names::Jobs,
};

/// Longest that the probe may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer taken; a host with 512 containers on 8 packages gives under 2 MB.
const MAX_ANSWER: u64 = 16 << 20;

/// The parts of the probe's answer that are used here.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Answer {
    /// By accounting root; no joule is in two.
    pub accounts: Vec<Account>,
    /// Who used something.
    pub containers: Vec<Container>,
}

/// Joules of the host from one accounting root.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Account {
    /// As the label `package`.
    pub package: String,
    /// As the label `zone`.
    pub zone: String,
    /// How they were obtained.
    pub source: String,
    /// All of it.
    pub measured_joules: f64,
    /// The most that the edges can have added.
    pub edge_error_joules: f64,
    /// Time for which the source gave nothing.
    pub missing_seconds: f64,
}

/// What one container used.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Container {
    /// Its name.
    pub container: String,
    /// As the label `id`.
    pub id: String,
    /// By root.
    pub energy: Vec<Given>,
    /// By package.
    #[serde(default)]
    pub cpu: Vec<Cpu>,
}

impl Container {
    /// By name, by the id that the probe shows, or by the full id of which that is the beginning.
    #[must_use]
    pub fn is(&self, wanted: &str) -> bool {
        let full = wanted.len() == 64 && self.id.len() == 12 && wanted.starts_with(&self.id);
        self.container == wanted || self.id == wanted || full
    }
}

/// CPU time on one package.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Cpu {
    /// CPU seconds.
    pub seconds: f64,
}

/// Joules of a container from one root.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Given {
    /// As the label `package`.
    #[serde(default)]
    pub package: String,
    /// As the label `zone`.
    #[serde(default)]
    pub zone: String,
    /// How they were obtained.
    pub source: String,
    /// Dynamic energy.
    pub joules: f64,
    /// The most that the edges can have added.
    pub edge_error_joules: f64,
    /// By how much they may be off; nothing where nobody can say.
    #[serde(default)]
    pub uncertainty_joules: Option<f64>,
}

/// How one of the probe's sources stands.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Standing {
    /// `powercap`, `cpu`, …
    pub source: String,
    /// `usable`, `absent`, `denied`, `broken`.
    pub state: String,
    /// What it offers, or what to do.
    pub detail: String,
    /// Whether the probe's configuration counts on it.
    pub wanted: bool,
}

#[derive(Deserialize)]
struct Mark {
    time: f64,
}

#[derive(Deserialize)]
struct Problem {
    code: String,
    error: String,
}

/// A probe by its URL.
#[derive(Clone)]
pub struct Probe {
    client: Client,
}

impl Probe {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When the URL or what belongs to it is wrong.
    pub fn new(url: &str, access: &Access) -> Result<Self, Failed> {
        Ok(Self { client: Client::new(url, access, TIMEOUT, MAX_ANSWER)? })
    }

    /// True while it is alive.
    ///
    /// # Errors
    /// Why nobody can tell.
    pub fn alive(&self) -> Result<(), Refused> {
        match self.client.get("/health", &[]) {
            Ok(reply) if reply.status == 200 => Ok(()),
            Ok(reply) if matches!(reply.status, 401 | 403) => {
                Err(Refused::Never("denied".to_owned(), format!("{}: status {}", self.client.shown(), reply.status)))
            }
            Ok(reply) => Err(Self::unreachable(format!("{}: status {}", self.client.shown(), reply.status))),
            Err(error) => Err(Self::unreachable(error)),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        self.client.base()
    }

    fn unreachable(why: impl std::fmt::Display) -> Refused {
        Refused::Unreachable(format!("{why}. Start the probe, or name it with --probe-url"))
    }

    /// Asks for the jobs that run or ended lately.
    ///
    /// # Errors
    /// When the probe cannot be asked, or says something else.
    pub fn jobs(&self) -> Result<Jobs, Refused> {
        let path = "/api/v1/streams";
        let reply = self.client.get(path, &[]).map_err(Self::unreachable)?;
        let url = format!("{}{path}", self.client.shown());
        if reply.status != 200 {
            return Err(Refused::NotYet(format!("{url}: status {}", reply.status)));
        }
        serde_json::from_slice(&reply.body)
            .map_err(|error| Refused::Never("alien".to_owned(), format!("{url}: {error}")))
    }

    /// Asks for the joules of a window, of the host and of `container` if there is one.
    ///
    /// # Errors
    /// When the probe cannot be asked, or refuses; a partial answer of the probe is a refusal here.
    pub fn window(&self, start: f64, end: f64, container: Option<&str>) -> Result<Energy, Refused> {
        energy(&self.answer(start, end)?, end - start, container)
    }

    /// Asks for the joules of a window, of everybody, as the probe says it.
    ///
    /// # Errors
    /// When the probe cannot be asked, or refuses.
    pub fn answer(&self, start: f64, end: f64) -> Result<Answer, Refused> {
        let query = [("start", &*start.to_string()), ("end", &*end.to_string())];
        self.read(self.client.get("/api/v1/window", &query))
    }

    /// Asks for a tick now: an exact edge of a window, in unix seconds.
    ///
    /// # Errors
    /// When the probe cannot be asked, or takes none.
    pub fn mark(&self) -> Result<f64, Refused> {
        let mark: Mark = self.read(self.client.post("/api/v1/mark", &[], &[]))?;
        Ok(mark.time)
    }

    /// Asks how its sources stand.
    ///
    /// # Errors
    /// When the probe cannot be asked.
    pub fn sources(&self) -> Result<Vec<Standing>, Refused> {
        self.read(self.client.get("/api/v1/sources", &[]))
    }

    /// Watts of the machine by its last tick: packages, their memory and GPUs. Nothing where none are shown. A look changes nothing.
    #[must_use]
    pub fn watts(&self) -> Option<f64> {
        let reply = self.client.get("/metrics", &[]).ok().filter(|reply| reply.status == 200)?;
        let page = exporter::parse::parse(std::str::from_utf8(&reply.body).ok()?).ok()?;
        let roots = page.samples.iter().filter(|sample| {
            sample.name == "wattcast_power_watts" && ["package", "dram", "gpu"].contains(&sample.label("zone"))
        });
        roots.map(|sample| sample.value).reduce(|sum, watts| sum + watts)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, reply: Result<Reply, Failed>) -> Result<T, Refused> {
        let reply = reply.map_err(Self::unreachable)?;
        let (status, base) = (reply.status, self.client.shown());
        if status != 200 {
            return Err(match serde_json::from_slice::<Problem>(&reply.body) {
                Ok(problem) if status == 425 || status == 503 => Refused::NotYet(problem.error),
                Ok(problem) => Refused::Never(label::clean(&problem.code), problem.error),
                Err(_) => Self::unreachable(format!("{base}: answered {status}; is that a Wattcast probe?")),
            });
        }
        serde_json::from_slice(&reply.body)
            .map_err(|error| Self::unreachable(format!("{base}: an answer that is not ours ({error})")))
    }
}

impl Answer {
    /// Refuses an answer that lacks some of the window: less than the window is no answer.
    ///
    /// # Errors
    /// What is missing.
    pub fn whole(&self) -> Result<&Self, Refused> {
        let part = self.accounts.iter().find(|account| account.missing_seconds > 0.0);
        part.map_or(Ok(self), |account| {
            Err(Refused::Never(
                "incomplete".into(),
                format!(
                    "{} of package {} gave nothing for {:.1} s of the window",
                    account.zone, account.package, account.missing_seconds
                ),
            ))
        })
    }
}

fn energy(answer: &Answer, seconds: f64, container: Option<&str>) -> Result<Energy, Refused> {
    let mut rows: Vec<Joules> = Vec::new();
    let mut add = |scope, source: &str, joules: f64, edge_error: f64| {
        rows.push(Joules { scope, source: label::clean(source), joules: Microjoules::from_joules(joules), edge_error });
    };
    for account in &answer.whole()?.accounts {
        add(Scope::Host, &account.source, account.measured_joules, account.edge_error_joules);
    }
    let mut cpu_seconds = None;
    if let Some(wanted) = container {
        for row in answer.containers.iter().filter(|row| row.is(wanted)) {
            for given in &row.energy {
                add(Scope::Container, &given.source, given.joules, given.edge_error_joules);
            }
            if !row.cpu.is_empty() {
                let ran = row.cpu.iter().map(|cpu| cpu.seconds).sum::<f64>();
                cpu_seconds = Some(cpu_seconds.unwrap_or(0.0) + ran);
            }
        }
    }
    Ok(Energy {
        way: Way::Probe,
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

    /// A server that gives one answer, once.
    fn answering(status: &str, body: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let reply = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
        });
        url
    }

    const ANSWER: &str = r#"{"accounts":[
        {"package":"0","zone":"package","source":"powercap","measured_joules":10.5,"edge_error_joules":1,"missing_seconds":0},
        {"package":"1","zone":"package","source":"powercap","measured_joules":20,"edge_error_joules":2,"missing_seconds":0}],
        "containers":[{"container":"enc","id":"abcdef012345","energy":[
        {"source":"powercap","joules":3,"edge_error_joules":0.5},{"source":"powercap","joules":4,"edge_error_joules":0.5}]},
        {"container":"other","id":"def","energy":[{"source":"powercap","joules":9,"edge_error_joules":0}]}]}"#;

    fn ask(status: &str, body: &str, container: Option<&str>) -> Result<Vec<Joules>, Refused> {
        Probe::new(&answering(status, body), &Access::default())
            .unwrap()
            .window(1.0, 2.0, container)
            .map(|energy| energy.rows)
    }

    #[test]
    fn packages_add_up_and_the_container_is_found_by_name_or_id() {
        let host =
            Joules { scope: Scope::Host, source: "powercap".into(), joules: Microjoules(30_500_000), edge_error: 3.0 };
        let own = Joules {
            scope: Scope::Container,
            source: "powercap".into(),
            joules: Microjoules(7_000_000),
            edge_error: 1.0,
        };
        for (container, wanted) in [
            (None, vec![&host]),
            (Some("enc"), vec![&host, &own]),
            (Some("abcdef012345"), vec![&host, &own]),
            (Some(&*format!("abcdef012345{}", "0".repeat(52))), vec![&host, &own]),
            (Some("nobody"), vec![&host]),
        ] {
            assert_eq!(ask("200 OK", ANSWER, container).unwrap().iter().collect::<Vec<_>>(), wanted);
        }
    }

    #[test]
    fn a_refusal_keeps_its_reason_and_says_whether_to_ask_again() {
        let too_new = ask("425 Too Early", r#"{"code":"too_new","error":"wait"}"#, None).unwrap_err();
        assert!(too_new.is_passing());
        let too_old = ask("410 Gone", r#"{"code":"too_old","error":"only from 5 on"}"#, None).unwrap_err();
        assert_eq!(
            (too_old.reason(), too_old.is_passing(), &*too_old.to_string()),
            ("too_old", false, "only from 5 on")
        );
    }

    #[test]
    fn missing_time_is_a_refusal_not_a_smaller_number() {
        let partial = ANSWER.replacen("\"missing_seconds\":0", "\"missing_seconds\":2", 1);
        let refused = ask("200 OK", &partial, None).unwrap_err();
        assert_eq!((refused.reason(), refused.is_passing()), ("incomplete", false));
    }

    #[test]
    fn something_that_is_not_a_probe_is_said_so() {
        for (status, body) in [("200 OK", "<html>"), ("404 Not Found", "<html>"), ("200 OK", "{}")] {
            let refused = ask(status, body, None).unwrap_err();
            assert_eq!(refused.reason(), "unreachable");
            assert!(refused.to_string().contains("--probe-url"), "{refused}");
        }
        let nobody = Probe::new("http://127.0.0.1:1", &Access::default()).unwrap().window(1.0, 2.0, None).unwrap_err();
        assert!(nobody.is_passing());
    }
}
