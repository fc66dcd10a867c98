//! `top`: in a pipe, in a terminal, and without a probe. Needs no privileges.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use support::Probe;
use testkit::{eventually, program::children, shell::which, skip};

const FLAGS: [&str; 3] = ["--energy.source=model", "--no-collector.cpu", "--tick=200ms"];

fn probe() -> Probe {
    let probe = Probe::start(&FLAGS);
    probe.first_regular_tick();
    probe
}

fn top(args: &[&str]) -> Output {
    Command::new(support::binary()).arg("top").args(args).output().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_pipe_gets_one_table() {
    let probe = probe();
    let output = top(&["--url", &probe.client.url("")]);
    let table = text(output.stdout);
    assert!(output.status.success(), "{table}{}", text(output.stderr));
    assert!(table.contains("\nMODELLED: ") && table.contains("\nhost ") && !table.contains('\u{1b}'), "{table}");
    let json = text(top(&["--json", "--url", &probe.client.url("")]).stdout);
    let answer: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(answer["joules"]["measured"].as_f64().unwrap() > 0.0, "{json}");
}

#[test]
fn without_a_probe_it_samples_by_itself() {
    // No program listens on this port.
    let output = top(&[&FLAGS[..], &["--port=1", "--no-collector.docker", "--json"]].concat());
    let json = text(output.stdout);
    assert!(output.status.success(), "{json}{}", text(output.stderr));
    let answer: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(answer["watts"]["host"].as_f64().unwrap() > 0.0, "{json}");
}

#[test]
fn a_probe_that_was_named_is_not_replaced() {
    let output = top(&["--once", "--url=http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(output.stderr);
    assert!(error.contains("http://127.0.0.1:1"), "{error}");
}

/// The program in a terminal of 80 columns, and the file of what it writes there.
fn in_terminal(dir: &Path, url: &str) -> (Child, PathBuf) {
    let file = dir.join("screen");
    let line = format!("stty cols 80 rows 24; exec {} top --url={url}", support::binary().display());
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm-256color").env_remove("NO_COLOR");
    command.stdin(Stdio::piped()).stdout(File::create(&file).unwrap()).stderr(Stdio::null());
    testkit::program::kill_on_parent_exit(&mut command);
    (command.spawn().unwrap(), file)
}

#[test]
fn a_key_and_a_signal_restore_the_terminal() {
    if which("script").is_none() {
        skip!("script is not in PATH (apt-get install bsdutils)");
    }
    let probe = probe();
    for by_key in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, file) = in_terminal(dir.path(), &probe.client.url(""));
        let screen = || String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
        eventually(20.0, "the view is drawn", || screen().contains("MODELLED") && screen().contains("Containers"));
        // Kept open: at its end `script` sends the character for the end of input.
        let mut keys = child.stdin.take().unwrap();
        if by_key {
            keys.write_all(b"q").unwrap();
            keys.flush().unwrap();
        } else {
            let pid = children(child.id())[0].to_string();
            assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        }
        assert!(child.wait().unwrap().success());
        let text = screen();
        let (entered, left) = (text.find("\u{1b}[?1049h"), text.rfind("\u{1b}[?1049l"));
        assert!(entered.is_some() && left > entered, "{text:?}");
        assert!(text.rfind("\u{1b}[?25h") > text.rfind("\u{1b}[?25l"), "{text:?}");
    }
}
