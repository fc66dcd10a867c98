//! Energy and CPU time from samples in a result file, integrated like the legacy exporters did:
//! with the trapezoid rule over the span of the samples, which may be a third of the window.

use units::Microjoules;

use super::{
    reading::{EnergyReading, Scope},
    window::{EnergyMethod, WindowEnergy},
};
use crate::run::Scenario;

/// Interval of samples in seconds if the file contains none; the default of the legacy exporters.
pub const DEFAULT_STEP: f64 = 5.0;

/// The integral over `values` with interval `step`: `Σ (v[i] + v[i+1]) / 2 · step`. A single sample
/// counts for one step, because the legacy scheduler writes a mean and its length in this form
/// (defect 3 of the legacy exporters, which returned 0).
#[must_use]
pub fn trapezoid(values: &[f64], step: f64) -> Option<f64> {
    match values {
        [] => None,
        [one] => Some(one * step),
        all => Some(all.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0 * step).sum()),
    }
}

/// The time that `count` samples span, in seconds.
#[must_use]
pub fn span(count: usize, step: f64) -> f64 {
    u32::try_from(count.saturating_sub(1).max(1)).map_or(f64::INFINITY, f64::from) * step
}

/// The energy of the power samples, which is not extrapolated to the whole window; `None` without
/// samples.
#[must_use]
pub fn energy(scenario: &Scenario) -> Option<WindowEnergy> {
    let watts = &scenario.samples.watts;
    let step = scenario.samples.step.unwrap_or(DEFAULT_STEP);
    let joules = trapezoid(watts, step).filter(|joules| joules.is_finite())?;
    let span = span(watts.len(), step);
    let coverage = scenario.seconds().map(|seconds| span / seconds);
    Some(WindowEnergy {
        method: EnergyMethod::Samples,
        rows: vec![EnergyReading {
            scope: Scope::Host,
            source: "file".to_owned(),
            joules: Microjoules::from_joules(joules),
            edge_error: 0.0,
            model_interval: None,
        }],
        coverage,
        seconds: Some(span),
        gap_seconds: 0.0,
        resets: 0,
        watts: Vec::new(),
        cpu_seconds: None,
        idle_known: None,
    })
}

/// CPU time of the samples of CPU use, in seconds; `None` without samples.
#[must_use]
pub fn cpu_seconds(scenario: &Scenario) -> Option<f64> {
    trapezoid(&scenario.samples.cores, scenario.samples.step.unwrap_or(DEFAULT_STEP))
}
