//! Meters of the whole machine: a sensor of the board, a management controller, a smart plug.
//!
//! They measure at the wall or behind the power supply, which the counters of packages, memory and
//! boards do not cover. Their energy is published as a source of its own and never attributed. It
//! is compared with the counters, so that a drift of either becomes visible.
//!
//! Each meter is read on a thread of its own, because a sensor behind firmware takes up to seconds,
//! and an endpoint may never answer. The sampler hands over its counters and takes the last result,
//! and waits for neither.

mod conversion;
mod meter;
mod pairs;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use units::Microjoules;

pub use conversion::Comparison;
pub(crate) use meter::power_in;
pub use meter::{BOARD_METER, MeterSettings, PreparedMeter, check, open};
pub use pairs::CounterReading;

use conversion::Conversion;
use meter::{MeterEnergy, RESTARTED};
use pairs::Pairs;

use crate::host::availability::{NOT_READ, Reason, SourceState, Unavailable};

/// Shortest time over which the power of the meter and that of the counters are compared. Meters
/// average over up to some seconds, and answer late by as much.
const WINDOW: Duration = Duration::from_secs(60);
/// Ticks that may wait for a meter that is being read; 50 s at the shortest tick.
const MAX_WAITING: usize = 512;

/// A meter's figures at the end of a tick.
#[derive(Clone, Debug, PartialEq)]
pub struct MeterRow {
    /// Its name; the label `meter`.
    pub meter: Arc<str>,
    /// How it is read; the label `source`: `hwmon`, `http`, `file`.
    pub source: &'static str,
    /// Power of its last reading; absent while it cannot be read.
    pub watts: Option<f64>,
    /// Energy since the start, without the time in which it could not be read.
    pub energy: Microjoules,
    /// How it compares with the counters; absent until that is known.
    pub comparison: Option<Comparison>,
}

/// The last result of a meter's thread.
struct Status {
    row: MeterRow,
    state: Result<(), Unavailable>,
    /// When it was last read, successfully or not.
    read: Instant,
}

/// A meter with its thread, which ends some time after this is dropped: a reading that is under way
/// must not delay the end of the program.
struct RunningMeter {
    state_name: &'static str,
    detail: String,
    /// Time after which a reading that has not ended counts as none.
    patience: Duration,
    status: Arc<Mutex<Status>>,
    counters: SyncSender<CounterReading>,
}

impl RunningMeter {
    fn with_status<T>(&self, take: impl FnOnce(&Status, bool) -> T) -> T {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let current = status.read.elapsed() <= self.patience;
        take(&status, current)
    }
}

/// All meters.
#[derive(Default)]
pub struct ReferenceMeters {
    meters: Vec<RunningMeter>,
}

impl ReferenceMeters {
    /// Starts a thread for each meter, and adds their states to `sources`. Call it after the
    /// privileges are dropped, because a thread keeps those that it was started with.
    #[must_use]
    pub fn start(prepared: Vec<PreparedMeter>, sources: &mut Vec<SourceState>) -> Self {
        let mut meters = Vec::new();
        for meter in prepared {
            let (name, wanted) = (meter.state_name, meter.wanted);
            match start(meter) {
                Ok(running) => {
                    let state = Err(Unavailable::new(Reason::Absent, NOT_READ));
                    sources.push(SourceState { source: name, state, detail: running.detail.clone(), wanted });
                    meters.push(running);
                }
                Err(why) => sources.push(SourceState::new(name, Err(why), wanted)),
            }
        }
        Self { meters }
    }

