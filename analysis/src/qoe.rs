//! The score of the quality of experience of a scenario.

use results::{
    model::Entry,
    run::{Quality, Score},
};

/// A score and its inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct QoeScore {
    /// 1 (bad) to 5 (excellent).
    pub score: f64,
    /// 0 to 1.
    pub picture: Option<f64>,
    /// 0 to 1.
    pub smoothness: Option<f64>,
    /// The label `made_of`, such as `vmaf+drops`.
    pub made_of: &'static str,
}

/// Drop ratio at which the score is 1, whatever the picture quality.
const UNWATCHABLE_DROP_RATIO: f64 = 0.2;

/// Quality of experience: 1 + 4 · picture · smoothness.
///
/// `picture` is VMAF / 100, or (PSNR − 20) / 30 clamped to 0..=1 without VMAF. `smoothness` falls
/// linearly from 1 without dropped frames to 0 at `UNWATCHABLE_DROP_RATIO`, and is 1 if the drops
/// are unknown. A scenario with neither VMAF nor PSNR gets the score of its file, if it has one.
#[must_use]
pub fn qoe_score(entry: &Entry) -> Option<QoeScore> {
    let vmaf = quality_value(entry, |quality| &quality.vmaf).map(|vmaf| vmaf / 100.0);
    let psnr = quality_value(entry, |quality| &quality.psnr).map(|psnr| (psnr - 20.0) / 30.0);
    let drops = entry.derived.drop_ratio;
    let Some(picture) = vmaf.or(psnr).map(|picture| picture.clamp(0.0, 1.0)) else {
        let score = entry.scenario().file_qoe.filter(|score| (1.0..=5.0).contains(score))?;
        return Some(QoeScore { score, picture: None, smoothness: None, made_of: "file" });
    };
    let smoothness = drops.map(|drops| (1.0 - drops / UNWATCHABLE_DROP_RATIO).max(0.0));
    let made_of = match (vmaf.is_some(), drops.is_some()) {
        (true, true) => "vmaf+drops",
        (true, false) => "vmaf",
        (false, true) => "psnr+drops",
        (false, false) => "psnr",
    };
    let score = 1.0 + 4.0 * picture * smoothness.unwrap_or(1.0);
    Some(QoeScore { score, picture: Some(picture), smoothness, made_of })
}

/// The value of one quality metric of a scenario.
#[must_use]
pub fn quality_value(entry: &Entry, metric: fn(&Quality) -> &Option<Score>) -> Option<f64> {
    Some(metric(&entry.scenario().quality).as_ref()?.value)
}
