//! Energy of the probe itself: of its process, and of its eBPF programs.
//!
//! Each gets the share of the dynamic energy that its CPU time has of all CPU time, whatever
//! package it ran on. The programs at context switches run in the time of the tasks that are
//! switched, and the accounts charge them with these tasks: what is computed here is shown only,
//! and is posted to no account.

use units::Microjoules;

/// Energy of the probe since the start.
#[derive(Debug, Default)]
pub struct OwnEnergy {
    /// Its process.
    pub process: OwnPart,
    /// Its programs in the time of other tasks.
    pub programs: OwnPart,
}

impl OwnEnergy {
    /// Starts at zero, for another source.
    pub fn clear(&mut self) {
        for part in [&mut self.process, &mut self.programs] {
            (part.energy, part.dynamic) = Default::default();
        }
    }
}

/// One part of the probe.
#[derive(Debug, Default)]
pub struct OwnPart {
    /// Energy of packages, or of the platform where it is measured instead, and of memory.
    pub energy: [Microjoules; 2],
    /// CPU time of the part, in nanoseconds, when it was charged last.
    charged_ns: Option<u64>,
    /// CPU time of all targets since then, in nanoseconds.
    ran_ns: u64,
    /// Dynamic energy since then, as `energy`.
    dynamic: [Microjoules; 2],
}

impl OwnPart {
    /// Whether its CPU time is known.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.charged_ns.is_some()
    }

    /// Adds a tick in which all targets ran for `ran_ns`, and charges the part, whose CPU time
    /// since its start is `now_ns`. Without `dynamic` energy the CPU time of the tick counts for
    /// the next one. With `waits`, so does a tick in which the part's CPU time is the same.
    pub fn add(&mut self, now_ns: u64, ran_ns: u64, dynamic: Option<[Microjoules; 2]>, waits: bool) {
        let Some(charged_ns) = self.charged_ns else {
            self.charged_ns = Some(now_ns);
            return;
        };
        self.ran_ns = self.ran_ns.saturating_add(ran_ns);
        let Some(dynamic) = dynamic else { return };
        self.dynamic.iter_mut().zip(dynamic).for_each(|(sum, dynamic)| *sum += dynamic);
        if waits && now_ns == charged_ns {
            return;
        }
        let own = now_ns.saturating_sub(charged_ns).min(self.ran_ns);
        if self.ran_ns > 0 {
            for (energy, dynamic) in self.energy.iter_mut().zip(self.dynamic) {
                let share = u128::from(dynamic.0) * u128::from(own) / u128::from(self.ran_ns);
                *energy += Microjoules(u64::try_from(share).unwrap_or(u64::MAX));
            }
        }
        (self.charged_ns, self.ran_ns, self.dynamic) = (Some(now_ns), 0, Default::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_waits_for_its_next_value() {
        let mut part = OwnPart::default();
        let uj = |package: u64, memory: u64| Some([Microjoules(package), Microjoules(memory)]);
        // The starting point, without what ran before.
        part.add(5, 70, uj(9, 9), true);
        part.add(5, 100, uj(1000, 100), true);
        part.add(5, 100, None, true);
        assert_eq!(part.energy, [Microjoules(0), Microjoules(0)]);
        part.add(25, 200, uj(3000, 300), true);
        assert_eq!(part.energy, [Microjoules(200), Microjoules(20)], "20 of 400, of 4000 and 400");
        // More than all CPU time is all of it.
        part.add(1000, 10, uj(50, 0), true);
        assert_eq!(part.energy, [Microjoules(250), Microjoules(20)]);
    }
}