    /// True without any meter.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.meters.is_empty()
    }

    /// Hands over the counters at the end of a tick. Without room, because a meter does not answer,
    /// they are left out: the next ones contain the same energy.
    pub fn observe(&self, reading: &CounterReading) {
        for meter in &self.meters {
            let _ = meter.counters.try_send(reading.clone());
        }
    }

    /// The figures of every meter.
    #[must_use]
    pub fn rows(&self) -> Vec<MeterRow> {
        let row = |status: &Status, current: bool| {
            let watts = status.row.watts.filter(|_| current);
            MeterRow { watts, ..status.row.clone() }
        };
        self.meters.iter().map(|meter| meter.with_status(row)).collect()
    }

    /// The state of every meter, with its details.
    #[must_use]
    pub fn states(&self) -> Vec<(&'static str, Result<(), Unavailable>, String)> {
        let state = |meter: &RunningMeter| {
            let late = || {
                let seconds = meter.patience.as_secs();
                Unavailable::new(Reason::Broken, format!("{}: no answer for {seconds} s", meter.detail))
            };
            let state = meter.with_status(|status, current| if current { status.state.clone() } else { Err(late()) });
            (meter.state_name, state, meter.detail.clone())
        };
        self.meters.iter().map(state).collect()
    }
}

fn start(meter: PreparedMeter) -> Result<RunningMeter, Unavailable> {
    let row = MeterRow {
        meter: meter.name.clone(),
        source: meter.input.source(),
        watts: None,
        energy: Microjoules::ZERO,
        comparison: None,
    };
    let state = Err(Unavailable::new(Reason::Absent, NOT_READ));
    let status = Arc::new(Mutex::new(Status { row, state, read: Instant::now() }));
    let (counters, received) = mpsc::sync_channel(MAX_WAITING);
    let running = RunningMeter {
        state_name: meter.state_name,
        detail: meter.input.detail(),
        patience: meter.interval * 3 + meter::TIMEOUT * 2,
        status: status.clone(),
        counters,
    };
    let spawned = thread::Builder::new().name("reference".into()).spawn(move || {
        MeterThread {
            energy: MeterEnergy::new(meter.interval),
            pairs: Pairs::new(WINDOW.max(meter.interval * 6)),
            conversion: Conversion::default(),
            meter,
        }
        .run(&received, &status);
    });
    spawned
        .map(|_| running)
        .map_err(|error| Unavailable::new(Reason::Broken, format!("cannot start the thread of the meter: {error}")))
}

/// The state of a meter's thread.
struct MeterThread {
    meter: PreparedMeter,
    energy: MeterEnergy,
    pairs: Pairs,
    conversion: Conversion,
}

