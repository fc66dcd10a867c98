//! Choosing a source, on trees that move and trees that do not.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::*;

/// A package zone whose counter a thread moves, as hardware would.
struct Live {
    dir: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn zone(dir: &Path, energy: u64) -> PathBuf {
    let zone = dir.join("class/powercap/intel-rapl:0");
    fs::create_dir_all(&zone).unwrap();
    fs::write(zone.join("name"), "package-0\n").unwrap();
    fs::write(zone.join("max_energy_range_uj"), "262143328850\n").unwrap();
    fs::write(zone.join("energy_uj"), format!("{energy}\n")).unwrap();
    zone.join("energy_uj")
}

impl Live {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = zone(dir.path(), 1000);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let file = fs::OpenOptions::new().write(true).open(file).unwrap();
            for energy in 1000u64.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                std::os::unix::fs::FileExt::write_all_at(&file, format!("{energy}\n").as_bytes(), 0).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { dir, stop, thread: Some(thread) }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn chosen(choice: Choice, sysfs: &Path) -> Chosen {
    choose(choice, PowerLine::default(), sysfs, Path::new("/proc"), &Topology::read(sysfs))
}

#[test]
fn a_counter_that_moves_is_taken_and_the_model_is_not_asked() {
    let live = Live::start();
    let chosen = chosen(Choice::Auto, live.dir.path());
    assert_eq!(chosen.meter.unwrap().origin(), Origin::Powercap);
    assert_eq!(chosen.tried.len(), 1);
    assert_eq!(chosen.tried[0].state, Ok(()));
    assert_eq!(chosen.tried[0].detail, "1 package, 1 zone");
}

#[test]
fn a_counter_that_stands_for_ever_is_broken_not_zero_watts() {
    let dir = tempfile::tempdir().unwrap();
    zone(dir.path(), 0);
    let chosen = chosen(Choice::Auto, dir.path());
    let why = chosen.tried[0].state.clone().unwrap_err();
    assert_eq!(why.reason, Reason::Broken);
    assert!(why.detail.contains("does not move"), "{why}");
    assert_eq!(chosen.meter.unwrap().origin(), Origin::Model);
}

#[test]
fn a_source_asked_for_by_name_is_not_replaced() {
    let powercap = chosen(Choice::Powercap, Path::new("/nowhere"));
    assert!(powercap.meter.is_none());
    assert!(powercap.tried[0].wanted);
    let live = Live::start();
    let model = chosen(Choice::Model, live.dir.path());
    assert_eq!(model.meter.unwrap().origin(), Origin::Model);
    assert_eq!(model.tried.len(), 1);
}

#[test]
fn a_meter_counts_from_its_first_tick_and_stops_when_its_counter_goes() {
    let dir = tempfile::tempdir().unwrap();
    let file = zone(dir.path(), 500);
    let mut meter = Meter::new(Box::new(Powercap::open(dir.path()).unwrap()));
    assert_eq!(meter.tick(Instant::now())[0].grown, None);
    fs::write(&file, "700\n").unwrap();
    assert_eq!(meter.tick(Instant::now())[0].grown, Some(Microjoules(200)));
    fs::write(&file, "").unwrap();
    let gone = meter.tick(Instant::now()).remove(0);
    assert_eq!((gone.grown, gone.total), (None, Microjoules(200)));
    assert!(gone.error.unwrap().contains("energy_uj: not a number"));
    fs::write(&file, "900\n").unwrap();
    let back = meter.tick(Instant::now()).remove(0);
    assert_eq!((back.grown, back.total, back.error), (None, Microjoules(200), None));
    assert_eq!(meter.rejects().iter().collect::<Vec<_>>(), [(&(0, Reject::AfterGap), &1)]);
    fs::write(&file, "950\n").unwrap();
    assert_eq!(meter.tick(Instant::now())[0].total, Microjoules(250));
}

#[test]
fn a_root_that_stops_moving_is_lost_not_idle() {
    let dir = tempfile::tempdir().unwrap();
    let file = zone(dir.path(), 500);
    let mut meter = Meter::new(Box::new(Powercap::open(dir.path()).unwrap()));
    let start = Instant::now();
    let mut after = |seconds: u64, value: u64| {
        fs::write(&file, format!("{value}\n")).unwrap();
        let tick = meter.tick(start + Duration::from_secs(seconds)).remove(0);
        (tick.grown.map(|grown| grown.0), tick.error)
    };
    assert_eq!(after(0, 500), (None, None));
    assert_eq!(after(1, 700), (Some(200), None));
    assert_eq!(after(5, 700), (Some(0), None));
    let (grown, error) = after(7, 700);
    assert!(grown.is_none() && error.unwrap().contains("stands at 700 for 6 s"));
    assert_eq!(after(8, 800).1, None);
}
