//! The joules of a window, from the probe that saw it.

use std::time::Duration;

use serde::Deserialize;

use crate::streams::names::Jobs;

/// Longest that the probe may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer taken; a host with 512 containers on 8 packages gives under 2 MB.
const MAX_ANSWER: u64 = 16 << 20;

/// Joules of one scope from one source.
#[derive(Clone, Debug, PartialEq)]
pub struct Joules {
    /// `host` or `container`.
    pub scope: Scope,
    /// How they were obtained: the label `source`.
    pub source: String,
    /// Joules between the probe's ticks that enclose the window.
    pub joules: f64,
    /// The most that those ticks can have added beyond the window.
    pub edge_error: f64,
}

/// Whose joules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything measured: packages, their memory, and GPUs.
    Host,
    /// What the container of the run was given, idle not included.
    Container,
}

impl Scope {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Container => "container",
        }
    }
}

/// Why there are no joules.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The probe cannot be reached; ask again.
    #[error("{0}. Start the probe, or name it with --probe-url")]
    Unreachable(String),
    /// The window is not over yet, for the probe; ask again.
    #[error("{0}")]
    NotYet(String),
    /// The probe will not answer this window, now or later.
    #[error("{1}")]
    Never(String, String),
}

impl Refused {
    /// The label `reason`.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::NotYet(_) => "too_new",
            Self::Never(code, _) => code,
        }
    }

    /// True when asking again may help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        !matches!(self, Self::Never(..))
    }
}

/// The parts of the probe's answer that are used here.
#[derive(Deserialize)]
struct Answer {
    accounts: Vec<Account>,
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Account {
    package: String,
    zone: String,
    source: String,
    measured_joules: f64,
    edge_error_joules: f64,
    missing_seconds: f64,
}

#[derive(Deserialize)]
struct Container {
    container: String,
    id: String,
    energy: Vec<Energy>,
}

#[derive(Deserialize)]
struct Energy {
    source: String,
    joules: f64,
    edge_error_joules: f64,
}

#[derive(Deserialize)]
struct Problem {
    code: String,
    error: String,
}

/// A probe by its URL.
pub struct Probe {
    url: String,
    agent: ureq::Agent,
}

impl Probe {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(url: &str) -> Self {
        let agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
        Self { url: url.trim_end_matches('/').to_owned(), agent: agent.into() }
    }

    /// Asks for the jobs that run or ended lately.
    ///
    /// # Errors
    /// When the probe cannot be asked, or says something else.
    pub fn jobs(&self) -> Result<Jobs, Refused> {
        let url = format!("{}/api/v1/streams", self.url);
        let unreachable = |error: ureq::Error| Refused::Unreachable(format!("{}: {error}", self.url));
        let mut response = self.agent.get(&url).call().map_err(unreachable)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().map_err(unreachable)?;
        if status != 200 {
            return Err(Refused::NotYet(format!("{url}: status {status}")));
        }
        serde_json::from_slice(&body).map_err(|error| Refused::Never("alien".to_owned(), format!("{url}: {error}")))
    }

    /// Asks for the joules of a window, of the host and of `container` if there is one.
    ///
    /// # Errors
    /// When the probe cannot be asked, or refuses; a partial answer of the probe is a refusal here.
    pub fn window(&self, start: f64, end: f64, container: Option<&str>) -> Result<Vec<Joules>, Refused> {
        let url = format!("{}/api/v1/window?start={start}&end={end}", self.url);
        let unreachable = |error: ureq::Error| Refused::Unreachable(format!("{}: {error}", self.url));
        let mut response = self.agent.get(&url).call().map_err(unreachable)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().map_err(unreachable)?;
        if status != 200 {
            return Err(match serde_json::from_slice::<Problem>(&body) {
                Ok(problem) if status == 425 || status == 503 => Refused::NotYet(problem.error),
                Ok(problem) => Refused::Never(problem.code, problem.error),
                Err(_) => Refused::Unreachable(format!("{}: answered {status}; is that a Wattcast probe?", self.url)),
            });
        }
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|error| Refused::Unreachable(format!("{}: an answer that is not ours ({error})", self.url)))?;
        joules(answer, container)
    }
}

fn joules(answer: Answer, container: Option<&str>) -> Result<Vec<Joules>, Refused> {
    let mut all: Vec<Joules> = Vec::new();
    let mut add = |scope, source: &str, joules: f64, edge_error: f64| match all
        .iter_mut()
        .find(|known| known.scope == scope && known.source == source)
    {
        Some(known) => {
            known.joules += joules;
            known.edge_error += edge_error;
        }
        None => all.push(Joules { scope, source: source.to_owned(), joules, edge_error }),
    };
    for account in &answer.accounts {
        if account.missing_seconds > 0.0 {
            return Err(Refused::Never(
                "incomplete".into(),
                format!(
                    "{} of package {} gave nothing for {:.1} s of the window",
                    account.zone, account.package, account.missing_seconds
                ),
            ));
        }
        add(Scope::Host, &account.source, account.measured_joules, account.edge_error_joules);
    }
    if let Some(wanted) = container {
        // By name, by the id that the probe shows, or by the full id of which that is the beginning.
        let full = |row: &Container| wanted.len() == 64 && row.id.len() == 12 && wanted.starts_with(&row.id);
        let found = answer.containers.iter().filter(|row| row.container == wanted || row.id == wanted || full(row));
        for energy in found.flat_map(|row| &row.energy) {
            add(Scope::Container, &energy.source, energy.joules, energy.edge_error_joules);
        }
    }
    Ok(all)
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
        Probe::new(&answering(status, body)).window(1.0, 2.0, container)
    }

    #[test]
    fn packages_add_up_and_the_container_is_found_by_name_or_id() {
        let host = Joules { scope: Scope::Host, source: "powercap".into(), joules: 30.5, edge_error: 3.0 };
        let own = Joules { scope: Scope::Container, source: "powercap".into(), joules: 7.0, edge_error: 1.0 };
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
        let nobody = Probe::new("http://127.0.0.1:1").window(1.0, 2.0, None).unwrap_err();
        assert!(nobody.is_passing());
    }
}
