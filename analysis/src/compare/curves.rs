//! Curves of quality: the configurations of a run that differ in their rate alone, and how far two such curves are apart in bits, joules, money and carbon.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    cells::{Cell, cells, is_whole},
    cost::money,
    figures::{Entry, Model},
    statistics::bjontegaard::{Delta, Point, Repeat, delta},
};

/// What is paid for quality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Price {
    /// Bits for a second of media.
    Rate,
    /// Joules for a second of media.
    Energy,
    /// Money for an hour of a stream.
    Cost,
    /// Grams of CO2-equivalents for an hour of a stream.
    Carbon,
}

impl Price {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Rate, Self::Energy, Self::Cost, Self::Carbon];

    /// As the measure is called.
    #[must_use]
    pub fn measure(self) -> &'static str {
        match self {
            Self::Rate => "BD-rate",
            Self::Energy => "BD-energy",
            Self::Cost => "BD-cost",
            Self::Carbon => "BD-carbon",
        }
    }

    /// Of one repeat.
    #[must_use]
    pub fn of(self, entry: &Entry) -> Option<f64> {
        let media = entry.figures.media_seconds.filter(|seconds| *seconds > 0.0);
        // Joules, and what is made of them, of a part of a window are not compared.
        if self != Self::Rate && !is_whole(entry) {
            return None;
        }
        let hours = media.map(|seconds| seconds / 3600.0);
        match self {
            Self::Rate => Some(entry.figures.megabits? * 1e6 / media?),
            Self::Energy => entry.figures.joules_per(media),
            Self::Cost => entry.cost.per(hours).map(money::float),
            Self::Carbon => Some(money::float(entry.cost.carbon?) / hours?),
        }
    }
}

/// A curve.
#[derive(Clone, Debug)]
pub struct Curve<'a> {
    /// Its run.
    pub run: &'a str,
    /// The encoder.
    pub encoder: &'a str,
    /// Its preset.
    pub preset: &'a str,
    /// Outputs, and how many streams.
    pub ladder: String,
    /// The quality's measure and its model, on which all points agree.
    pub quality: String,
    /// Whose its joules are, and how they are known; empty where its points do not agree.
    pub source: String,
    /// The digest of what was encoded; empty where the file does not say.
    pub content: &'a str,
    /// What it is made of.
    pub cells: Vec<Cell<'a>>,
}

impl Curve<'_> {
    /// For people.
    #[must_use]
    pub fn label(&self) -> String {
        if self.preset.is_empty() { self.encoder.to_owned() } else { format!("{} {}", self.encoder, self.preset) }
    }

    /// Its points, at a price; nothing where one of them has none.
    fn points(&self, price: Price) -> Option<Vec<Point>> {
        let point = |cell: &Cell<'_>| {
            if price != Price::Rate && cell.source().is_none() {
                return None;
            }
            // Each repeat with all that it came to; one that lacks something is no point.
            let repeat = |entry: &&Entry| {
                let quality = score(entry, &self.quality)?.1;
                Some(Repeat { rate: Price::Rate.of(entry)?, quality, price: price.of(entry)? })
            };
            Some(cell.entries.iter().filter_map(repeat).collect::<Point>()).filter(|point| !point.is_empty())
        };
        self.cells.iter().map(point).collect()
    }
}

/// The score by which an entry stands on a curve, by its name; of an empty one VMAF before PSNR, with the model that made it.
pub(crate) fn score(entry: &Entry, wanted: &str) -> Option<(String, f64)> {
    let quality = &entry.scenario().quality;
    let named = [("VMAF", &quality.vmaf), ("PSNR", &quality.psnr)];
    let mut all = named.into_iter().filter_map(|(metric, score)| {
        let score = score.as_ref()?;
        let made_by = [&*score.model, &*score.pooling].join(" ");
        Some((format!("{metric} {}", made_by.trim()).trim().to_owned(), score.value))
    });
    all.find(|(name, _)| wanted.is_empty() || name == wanted)
}

/// All curves of a model.
#[must_use]
pub fn curves(model: &Model) -> Vec<Curve<'_>> {
    /// Run, outputs, encoder, preset, measure, whose joules, and what was encoded.
    type Key<'a> = (&'a str, String, &'a str, &'a str, String, String, &'a str);
    let mut all: BTreeMap<Key<'_>, Vec<Cell<'_>>> = BTreeMap::new();
    for cell in cells(model) {
        let entry = cell.first();
        let scenario = entry.scenario();
        // What nobody scored stands on no curve.
        let Some((quality, _)) = score(entry, "") else { continue };
        let ladder = format!("{}, {} at once", entry.figures.ladder, scenario.stream_count().unwrap_or(1));
        let key = (
            &*entry.run.id,
            ladder,
            &*scenario.encoder,
            &*scenario.preset,
            quality,
            cell.source().unwrap_or_default(),
            cell.content(),
        );
        all.entry(key).or_default().push(cell);
    }
    all.into_iter()
        .map(|((run, ladder, encoder, preset, quality, source, content), cells)| Curve {
            run,
            encoder,
            preset,
            ladder,
            quality,
            source,
            content,
            cells,
        })
        .collect()
}

/// What the second pays more than the first for the same quality, at every price, or why that cannot be said.
#[must_use]
pub fn between(anchor: &Curve<'_>, test: &Curve<'_>, seed: u64) -> Vec<(Price, Result<Delta, String>)> {
    let one = |price: Price| {
        if anchor.quality != test.quality {
            return Err(format!("{} and {} are no one measure", anchor.quality, test.quality));
        }
        if anchor.content != test.content {
            return Err("they encoded different sources".to_owned());
        }
        if price != Price::Rate && anchor.source != test.source {
            let said =
                |curve: &Curve<'_>| if curve.source.is_empty() { "several".to_owned() } else { curve.source.clone() };
            return Err(format!("joules of two kinds: {} and {}", said(anchor), said(test)));
        }
        let missing = || match price {
            Price::Carbon => "no carbon intensity is known: --carbon.intensity, or [carbon] in the file".to_owned(),
            _ => "some of the points have no such price".to_owned(),
        };
        let (a, b) = (anchor.points(price).ok_or_else(missing)?, test.points(price).ok_or_else(missing)?);
        delta(&a, &b, seed).map_err(|why| why.to_string())
    };
    Price::ALL.into_iter().map(|price| (price, one(price))).collect()
}
