//! `wattcast-probe calibrate` on simulated RAPL, which follows the machine's real load, and what
//! the probe and `doctor` make of its file.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    path::Path,
    process::{Command, Output},
};

use support::{Probe, fixture};
use testkit::requires;

/// Runs the command on the tree below `sysfs`.
fn run(command: &[&str], sysfs: &Path, state: &Path) -> Output {
    Command::new(support::binary())
        .args(command)
        .arg(format!("--path.sysfs={}", sysfs.display()))
        .arg(format!("--state.dir={}", state.display()))
        .args(["--log.level=error", "--no-collector.gpu", "--path.dev=/nowhere", "--docker.socket=/nowhere"])
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_model_is_not_calibrated() {
    requires!(root);
    let state = tempfile::tempdir().unwrap();
    let done = run(&["calibrate", "--duration=10s", "--force"], &fixture("guest-zero").join("sys"), state.path());
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    let error = text(&done.stderr);
    assert!(error.contains("a model is not calibrated") && error.contains("wattcast-probe doctor"), "{error}");
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0, "nothing was written");
}

mod whole_machine {
    use std::{
        os::unix::fs::PermissionsExt as _,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

    use testkit::simulator::{Simulator, Spec};

    use super::*;

    #[test]
    fn a_calibration_is_known_to_doctor_and_the_probe() {
        requires!(root, two_cpus);
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let spec = Spec { packages: Some(1), idle: 20.0, busy: vec![10.0], parts: true, ..Spec::default() };
        let simulator = Simulator::start(dir.path(), &spec).unwrap();
        let doctor = || text(&run(&["doctor"], simulator.sysfs(), state.path()).stdout);
        assert!(doctor().contains("not done: run `wattcast-probe calibrate`"), "{}", doctor());

        let done = run(&["calibrate", "--duration=10s", "--force", "--json"], simulator.sysfs(), state.path());
        assert!(done.status.success(), "{done:?}");
        let result: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        println!("{result:#}");
        assert_eq!(result["machine"]["source"], "simulated");
        let zones = result["zones"].as_array().unwrap();
        let package = zones.iter().find(|zone| zone["zone"] == "package of package 0").unwrap();
        assert!(zones.iter().any(|zone| zone["zone"] == "dram of package 0"), "{zones:?}");
        let value = |figure: &serde_json::Value| figure["value"].as_f64().unwrap();
        let (sleep, core) = (value(&package["sleep"]), value(&package["first_core"]));
        // The simulation follows the load of the whole machine: 20 W and 10 W for each busy CPU.
        // The notes tell how many other programs used; below 0.2 there is no note.
        let notes: Vec<&str> = result["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect();
        let cpus = result["machine"]["cpus"].as_f64().unwrap();
        let others = |phase: &str| {
            let note = notes.iter().find(|note| note.starts_with("other programs used") && note.contains(phase));
            note.map_or(0.0, |note| note.split(' ').nth(3).unwrap().parse::<f64>().unwrap() / 100.0 * cpus)
        };
        let (idle, first) = (others("\"idle\""), others("\"1 of "));
        let added = (1.0 + first).min(cpus) - idle;
        let (of_sleep, of_core) = (sleep - (20.0 + 10.0 * idle), core - 10.0 * added);
        assert!((-1.0..3.0).contains(&of_sleep) && of_core.abs() < 5.0, "{sleep} {core} {notes:?}");
        assert_eq!(package["mixes"].as_array().unwrap().len(), 3);
        assert!(!result["loads"].as_array().unwrap().is_empty());
        let file = state.path().join("calibration.json");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&std::fs::read(&file).unwrap()).unwrap(), result);
        assert!(doctor().contains("done today on this machine"), "{}", doctor());

        let flags = [
            format!("--path.sysfs={}", simulator.sysfs().display()),
            format!("--state.dir={}", state.path().display()),
        ];
        let probe = Probe::start(&[&flags[0], &flags[1]]);
        let page = probe.fresh();
        let at = page.get("wattcast_calibration_timestamp_seconds", &[]);
        assert!((at - result["unix_seconds"].as_f64().unwrap()).abs() < 1e-9, "{at}");
        let labels = [("package", "0"), ("zone", "package")];
        let known = [labels[0], labels[1], ("state", "calibrated")];
        assert_eq!(page.find("wattcast_idle_state_info", &known), Some(1.0), "known from the first tick");
        let idle = page.get("wattcast_idle_power_watts", &labels);
        assert!((idle - sleep).abs() < 1e-4, "{idle} {sleep}");
        page.assert_conserved();
        drop(probe);

        // A file of another machine is named and not used.
        let other = std::fs::read_to_string(&file).unwrap().replace("\"cpus\": ", "\"cpus\": 1");
        std::fs::write(&file, other).unwrap();
        assert!(doctor().contains("of another machine: CPUs online: 1"), "{}", doctor());
        let probe = Probe::start(&[&flags[0], &flags[1]]);
        assert!(probe.program.log().contains("calibration ignored: of another machine"), "{}", probe.program.log());
        assert_eq!(probe.fresh().find("wattcast_calibration_timestamp_seconds", &[]), None);
    }

    #[test]
    fn a_busy_host_is_refused_with_what_runs_most() {
        requires!(root);
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let simulator = Simulator::start(dir.path(), &Spec::default()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        // Enough to be above the limit also on a machine with many CPUs.
        let count = thread::available_parallelism().unwrap().get().div_ceil(8);
        let busy = || {
            let stop = stop.clone();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads: Vec<_> = (0..count).map(|_| busy()).collect();
        let done = run(&["calibrate", "--duration=10s"], simulator.sysfs(), state.path());
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let error = text(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{error}");
        for words in ["the host is busy", "most of it process ", "pass --force"] {
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
