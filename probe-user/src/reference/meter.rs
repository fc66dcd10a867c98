//! Reading one meter: a sensor of the board, an HTTP endpoint or a file with a power.
//!
//! An answer is bounded in time and size. Messages name the host of an endpoint and never its path,
//! its query or what it answered, because these may contain secrets.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use cli::file::read_limited;
use client::{Access, Client, ClientError, ConnectError};
use units::Microjoules;

use crate::{
    energy::{
        self, REOPENED, Source, SourcePaths,
        integral::Integral,
        zone::{Origin, ZoneKind},
    },
    host::{
        availability::{Reason, Unavailable},
        topology::Topology,
    },
};

/// Label of the sensors of the board, and the name of their state.
pub const BOARD_METER: &str = "power_meter";
/// Longest time of one answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of an answer. A Redfish resource has some kilobytes.
const MAX_ANSWER: u64 = 256 << 10;
/// More than any machine uses.
const MAX_POWER_UW: f64 = 100_000e6;
/// Longest time that two readings of a power may be apart; between later ones the energy is
/// unknown.
const MAX_GAP: Duration = Duration::from_secs(60);
/// Interval of a sensor of the board, which averages over seconds.
const SENSOR_INTERVAL: Duration = Duration::from_secs(2);
/// Detail of the error of a sensor that was opened again: its energy may have started at zero.
pub(super) const RESTARTED: &str = REOPENED;

/// The meters that the user names.
#[derive(Clone, Debug)]
pub struct MeterSettings {
    /// Address of an endpoint that answers with a power.
    pub url: Option<String>,
    /// A file with a power.
    pub file: Option<PathBuf>,
    /// JSON pointer (RFC 6901) to the power; empty where the answer is the number itself.
    pub field: String,
    /// Watts of one unit of the answer.
    pub scale: f64,
    /// Time between two readings.
    pub interval: Duration,
    /// Label of the meter.
    pub name: String,
    /// Whether sensors of the board are read.
    pub hwmon: bool,
    /// How to connect to the endpoint.
    pub access: Access,
}

impl Default for MeterSettings {
    fn default() -> Self {
        Self {
            url: None,
            file: None,
            field: String::new(),
            scale: 1.0,
            interval: Duration::from_secs(5),
            name: "wall".to_owned(),
            hwmon: true,
            access: Access::default(),
        }
    }
}

/// A meter that is open, and not read yet.
pub struct PreparedMeter {
    /// Its label.
    pub(super) name: Arc<str>,
    /// Name of its state among the sources.
    pub(super) state_name: &'static str,
    /// True when the user named it.
    pub(super) wanted: bool,
    pub(super) interval: Duration,
    pub(super) input: Input,
}

/// Where a meter is read.
pub(super) enum Input {
    /// A zone of the sensors of the board.
    Sensor { source: Box<dyn Source>, zone: usize },
    /// An HTTP endpoint.
    Http { client: Box<Client>, field: Field },
    /// A file.
    File { path: PathBuf, field: Field, max_age: Duration },
    /// Settings that cannot work, with the reason.
    Refused(Unavailable),
}

/// A power in an answer.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pointer: String,
    scale: f64,
}

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Microwatts.
    Power(u64),
    /// Microjoules since some time.
    Energy(u64),
}

/// Opens every meter. `board_in_use` is true where the sensors of the board are the source of the
/// account already: a meter must not be compared with itself.
#[must_use]
pub fn open(settings: &MeterSettings, paths: &SourcePaths, board_in_use: bool) -> Vec<PreparedMeter> {
    let mut meters = Vec::new();
    if settings.hwmon && !board_in_use {
        meters.extend(open_sensor(paths));
    }
    let field = || Field { pointer: settings.field.clone(), scale: settings.scale };
    let input = match (&settings.url, &settings.file) {
        (Some(url), _) => Some(match Client::new(url, &settings.access, TIMEOUT, MAX_ANSWER) {
            Ok(client) => Input::Http { client: Box::new(client), field: field() },
            Err(error) => Input::Refused(Unavailable::new(Reason::Broken, format!("--reference.url: {error}"))),
        }),
        (None, Some(file)) => {
            let max_age = MAX_GAP.max(settings.interval * 3);
            Some(Input::File { path: file.clone(), field: field(), max_age })
        }
        (None, None) => None,
    };
    meters.extend(input.map(|input| PreparedMeter {
        name: settings.name.as_str().into(),
        state_name: "reference",
        wanted: true,
        interval: settings.interval,
        input,
    }));
    meters
}

