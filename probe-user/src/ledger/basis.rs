//! By what the load energy of a root is divided.

/// The weight of a claimant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// CPU time, with the weights of shared cores and of efficient ones.
    Time,
    /// The same, by cycles in place of nanoseconds.
    Cycles,
    /// A fitted mix of cycles, instructions and cache misses.
    Mix,
    /// Cache misses on the package.
    Misses,
    /// Cache misses on all packages, because there were next to none on this one.
    HostMisses,
    /// Nothing: the energy stays unattributed.
    Nothing,
}

impl Basis {
    /// Value of the label `weight`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Cycles => "cycles",
            Self::Mix => "mix",
            Self::Misses => "misses",
            Self::HostMisses => "host_misses",
            Self::Nothing => "none",
        }
    }
}
