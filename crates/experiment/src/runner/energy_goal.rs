//! The flags of `run search energy`, and the candidates and configurations that they describe.

use clap::{Args, ValueEnum};

use super::plan::{Axes, AxisValues, Configuration, Matrix, Rate, TextOrNumber, canonical_encoder};
use crate::search::energy::{Candidate, EnergySearch, Ladder, Objective};

/// The target without a flag.
const DEFAULT_VMAF: f64 = 93.0;
/// The lowest constant rate factor of a ladder: hardly any encoder differs visibly below.
const BEST_CRF: u32 = 15;

/// The rate controls of the candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RateControl {
    /// Target bitrates
    #[default]
    Bitrate,
    /// Constant rate factors
    Crf,
    /// Both, each a candidate of its own
    Both,
}

/// Flags of the goal.
#[derive(Clone, Copy, Debug, PartialEq, Args)]
pub struct EnergyGoal {
    /// VMAF score to reach [default: 93, unless --target-psnr is set]
    #[arg(long, value_name = "SCORE")]
    target_vmaf: Option<f64>,
    /// PSNR to reach, in dB
    #[arg(long, value_name = "DECIBELS")]
    target_psnr: Option<f64>,
    /// Largest bitrate of a stream in kbit/s, as measured
    #[arg(long, value_name = "KBPS")]
    max_kbps: Option<u32>,
    /// Quantity to minimise
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    objective: Objective,
    /// Rate control of the candidates
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    rate_control: RateControl,
    /// Lowest bitrate to try in kbit/s
    #[arg(long, value_name = "KBPS", default_value_t = 100)]
    min_bitrate: u32,
    /// Highest bitrate to try in kbit/s
    #[arg(long, value_name = "KBPS", default_value_t = 20_000)]
    max_bitrate: u32,
    /// Most looks at the differences; a configuration has two repeats more at most
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    looks: u32,
}

impl EnergyGoal {
    /// Describes the goal for the dry run.
    pub(super) fn describe(&self) -> String {
        let what = match self.objective {
            Objective::Energy => "energy",
            Objective::Cost => "cost",
            Objective::Carbon => "carbon",
        };
        let [vmaf, psnr] = self.targets();
        let vmaf = vmaf.map(|score| format!("VMAF {score}"));
        let psnr = psnr.map(|score| format!("PSNR {score} dB"));
        let target = [vmaf, psnr].into_iter().flatten().collect::<Vec<_>>().join(" and ");
        let limit = self.max_kbps.map_or_else(String::new, |most| format!(", with at most {most} kbit/s"));
        format!("the least {what} per second of media at {target}{limit}")
    }

