//! Choosing a source, on trees that move and trees that do not.

use std::{
    fs,
    path::{Path, PathBuf},
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
            testkit::program::urgent();
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
    let places = Places { sysfs: sysfs.into(), procfs: "/proc".into(), dev: "/nowhere".into() };
    choose(choice, None, &places, &Topology::read(sysfs))
}

fn origins(chosen: &Chosen) -> Vec<&str> {
    chosen.tried.iter().map(|source| source.source).collect()
}

#[test]
fn a_counter_that_moves_is_taken_and_the_model_is_not_asked() {
    let live = Live::start();
    let chosen = chosen(Choice::Auto, live.dir.path());
    assert_eq!(origins(&chosen), ["perf", "powercap"]);
    assert_eq!(chosen.tried[1].state, Ok(()));
    assert_eq!(chosen.tried[1].detail, "1 package, 1 zone");
    assert_eq!(chosen.source.unwrap().origin(), Origin::Powercap);
}

#[test]
fn a_counter_that_stands_for_ever_is_broken_not_zero_watts() {
    let dir = tempfile::tempdir().unwrap();
    zone(dir.path(), 0);
    let chosen = chosen(Choice::Auto, dir.path());
    let why = chosen.tried[1].state.clone().unwrap_err();
    assert_eq!(why.reason, Reason::Broken);
    assert!(why.detail.contains("does not move"), "{why}");
    assert_eq!(origins(&chosen), ["perf", "powercap", "hwmon", "model"]);
    assert_eq!(chosen.source.unwrap().origin(), Origin::Model);
}

#[test]
fn a_source_asked_for_by_name_is_not_replaced() {
    let live = Live::start();
    for (choice, name) in [(Choice::Perf, "perf"), (Choice::Msr, "msr"), (Choice::Hwmon, "hwmon")] {
        let chosen = chosen(choice, live.dir.path());
        assert!(chosen.source.is_none(), "{name}");
        assert_eq!(origins(&chosen), [name]);
        assert!(chosen.tried[0].wanted);
    }
    let model = chosen(Choice::Model, live.dir.path());
    assert_eq!(model.source.unwrap().origin(), Origin::Model);
    assert_eq!(model.tried.len(), 1);
}