/// Reads the meter that the user names once, for people. `None` where none is named.
#[must_use]
pub fn check(settings: &MeterSettings, paths: &SourcePaths) -> Option<Result<String, Unavailable>> {
    let named = open(&MeterSettings { hwmon: false, ..settings.clone() }, paths, false).pop();
    named.map(|mut meter| {
        let reading = meter.input.read()?;
        let watts = match reading {
            Reading::Power(microwatts) => Microjoules(microwatts).joules(),
            Reading::Energy(_) => 0.0,
        };
        Ok(format!("{}: {watts:.1} W", meter.input.detail()))
    })
}

/// The power meters of the board, which together measure the machine; `None` where there are none.
fn open_sensor(paths: &SourcePaths) -> Option<PreparedMeter> {
    let source = energy::open(Origin::Hwmon, None, paths, &Topology::read(&paths.sysfs)).ok()?;
    let zone = source.zones().iter().position(|zone| zone.id.kind == ZoneKind::Psys)?;
    Some(PreparedMeter {
        name: BOARD_METER.into(),
        state_name: BOARD_METER,
        wanted: false,
        interval: SENSOR_INTERVAL,
        input: Input::Sensor { source, zone },
    })
}

impl Input {
    /// The label `source`.
    pub(super) fn source(&self) -> &'static str {
        match self {
            Self::Sensor { .. } => Origin::Hwmon.as_str(),
            Self::File { .. } => "file",
            Self::Http { .. } | Self::Refused(_) => "http",
        }
    }

    /// What is read, for people.
    pub(super) fn detail(&self) -> String {
        match self {
            Self::Sensor { source, zone } => {
                source.zones().get(*zone).map(|zone| zone.location.clone()).unwrap_or_default()
            }
            Self::Http { client, .. } => client.display_url().to_owned(),
            Self::File { path, .. } => path.display().to_string(),
            Self::Refused(_) => "--reference.url".to_owned(),
        }
    }

    /// Reads once.
    ///
    /// # Errors
    /// Why there is no reading. [`RESTARTED`] as detail once, when a sensor was opened again.
    pub(super) fn read(&mut self) -> Result<Reading, Unavailable> {
        match self {
            Self::Sensor { source, zone } => read_sensor(&mut **source, *zone).map(Reading::Energy),
            Self::Http { client, field } => read_endpoint(client, field).map(Reading::Power),
            Self::File { path, field, max_age } => {
                let fault = |reason, why: String| Unavailable::new(reason, format!("{}: {why}", path.display()));
                // Opening a pipe waits for its writer.
                if fs::metadata(&*path).is_ok_and(|meta| !meta.is_file()) {
                    return Err(fault(Reason::Broken, "is no regular file".to_owned()));
                }
                let text =
                    read_limited(path, MAX_ANSWER).map_err(|error| fault(Reason::of(&error), error.to_string()))?;
                let current = check_age(path, text.len(), *max_age);
                let power = current.and_then(|()| field.microwatts(text.as_bytes()));
                power.map(Reading::Power).map_err(|why| fault(Reason::Broken, why))
            }
            Self::Refused(why) => Err(why.clone()),
        }
    }
}

/// Refuses a file whose writer has stopped: its power is not that of now. Files of the kernel are
/// made when they are read; they state another size than they contain.
fn check_age(path: &Path, length: usize, max_age: Duration) -> Result<(), String> {
    let written = fs::metadata(path).ok().filter(|meta| u64::try_from(length) == Ok(meta.len()));
    match written.and_then(|meta| meta.modified().ok()?.elapsed().ok()) {
        Some(age) if age > max_age => Err(format!("was last written {} s ago", age.as_secs())),
        _ => Ok(()),
    }
}