    /// Checks the values.
    ///
    /// # Errors
    /// What is out of range.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.target_vmaf.is_some_and(|score| !(0.0..=110.0).contains(&score)) {
            return Err("--target-vmaf must be 0 to 110".to_owned());
        }
        if self.target_psnr.is_some_and(|score| !(0.0..=100.0).contains(&score)) {
            return Err("--target-psnr must be 0 to 100 dB".to_owned());
        }
        if self.min_bitrate == 0 || self.min_bitrate >= self.max_bitrate || self.max_bitrate > 1_000_000 {
            return Err(
                "--min-bitrate and --max-bitrate must be 1 to 1000000 kbit/s, the first below the second".to_owned()
            );
        }
        if self.max_kbps.is_some_and(|most| most < self.min_bitrate) {
            return Err(format!("--max-kbps must not be below --min-bitrate, which is {}", self.min_bitrate));
        }
        Ok(())
    }

    /// VMAF and PSNR to reach.
    fn targets(&self) -> [Option<f64>; 2] {
        let vmaf = self.target_vmaf.or_else(|| self.target_psnr.is_none().then_some(DEFAULT_VMAF));
        [vmaf, self.target_psnr]
    }

    /// The search among the encoders and presets of `values`.
    ///
    /// # Errors
    /// When a value is invalid, or an encoder has no preset.
    pub(super) fn search(&self, values: &AxisValues, realtime: bool, seed: u64) -> Result<EnergySearch, String> {
        let [target_vmaf, target_psnr] = self.targets();
        Ok(EnergySearch {
            objective: self.objective,
            target_vmaf,
            target_psnr,
            max_kbps: self.max_kbps,
            realtime,
            candidates: self.candidates(values)?,
            looks: self.looks,
            seed,
        })
    }

    fn candidates(&self, values: &AxisValues) -> Result<Vec<Candidate>, String> {
        let default = vec!["libx264".to_owned()];
        let encoders = if values.encoder.is_empty() { &default } else { &values.encoder };
        let highest = self.max_kbps.map_or(self.max_bitrate, |most| most.min(self.max_bitrate));
        let mut all: Vec<Candidate> = Vec::new();
        for encoder in encoders {
            let encoder = canonical_encoder(encoder);
            let presets = presets(encoder, &values.preset)?;
            let kbps = Ladder::kbps(self.min_bitrate, highest);
            let ladders = match self.rate_control {
                RateControl::Bitrate => vec![kbps],
                RateControl::Crf => vec![crf_ladder(encoder)],
                RateControl::Both => vec![kbps, crf_ladder(encoder)],
            };
            for ladder in ladders {
                all.extend(presets.iter().map(|preset| Candidate {
                    encoder: encoder.to_owned(),
                    preset: preset.clone(),
                    ladder: ladder.clone(),
                }));
            }
        }
        let mut distinct: Vec<Candidate> = Vec::new();
        for candidate in all {
            if !distinct.contains(&candidate) {
                distinct.push(candidate);
            }
        }
        Ok(distinct)
    }

    /// One configuration of each candidate, for the checks before the run; the search measures
    /// others.
    ///
    /// # Errors
    /// When a value is invalid, or there are several outputs.
    pub(super) fn configurations(&self, values: &AxisValues, name: &str) -> Result<Vec<Configuration>, String> {
        if !values.bitrate.is_empty() || !values.crf.is_empty() {
            return Err("a search for energy finds the rate: leave out --bitrate and --crf".to_owned());
        }
        if values.resolution.len() > 1 || values.fps.len() > 1 || values.streams.len() > 1 {
            return Err("a search for energy has one --resolution, --fps and --streams".to_owned());
        }
        let mut all = Vec::new();
        for candidate in self.candidates(values)? {
            let one = AxisValues {
                encoder: vec![candidate.encoder.clone()],
                preset: vec![TextOrNumber::from(&*candidate.preset)],
                ..values.clone()
            };
            // The matrix checks the values as it does for other runs.
            let base = Matrix { matrix: one, ..Matrix::default() }.configurations(name)?;
            let axes = base.first().map(|configuration| configuration.axes.clone());
            let middle = candidate.ladder.len() / 2;
            all.extend(axes.map(|axes| configuration(name, &axes, &candidate, middle)));
        }
        Ok(all)
    }
}

/// The configuration of a candidate at a rate; `base` has the outputs.
pub(super) fn configuration(name: &str, base: &Axes, candidate: &Candidate, rung: usize) -> Configuration {
    let rate = match &candidate.ladder {
        Ladder::Kbps(rates) => Rate::Bitrate(format!("{}k", rates.get(rung).copied().unwrap_or_default())),
        Ladder::Crf(rates) => Rate::Crf(rates.get(rung).copied().unwrap_or_default()),
    };
    let (encoder, preset) = (candidate.encoder.clone(), candidate.preset.clone());
    Configuration::new(name, Axes { encoder, preset, rate, ..base.clone() })
}

