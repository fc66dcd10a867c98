//! Scenario files: GPUs, the processes that use them, and errors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The environment variable with the path of the scenario file.
pub const VARIABLE: &str = "FAKE_NVML_SCENARIO";

/// A scenario, stored as TOML.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// Error that `nvmlInit_v2` returns: `DRIVER_NOT_LOADED`, `NO_PERMISSION`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// The devices.
    pub gpu: Vec<Gpu>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    /// Model name; `fake` is prepended.
    pub name: String,
    /// UUID; by default it is derived from the device's index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Power in watts while no engine is used.
    pub idle_watts: f64,
    /// Power limit in watts.
    pub limit_watts: f64,
    /// Additional power in watts of each engine at full use.
    pub engine_watts: Engines,
    /// Whether driver and chip have the energy counter.
    pub energy_counter: bool,
    /// True if the energy counter does not change.
    pub stands_still: bool,
    /// MIG mode: usage by process is not supported.
    pub mig: bool,
    /// True if the GPU has fallen off the bus.
    pub lost: bool,
    /// Number of calls after which the GPU falls off the bus; 0 for never.
    pub lost_after_calls: u64,
    /// Changing this number simulates a reload of the driver: counters start at zero.
    pub epoch: u64,
    /// Milliseconds of the driver's sampling period; NVIDIA's is up to a second.
    pub period_ms: u64,
    /// Codecs of the encoder.
    pub codecs: Vec<String>,
    /// True to add stale and impossible samples to the valid ones.
    pub junk: bool,
    /// Errors that single functions return, by name: `NOT_SUPPORTED`, `NO_PERMISSION`, `UNKNOWN`, …
    pub errors: BTreeMap<String, String>,
    /// Delays of single functions in milliseconds, by name.
    pub delays: BTreeMap<String, u64>,
    /// The GPU instances of MIG mode, which have counters of their own.
    pub instance: Vec<Instance>,
    /// Processes that use the GPU.
    pub process: Vec<Process>,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            name: "T4".into(),
            uuid: None,
            idle_watts: 10.0,
            limit_watts: 150.0,
            engine_watts: Engines { sm: 60.0, memory: 0.0, encoder: 18.0, decoder: 12.0, jpeg: 5.0, ofa: 5.0 },
            energy_counter: true,
            stands_still: false,
            mig: false,
            lost: false,
            lost_after_calls: 0,
            epoch: 0,
            period_ms: 100,
            codecs: ["h264", "hevc", "av1"].map(str::to_owned).into(),
            junk: false,
            errors: BTreeMap::new(),
            delays: BTreeMap::new(),
            instance: Vec::new(),
            process: Vec::new(),
        }
    }
}

/// A value for each engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the field names are self-explanatory")]
pub struct Engines {
    pub sm: f64,
    pub memory: f64,
    pub encoder: f64,
    pub decoder: f64,
    pub jpeg: f64,
    pub ofa: f64,
}

impl Engines {
    /// The values in the order of the fields.
    #[must_use]
    pub fn all(&self) -> [f64; 6] {
        [self.sm, self.memory, self.encoder, self.decoder, self.jpeg, self.ofa]
    }
}

/// A GPU instance of MIG mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Instance {
    /// Its number.
    pub id: u32,
    /// Slices of the device, of seven.
    pub slices: u32,
    /// Decoders.
    pub decoders: u32,
    /// Encoders, which its counters do not include.
    pub encoders: u32,
}

impl Default for Instance {
    fn default() -> Self {
        Self { id: 1, slices: 1, decoders: 1, encoders: 0 }
    }
}

/// A process that uses a device, selected by pid or by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// Process id; the process need not exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Selects all running processes of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Utilization of each engine in percent.
    pub percent: Engines,
    /// Offset of its sampling periods in milliseconds: each process has its own sample times.
    pub phase_ms: u64,
    /// The GPU instance that it runs on, of which the utilization is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<u32>,
    /// Used device memory in bytes.
    pub memory: u64,
    /// True for a graphics process, false for a compute process.
    pub graphics: bool,
    /// Encoder sessions of the process.
    pub session: Vec<Session>,
}

/// One encoder session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the field names are self-explanatory")]
pub struct Session {
    /// `h264`, `hevc`, `av1`.
    pub codec: String,
    pub width: u32,
    pub height: u32,
    pub fps: u32,
    pub latency_us: u32,
}

impl Default for Session {
    fn default() -> Self {
        Self { codec: "h264".into(), width: 1920, height: 1080, fps: 25, latency_us: 4000 }
    }
}

impl Scenario {
    /// Parses the text of a scenario file.
    ///
    /// # Errors
    /// When the text is not a valid scenario; the message contains the position.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// Serialises the scenario.
    ///
    /// # Panics
    /// Never: every field can be serialised.
    #[must_use]
    pub fn text(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    #[test]
    fn scenario_round_trips_through_toml() {
        let session = Session { codec: "av1".into(), ..Session::default() };
        let process = Process { pid: Some(7), session: vec![session], ..Process::default() };
        let errors = [("nvmlDeviceGetTemperature".to_owned(), "NOT_SUPPORTED".to_owned())].into();
        let gpu = Gpu { process: vec![process], errors, ..Gpu::default() };
        let scenario = Scenario { init: None, gpu: vec![gpu, Gpu::default()] };
        assert_eq!(Scenario::parse(&scenario.text()).unwrap(), scenario);
        assert!(Scenario::parse("[[gpu]]\nwats = 3\n").unwrap_err().contains("wats"));
    }
}
