//! Energy of one scope from one source: the row type of every method.

use units::Microjoules;

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
            }
            None => merged.push(row),
        }
    }
    merged
}

/// The scope of energy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
