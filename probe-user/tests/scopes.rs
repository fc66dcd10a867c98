//! Scopes from end to end: who holds one runs in it, and is counted there; nobody else gets in.

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

use exporter::scope::Scope;
use support::Probe;
use testkit::{
    lock::{Resource, hold},
    requires,
};

/// A user without any rights.
const NOBODY: u32 = 65_534;

fn probe(dir: &Path, flags: &[&str]) -> Probe {
    let socket = format!("--scope.socket={}", dir.join("scope.sock").display());
    Probe::start(&[&[&*socket, "--energy.source=model"], flags].concat())
}

fn say(socket: &Path, what: &str) -> String {
    let stream = UnixStream::connect(socket).unwrap();
    (&stream).write_all(what.as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).unwrap();
    answer.trim().to_owned()
}

#[test]
fn who_holds_a_scope_runs_in_it_without_privileges_and_is_counted_there() {
    requires!(root);
    let _scopes = hold(Resource::Scopes);
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let probe = probe(dir.path(), &["--scope.group=65534", "--scope.count=2"]);
    let socket = dir.path().join("scope.sock");
    let (state, detail) = probe.source("scopes");
    assert!(state == "usable" && detail.starts_with("2 scopes"), "{state} {detail}");
    let meta = std::fs::metadata(&socket).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.gid()), (0o660, NOBODY));

    // Held by a process of that user, which moves into it and works there. It prints the CPU
    // seconds that it had used by then, and at its end.
    let burn = "import socket,sys,time,os\n\
        held=socket.socket(socket.AF_UNIX); held.connect(sys.argv[1]); held.send(b'hold\\n'); name=held.recv(99).split()[1]\n\
        ask=socket.socket(socket.AF_UNIX); ask.connect(sys.argv[1]); ask.send(b'enter '+name+b'\\n'); assert ask.recv(99)[:2]==b'ok'\n\
        entered=time.process_time()\n\
        while time.process_time()<entered+1: pass\n\
        print(name.decode(), entered, time.process_time())";
    let output =
        Command::new("/usr/bin/python3").args(["-c", burn]).arg(&socket).uid(NOBODY).gid(NOBODY).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = printed.split_whitespace().collect();
    let [name, entered, end] = words[..] else {
        panic!("{printed} {}", String::from_utf8_lossy(&output.stderr));
    };
    assert!(name.starts_with("wattcast/scope-"), "{name}");
    let ran = end.parse::<f64>().unwrap() - entered.parse::<f64>().unwrap();
    let used = probe.fresh().cpu(name);
    // The interpreter takes a moment to end.
    assert!((ran..ran + 0.1).contains(&used), "{used} CPU seconds, of which python counted {ran}");
}

#[test]
fn a_scope_has_one_holder_and_its_user_alone_gets_in() {
    requires!(root);
    let _scopes = hold(Resource::Scopes);
    let dir = tempfile::tempdir().unwrap();
    let _probe = probe(dir.path(), &["--scope.count=1"]);
    let socket = dir.path().join("scope.sock");
    let scope = Scope::hold(&socket).unwrap();
    let why = Scope::hold(&socket).unwrap_err().to_string();
    assert!(why.contains("--scope.count"), "{why}");
    // A command begins its life in it.
    let mut command = Command::new("cat");
    scope.enter(&mut command).unwrap();
    let shown = command.arg("/proc/self/cgroup").output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(&format!("/{}", scope.name)), "{shown}");
    for (what, word) in [
        ("enter elsewhere\n", "no scope of this name"),
        ("enter\n", "say hold"),
        ("enter a b\n", "say hold"),
        ("\n", "say hold"),
        (&*format!("{}\n", "x".repeat(10_000)), "say hold"),
    ] {
        assert!(say(&socket, what).contains(word), "{what:.20}: {}", say(&socket, what));
    }
    let name = scope.name.clone();
    // A second probe of the host takes none, and ends nobody's.
    let mut works = Command::new("sleep");
    scope.enter(&mut works).unwrap();
    let mut works = works.arg("60").spawn().unwrap();
    let second = Probe::start(&[
        &*format!("--scope.socket={}", dir.path().join("second.sock").display()),
        "--energy.source=model",
    ]);
    assert!(second.source("scopes").1.contains("another probe keeps"), "{:?}", second.source("scopes"));
    assert!(works.try_wait().unwrap().is_none(), "it lives");
    works.kill().unwrap();
    works.wait().unwrap();
    // Who is left in it when it is given back is ended: the next has it for itself.
    let mut left = Command::new("sleep");
    scope.enter(&mut left).unwrap();
    let mut left = left.arg("60").spawn().unwrap();
    drop(scope);
    // At once: nobody is left in it.
    let again = Scope::hold(&socket).unwrap();
    assert!(!left.wait().unwrap().success(), "ended, and not after a minute");
    // A number that became another's: who connected has ended, and a child of it asks over its
    // connection.
    let asks = "import socket,os,sys,time\n\
        s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
        parent=os.getpid()\n\
        if os.fork(): os._exit(0)\n\
        while os.getppid()==parent: time.sleep(0.01)\n\
        time.sleep(0.1); s.send(('enter '+sys.argv[2]+'\\n').encode()); print(s.recv(200).decode())";
    let output = Command::new("/usr/bin/python3").args(["-c", asks]).arg(&socket).arg(&again.name).output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.contains("cannot enter"), "{answer} {}", String::from_utf8_lossy(&output.stderr));
    drop(again);
    // Who holds nothing is not let in: a process of its own asks, for who gets in is ended with the
    // scope. And the scope is there for the next.
    let asks = "import socket,sys\n\
        s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
        s.send(('enter '+sys.argv[2]+'\\n').encode()); print(s.recv(200).decode())";
    let output = Command::new("/usr/bin/python3").args(["-c", asks]).arg(&socket).arg(&name).output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.contains("does not hold"), "{answer} {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(Scope::hold(&socket).unwrap().name, name);
}

#[test]
fn a_place_that_cannot_be_had_is_a_state_with_a_remedy() {
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
