//! The joules of a scenario's window: four ways to them, in the order in which they can be trusted, and always with the name of the one that was taken.
//!
//! 1. Counters that the file brings.
//! 2. The probe that saw the window.
//! 3. The database that scraped the probe.
//! 4. Samples in the file, which are not energy but power at some moments: by the trapezoid, and with the part of the window that they cover.

use std::collections::{BTreeMap, BTreeSet};

use exporter::units::Microjoules;

use crate::run::{Run, Scenario};

pub mod counter;
pub mod database;
pub mod probe;
pub mod samples;

use database::Database;
use probe::Probe;

/// Outside of this coverage a figure comes with a warning, and is compared with no other.
const ENOUGH: std::ops::RangeInclusive<f64> = 0.95..=1.05;

/// Joules of one scope from one source.
#[derive(Clone, Debug, PartialEq)]
pub struct Joules {
    /// `host` or `container`.
    pub scope: Scope,
    /// How they were obtained: the label `source`.
    pub source: String,
    /// How many.
    pub joules: Microjoules,
    /// The most, in joules, by which the window's edges can have made them too many or too few.
    pub edge_error: f64,
}

/// One row for each scope and source: two packages are read the same way, and a series stands once.
#[must_use]
pub fn merged(rows: impl IntoIterator<Item = Joules>) -> Vec<Joules> {
    let mut all: Vec<Joules> = Vec::new();
    for row in rows {
        match all.iter_mut().find(|known| known.scope == row.scope && known.source == row.source) {
            Some(known) => {
                known.joules += row.joules;
                known.edge_error += row.edge_error;
            }
            None => all.push(row),
        }
    }
    all
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

/// Which way was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Counters in the file.
    Counters,
    /// The probe's window.
    Probe,
    /// Raw samples of the counters in a database.
    Database,
    /// Power samples in the file.
    Samples,
}

impl Way {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counters => "counters",
            Self::Probe => "probe",
            Self::Database => "database",
            Self::Samples => "samples",
        }
    }
}

/// The energy of a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Energy {
    /// How it was obtained.
    pub way: Way,
    /// By scope and source.
    pub rows: Vec<Joules>,
    /// The part of the window that the joules are of; 1 for counters. Nothing where nobody says how long the window was.
    pub coverage: Option<f64>,
    /// Seconds that the joules are of.
    pub seconds: Option<f64>,
    /// Seconds of the window in which nobody wrote the counter down. It went on, so no joule is missing, unless it was reset meanwhile.
    pub gap_seconds: f64,
    /// How often a counter began anew within the window; what it counted between the last sample and the reset is not known.
    pub resets: u32,
    /// Watts of the host at equal distances, where they are known.
    pub watts: Vec<f64>,
    /// CPU seconds of the container, where they are known.
    pub cpu_seconds: Option<f64>,
}

impl Energy {
    /// All sources of a scope.
    #[must_use]
    pub fn of(&self, scope: Scope) -> Option<Microjoules> {
        let mut rows = self.rows.iter().filter(|row| row.scope == scope).peekable();
        rows.peek()?;
        Some(rows.map(|row| row.joules).sum())
    }

    /// True when the joules are of all of the window, and of no more.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.coverage.is_some_and(|coverage| ENOUGH.contains(&coverage))
    }

    /// The names of a scope's sources.
    #[must_use]
    pub fn sources(&self, scope: Scope) -> String {
        let mut names: Vec<&str> = Vec::new();
        for row in self.rows.iter().filter(|row| row.scope == scope) {
            if !names.contains(&&*row.source) {
                names.push(&row.source);
            }
        }
        names.join("+")
    }
}

/// Why a way gave no joules.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Nobody answers; ask again.
    #[error("{0}")]
    Unreachable(String),
    /// The window is not over yet, for whom was asked; ask again.
    #[error("{0}")]
    NotYet(String),
    /// Its turn has not come yet.
    #[error("was not asked yet")]
    Unasked,
    /// There will be no answer to this window, now or later: the label `reason`, and the words.
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
            Self::Unasked => "unasked",
            Self::Never(code, _) => code,
        }
    }

    /// True when asking again may help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        !matches!(self, Self::Never(..))
    }
}

