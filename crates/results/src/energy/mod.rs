//! The energy of a scenario's window, by the first available method, most accurate first:
//!
//! 1. energy counters in the result file
//! 2. the probe that observed the window
//! 3. a database that scraped the probe
//! 4. power samples in the result file, integrated with the trapezoid rule; they may cover only a
//!    part of the window
//!
//! The result names its method.

use std::collections::{BTreeMap, BTreeSet};

use crate::run::{Run, Scenario};

pub mod counter;
pub mod database;
mod host;
pub mod jobs;
pub mod probe;
pub(crate) mod reading;
pub mod samples;
pub mod usage;
mod window;

pub use host::{same_host, this_host};
pub use reading::{EnergyKind, EnergyReading, Scope, merged};
pub use window::{EnergyMethod, SourceError, WindowEnergy};

use database::Database;
use probe::Probe;

/// The result of a lookup over all methods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EnergyLookup {
    /// The energy by the first method that has it.
    pub energy: Option<WindowEnergy>,
    /// The methods that were tried before and have none, in order.
    pub failures: Vec<(EnergyMethod, SourceError)>,
}

impl EnergyLookup {
    /// True if another lookup would not change the result. Counters from a database are final too:
    /// they are not replaced when the probe becomes reachable again.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let is_counted = self.energy.as_ref().is_some_and(|energy| energy.method != EnergyMethod::Samples);
        is_counted || self.failures.iter().all(|(_, error)| !error.is_transient())
    }

    /// The failure that matters: the one whose end gives energy, else the last refusal of a source
    /// that was asked. That no source was configured matters only if no other was asked either.
    #[must_use]
    pub fn cause(&self) -> Option<&(EnergyMethod, SourceError)> {
        let weight = |error: &SourceError| match error {
            SourceError::NotQueried => 5,
            SourceError::NotYet(_) => 4,
            SourceError::Invalid(_) => 3,
            SourceError::Unreachable(_) => 2,
            SourceError::Permanent(code, _) if matches!(&**code, "no_probe" | "which_host") => 0,
            SourceError::Permanent(..) => 1,
        };
        // Of equal ones the last: the sources are in the order in which they are asked.
        self.failures.iter().max_by_key(|(_, error)| weight(error))
    }

    /// Why there is no energy, for people.
    #[must_use]
    pub fn explanation(&self) -> String {
        match self.cause() {
            Some((method, error)) => format!("{}: {error}", method.as_str()),
            None => "the file has neither energy nor the times of its window".to_owned(),
        }
    }

    /// The label `reason`: why there is no energy, or only a part of it; empty if it is complete.
    #[must_use]
    pub fn reason(&self, scenario: &Scenario) -> String {
        match &self.energy {
            None => self.cause().map_or_else(|| "nothing_to_ask".to_owned(), |(_, error)| error.reason().to_owned()),
            Some(energy) if !energy.is_whole() => "coverage".to_owned(),
            Some(energy) if scenario.container.is_some() && energy.total(Scope::Container).is_none() => {
                "no_container".to_owned()
            }
            Some(_) => String::new(),
        }
    }
}

/// The probe of one host.
pub struct HostProbe {
    /// The name of the host as used in result files; empty if not configured.
    pub host: String,
    /// The probe.
    pub probe: Probe,
}

impl HostProbe {
    /// The probe with its label value, `probe` or `probe HOST`.
    #[must_use]
    pub fn with_label(&self) -> (String, Probe) {
        let name = if self.host.is_empty() { "probe".to_owned() } else { format!("probe {}", self.host) };
        (metrics::label::sanitize(&name), self.probe.clone())
    }

    /// True if it is the probe of `host`: by its configured name, else by its address, or this
    /// machine's name for a local address.
    fn is_on(&self, host: &str) -> bool {
        if !self.host.is_empty() {
            return same_host(&self.host, host);
        }
        let address = self.probe.url().split_once("://").map_or("", |(_, rest)| rest);
        let address = address.split('/').next().unwrap_or_default();
        let is_local = ["127.0.0.1", "localhost", "[::1]"].iter().any(|local| same_host(address, local));
        same_host(address, host) || (is_local && this_host().is_some_and(|name| same_host(&name, host)))
    }
}

/// The configured sources of energy.
#[derive(Default)]
pub struct EnergySources {
    /// The probes, at most one for each host.
    pub probes: Vec<HostProbe>,
    /// The database that scrapes the probes.
    pub database: Option<Database>,
}

/// Sources that were reachable or unreachable in one round of lookups, by URL, so that each
/// time-out is waited for only once.
#[derive(Debug, Default)]
pub struct QueryRound {
    unreachable: BTreeMap<String, SourceError>,
    reachable: BTreeSet<String>,
}

/// Maximum length of a window that is queried from a database, in seconds.
const MAX_DATABASE_WINDOW: f64 = 31.0 * 86_400.0;

impl EnergySources {
    /// The energy of the result file alone, without queries.
    #[must_use]
    pub fn from_file(scenario: &Scenario) -> EnergyLookup {
        let energy = if scenario.counters.is_empty() {
            samples::energy(scenario)
        } else {
            Some(WindowEnergy {
                method: EnergyMethod::Counters,
                rows: scenario.counters.clone(),
                coverage: Some(1.0),
                seconds: scenario.seconds(),
                gap_seconds: 0.0,
                resets: 0,
                watts: Vec::new(),
                cpu_seconds: None,
                idle_known: scenario.idle_known,
            })
        };
        EnergyLookup { energy, failures: Vec::new() }
    }

