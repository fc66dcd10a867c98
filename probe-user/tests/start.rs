//! The start of the probe: signals before it serves, and what it reports.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use support::{Probe, binary, ebpf};
use testkit::{
    eventually, or_skip,
    program::{kill_on_parent_exit, stop_during_start},
    requires, sleep,
};

/// The kernel gives the first process of a container no default actions, so a stop during the start
/// was ignored.
#[test]
fn a_stop_during_the_start_ends_the_first_process_of_a_container() {
    requires!(root);
    assert_eq!(stop_during_start(&binary(), &[]).unwrap(), Some(143));
}

/// A state directory that the probe cannot write was silent until the probe ended.
#[test]
fn an_unwritable_state_directory_is_reported_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, Permissions::from_mode(0o555)).unwrap();
    let probe = Probe::start(&["--energy.source=model", &format!("--state.dir={}", state.display())]);
    let expected = format!(
        "{0}/idle.json: cannot be written: {0}: Permission denied (os error 13). Idle power is learnt again; name another directory with --state.dir",
        state.display()
    );
    let log = probe.program.log();
    assert!(log.contains(&expected), "{log}");
}

/// The probe is restarted in mid-stream: the job has its own start, and its joules count from the
/// probe's on.
#[test]
fn a_job_that_runs_already_says_from_when_it_is_counted() {
    or_skip!(ebpf());
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("ffmpeg");
    fs::copy("/bin/sh", &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["-c", "read line"]).stdin(Stdio::piped());
    kill_on_parent_exit(&mut command);
    let mut job = command.spawn().unwrap();
    sleep(1.5);
    let probe = Probe::start(&["--energy.source=model"]);
    let mut found = None;
    eventually(20.0, "the job is found", || {
        let streams = probe.client.json("/api/v1/streams").unwrap();
        found = streams["jobs"].as_array().unwrap().iter().find(|known| known["pid"] == job.id()).cloned();
        found.is_some()
    });
    // The end of its input ends it.
    drop(job.stdin.take());
    job.wait().unwrap();
    let found = found.unwrap();
    let [started, since] = ["started", "counted_since_seconds"].map(|field| found[field].as_f64().unwrap());
    assert!(since - started > 1.4, "{found}");
}
