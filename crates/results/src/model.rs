//! All served scenarios with energy, derived metrics and cost. Every page, report and comparison
//! reads this model.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    cost::{Cost, Prices, money},
    derived::{DerivedMetrics, derive_run},
    energy::{EnergyLookup, Scope},
    run::{Run, Scenario},
};

/// One scenario with its energy, derived metrics and cost.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The run of the scenario.
    pub run: Arc<Run>,
    /// The index of the scenario in [`Run::scenarios`].
    pub index: usize,
    /// The energy of its window, or why there is none.
    pub lookup: EnergyLookup,
    /// The derived metrics.
    pub derived: DerivedMetrics,
    /// Money and carbon.
    pub cost: Cost,
}

impl Entry {
    /// The scenario as read from the file.
    #[must_use]
    pub fn scenario(&self) -> &Scenario {
        &self.run.scenarios[self.index]
    }

    /// Joules per second of media; `None` unless the energy covers the whole window.
    #[must_use]
    pub fn joules_per_media_second(&self) -> Option<f64> {
        self.derived.joules_per(self.derived.media_seconds).filter(|_| self.derived.is_whole)
    }

    /// Cost per hour of a stream, in the currency of the prices; `None` unless the energy covers
    /// the whole window.
    #[must_use]
    pub fn cost_per_stream_hour(&self) -> Option<f64> {
        self.cost.per(self.stream_hours()).map(money::float).filter(|_| self.derived.is_whole)
    }

    /// Grams of CO2-equivalents per hour of a stream; `None` unless the energy covers the whole
    /// window.
    #[must_use]
    pub fn carbon_grams_per_stream_hour(&self) -> Option<f64> {
        let grams = money::float(self.cost.carbon?) / self.stream_hours()?;
        Some(grams).filter(|_| self.derived.is_whole)
    }

    /// Hours of media of all streams; `None` if unknown or zero.
    fn stream_hours(&self) -> Option<f64> {
        self.derived.media_seconds.filter(|seconds| *seconds > 0.0).map(|seconds| seconds / 3600.0)
    }
}

/// All served scenarios.
///
/// ```
/// use std::sync::Arc;
///
/// use results::{cost::Prices, energy::{EnergySources, Scope}, model::Model, store};
///
/// let file = br#"{"scenarios": [
///     {"name": "720p", "duration": 10, "power_watts": [20, 20, 20], "step_seconds": 5}
/// ]}"#;
/// let run = store::parse("20260101_120000", file)?;
/// let energy = run.scenarios.iter().map(EnergySources::from_file).collect();
/// let model = Model::new(&[(Arc::new(run), energy)], Scope::Host, &Prices::defaults());
/// assert_eq!(model.entries[0].derived.joules(), Some(200.0));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The scenarios, newest run first, in the order of their files.
    pub entries: Vec<Entry>,
}

impl Model {
    /// Derives all metrics. `runs` are newest first, each with the energy of its scenarios in their
    /// order. `scope` selects the energy where both are known.
    #[must_use]
    pub fn new(runs: &[(Arc<Run>, Vec<EnergyLookup>)], scope: Scope, prices: &Prices) -> Self {
        let mut entries = Vec::new();
        for (run, lookups) in runs {
            // All repeats of a configuration use the same scope: `scope` only if all of them have
            // energy of it.
            let mut without_scope: BTreeSet<usize> = BTreeSet::new();
            for (scenario, lookup) in run.scenarios.iter().zip(lookups) {
                let is_missing = lookup.energy.as_ref().is_some_and(|energy| energy.total(scope).is_none());
                without_scope.extend(scenario.configuration.filter(|_| is_missing));
            }
            let scope_of = |scenario: &Scenario| {
                if scenario.configuration.is_some_and(|index| without_scope.contains(&index)) {
                    scope.other()
                } else {
                    scope
                }
            };
            let derived = derive_run(&run.scenarios, lookups, scope_of);
            for (index, (derived, lookup)) in derived.into_iter().zip(lookups).enumerate() {
                let cost = prices.cost(&run.scenarios[index], &derived);
                entries.push(Entry { run: run.clone(), index, lookup: lookup.clone(), derived, cost });
            }
        }
        Self { entries }
    }
}
