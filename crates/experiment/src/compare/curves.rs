//! Quality curves: configurations of a run that differ only in their rate. Compares pairs of curves
//! in bit rate, energy, cost and carbon.

use std::collections::BTreeMap;

use serde::Serialize;

use results::{
    figures::score,
    model::{Entry, Model},
    repeats::{Configuration, configurations},
    run::UNKNOWN,
};
use statistics::bjontegaard::{Delta, Point, Repeat, delta};

/// A resource that is spent for quality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Bits per second of media.
    Rate,
    /// Joules per second of media.
    Energy,
    /// Cost per hour of a stream.
    Cost,
    /// Grams of CO2 equivalents per hour of a stream.
    Carbon,
}

impl Resource {
    /// All resources in display order.
    pub const ALL: [Self; 4] = [Self::Rate, Self::Energy, Self::Cost, Self::Carbon];

    /// Name of the Bjøntegaard delta for this resource.
    #[must_use]
    pub fn measure(self) -> &'static str {
        match self {
            Self::Rate => "BD-rate",
            Self::Energy => "BD-energy",
            Self::Cost => "BD-cost",
            Self::Carbon => "BD-carbon",
        }
    }

    /// The amount used by one repeat.
    #[must_use]
    pub fn of(self, entry: &Entry) -> Option<f64> {
        match self {
            Self::Rate => entry.derived.bits_per_second(),
            Self::Energy => entry.joules_per_media_second(),
            Self::Cost => entry.cost_per_stream_hour(),
            Self::Carbon => entry.carbon_grams_per_stream_hour(),
        }
    }
}

/// A quality curve.
#[derive(Clone, Debug)]
pub struct Curve<'a> {
    /// Run id.
    pub run: &'a str,
    /// Encoder as ffmpeg names it.
    pub encoder: &'a str,
    /// Encoder preset.
    pub preset: &'a str,
    /// Output resolutions and number of streams.
    pub ladder: String,
    /// Quality metric and model, common to all points.
    pub quality: String,
    /// Scope and source of the energy; empty when the points have different ones.
    pub source: String,
    /// SHA-256 of the source; empty when the file does not contain it.
    pub content: &'a str,
    /// The configurations.
    pub configurations: Vec<Configuration<'a>>,
}

impl Curve<'_> {
    /// Encoder and preset.
    #[must_use]
    pub fn label(&self) -> String {
        if self.preset.is_empty() { self.encoder.to_owned() } else { format!("{} {}", self.encoder, self.preset) }
    }

    /// Whether it is known what was encoded; if not, one curve may have encoded less than another.
    pub(crate) fn has_known_outputs(&self) -> bool {
        self.configurations.iter().all(|configuration| configuration.first().derived.ladder != UNKNOWN)
    }

    /// The points for a resource; `None` when a point lacks it.
    pub(crate) fn points(&self, resource: Resource) -> Option<Vec<Point>> {
        let point = |configuration: &Configuration<'_>| {
            if resource != Resource::Rate && configuration.energy_source().is_none() {
                return None;
            }
            // A repeat that lacks one of the values is left out.
            let repeat = |entry: &&Entry| {
                let quality = score(entry, &self.quality)?.1;
                Some(Repeat { rate: Resource::Rate.of(entry)?, quality, cost: resource.of(entry)? })
            };
            Some(configuration.entries.iter().filter_map(repeat).collect::<Point>()).filter(|point| !point.is_empty())
        };
        self.configurations.iter().map(point).collect()
    }
}

/// All curves of a model.
#[must_use]
pub fn curves(model: &Model) -> Vec<Curve<'_>> {
    /// Run, outputs, encoder, preset, quality metric, energy source and source digest.
    type Key<'a> = (&'a str, String, &'a str, &'a str, String, String, &'a str);
    let mut all: BTreeMap<Key<'_>, Vec<Configuration<'_>>> = BTreeMap::new();
    for configuration in configurations(model) {
        let entry = configuration.first();
        let scenario = entry.scenario();
        // Configurations without a score are on no curve.
        let Some((quality, _)) = score(entry, "") else { continue };
        let ladder = format!("{}, {} at once", entry.derived.ladder, scenario.stream_count().unwrap_or(1));
        let key = (
            &*entry.run.id,
            ladder,
            &*scenario.encoder,
            &*scenario.preset,
            quality,
            source(&configuration),
            configuration.content_digest(),
        );
        all.entry(key).or_default().push(configuration);
    }
    all.into_iter()
        .map(|((run, ladder, encoder, preset, quality, source, content), configurations)| Curve {
            run,
            encoder,
            preset,
            ladder,
            quality,
            source,
            content,
            configurations,
        })
        .collect()
}

/// Scope and source of the energy of a configuration; empty if its repeats have different ones.
fn source(configuration: &Configuration<'_>) -> String {
    let includes_idle = configuration.first().derived.energy_class().includes_idle();
    match configuration.energy_source() {
        Some(source) if includes_idle => format!("{source}, idle power unknown"),
        source => source.unwrap_or_default(),
    }
}

/// The Bjøntegaard deltas of `test` relative to `anchor`, one per resource, or why they cannot be
/// computed.
#[must_use]
pub fn deltas(anchor: &Curve<'_>, test: &Curve<'_>) -> Vec<(Resource, Result<Delta, String>)> {
    let one = |resource: Resource| {
        if anchor.quality != test.quality {
            return Err(format!("different quality metrics: {} and {}", anchor.quality, test.quality));
        }
        if anchor.content != test.content {
            return Err("different sources".to_owned());
        }
        if resource != Resource::Rate && anchor.source != test.source {
            let source =
                |curve: &Curve<'_>| if curve.source.is_empty() { "several".to_owned() } else { curve.source.clone() };
            return Err(format!("energy from different sources: {} and {}", source(anchor), source(test)));
        }
        let missing = || match resource {
            Resource::Carbon => "the carbon intensity is unknown; set --carbon.intensity or [carbon]".to_owned(),
            _ => "a point lacks this value".to_owned(),
        };
        let (a, b) = (anchor.points(resource).ok_or_else(missing)?, test.points(resource).ok_or_else(missing)?);
        delta(&a, &b).map_err(|why| why.to_string())
    };
    Resource::ALL.into_iter().map(|resource| (resource, one(resource))).collect()
}