/// What asking in order gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The joules, by the first way that had them.
    pub energy: Option<Energy>,
    /// Those that had none, in order.
    pub refused: Vec<(Way, Refused)>,
}

impl Answer {
    /// True when asking again would change nothing. Counters are counters: joules of a database are not given up for those of a probe that comes back.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let counted = self.energy.as_ref().is_some_and(|energy| energy.way != Way::Samples);
        counted || self.refused.iter().all(|(_, refused)| !refused.is_passing())
    }

    /// The label `reason`: why there is nothing, or not all; empty when all is well.
    #[must_use]
    pub fn reason(&self, scenario: &Scenario) -> String {
        match &self.energy {
            None => {
                self.refused.first().map_or_else(|| "nothing_to_ask".to_owned(), |(_, why)| why.reason().to_owned())
            }
            Some(energy) if !energy.is_whole() => "coverage".to_owned(),
            Some(energy) if scenario.container.is_some() && energy.of(Scope::Container).is_none() => {
                "no_container".to_owned()
            }
            Some(_) => String::new(),
        }
    }
}

/// A probe, and the host that it is on.
pub struct OnHost {
    /// As runs call it; empty where nobody named it.
    pub host: String,
    /// The probe.
    pub probe: Probe,
}

impl OnHost {
    /// As the page has it.
    #[must_use]
    pub fn named(&self) -> (String, Probe) {
        let name = if self.host.is_empty() { "probe".to_owned() } else { format!("probe {}", self.host) };
        (exporter::label::clean(&name), self.probe.clone())
    }

    /// True when it is the probe of that host: by the name that it was given, or, without one, because its address or this machine is called so.
    fn is_on(&self, host: &str) -> bool {
        if !self.host.is_empty() {
            return same_host(&self.host, host);
        }
        let address = self.probe.url().split_once("://").map_or("", |(_, rest)| rest);
        let address = address.split('/').next().unwrap_or_default();
        let own = ["127.0.0.1", "localhost", "[::1]"].iter().any(|own| same_host(address, own));
        same_host(address, host) || (own && this_host().is_some_and(|name| same_host(&name, host)))
    }
}

/// What this machine is called.
#[must_use]
pub fn this_host() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Whom to ask.
#[derive(Default)]
pub struct Sources {
    /// Each on a host of its own.
    pub probes: Vec<OnHost>,
    /// That scraped them.
    pub database: Option<Database>,
}

/// Who answered in this round, and who did not, by their URLs: nobody is waited for twice.
#[derive(Debug, Default)]
pub struct Round {
    away: BTreeMap<String, Refused>,
    there: BTreeSet<String>,
}

/// Longest window that a database is asked for; nobody encodes for a month without a pause.
const LONGEST: f64 = 31.0 * 86_400.0;

impl Sources {
    /// What the file itself says, before anybody is asked.
    #[must_use]
    pub fn in_file(scenario: &Scenario) -> Answer {
        let energy = if scenario.counters.is_empty() {
            samples::energy(scenario)
        } else {
            Some(Energy {
                way: Way::Counters,
                rows: scenario.counters.clone(),
                coverage: Some(1.0),
                seconds: scenario.seconds(),
                gap_seconds: 0.0,
                resets: 0,
                watts: scenario.samples.watts.clone(),
                cpu_seconds: None,
            })
        };
        Answer { energy, refused: Vec::new() }
    }

