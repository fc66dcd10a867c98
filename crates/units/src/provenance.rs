//! Energy that was not measured: which values of the label `source` say so, and the sentence that
//! every surface shows with it.

use std::{collections::BTreeSet, fmt};

use crate::model_interval::ModelInterval;

/// Why energy is no measurement of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unmeasured {
    /// Estimated from CPU time.
    Model,
    /// Read from a powercap tree that a program writes.
    Simulated,
    /// Read from a stand-in for NVIDIA's library.
    Fake,
    /// Read from a recording.
    Replay,
}

impl Unmeasured {
    /// Every kind, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Model, Self::Simulated, Self::Fake, Self::Replay];

    /// The kind of a value of the label `source`; `None` for energy that was measured.
    ///
    /// ```
    /// use units::provenance::Unmeasured;
    ///
    /// assert_eq!(Unmeasured::of("simulated"), Some(Unmeasured::Simulated));
    /// assert_eq!(Unmeasured::of("perf"), None);
    /// ```
    #[must_use]
    pub fn of(source: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.source() == source)
    }

    /// The kinds among several sources, each once. A source may itself be a sum, as `perf+fake`.
    #[must_use]
    pub fn among<'a>(sources: impl IntoIterator<Item = &'a str>) -> BTreeSet<Self> {
        sources.into_iter().flat_map(|source| source.split('+')).filter_map(Self::of).collect()
    }

    /// The sentences about energy of these sources, one for each kind: [`Unmeasured::banner`], and
    /// for a model how far it may be from the truth, where that is known.
    #[must_use]
    pub fn sentences<'a>(all: impl IntoIterator<Item = (&'a str, Option<ModelInterval>)>) -> Vec<String> {
        let (sources, intervals): (Vec<&str>, Vec<_>) = all.into_iter().unzip();
        let interval = ModelInterval::widest(intervals);
        let sentence = |kind: Self| match (kind, interval) {
            (Self::Model, Some(interval)) => {
                format!("{} The truth against what is modelled: {interval}.", kind.banner())
            }
            _ => kind.banner().to_owned(),
        };
        Self::among(sources).into_iter().map(sentence).collect()
    }

    /// The value of the label `source`.
    #[must_use]
    pub const fn source(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Simulated => "simulated",
            Self::Fake => "fake",
            Self::Replay => "replay",
        }
    }

    /// The word for a column or a line; in capitals, because it must not be overlooked.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Model => "MODELLED",
            Self::Simulated => "SIMULATED",
            Self::Fake => "FAKE",
            Self::Replay => "REPLAYED",
        }
    }

    /// The sentence for a page or a report.
    #[must_use]
    pub const fn banner(self) -> &'static str {
        match self {
            Self::Model => {
                "Energy is MODELLED from CPU time, not measured: it shows the use of the CPUs, not their efficiency."
            }
            Self::Simulated => "Energy is SIMULATED, not measured: a program writes the counters that are read.",
            Self::Fake => "The GPU is FAKE: its energy is not measured.",
            Self::Replay => "Energy is REPLAYED from a recording, not measured now.",
        }
    }
}

impl fmt::Display for Unmeasured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_word_in_its_banner() {
        for kind in Unmeasured::ALL {
            assert!(kind.banner().contains(kind.word()), "{kind:?}");
            assert_eq!(Unmeasured::of(kind.source()), Some(kind));
        }
    }

    #[test]
    fn modelled_energy_is_announced_with_its_interval() {
        let interval = Some(ModelInterval::from_thousandths([-400, 880]));
        let said = Unmeasured::sentences([("model+fake", interval), ("perf", None)]);
        assert!(said[0].contains("modelled: 90 % interval -40 % … +88 %"), "{}", said[0]);
        assert_eq!(said[1], Unmeasured::Fake.banner());
        assert_eq!(Unmeasured::sentences([("model", None)]), [Unmeasured::Model.banner()]);
    }

    #[test]
    fn parts_of_a_sum_that_are_not_measured_are_found() {
        assert_eq!(
            Unmeasured::among(["perf+fake", "simulated", "fake"]),
            [Unmeasured::Simulated, Unmeasured::Fake].into()
        );
        assert!(Unmeasured::among(["perf", "powercap+nvml", ""]).is_empty());
    }
}
