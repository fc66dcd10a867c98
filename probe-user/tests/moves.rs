//! Tasks that are moved between cgroups while they run.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{fs, process::Command};

use support::{Probe, ebpf};
use testkit::{
    cgroup::{self, Cgroup},
    fixture::unique,
    or_skip,
    program::Burner,
    shell::{output, which},
    skip, sleep,
};

/// A running task that was not preempted took its run since the last tick along.
#[test]
fn a_task_that_is_moved_while_it_runs_is_charged_where_it_ran() {
    or_skip!(ebpf());
    if which("chrt").is_none() {
        skip!("chrt is not in PATH");
    }
    for tier in ["switch", "kernel"] {
        let probe = Probe::start(&["--energy.source=model", &format!("--cpu.tier={tier}")]);
        // The tier kernel needs 6.1.
        if probe.source("cpu").0 != "usable" {
            continue;
        }
        let names = ["left", "entered"].map(unique);
        let cgroups = names.each_ref().map(|name| Cgroup::create(&cgroup::v2().unwrap(), name).unwrap());
        let burner = Burner::start_in(&cgroups[0], 0).unwrap();
        // Stands for a CPU of its own: no other task preempts it.
        or_skip!(output(Command::new("chrt").args(["-f", "-p", "1", &burner.pid().to_string()])));
        for (at, seconds) in [(1, 0.37), (0, 0.63), (1, 0.37)] {
            sleep(seconds);
            fs::write(cgroups[at].dir.join("cgroup.procs"), burner.pid().to_string()).unwrap();
        }
        sleep(0.3);
        drop(burner);
        let page = probe.fresh();
        for (name, cgroup) in names.iter().zip(&cgroups) {
            #[expect(clippy::cast_precision_loss, reason = "microseconds of a test")]
            let (ours, kernel) = (page.cpu(name), cgroup.usage_us().unwrap() as f64 / 1e6);
            assert!((ours - kernel).abs() < 0.01 + 0.05 * kernel, "{tier}, {name}: {ours} s, kernel {kernel} s");
        }
        page.assert_conserved();
    }
}
