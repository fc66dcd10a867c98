//! `exec` with repeats, with two commands, and under sudo.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use support::ebpf;
use testkit::or_skip;

/// Ids that no user has.
const CALLER: [(&str, &str); 2] = [("SUDO_UID", "61234"), ("SUDO_GID", "61235")];

fn exec(args: &[&str], caller: &[(&str, &str)]) -> Output {
    let mut command = Command::new(support::binary());
    command.arg("--energy.source=model").arg("exec").args(args).current_dir("/").stdin(Stdio::null());
    command.env_remove("SUDO_UID").env_remove("SUDO_GID").envs(caller.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory where every user may write.
fn shared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

fn busy(count: u32) -> String {
    format!("i=0; while [ $i -lt {count} ]; do i=$((i+1)); done")
}

#[test]
fn two_commands_alternate_and_the_larger_is_found() {
    or_skip!(ebpf());
    let dir = shared();
    let log = dir.path().join("order");
    let script = |name: &str, count: u32| format!("echo {name} >> {}; {}", log.display(), busy(count));
    let (a, b) = (script("A", 20_000), script("B", 200_000));
    let args = ["--json", "--repeat=4", "--warmup=1", "--versus", "--", "sh", "-c", &a, "--", "sh", "-c", &b];
    let output = exec(&args, &[]);
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(fs::read_to_string(&log).unwrap().replace('\n', ""), "ABABBAABBA");
    let report: serde_json::Value = serde_json::from_str(report.trim()).unwrap();
    for command in 0..2 {
        assert_eq!(report["commands"][command]["runs"].as_array().unwrap().len(), 4);
        assert_eq!(report["commands"][command]["figures"]["cpu"]["known"], 4);
    }
    let cpu = &report["comparison"]["cpu"];
    assert!(cpu["ratio"].as_f64().unwrap() > 2.0, "{cpu}");
    println!("{cpu}");
}

#[test]
fn a_failing_repeat_ends_the_series_with_its_status() {
    or_skip!(ebpf());
    let dir = shared();
    let log = dir.path().join("count");
    let script = format!("echo x >> {0}; [ $(wc -l < {0}) -lt 3 ] || exit 9", log.display());
    let output = exec(&["--repeat=5", "--warmup=1", "--", "sh", "-c", &script], &[]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{error}");
    assert!(error.contains("repeat 2 of 5 of sh ended with 9"), "{error}");
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 3, "nothing runs after it");
}

#[test]
fn csv_has_a_line_per_repeat() {
    or_skip!(ebpf());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("runs.csv");
    let output = exec(&["--csv", "--repeat=3", &format!("--output={}", file.display()), "--", "true"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines = fs::read_to_string(&file).unwrap();
    assert_eq!(lines.lines().count(), 4, "{lines}");
    assert!(lines.starts_with("command,program,repeat,seconds,"), "{lines}");
}

fn ids(output: &Output) -> String {
    let status = text(&output.stdout);
    let line =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    format!("{} {} {} {}", line("Uid:"), line("Gid:"), line("Groups:"), line("CapEff:"))
}

#[test]
fn under_sudo_the_command_is_the_callers_in_every_repeat() {
    or_skip!(ebpf());
    let show = ["cat", "/proc/self/status"];
    let output = exec(&[&["--"][..], &show].concat(), &CALLER);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let expected = "61234\t61234\t61234\t61234 61235\t61235\t61235\t61235 61235 0000000000000000";
    assert_eq!(ids(&output), expected);
    let output = exec(&[&["--repeat=2", "--"][..], &show].concat(), &CALLER);
    assert_eq!(text(&output.stdout).matches("\nUid:\t61234\t").count(), 2, "{}", text(&output.stderr));

    let as_root = exec(&[&["--as-root", "--"][..], &show].concat(), &CALLER);
    assert!(ids(&as_root).starts_with("0\t0\t0\t0 "), "{}", ids(&as_root));
    let without_sudo = exec(&[&["--"][..], &show].concat(), &[]);
    assert!(ids(&without_sudo).starts_with("0\t0\t0\t0 "), "{}", ids(&without_sudo));
    let unclear = exec(&[&["--"][..], &show].concat(), &[("SUDO_UID", "someone"), ("SUDO_GID", "1")]);
    assert_eq!(unclear.status.code(), Some(127));
    assert!(unclear.stdout.is_empty() && text(&unclear.stderr).contains("--as-root"), "{}", text(&unclear.stderr));
}

/// The probe has no capability to signal a process of another user, unless it keeps one.
#[test]
fn sigterm_reaches_a_command_of_the_caller() {
    or_skip!(ebpf());
    let dir = shared();
    let ready = dir.path().join("ready");
    let script = format!("trap 'exit 5' TERM; touch {}; while :; do sleep 0.1; done", ready.display());
    let mut command = Command::new(support::binary());
    command.args(["--energy.source=model", "exec", "--", "sh", "-c", &script]).current_dir("/").envs(CALLER);
    testkit::program::kill_on_parent_exit(&mut command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    testkit::eventually(30.0, "the command runs", || Path::new(&ready).exists());
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(5));
}