    /// Asks, in order, until one has joules. What refused for good `before` is not asked again, and neither is who did not answer in this `round`.
    #[must_use]
    pub fn ask(&self, run: &Run, scenario: &Scenario, before: &Answer, round: &mut Round) -> Answer {
        let mut answer = Self::in_file(scenario);
        let Some((start, end)) = scenario.window().filter(|_| scenario.counters.is_empty()) else { return answer };
        let host = scenario.host.as_deref().or(run.host.as_deref());
        let asked = Asked { start, end, host, container: scenario.container.as_deref() };
        for way in [Way::Probe, Way::Database] {
            let known = before.refused.iter().find(|(known, why)| *known == way && !why.is_passing());
            let found = match (known, way) {
                (Some((_, why)), _) => Some(Err(why.clone())),
                (None, Way::Probe) => self.ask_probes(&asked, round),
                (None, _) => self.ask_database(&asked, round),
            };
            match found {
                None => {}
                Some(Ok(energy)) => {
                    answer.energy = Some(energy);
                    return answer;
                }
                Some(Err(refused)) => answer.refused.push((way, refused)),
            }
        }
        answer
    }

    fn ask_database(&self, asked: &Asked<'_>, round: &mut Round) -> Option<Result<Energy, Refused>> {
        let database = self.database.as_ref()?;
        if asked.end - asked.start > LONGEST {
            return Some(Err(Refused::Never("too_long".to_owned(), "the window is longer than 31 days".to_owned())));
        }
        Some(patiently(database.url(), round, || database.window(asked.start, asked.end, asked.host, asked.container)))
    }

    /// The probe of the host. A run that names none is asked of all, and the container must be known to exactly one; nothing is summed across hosts.
    fn ask_probes(&self, asked: &Asked<'_>, round: &mut Round) -> Option<Result<Energy, Refused>> {
        let mut ask = |one: &OnHost| {
            patiently(one.probe.url(), round, || one.probe.window(asked.start, asked.end, asked.container))
        };
        if self.probes.is_empty() {
            return None;
        }
        if let [only] = &*self.probes
            && asked.host.is_none()
        {
            return Some(ask(only));
        }
        if let Some(host) = asked.host {
            let found = self.probes.iter().find(|probe| probe.is_on(host));
            return Some(match found {
                Some(found) => ask(found),
                None => Err(Refused::Never(
                    "no_probe".to_owned(),
                    format!("no probe is named for the host {host:?}: --probe-url {host}=URL"),
                )),
            });
        }
        let which = || {
            Refused::Never(
                "which_host".to_owned(),
                "the run names no host, and there are several probes; write `host` into its file".to_owned(),
            )
        };
        if asked.container.is_none() {
            return Some(Err(which()));
        }
        let mut known = Vec::new();
        for one in &self.probes {
            match ask(one) {
                Ok(energy) if energy.of(Scope::Container).is_some() => known.push(energy),
                // One that does not answer may be the one.
                Err(refused) if refused.is_passing() => return Some(Err(refused)),
                _ => {}
            }
        }
        Some(if known.len() == 1 { known.pop().ok_or_else(which) } else { Err(which()) })
    }
}

/// What is asked for.
struct Asked<'a> {
    start: f64,
    end: f64,
    host: Option<&'a str>,
    container: Option<&'a str>,
}

/// Asks somebody, unless there was no answer in this round already.
fn patiently(url: &str, round: &mut Round, ask: impl FnOnce() -> Result<Energy, Refused>) -> Result<Energy, Refused> {
    if let Some(why) = round.away.get(url) {
        return Err(why.clone());
    }
    let answer = ask();
    match &answer {
        // Who answered others a moment ago is there; this window was too much.
        Err(why @ Refused::Unreachable(_)) if !round.there.contains(url) => {
            round.away.insert(url.to_owned(), why.clone());
        }
        Err(Refused::Unreachable(_)) => {}
        _ => {
            round.there.insert(url.to_owned());
        }
    }
    answer
}

/// True when an address, `enc-1:9500`, or a name is that of the host.
#[must_use]
pub fn same_host(address: &str, host: &str) -> bool {
    address == host || address.strip_prefix(host).is_some_and(|port| port.strip_prefix(':').is_some_and(is_port))
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}
