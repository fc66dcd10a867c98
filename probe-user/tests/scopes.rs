//! End-to-end tests of cgroup leases (scopes).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
};

use lease::Lease;
use support::Probe;
use testkit::{
    lock::{Resource, hold},
    requires,
};

/// A user without privileges.
const UNPRIVILEGED: u32 = 65_534;

fn probe(dir: &Path, flags: &[&str]) -> Probe {
    let socket = format!("--scope.socket={}", dir.join("scope.sock").display());
    Probe::start(&[&[&*socket, "--energy.source=model"], flags].concat())
}

fn send(socket: &Path, request: &str) -> String {
    let stream = UnixStream::connect(socket).unwrap();
    (&stream).write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).unwrap();
    answer.trim().to_owned()
}

#[test]
fn an_unprivileged_holder_is_charged_in_its_leased_cgroup() {
    requires!(root);
    let _scopes = hold(Resource::Scopes);
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let probe = probe(dir.path(), &["--scope.group=65534", "--scope.count=2"]);
    let socket = dir.path().join("scope.sock");
    let (state, detail) = probe.source("scopes");
    assert!(state == "usable" && detail.starts_with("2 scopes"), "{state} {detail}");
    let meta = std::fs::metadata(&socket).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.gid()), (0o660, UNPRIVILEGED));

    // A process of that user acquires a lease, moves into the cgroup and uses CPU time. It prints
    // its CPU seconds at the move and at its end.
    let burn = "import socket,sys,time,os\n\
        lease=socket.socket(socket.AF_UNIX); lease.connect(sys.argv[1]); lease.send(b'hold\\n'); name=lease.recv(99).split()[1]\n\
        peer=socket.socket(socket.AF_UNIX); peer.connect(sys.argv[1]); peer.send(b'enter '+name+b'\\n'); assert peer.recv(99)[:2]==b'ok'\n\
        entered=time.process_time()\n\
        while time.process_time()<entered+1: pass\n\
        print(name.decode(), entered, time.process_time())";
    let output = Command::new("/usr/bin/python3")
        .args(["-c", burn])
        .arg(&socket)
        .uid(UNPRIVILEGED)
        .gid(UNPRIVILEGED)
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = printed.split_whitespace().collect();
    let [name, entered, end] = words[..] else {
        panic!("{printed} {}", String::from_utf8_lossy(&output.stderr));
    };
    assert!(name.starts_with("wattcast/scope-"), "{name}");
    let ran = end.parse::<f64>().unwrap() - entered.parse::<f64>().unwrap();
    let used = probe.fresh().cpu(name);
    // The interpreter uses some CPU time to exit.
    assert!((ran..ran + 0.1).contains(&used), "{used} CPU seconds, of which python counted {ran}");
}

#[test]
fn a_lease_has_one_holder_and_only_its_user_can_enter() {
    requires!(root);
    let _scopes = hold(Resource::Scopes);
    let dir = tempfile::tempdir().unwrap();
    let _probe = probe(dir.path(), &["--scope.count=1"]);
    let socket = dir.path().join("scope.sock");
    let lease = Lease::acquire(&socket).unwrap();
    let why = Lease::acquire(&socket).unwrap_err().to_string();
    assert!(why.contains("--scope.count"), "{why}");
    // A command starts in the leased cgroup.
    let mut command = Command::new("cat");
    lease.enter(&mut command).unwrap();
    let output = command.arg("/proc/self/cgroup").output().unwrap();
    let cgroups = String::from_utf8(output.stdout).unwrap();
    assert!(cgroups.contains(&format!("/{}", lease.name)), "{cgroups}");
    for (request, expected) in [
        ("enter elsewhere\n", "no scope of this name"),
        ("enter\n", "unknown request"),
        ("enter a b\n", "unknown request"),
        ("\n", "unknown request"),
        (&*format!("{}\n", "x".repeat(10_000)), "unknown request"),
    ] {
        assert!(send(&socket, request).contains(expected), "{request:.20}: {}", send(&socket, request));
    }
    let name = lease.name.clone();
    // A second probe of the host does not start its leases, and kills no process of the first.
    let mut sleeper = Command::new("sleep");
    lease.enter(&mut sleeper).unwrap();
    let mut sleeper = sleeper.arg("60").spawn().unwrap();
    let second = Probe::start(&[
        &*format!("--scope.socket={}", dir.path().join("second.sock").display()),
        "--energy.source=model",
    ]);
    assert!(second.source("scopes").1.contains("another probe uses the scopes"), "{:?}", second.source("scopes"));
    assert!(sleeper.try_wait().unwrap().is_none(), "it still runs");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    // Processes left in the cgroup are killed at the end of the lease.
    let mut left = Command::new("sleep");
    lease.enter(&mut left).unwrap();
    let mut left = left.arg("60").spawn().unwrap();
    drop(lease);
    // The next lease succeeds at once, because the cgroup is empty.
    let next = Lease::acquire(&socket).unwrap();
    assert!(!left.wait().unwrap().success(), "killed before its minute is over");
    // The process that connected has ended, and its child sends the request over the inherited
    // connection.
    let request = "import socket,os,sys,time\n\
        s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
        parent=os.getpid()\n\
        if os.fork(): os._exit(0)\n\
        while os.getppid()==parent: time.sleep(0.01)\n\
        time.sleep(0.1); s.send(('enter '+sys.argv[2]+'\\n').encode()); print(s.recv(200).decode())";
    let output = Command::new("/usr/bin/python3").args(["-c", request]).arg(&socket).arg(&next.name).output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.contains("cannot enter"), "{answer} {}", String::from_utf8_lossy(&output.stderr));
    drop(next);
    // A user without a lease cannot enter, and the cgroup stays available. The request comes from a
    // separate process, because a process that enters would be killed with the lease.
    let request = "import socket,sys\n\
        s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
        s.send(('enter '+sys.argv[2]+'\\n').encode()); print(s.recv(200).decode())";
    let output = Command::new("/usr/bin/python3").args(["-c", request]).arg(&socket).arg(&name).output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.contains("does not hold"), "{answer} {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(Lease::acquire(&socket).unwrap().name, name);
}

#[test]
fn an_unusable_socket_or_group_is_reported_with_a_remedy() {
    let _scopes = hold(Resource::Scopes);
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::start(&["--scope.socket=/nonexistent/scope.sock", "--energy.source=model"]);
    let (state, detail) = probe.source("scopes");
    assert!(
        state != "usable" && detail.contains("/nonexistent/scope.sock") && detail.contains("--scope.socket"),
        "{state} {detail}"
    );
    let group = self::probe(dir.path(), &["--scope.group=no-such-group"]);
    assert!(group.source("scopes").1.contains("no-such-group"));
}
