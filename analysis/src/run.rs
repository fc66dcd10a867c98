//! The model of a run that every page is made from.
//!
//! A run is one result file; a scenario is one measured configuration in it. Every field may be missing, and a missing
//! one is not zero.

use serde::Deserialize;

/// One result file, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The time in the file's name, `YYYYMMDD_HHMMSS`: the label `run`.
    pub id: String,
    /// In the order of the file, each label set once.
    pub scenarios: Vec<Scenario>,
    /// Rows that could not be read: which, and why.
    pub problems: Vec<String>,
}

/// One scenario, in the field names of the result files (variant B).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Scenario {
    /// The label `scenario`.
    pub name: String,
    /// As it was asked for: `2500k`, `5M`.
    #[serde(default)]
    pub bitrate: String,
    /// The encoder: `libx264`, `none`.
    #[serde(default, alias = "encoder")]
    pub encoder_type: String,
    /// `WIDTHxHEIGHT`.
    #[serde(default)]
    pub resolution: Option<String>,
    /// Seconds.
    #[serde(default)]
    pub duration: Option<f64>,
    /// Frames per second.
    #[serde(default)]
    pub avg_fps: Option<f64>,
    /// Frames lost.
    #[serde(default)]
    pub dropped_frames: Option<u64>,
    /// Frames encoded.
    #[serde(default)]
    pub total_frames: Option<u64>,
    /// VMAF, 0 to 100.
    #[serde(default)]
    pub vmaf_score: Option<f64>,
    /// PSNR in dB.
    #[serde(default)]
    pub psnr_score: Option<f64>,
    /// Start of the window in unix seconds.
    #[serde(default)]
    pub start_time: Option<f64>,
    /// End of the window in unix seconds.
    #[serde(default)]
    pub end_time: Option<f64>,
    /// Power samples in watts, where the file brings them.
    #[serde(default)]
    pub power_watts: Vec<f64>,
    /// Joules, where the file brings them.
    #[serde(default)]
    pub energy_joules: Option<f64>,
    /// The container that did the work, by name or short id, where the runner knew it.
    #[serde(default)]
    pub container: Option<String>,
}

impl Scenario {
    /// The window whose joules are to be asked for: the file has times, and neither joules nor samples.
    #[must_use]
    pub fn open_window(&self) -> Option<(f64, f64)> {
        if self.brings_energy() {
            return None;
        }
        Some((self.start_time?, self.end_time?))
    }

    /// True when the file itself says what the scenario used.
    #[must_use]
    pub fn brings_energy(&self) -> bool {
        self.energy_joules.is_some() || !self.power_watts.is_empty()
    }

    /// Length in seconds: as measured, else as the window says.
    #[must_use]
    pub fn seconds(&self) -> Option<f64> {
        self.duration.or_else(|| Some(self.end_time? - self.start_time?)).filter(|seconds| *seconds >= 0.0)
    }
}
