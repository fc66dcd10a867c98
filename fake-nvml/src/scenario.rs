//! What there is to be seen: GPUs, who uses them, and what goes wrong.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The environment variable that names the file.
pub const VARIABLE: &str = "FAKE_NVML_SCENARIO";

/// All of it, as TOML.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// What `nvmlInit_v2` answers instead of success: `DRIVER_NOT_LOADED`, `NO_PERMISSION`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// The devices.
    pub gpu: Vec<Gpu>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    /// Its model; `fake` is put before it.
    pub name: String,
    /// Without it one is made from its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Watts while nothing works.
    pub idle_watts: f64,
    /// The driver's limit.
    pub limit_watts: f64,
    /// Watts that each engine adds when it is used wholly.
    pub engine_watts: Engines,
    /// False for a driver or chip without the energy counter.
    pub energy_counter: bool,
    /// True where the counter does not move.
    pub stands_still: bool,
    /// Cut into instances: use by process is not supported.
    pub mig: bool,
    /// It has fallen off the bus.
    pub lost: bool,
    /// It falls off the bus after so many calls; 0 never.
    pub lost_after_calls: u64,
    /// Another number is another life of the driver: counters begin at zero.
    pub epoch: u64,
    /// Milliseconds of the driver's sampling period; NVIDIA's is up to a second.
    pub period_ms: u64,
    /// Codecs that its encoder has.
    pub codecs: Vec<String>,
    /// Samples of another time and of impossible use come with the true ones.
    pub junk: bool,
    /// Answers of single functions, by name: `NOT_SUPPORTED`, `NO_PERMISSION`, `UNKNOWN`, …
    pub errors: BTreeMap<String, String>,
    /// Milliseconds that single functions take, by name.
    pub delays: BTreeMap<String, u64>,
    /// Who uses it.
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
            process: Vec::new(),
        }
    }
}

/// A figure for each engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Engines {
    pub sm: f64,
    pub memory: f64,
    pub encoder: f64,
    pub decoder: f64,
    pub jpeg: f64,
    pub ofa: f64,
}

impl Engines {
    /// In the order of the fields.
    #[must_use]
    pub fn all(&self) -> [f64; 6] {
        [self.sm, self.memory, self.encoder, self.decoder, self.jpeg, self.ofa]
    }
}

/// Who uses a device: a process by its number, or all of a name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// Its number; it need not live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Every process of this name that lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Percent of each engine.
    pub percent: Engines,
    /// Milliseconds by which the end of its sampling periods is behind others': each process has a clock of its own.
    pub phase_ms: u64,
    /// Bytes on the device.
    pub memory: u64,
    /// It stands among the graphics processes, and not among those that compute.
    pub graphics: bool,
    /// Its encoder sessions.
    pub session: Vec<Session>,
}

/// One encoder session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the names say it")]
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
    /// Reads a file's text.
    ///
    /// # Errors
    /// With the place of what is wrong in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// As a file's text.
    ///
    /// # Panics
    /// Never: every field of it can be written.
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
    fn a_scenario_is_read_back_as_it_was_written() {
        let session = Session { codec: "av1".into(), ..Session::default() };
        let process = Process { pid: Some(7), session: vec![session], ..Process::default() };
        let errors = [("nvmlDeviceGetTemperature".to_owned(), "NOT_SUPPORTED".to_owned())].into();
        let gpu = Gpu { process: vec![process], errors, ..Gpu::default() };
        let scenario = Scenario { init: None, gpu: vec![gpu, Gpu::default()] };
        assert_eq!(Scenario::parse(&scenario.text()).unwrap(), scenario);
        assert!(Scenario::parse("[[gpu]]\nwats = 3\n").unwrap_err().contains("wats"));
    }
}