    /// Looks up the energy of a scenario, method by method until one has it. Methods that failed
    /// permanently in `previous` are not tried again, and neither are sources that are unreachable
    /// in this `round`.
    #[must_use]
    pub fn look_up(
        &self,
        run: &Run,
        scenario: &Scenario,
        previous: &EnergyLookup,
        round: &mut QueryRound,
    ) -> EnergyLookup {
        let mut lookup = Self::from_file(scenario);
        let Some((start, end)) = scenario.window().filter(|_| scenario.counters.is_empty()) else { return lookup };
        let host = scenario.host.as_deref().or(run.host.as_deref());
        let query = WindowQuery { start, end, host, container: scenario.container.as_deref() };
        for method in [EnergyMethod::Probe, EnergyMethod::Database] {
            let permanent = previous.failures.iter().find(|(known, error)| *known == method && !error.is_transient());
            let result = match (permanent, method) {
                (Some((_, error)), _) => Some(Err(error.clone())),
                (None, EnergyMethod::Probe) => self.query_probes(&query, round),
                (None, _) => self.query_database(&query, round),
            };
            match result {
                None => {}
                Some(Ok(energy)) => {
                    lookup.energy = Some(energy);
                    return lookup;
                }
                Some(Err(error)) => lookup.failures.push((method, error)),
            }
        }
        lookup
    }

    fn query_database(
        &self,
        query: &WindowQuery<'_>,
        round: &mut QueryRound,
    ) -> Option<Result<WindowEnergy, SourceError>> {
        let database = self.database.as_ref()?;
        if query.end - query.start > MAX_DATABASE_WINDOW {
            return Some(Err(SourceError::Permanent(
                "too_long".to_owned(),
                "the window is longer than 31 days".to_owned(),
            )));
        }
        Some(round.query(database.url(), || database.window(query.start, query.end, query.host, query.container)))
    }

    /// Queries the probe of the run's host. For a run without a host all probes are queried, and
    /// exactly one must know the container; energy is never summed across hosts.
    fn query_probes(
        &self,
        query: &WindowQuery<'_>,
        round: &mut QueryRound,
    ) -> Option<Result<WindowEnergy, SourceError>> {
        let mut query_probe = |host: &HostProbe| {
            round.query(host.probe.url(), || host.probe.window(query.start, query.end, query.container))
        };
        if self.probes.is_empty() {
            return None;
        }
        if let [only] = &*self.probes
            && query.host.is_none()
        {
            return Some(query_probe(only));
        }
        if let Some(host) = query.host {
            return Some(match self.probes.iter().find(|probe| probe.is_on(host)) {
                Some(probe) => query_probe(probe),
                None => Err(SourceError::Permanent(
                    "no_probe".to_owned(),
                    format!("no probe is configured for the host {host:?}; add --probe-url {host}=URL"),
                )),
            });
        }
        let ambiguous = || {
            SourceError::Permanent(
                "which_host".to_owned(),
                "the run names no host, and there are several probes; add `host` to its file".to_owned(),
            )
        };
        if query.container.is_none() {
            return Some(Err(ambiguous()));
        }
        let mut matches = Vec::new();
        for probe in &self.probes {
            match query_probe(probe) {
                Ok(energy) if energy.total(Scope::Container).is_some() => matches.push(energy),
                // A probe that does not respond may be the right one.
                Err(error) if error.is_transient() => return Some(Err(error)),
                _ => {}
            }
        }
        Some(if matches.len() == 1 { matches.pop().ok_or_else(ambiguous) } else { Err(ambiguous()) })
    }
}

/// The window whose energy is looked up, in unix seconds.
struct WindowQuery<'a> {
    start: f64,
    end: f64,
    host: Option<&'a str>,
    container: Option<&'a str>,
}

impl QueryRound {
    /// The result of `query`, or the earlier error if the source at `url` is unreachable in this
    /// round.
    fn query(
        &mut self,
        url: &str,
        query: impl FnOnce() -> Result<WindowEnergy, SourceError>,
    ) -> Result<WindowEnergy, SourceError> {
        if let Some(error) = self.unreachable.get(url) {
            return Err(error.clone());
        }
        let result = query();
        match &result {
            // A source that has responded in this round stays reachable: only this window was too
            // much for it.
            Err(error @ SourceError::Unreachable(_)) if !self.reachable.contains(url) => {
                self.unreachable.insert(url.to_owned(), error.clone());
            }
            Err(SourceError::Unreachable(_)) => {}
            _ => {
                self.reachable.insert(url.to_owned());
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_failure_that_matters() {
        let refused = |code: &str| SourceError::Permanent(code.to_owned(), format!("message of {code}"));
        let unreachable = || SourceError::Unreachable("no answer".to_owned());
        let not_yet = || SourceError::NotYet("wait".to_owned());
        for (probe, database, reason) in [
            (refused("no_probe"), Some(refused("incomplete")), "incomplete"),
            (refused("no_probe"), None, "no_probe"),
            (refused("which_host"), Some(refused("too_long")), "too_long"),
            (refused("too_old"), Some(unreachable()), "unreachable"),
            (refused("too_old"), Some(refused("incomplete")), "incomplete"),
            (unreachable(), Some(refused("incomplete")), "unreachable"),
            (unreachable(), Some(not_yet()), "too_new"),
            (not_yet(), Some(unreachable()), "too_new"),
            (refused("no_probe"), Some(refused("which_host")), "which_host"),
        ] {
            let mut failures = vec![(EnergyMethod::Probe, probe)];
            failures.extend(database.map(|error| (EnergyMethod::Database, error)));
            let lookup = EnergyLookup { energy: None, failures };
            assert_eq!(lookup.reason(&Scenario::default()), reason, "{:?}", lookup.failures);
        }
        assert_eq!(EnergyLookup::default().reason(&Scenario::default()), "nothing_to_ask");
    }
}
