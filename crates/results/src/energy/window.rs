//! The energy of a window, and the errors of its sources.

use units::{Microjoules, model_interval::ModelInterval};

use super::reading::{EnergyKind, EnergyReading, Scope};

/// Coverage of a window that counts as complete. Energy with another coverage comes with a warning;
/// it is neither compared nor divided by what the whole window delivered. Samples span one interval
/// less than they number: 5 % is one of the 20 intervals of 5 s in a window of 100 s, with the
/// legacy exporters' interval and an ordinary length of a run.
const FULL_COVERAGE: std::ops::RangeInclusive<f64> = 0.95..=1.05;

/// The method by which energy was obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EnergyMethod {
    /// Counters in the result file.
    Counters,
    /// The window API of the probe.
    Probe,
    /// Raw counter samples in a database.
    Database,
    /// Power samples in the result file.
    Samples,
}

impl EnergyMethod {
    /// The value of the label `way`.
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
pub struct WindowEnergy {
    /// The method by which it was obtained.
    pub method: EnergyMethod,
    /// The energy by scope and source.
    pub rows: Vec<EnergyReading>,
    /// Energy coverage of the window: covered time over its length, 1 for counters; absent if the
    /// length is unknown.
    pub coverage: Option<f64>,
    /// Time that the energy covers, in seconds.
    pub seconds: Option<f64>,
    /// Seconds of the window without samples of the counter. The counter continued, so energy is
    /// only lost at a reset.
    pub gap_seconds: f64,
    /// Number of counter resets in the window, and of restarts of the probe over which the counters
    /// continued. The energy between the last sample and one of them is unknown.
    pub resets: u32,
    /// Power of the host in watts between the samples of a database; empty otherwise. The samples
    /// of a file are in its scenario.
    pub watts: Vec<f64>,
    /// CPU time of the container in seconds; absent if unknown.
    pub cpu_seconds: Option<f64>,
    /// True if the idle power of the host was known in the whole window, false if the energy of the
    /// container includes a part of the idle energy; absent if unknown.
    pub idle_known: Option<bool>,
}

impl WindowEnergy {
    /// The energy of a scope, summed over its sources; `None` if there is none.
    #[must_use]
    pub fn total(&self, scope: Scope) -> Option<Microjoules> {
        let mut rows = self.rows.iter().filter(|row| row.scope == scope).peekable();
        rows.peek()?;
        Some(rows.map(|row| row.joules).sum())
    }

    /// True if the energy covers the window, from 95 to 105 %.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.coverage.is_some_and(|coverage| FULL_COVERAGE.contains(&coverage))
    }

    /// The kind of a scope's energy; `None` if there is none.
    #[must_use]
    pub fn kind(&self, scope: Scope) -> Option<EnergyKind> {
        let mut rows = self.rows.iter().filter(|row| row.scope == scope).peekable();
        rows.peek()?;
        Some(EnergyKind::new(scope, rows.map(|row| &*row.source), self.idle_known))
    }

    /// How far the modelled part of a scope's energy may be from the truth; `None` if it is
    /// measured, or if that is unknown.
    #[must_use]
    pub fn model_interval(&self, scope: Scope) -> Option<ModelInterval> {
        ModelInterval::widest(self.rows.iter().filter(|row| row.scope == scope).map(|row| row.model_interval))
    }

    /// The sources of a scope, `perf+nvml`.
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

/// The reason why a source has no energy of a window.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SourceError {
    /// The source does not respond. Transient.
    #[error("{0}")]
    Unreachable(String),
    /// The source does not have the end of the window yet. Transient.
    #[error("{0}")]
    NotYet(String),
    /// The source has not been queried yet. Transient.
    #[error("not queried yet")]
    NotQueried,
    /// The source responded, and its response cannot be true. Transient.
    #[error("{0}")]
    Invalid(String),
    /// The source cannot have the energy of this window, now or later: the label `reason`, and a
    /// message.
    #[error("{1}")]
    Permanent(String, String),
}

impl SourceError {
    /// The label `reason`.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::NotYet(_) => "too_new",
            Self::NotQueried => "unasked",
            Self::Invalid(_) => "invalid_answer",
            Self::Permanent(code, _) => code,
        }
    }

    /// True if a later query may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Permanent(..))
    }
}
