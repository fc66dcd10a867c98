//! Signals before the service serves.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::OpenOptionsExt as _,
    process::Command,
};

use testkit::{eventually, program::kill_on_parent_exit, requires, shell::output};

/// The process with this parent.
fn child_of(parent: u32) -> Option<u32> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // After the name in parentheses: state, ppid (man 5 proc_pid_stat).
        let (_, rest) = stat.rsplit_once(')')?;
        (rest.split_whitespace().nth(1)?.parse::<u32>().ok()? == parent).then_some(pid)
    })
}

/// The kernel gives the first process of a container no default actions, so a stop during the start
/// was ignored.
#[test]
fn a_stop_during_the_start_ends_the_first_process_of_a_container() {
    requires!(root);
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("config.toml");
    output(Command::new("mkfifo").arg(&fifo)).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).arg(support::binary());
    command.args(["serve", "--config.file"]).arg(&fifo);
    kill_on_parent_exit(&mut command);
    let mut unshare = command.spawn().unwrap();
    // It waits for the rest of its configuration while this end of the FIFO is open.
    let mut config = None;
    eventually(20.0, "the service reads its configuration", || {
        config = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo).ok();
        config.is_some()
    });
    let service = child_of(unshare.id()).unwrap();
    output(Command::new("sh").args(["-c", &format!("kill -TERM {service}")])).unwrap();
    eventually(2.0, "the service ends", || unshare.try_wait().unwrap().is_some());
    assert_eq!(unshare.wait().unwrap().code(), Some(143));
    drop(config);
}