fn read_sensor(source: &mut dyn Source, zone: usize) -> Result<u64, Unavailable> {
    let mut raw: Vec<io::Result<u64>> = Vec::new();
    source.read(&mut raw);
    if zone >= raw.len() {
        return Err(Unavailable::new(Reason::Absent, "was not read"));
    }
    raw.swap_remove(zone).map_err(|error| {
        let text = error.to_string();
        let location = source.zones().get(zone).map(|zone| zone.location.as_str()).unwrap_or_default();
        let detail = if text == REOPENED { text } else { format!("{location}: {text}") };
        Unavailable::new(Reason::of(&error), detail)
    })
}

fn read_endpoint(client: &Client, field: &Field) -> Result<u64, Unavailable> {
    let fault = |reason, why: String| Unavailable::new(reason, format!("{}: {why}", client.display_url()));
    let reply = client.get("", &[]).map_err(|error| match error {
        // The library's message may contain the address with its path.
        ClientError::Unreachable { cause, why, .. } => match cause {
            ConnectError::Unreachable => fault(Reason::Absent, "cannot be reached".to_owned()),
            ConnectError::Timeout => fault(Reason::Broken, format!("no answer within {} s", TIMEOUT.as_secs())),
            ConnectError::Tls => fault(Reason::Broken, format!("TLS failed: {why}; see --reference.ca-file")),
            ConnectError::Protocol => fault(Reason::Broken, "no valid answer of HTTP".to_owned()),
        },
        other => Unavailable::new(Reason::Broken, other.to_string()),
    })?;
    match reply.status {
        200 => field.microwatts(&reply.body).map_err(|why| fault(Reason::Broken, why)),
        status @ (401 | 403) => Err(fault(
            Reason::Denied,
            format!(
                "it answers {status}; set --reference.username and --reference.password-file, or --reference.bearer-token-file"
            ),
        )),
        status @ 404 => Err(fault(Reason::Absent, format!("it answers {status}; correct the path of --reference.url"))),
        status => Err(fault(Reason::Broken, format!("it answers {status}"))),
    }
}

/// The power in an answer in microwatts. `pointer` is empty where the answer is the number itself.
///
/// # Errors
/// As [`Field::microwatts`].
pub(crate) fn power_in(answer: &[u8], pointer: &str, scale: f64) -> Result<u64, String> {
    Field { pointer: pointer.to_owned(), scale }.microwatts(answer)
}

impl Field {
    /// The power in microwatts.
    ///
    /// # Errors
    /// When the answer has no such field, or no plausible power in it. A machine that runs uses
    /// power, so zero is a fault of the meter.
    fn microwatts(&self, answer: &[u8]) -> Result<u64, String> {
        let value = self.value(answer)?;
        let microwatts = value * self.scale * 1e6;
        // Also refuses what is no number.
        if (1.0..=MAX_POWER_UW).contains(&microwatts) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded above")]
            let whole = microwatts.round() as u64;
            Ok(whole)
        } else {
            Err(format!("{} W is an impossible power; see --reference.scale", microwatts / 1e6))
        }
    }

    fn value(&self, answer: &[u8]) -> Result<f64, String> {
        if self.pointer.is_empty() {
            let text = std::str::from_utf8(answer).unwrap_or_default().trim();
            let no_number = |_| "the answer is no number; name a field of it with --reference.field".to_owned();
            return text.parse().map_err(no_number);
        }
        let json: serde_json::Value =
            serde_json::from_slice(answer).map_err(|error| format!("the answer is no JSON: {error}"))?;
        let found = json
            .pointer(&self.pointer)
            .ok_or_else(|| format!("the answer has no {}; correct --reference.field", self.pointer))?;
        // Some meters write numbers as text.
        let number = found.as_f64().or_else(|| found.as_str()?.trim().parse().ok());
        number.ok_or_else(|| format!("{} is no number; correct --reference.field", self.pointer))
    }
}

/// The energy of a meter since the start, from its readings.
pub(super) struct MeterEnergy {
    /// Of a power.
    integral: Integral,
    /// Growth of a counter.
    counted: Microjoules,
    last: Option<(Instant, Reading)>,
    max_gap: Duration,
}

/// What one reading adds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct MeterStep {
    /// Power, where it is known.
    pub(super) watts: Option<f64>,
    /// False when the energy since the last reading is unknown.
    pub(super) continues: bool,
}