impl MeterThread {
    /// Reads the meter once an interval, until the sender of counters is dropped.
    fn run(mut self, received: &Receiver<CounterReading>, status: &Mutex<Status>) {
        let mut due = Instant::now();
        loop {
            match received.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(reading) => self.compare(reading, status),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.read(status);
                    // On schedule, and at least half an interval apart after a slow reading.
                    due = (due + self.meter.interval).max(Instant::now() + self.meter.interval / 2);
                }
            }
        }
    }

    fn read(&mut self, status: &Mutex<Status>) {
        let began = Instant::now();
        let outcome = self.meter.input.read();
        let ended = Instant::now();
        // The value is that of an unknown time in between.
        let at = began + (ended - began) / 2;
        let (watts, state) = match outcome {
            Ok(reading) => {
                let step = self.energy.add(at, reading);
                if !step.continues {
                    self.pairs.interrupt();
                }
                self.pairs.add_meter(at, self.energy.total());
                (step.watts, Ok(()))
            }
            // The sensor was opened again, and its next reading counts.
            Err(why) if why.detail == RESTARTED => {
                self.energy.restart();
                self.pairs.interrupt();
                (None, Ok(()))
            }
            Err(why) => (None, Err(why)),
        };
        let mut status = status.lock().unwrap_or_else(PoisonError::into_inner);
        (status.row.watts, status.row.energy) = (watts, self.energy.total());
        (status.state, status.read) = (state, ended);
    }

    fn compare(&mut self, reading: CounterReading, status: &Mutex<Status>) {
        let mut changed = false;
        if self.pairs.add_counters(reading) {
            // Other counters have another relation to the meter.
            (self.conversion, changed) = (Conversion::default(), true);
        }
        while let Some(pair) = self.pairs.next_pair() {
            self.conversion.push(pair);
            changed = true;
        }
        if changed {
            let comparison = self.conversion.compare();
            status.lock().unwrap_or_else(PoisonError::into_inner).row.comparison = comparison;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        path::Path,
    };

    use super::*;
    use crate::energy::SourcePaths;

    fn paths(sysfs: &Path) -> SourcePaths {
        SourcePaths { sysfs: sysfs.to_owned(), procfs: "/nowhere".into(), dev: "/nowhere".into(), host: None }
    }

    fn settings(url: Option<String>) -> MeterSettings {
        MeterSettings { url, interval: Duration::from_secs(1), hwmon: false, ..MeterSettings::default() }
    }

    fn wait(meters: &ReferenceMeters, wanted: impl Fn(&MeterRow) -> bool) -> MeterRow {
        let began = Instant::now();
        loop {
            let row = meters.rows().remove(0);
            if wanted(&row) {
                return row;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{row:?} {:?}", meters.states());
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_sensor_of_the_board_has_power_and_energy() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("class/hwmon/hwmon0");
        std::fs::create_dir_all(&device).unwrap();
        std::fs::write(device.join("name"), "power_meter\n").unwrap();
        std::fs::write(device.join("power1_average"), "250000000\n").unwrap();
        let settings = MeterSettings { hwmon: true, ..settings(None) };
        let mut sources = Vec::new();
        let meters = ReferenceMeters::start(open(&settings, &paths(dir.path()), false), &mut sources);
        assert_eq!((sources.len(), sources[0].source, sources[0].wanted), (1, "power_meter", false));
        let row = wait(&meters, |row| row.watts.is_some());
        assert_eq!((&*row.meter, row.source), ("power_meter", "hwmon"));
        assert!((row.watts.unwrap() - 250.0).abs() < 1.0, "{row:?}");
        assert!(row.energy > Microjoules::ZERO);
        assert_eq!(meters.states()[0].1, Ok(()));
        // The counters of the account are read from the same sensor.
        assert!(open(&settings, &paths(dir.path()), true).is_empty());
        assert!(open(&settings, &paths(Path::new("/nowhere")), false).is_empty());
    }

    #[test]
    fn an_endpoint_that_never_answers_delays_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut sources = Vec::new();
        let meters = ReferenceMeters::start(open(&settings(Some(url)), &paths(Path::new("/")), false), &mut sources);
        assert!(sources[0].wanted);
        let reading =
            CounterReading { counters: Vec::new(), energy: Microjoules::ZERO, rejects: 0, at: Instant::now() };
        let began = Instant::now();
        for _ in 0..10 * MAX_WAITING {
            meters.observe(&reading);
        }
        assert!(meters.rows()[0].watts.is_none());
        let running = &meters.meters[0];
        running.status.lock().unwrap().read = Instant::now().checked_sub(running.patience * 2).unwrap();
        let (name, state, _) = meters.states().remove(0);
        assert_eq!((name, state.unwrap_err().reason), ("reference", Reason::Broken));
        drop(meters);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[test]
    fn power_of_an_endpoint_becomes_absent_with_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        thread::spawn(move || {
            for (number, mut stream) in listener.incoming().flatten().enumerate() {
                let _ = stream.read(&mut [0; 4096]);
                let status = if number < 2 { "200 OK" } else { "503 Busy" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\nConnection: close\r\n\r\n120.5");
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        let meters = ReferenceMeters::start(open(&settings(Some(url)), &paths(Path::new("/")), false), &mut Vec::new());
        let row = wait(&meters, |row| row.watts.is_some() && row.energy > Microjoules::ZERO);
        assert_eq!(row.watts, Some(120.5));
        let later = wait(&meters, |row| row.watts.is_none());
        assert!(later.energy >= row.energy, "the energy so far stays");
        assert!(meters.states()[0].1.as_ref().unwrap_err().detail.contains("503"));
    }
}