/// The presets of an encoder: those of the flag that are for all encoders or for this one,
/// `ENCODER=PRESET`, or else five usual ones from fast to slow.
fn presets(encoder: &str, flags: &[TextOrNumber]) -> Result<Vec<String>, String> {
    let own = |flag: &TextOrNumber| {
        let text = flag.text();
        match text.split_once('=') {
            Some((name, preset)) => (canonical_encoder(name) == encoder).then(|| preset.to_owned()),
            None => Some(text),
        }
    };
    let found: Vec<String> = flags.iter().filter_map(own).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    if !flags.is_empty() {
        return Err(format!("--preset has none for {encoder}; write {encoder}=PRESET"));
    }
    let usual: &[&str] = match encoder {
        "libx264" | "libx265" => &["ultrafast", "superfast", "veryfast", "fast", "medium"],
        "libsvtav1" => &["12", "10", "8", "6", "5"],
        "libaom-av1" | "libvpx-vp9" => &["8", "7", "6", "5", "4"],
        nvidia if nvidia.ends_with("_nvenc") => &["p1", "p2", "p4", "p6", "p7"],
        _ => &[""],
    };
    Ok(usual.iter().map(|preset| (*preset).to_owned()).collect())
}

/// Constant rate factors, from the worst quality of the encoder's scale.
fn crf_ladder(encoder: &str) -> Ladder {
    let worst = if ["av1", "vp9"].iter().any(|codec| encoder.contains(codec)) { 63 } else { 51 };
    Ladder::Crf((BEST_CRF..=worst).rev().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOAL: EnergyGoal = EnergyGoal {
        target_vmaf: None,
        target_psnr: None,
        max_kbps: Some(4000),
        objective: Objective::Energy,
        rate_control: RateControl::Bitrate,
        min_bitrate: 500,
        max_bitrate: 20_000,
        looks: 8,
    };

    fn values(encoders: &[&str], presets: &[&str]) -> AxisValues {
        AxisValues {
            encoder: encoders.iter().map(|encoder| (*encoder).to_owned()).collect(),
            preset: presets.iter().map(|preset| TextOrNumber::from(*preset)).collect(),
            ..AxisValues::default()
        }
    }

    #[test]
    fn presets_of_one_encoder_are_not_tried_with_another() {
        let values = values(&["libx264", "libsvtav1"], &["x264=veryfast", "x264=fast", "libsvtav1=10"]);
        let labels: Vec<String> = GOAL.candidates(&values).unwrap().iter().map(Candidate::label).collect();
        assert_eq!(labels, ["libx264 veryfast", "libx264 fast", "libsvtav1 10"]);
        let missing = AxisValues { preset: vec![TextOrNumber::from("x264=fast")], ..values };
        assert!(GOAL.candidates(&missing).unwrap_err().contains("write libsvtav1=PRESET"));
    }

    #[test]
    fn the_ladder_ends_at_the_largest_bitrate() {
        let search = GOAL.search(&values(&[], &[]), false, 1).unwrap();
        assert_eq!((search.target_vmaf, search.candidates.len()), (Some(93.0), 5));
        let Ladder::Kbps(rates) = &search.candidates[0].ladder else { panic!("no bit rates") };
        assert_eq!((rates.first(), rates.last()), (Some(&500), Some(&4000)));
        assert!(EnergyGoal { max_kbps: Some(400), ..GOAL }.check().unwrap_err().contains("--min-bitrate"));
    }

    #[test]
    fn both_rate_controls_are_candidates_of_their_own() {
        let goal = EnergyGoal { rate_control: RateControl::Both, ..GOAL };
        let configurations = goal.configurations(&values(&["x264"], &["fast"]), "").unwrap();
        let names: Vec<&str> = configurations.iter().map(|configuration| &*configuration.name).collect();
        assert_eq!(names, ["libx264 fast 1414k 1280x720 30 fps", "libx264 fast crf 33 1280x720 30 fps"]);
        let error = |values: AxisValues| goal.configurations(&values, "").unwrap_err();
        assert!(error(AxisValues { crf: vec![20], ..AxisValues::default() }).contains("leave out --bitrate"));
        assert!(error(AxisValues { streams: vec![1, 2], ..AxisValues::default() }).contains("one --resolution"));
    }
}
