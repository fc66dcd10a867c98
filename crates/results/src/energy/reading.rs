//! Energy of one scope from one source: the row type of every method; and what the energy of
//! repeats must have in common.

use std::{collections::BTreeSet, fmt};

use units::{Microjoules, model_interval::ModelInterval};

/// Energy of one scope from one source.
#[derive(Clone, Debug, PartialEq)]
pub struct EnergyReading {
    /// The scope.
    pub scope: Scope,
    /// The source: the label `source`, `perf` or `nvml`.
    pub source: String,
    /// The energy.
    pub joules: Microjoules,
    /// Bound of the error at the edges of the window, in joules.
    pub edge_error: f64,
    /// How far the model of this energy may be from the truth; absent if it is measured, or the
    /// source does not say.
    pub model_interval: Option<ModelInterval>,
}

/// Sums rows of equal scope and source, for example those of two packages, so that each series is
/// exported once.
#[must_use]
pub fn merged(rows: impl IntoIterator<Item = EnergyReading>) -> Vec<EnergyReading> {
    let mut merged: Vec<EnergyReading> = Vec::new();
    for row in rows {
        match merged.iter_mut().find(|known| known.scope == row.scope && known.source == row.source) {
            Some(known) => {
                known.joules += row.joules;
                known.edge_error += row.edge_error;
                known.model_interval = known.model_interval.zip(row.model_interval).map(|(a, b)| a.union(b));
            }
            None => merged.push(row),
        }
    }
    merged
}

/// The scope of energy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// All measured energy of the host: packages, DRAM and GPUs, including idle energy.
    Host,
    /// Dynamic energy attributed to the container of the run, without idle energy.
    Container,
}

impl Scope {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Host => Self::Container,
            Self::Container => Self::Host,
        }
    }

    /// The value of the label `scope`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Container => "container",
        }
    }
}

/// What the energy of repeats must have in common: a mean over measured and modelled energy, over
/// that of a host and of a container, or with and without idle energy has no meaning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EnergyKind {
    /// The scope.
    pub scope: Scope,
    /// The sources, `nvml` and `perf`.
    sources: BTreeSet<String>,
    /// True if the energy of a container includes a part of the idle energy.
    pub with_idle: bool,
}

impl EnergyKind {
    /// Of energy from `sources`, each of which may be a sum: `perf+nvml`. `idle_known` is whether
    /// the idle power was known.
    #[must_use]
    pub fn new<'a>(scope: Scope, sources: impl IntoIterator<Item = &'a str>, idle_known: Option<bool>) -> Self {
        let sources = sources.into_iter().flat_map(|source| source.split('+')).map(str::to_owned).collect();
        Self { scope, sources, with_idle: Self::includes_idle(scope, idle_known) }
    }

    /// True for the energy of a container that includes a part of the idle energy, because the idle
    /// power was unknown. That of a host always includes all of it.
    #[must_use]
    pub fn includes_idle(scope: Scope, idle_known: Option<bool>) -> bool {
        scope == Scope::Container && idle_known == Some(false)
    }

    /// The kind of all repeats, `None` for one without energy; `None` if they differ, so that their
    /// energy has no mean.
    #[must_use]
    pub fn common(repeats: impl IntoIterator<Item = Option<Self>>) -> Option<Self> {
        let mut repeats = repeats.into_iter();
        let first = repeats.next()??;
        let is_common = repeats.all(|other| other.as_ref() == Some(&first));
        is_common.then_some(first)
    }

    /// True for energy from exactly these sources, `perf+nvml`, in any order.
    #[must_use]
    pub fn is_from(&self, sources: &str) -> bool {
        let wanted: BTreeSet<&str> = sources.split('+').collect();
        wanted.into_iter().eq(self.sources.iter().map(String::as_str))
    }
}

/// Scope and sources, `host, nvml+perf`.
impl fmt::Display for EnergyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources: Vec<&str> = self.sources.iter().map(String::as_str).collect();
        write!(f, "{}, {}", self.scope.as_str(), sources.join("+"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_of_different_energy_have_nothing_in_common() {
        let kind = |scope, source: &str, idle_known| Some(EnergyKind::new(scope, [source], idle_known));
        let perf = || kind(Scope::Container, "perf+nvml", Some(true));
        let common = |other: Option<EnergyKind>| EnergyKind::common([perf(), other]).map(|kind| kind.to_string());
        let same = Some("container, nvml+perf".to_owned());
        assert_eq!(common(kind(Scope::Container, "nvml+perf", Some(true))), same);
        assert_eq!(common(kind(Scope::Container, "nvml+perf", None)), same, "an old probe does not say");
        for other in [
            None,
            kind(Scope::Host, "perf+nvml", Some(true)),
            kind(Scope::Container, "model+nvml", Some(true)),
            kind(Scope::Container, "perf", Some(true)),
            kind(Scope::Container, "perf+nvml", Some(false)),
        ] {
            assert_eq!(common(other.clone()), None, "{other:?}");
        }
        assert_eq!(EnergyKind::common([None, perf()]), None);
        let none: [Option<EnergyKind>; 0] = [];
        assert_eq!(EnergyKind::common(none), None);
        let host = [kind(Scope::Host, "perf", Some(false)), kind(Scope::Host, "perf", Some(true))];
        assert!(EnergyKind::common(host).is_some(), "a host has its idle energy in any case");
        assert!(perf().is_some_and(|kind| kind.is_from("perf+nvml") && !kind.is_from("perf")));
    }
}
