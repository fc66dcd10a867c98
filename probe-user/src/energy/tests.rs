//! Selection of a source, with counters that move and counters that do not.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::*;

/// A package zone with a counter that a thread moves, like hardware.
pub(super) struct MovingZone {
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

impl MovingZone {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = zone(dir.path(), 1000);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            testkit::program::raise_priority();
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

impl MovingZone {
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for MovingZone {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn select(choice: SourceChoice, sysfs: &Path) -> SelectedSource {
    let paths = SourcePaths { sysfs: sysfs.into(), procfs: "/proc".into(), dev: "/nowhere".into(), host: None };
    choose(choice, None, &paths, &Topology::read(sysfs))
}

fn origins(chosen: &SelectedSource) -> Vec<&str> {
    chosen.tried.iter().map(|source| source.source).collect()
}

#[test]
fn a_moving_counter_is_selected_before_the_model() {
    let live = MovingZone::start();
    let chosen = select(SourceChoice::Auto, live.dir.path());
    assert_eq!(origins(&chosen), ["perf", "powercap"]);
    assert_eq!(chosen.tried[1].state, Ok(()));
    assert_eq!(chosen.tried[1].detail, "1 package, 1 zone");
    assert_eq!(chosen.source.unwrap().origin(), Origin::Powercap);
}

#[test]
fn a_counter_that_never_moves_is_broken_and_not_zero() {
    let dir = tempfile::tempdir().unwrap();
    zone(dir.path(), 0);
    let chosen = select(SourceChoice::Auto, dir.path());
    let why = chosen.tried[1].state.clone().unwrap_err();
    assert_eq!(why.reason, Reason::Broken);
    assert!(why.detail.contains("does not move"), "{why}");
    assert_eq!(origins(&chosen), ["perf", "powercap", "hwmon", "model"]);
    assert_eq!(chosen.source.unwrap().origin(), Origin::Model);
}

/// One start in ten found such a counter.
#[test]
fn a_counter_that_advances_once_a_second_is_found_at_every_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = zone(dir.path(), 1000);
    let writer = std::thread::spawn(move || {
        for energy in [2000, 3000] {
            std::thread::sleep(Duration::from_secs(1));
            std::os::unix::fs::FileExt::write_all_at(
                &fs::OpenOptions::new().write(true).open(&file).unwrap(),
                format!("{energy}\n").as_bytes(),
                0,
            )
            .unwrap();
        }
    });
    let chosen = select(SourceChoice::Auto, dir.path());
    writer.join().unwrap();
    assert_eq!((origins(&chosen), &chosen.tried[1].state), (vec!["perf", "powercap", "hwmon"], &Ok(())));
    assert_eq!(chosen.source.unwrap().origin(), Origin::Powercap);
}

#[test]
fn a_source_selected_by_name_is_not_replaced() {
    let live = MovingZone::start();
    for (choice, name) in [(SourceChoice::Perf, "perf"), (SourceChoice::Msr, "msr"), (SourceChoice::Hwmon, "hwmon")] {
        let chosen = select(choice, live.dir.path());
        assert!(chosen.source.is_none(), "{name}");
        assert_eq!(origins(&chosen), [name]);
        assert!(chosen.tried[0].wanted);
    }
    let model = select(SourceChoice::Model, live.dir.path());
    assert_eq!(model.source.unwrap().origin(), Origin::Model);
    assert_eq!(model.tried.len(), 1);
}