impl MeterEnergy {
    /// For a meter that is read once an interval.
    pub(super) fn new(interval: Duration) -> Self {
        let max_gap = MAX_GAP.max(interval * 3);
        Self { integral: Integral::with_gap(max_gap), counted: Microjoules::ZERO, last: None, max_gap }
    }

    pub(super) fn total(&self) -> Microjoules {
        self.counted + self.integral.energy()
    }

    /// Starts again with the next reading.
    pub(super) fn restart(&mut self) {
        self.last = None;
        self.integral.pause();
    }

    /// Adds the energy since the last reading: that of a power over time, or the growth of a
    /// counter.
    pub(super) fn add(&mut self, at: Instant, reading: Reading) -> MeterStep {
        let last = self.last.replace((at, reading)).filter(|(before, _)| at.duration_since(*before) <= self.max_gap);
        match reading {
            Reading::Power(microwatts) => {
                let known = self.integral.add(microwatts, at);
                let continues = known && matches!(last, Some((_, Reading::Power(_))));
                MeterStep { watts: Microjoules(microwatts).watts_over(1_000_000_000), continues }
            }
            Reading::Energy(now) => {
                self.integral.pause();
                let grown = match last {
                    Some((before, Reading::Energy(first))) => now.checked_sub(first).map(|grown| (before, grown)),
                    _ => None,
                };
                let Some((before, grown)) = grown else { return MeterStep { watts: None, continues: false } };
                self.counted += Microjoules(grown);
                let ns = u64::try_from(at.duration_since(before).as_nanos()).unwrap_or(u64::MAX);
                MeterStep { watts: Microjoules(grown).watts_over(ns), continues: true }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(pointer: &str, scale: f64) -> Field {
        Field { pointer: pointer.to_owned(), scale }
    }

    #[test]
    fn power_is_found_in_the_answers_of_common_meters() {
        // Redfish, Shelly, Tasmota, and a file in milliwatts.
        let redfish = br#"{"PowerControl":[{"PowerConsumedWatts":344}],"Id":"Power"}"#;
        assert_eq!(field("/PowerControl/0/PowerConsumedWatts", 1.0).microwatts(redfish), Ok(344_000_000));
        let shelly = br#"{"switch:0":{"apower":187.4,"voltage":230.1}}"#;
        assert_eq!(field("/switch:0/apower", 1.0).microwatts(shelly), Ok(187_400_000));
        let tasmota = br#"{"StatusSNS":{"ENERGY":{"Power":"98"}}}"#;
        assert_eq!(field("/StatusSNS/ENERGY/Power", 1.0).microwatts(tasmota), Ok(98_000_000));
        assert_eq!(field("", 0.001).microwatts(b" 250500\n"), Ok(250_500_000));
    }

    #[test]
    fn an_answer_without_a_plausible_power_is_no_reading() {
        for (pointer, scale, answer, word) in [
            ("/a", 1.0, "{\"a\":0}", "impossible power"),
            ("/a", 1.0, "{\"a\":-5}", "impossible power"),
            ("/a", 1e6, "{\"a\":200}", "impossible power"),
            ("/a", 1.0, "{\"a\":null}", "no number"),
            ("/b", 1.0, "{\"a\":5}", "has no /b"),
            ("/a", 1.0, "<html>", "no JSON"),
            ("", 1.0, "NaN", "impossible power"),
            ("", 1.0, "inf", "impossible power"),
            ("", 1.0, "12 W", "no number"),
            ("", 1.0, "", "no number"),
        ] {
            let error = field(pointer, scale).microwatts(answer.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{pointer} {answer:?}: {error}");
        }
        assert!(field("", 1.0).microwatts(b"\xff\xfe").unwrap_err().contains("no number"));
        let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
        assert!(field("/0", 1.0).microwatts(deep.as_bytes()).unwrap_err().contains("no JSON"));
    }

    #[test]
    fn a_file_whose_writer_has_stopped_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watts");
        fs::write(&path, "120\n").unwrap();
        let paths =
            SourcePaths { sysfs: "/nowhere".into(), procfs: "/nowhere".into(), dev: "/nowhere".into(), host: None };
        let settings = MeterSettings { file: Some(path.clone()), ..MeterSettings::default() };
        let mut meters = open(&settings, &paths, false);
        assert_eq!(meters[0].input.read(), Ok(Reading::Power(120_000_000)));
        let old = std::time::SystemTime::now() - Duration::from_secs(300);
        fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        let why = meters[0].input.read().unwrap_err();
        assert!(why.reason == Reason::Broken && why.detail.contains("s ago"), "{why}");
        let settings = MeterSettings { file: Some(dir.path().to_owned()), ..MeterSettings::default() };
        assert!(open(&settings, &paths, false)[0].input.read().unwrap_err().detail.contains("no regular file"));
        // A file of the kernel has no time of its own.
        assert_eq!(check_age(Path::new("/proc/self/stat"), 100, Duration::ZERO), Ok(()));
    }

    #[test]
    fn energy_is_integrated_and_unknown_over_a_gap() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut energy = MeterEnergy::new(Duration::from_secs(5));
        let power = |watts: u64| Reading::Power(watts * 1_000_000);
        assert_eq!(energy.add(at(0), power(100)), MeterStep { watts: Some(100.0), continues: false });
        assert_eq!(energy.add(at(5), power(200)), MeterStep { watts: Some(200.0), continues: true });
        assert_eq!(energy.total(), Microjoules(750_000_000));
        assert!(!energy.add(at(125), power(200)).continues, "two minutes without a reading");
        assert!(energy.add(at(130), power(200)).continues);
        assert_eq!(energy.total(), Microjoules(1_750_000_000));
        energy.restart();
        assert!(!energy.add(at(131), power(200)).continues);
    }

    /// Each reading was rounded down to a microjoule.
    #[test]
    fn many_readings_of_a_power_lose_no_energy() {
        let start = Instant::now();
        let mut energy = MeterEnergy::new(Duration::from_secs(5));
        (0..=3_000).for_each(|ms| {
            energy.add(start + Duration::from_millis(ms), Reading::Power(333_333));
        });
        assert_eq!(energy.total(), Microjoules(999_999));
    }

    /// A meter that is read every minute may be silent for three.
    #[test]
    fn the_longest_gap_follows_the_interval() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut energy = MeterEnergy::new(Duration::from_secs(60));
        energy.add(at(0), Reading::Power(1_000_000));
        assert!(energy.add(at(180), Reading::Power(1_000_000)).continues);
        assert!(!energy.add(at(361), Reading::Power(1_000_000)).continues);
        assert_eq!(energy.total(), Microjoules(180_000_000));
    }

    #[test]
    fn a_counter_that_decreases_starts_again() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut energy = MeterEnergy::new(Duration::from_secs(2));
        assert_eq!(energy.add(at(0), Reading::Energy(7)), MeterStep { watts: None, continues: false });
        assert_eq!(energy.add(at(2), Reading::Energy(400_000_007)).watts, Some(200.0));
        assert_eq!(energy.add(at(4), Reading::Energy(5)), MeterStep { watts: None, continues: false });
        assert_eq!(energy.total(), Microjoules(400_000_000));
    }

    #[test]
    fn an_endpoint_that_cannot_be_reached_is_absent_without_its_path() {
        let paths =
            SourcePaths { sysfs: "/nowhere".into(), procfs: "/nowhere".into(), dev: "/nowhere".into(), host: None };
        // A port on which nothing listens any more.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = Some(format!("http://{free}/redfish?token=hunter2"));
        let settings = MeterSettings { url, ..MeterSettings::default() };
        let why = open(&settings, &paths, false)[0].input.read().unwrap_err();
        assert_eq!((why.reason, why.detail), (Reason::Absent, format!("http://{free}: cannot be reached")));
    }

    #[test]
    fn settings_that_would_show_a_secret_are_refused_without_it() {
        let paths =
            SourcePaths { sysfs: "/nowhere".into(), procfs: "/nowhere".into(), dev: "/nowhere".into(), host: None };
        let settings = MeterSettings { url: Some("http://root:hunter2@bmc/x".to_owned()), ..MeterSettings::default() };
        let mut meters = open(&settings, &paths, false);
        let why = meters[0].input.read().unwrap_err();
        assert!(why.detail.contains("password_file") && !why.detail.contains("hunter2"), "{why}");
        assert!(!meters[0].input.detail().contains("hunter2"));
    }
}
