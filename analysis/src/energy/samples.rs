//! Power samples of a file, as the replaced exporters summed them: by the trapezoid over what they cover, which may be a third of the window.

use exporter::units::Microjoules;

use super::{Energy, Joules, Scope, Way};
use crate::run::Scenario;

/// Seconds between two samples where the file does not say; what the replaced exporters took.
pub const DEFAULT_STEP: f64 = 5.0;

/// The integral over `values` at distances of `step`: `Σ (v[i] + v[i+1]) / 2 · step`. One sample stands for one step, for the scheduler writes a mean
/// and its length that way (defect 3 of the replaced exporters, whose answer was 0).
#[must_use]
pub fn trapezoid(values: &[f64], step: f64) -> Option<f64> {
    match values {
        [] => None,
        [one] => Some(one * step),
        all => Some(all.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0 * step).sum()),
    }
}

/// Seconds that the samples of a scenario span.
#[must_use]
pub fn span(count: usize, step: f64) -> f64 {
    u32::try_from(count.saturating_sub(1).max(1)).map_or(f64::INFINITY, f64::from) * step
}

/// The energy of the file's samples. Nothing is made up for the time between them and the window's end.
#[must_use]
pub fn energy(scenario: &Scenario) -> Option<Energy> {
    let watts = &scenario.samples.watts;
    let step = scenario.samples.step.unwrap_or(DEFAULT_STEP);
    let joules = trapezoid(watts, step).filter(|joules| joules.is_finite())?;
    let span = span(watts.len(), step);
    let coverage = scenario.seconds().map(|seconds| span / seconds);
    Some(Energy {
        way: Way::Samples,
        rows: vec![Joules {
            scope: Scope::Host,
            source: "file".to_owned(),
            joules: Microjoules::from_joules(joules),
            edge_error: 0.0,
        }],
        coverage,
        seconds: Some(span),
        gap_seconds: 0.0,
        resets: 0,
        watts: watts.clone(),
        cpu_seconds: None,
    })
}

/// CPU seconds of the file's samples.
#[must_use]
pub fn cpu_seconds(scenario: &Scenario) -> Option<f64> {
    trapezoid(&scenario.samples.cores, scenario.samples.step.unwrap_or(DEFAULT_STEP))
}
