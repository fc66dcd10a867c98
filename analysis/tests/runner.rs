//! The runner from end to end: the real ffmpeg, a real probe, real cgroups, containers and nginx; and everything that goes wrong.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{NOBODY, Service};
use testkit::lock::{Resource, hold};
use testkit::{
    docker::{Engine, MOUNTS},
    program::Program,
    shell::{is_root, programs, which},
};

/// A user without any rights.
const UNPRIVILEGED: u32 = 65_534;

/// Why the real thing cannot be had here; nothing where it can.
fn missing() -> Option<&'static str> {
    if !is_root() {
        return Some("needs root, to start a probe");
    }
    which("ffmpeg").is_none().then_some("ffmpeg is not in PATH")
}

macro_rules! needs {
    () => {
        if let Some(why) = missing() {
            println!("skipped: {why}");
            return;
        }
    };
}

/// A probe of the test.
struct Probe {
    program: Program,
    url: String,
    dir: tempfile::TempDir,
}

fn probe(flags: &[&str]) -> Probe {
    let bin = programs(&["probe-user"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(bin.join("wattcast-probe"));
    command.args(["--web.listen-address=127.0.0.1:0", "--energy.source=model"]);
    command.args(flags.iter().map(|flag| flag.replace("DIR", &dir.path().display().to_string())));
    let mut program = Program::start("probe", &mut command, dir.path()).unwrap();
    let url = program.address(0).unwrap().trim_end_matches('/').to_owned();
    Probe { program, url, dir }
}

/// A runner with little to do.
fn command(probe: &str, dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(support::binary());
    command.arg("run").args(args);
    let small = [
        ("--duration", "0.5"),
        ("--resolution", "320x180"),
        ("--preset", "ultrafast"),
        ("--baseline", "1"),
        ("--cooldown", "0"),
        ("--stabilization", "0"),
        ("--wait-timeout", "5"),
        ("--stall-timeout", "5"),
    ];
    let args = if args.is_empty() { &["single"][..] } else { args };
    for (flag, value) in small {
        // A run that is resumed has its plan.
        if !args.contains(&flag) && !args[0].starts_with("--resume") {
            command.args([flag, value]);
        }
    }
    // Tests share their machine with others.
    command.args(["--force", "--probe-url", probe, "--output-dir"]).arg(dir).stdin(Stdio::null());
    command
}

fn run(probe: &str, dir: &Path, args: &[&str]) -> (i32, String, Output) {
    let output = command(probe, dir, args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), said, output)
}

/// The file of a directory with this ending.
fn only(dir: &Path, ending: &str) -> PathBuf {
    let mut all: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.file_name().unwrap().to_string_lossy().ends_with(ending));
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn results(dir: &Path) -> Value {
    let mut all: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
    all.sort();
    serde_json::from_str(&fs::read_to_string(all.last().unwrap()).unwrap()).unwrap()
}

/// Rows by configuration: number and status.
fn rows(results: &Value) -> BTreeMap<String, Vec<(u64, String)>> {
    let row = |repeat: &Value| (repeat["n"].as_u64().unwrap(), repeat["status"].as_str().unwrap().to_owned());
    let cell = |cell: &Value| {
        let rows = cell["repeats"].as_array().unwrap().iter().map(row).collect();
        (cell["name"].as_str().unwrap().to_owned(), rows)
    };
    results["cells"].as_array().unwrap().iter().map(cell).collect()
}

fn joules(repeat: &Value, scope: &str) -> f64 {
    let energy = repeat["energy"].as_array().unwrap().iter().filter(|row| row["scope"] == scope);
    energy.map(|row| row["microjoules"].as_f64().unwrap() / 1e6).sum()
}

/// Waits until the journal of a run that goes on says something.
fn until_journal(dir: &Path, word: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    let said = || {
        let mut all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let journal = all.find(|path| path.to_string_lossy().ends_with(".ndjson"));
        journal.is_some_and(|path| fs::read_to_string(path).unwrap().contains(word))
    };
    while !said() {
        assert!(Instant::now() < end, "the journal has no {word}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Nothing of ours is left in the cgroup tree or beside the results.
fn assert_clean(dir: &Path) {
    let left = |dir: &Path, start: &str| -> Vec<String> {
        let names = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(start)).collect()
    };
    // Below the cgroup that we are in, wherever that is.
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_start_matches('/').to_owned();
    for tree in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        assert_eq!(left(&Path::new(tree).join(&own), "wattcast-run-"), Vec::<String>::new());
    }
    let drafts = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    let drafts: Vec<PathBuf> = drafts.filter(|path| path.to_string_lossy().ends_with(".part")).collect();
    assert!(drafts.is_empty(), "{drafts:?}");
    assert_eq!(left(dir, ".wattcast-run-"), Vec::<String>::new());
}

/// A program that stands in for ffmpeg where it encodes, and is it for all else.
fn stand_in(dir: &Path, encode: &str) -> PathBuf {
    let path = dir.join("stand-in");
    let real = which("ffmpeg").unwrap();
    let text = format!("#!/bin/sh\ncase \"$*\" in *stats_period*) {encode} ;; esac\nexec {} \"$@\"\n", real.display());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_suite_is_measured_scored_and_written_in_every_form() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let (probe, dir) = (probe(&[]), tempfile::tempdir().unwrap());
    let (code, said, output) = run(
        &probe.url,
        dir.path(),
        &[
            "suite",
            "--name",
            "a \"suite\"",
            "--encoder",
            "libx264,libx265",
            "--crf",
            "1,30",
            "--repeats",
            "2",
            "--seed",
            "7",
            "--analyze-quality",
        ],
    );
    assert_eq!(code, 0, "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("Energy is MODELLED"), "{output:?}");
    let results = results(dir.path());
    assert_eq!(
        (&results["run"]["status"], &results["run"]["seed"], &results["schema"]),
        (&"ok".into(), &7.into(), &"wattcast/results/2".into())
    );
    assert_eq!(results["baselines"].as_array().unwrap().len(), 2, "one before each block");
    assert!(
        rows(&results).values().all(|rows| rows == &[(1, "ok".to_owned()), (2, "ok".to_owned())]),
        "{:?}",
        rows(&results)
    );
    for cell in results["cells"].as_array().unwrap() {
        for repeat in cell["repeats"].as_array().unwrap() {
            assert_eq!(repeat["frames"]["encoded"], 15);
            let (own, host) = (joules(repeat, "container"), joules(repeat, "host"));
            assert!(own > 0.0 && own <= host + 1e-6, "{own} of {host} J");
            assert!(
                repeat["cpu"]["nanoseconds"].as_u64().unwrap() > 0
                    && repeat["container"].as_str().unwrap().contains("wattcast-run-")
            );
            let score = |metric: &str, pooling: &str| {
                let all = repeat["quality"].as_array().unwrap();
                all.iter()
                    .find(|score| score["metric"] == metric && score["pooling"] == pooling)
                    .map(|score| score["value"].as_f64().unwrap())
            };
            // Nearly without loss: one frame off would be 20 dB and more below.
            let (mean, worst) = (score("psnr", "mean").unwrap(), score("psnr", "min").unwrap());
            if cell["axes"]["rate_control"]["crf"] == 1 {
                assert!(mean > 45.0 && worst > 40.0, "{mean} {worst}");
            } else {
                assert!(mean > 25.0 && mean < 45.0, "{mean}");
            }
            assert!(score("ssim", "p5").unwrap() <= score("ssim", "mean").unwrap());
            let frames: Value =
                serde_json::from_slice(&fs::read(dir.path().join(repeat["quality_frames"].as_str().unwrap())).unwrap())
                    .unwrap();
            assert_eq!(frames["psnr"].as_array().unwrap().len(), 15, "each frame's score is kept");
            for artefact in repeat["artefacts"].as_array().unwrap() {
                assert!(dir.path().join(artefact["file"].as_str().unwrap()).exists());
            }
        }
        let stats = &cell["stats"]["joules"];
        assert!(stats["n"] == 2 && stats["ci95"][0].as_f64().unwrap() <= stats["mean"].as_f64().unwrap());
    }
    let sheet = fs::read_to_string(only(dir.path(), "_analysis.csv")).unwrap();
    assert!(sheet.starts_with(
        "name,bitrate,resolution,fps,duration,mean_power_w,median_power_w,total_energy_wh,predicted_mean_power_w,net_power_w,net_energy_wh,net_container_cpu_pct,\
         docker_overhead_w,docker_overhead_pct,container_cpu_pct,container_power_w,efficiency_score,efficiency_rank,output_ladder,total_pixels,"
    ));
    assert_eq!(sheet.lines().count(), 5, "{sheet}");
    assert!(sheet.contains("\"a \"\"suite\"\" libx264 ultrafast crf 1 320x180 30 fps\""), "{sheet}");
    let report = fs::read_to_string(only(dir.path(), ".html")).unwrap();
    let (banner, table) = (report.find("MODELLED").unwrap(), report.find("<table").unwrap());
    assert!(
        banner < table
            && report.matches("<svg").count() >= 2
            && !report.contains("<script")
            && !report.contains("src="),
        "self-contained"
    );
    assert!(report.contains("a &quot;suite&quot;"));
    assert_clean(dir.path());

    // The service shows it, with the intervals, and one energy everywhere.
    let service = Service::start(dir.path(), NOBODY, &["--energy.scope=container"]);
    let page = service.eventually("the run is shown", |page| page.contains("wattcast_cell_energy_interval_joules{"));
    assert_eq!(page.lines().filter(|line| line.starts_with("wattcast_cell_repeats{")).count(), 4);
    assert!(service.port(3).text("/metrics").unwrap().contains("wattcast_quality_psnr_decibels{"));
    assert!(service.port(4).text("/metrics").unwrap().contains("wattcast_cell_cost_interval_amount{"));
    // What the file holds is what its schema allows.
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results-schema.json");
    let check =
        "import json,sys,jsonschema; jsonschema.validate(json.load(open(sys.argv[2])), json.load(open(sys.argv[1])))";
    let file = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ending| ending == "json"));
    let output = Command::new("/usr/bin/python3").args(["-c", check]).arg(schema).arg(file.unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || said.contains("No module named"), "{said}");
}

#[test]
fn a_run_that_was_killed_goes_on_with_each_cell_once_and_trusts_no_file_that_is_gone() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let (probe, dir) = (probe(&[]), tempfile::tempdir().unwrap());
    let args = [
        "suite",
        "--encoder",
        "libx264",
        "--crf",
        "10,20,30",
        "--repeats",
        "2",
        "--seed",
        "3",
        "--duration",
        "2",
        "--realtime",
    ];
    let mut child = command(&probe.url, dir.path(), &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let journal = || {
        fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_string_lossy().ends_with(".ndjson"))
    };
    let count =
        || journal().map_or(0, |path| fs::read_to_string(path).unwrap().matches("\"event\":\"repeat\"").count());
    while count() < 3 {
        assert!(Instant::now() < end, "nothing is measured");
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(500));
    child.kill().unwrap();
    child.wait().unwrap();
    // In the middle of an encode; its encoder goes with it.
    let journal = journal().unwrap();
    let before = fs::read_to_string(&journal).unwrap();
    let first: Value = before
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["event"] == "repeat")
        .unwrap();
    fs::remove_file(dir.path().join(first["artefacts"][0]["file"].as_str().unwrap())).unwrap();
    fs::write(&journal, format!("{before}{{\"event\":\"rep")).unwrap();

    // A plan is not changed on the way.
    for (flag, value) in [("--repeats", "7"), ("--duration", "3"), ("--analyze-quality", "")] {
        let args: Vec<&str> = ["--resume", flag, value].into_iter().filter(|word| !word.is_empty()).collect();
        let (code, said, _) = run(&probe.url, dir.path(), &args);
        assert!(code == 64 && said.contains(flag), "{code} {said}");
    }
    let (code, said, _) = run(&probe.url, dir.path(), &["--resume"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("again"), "{said}");
    let results = results(dir.path());
    let rows = rows(&results);
    assert!(
        rows.len() == 3 && rows.values().all(|rows| rows.len() == 2 && rows.iter().all(|(_, status)| status == "ok")),
        "{rows:?}"
    );
    let windows: Vec<u64> = results["cells"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|cell| cell["repeats"].as_array().unwrap())
        .map(|repeat| repeat["window"]["start_unix_ns"].as_u64().unwrap())
        .collect();
    let kept = before.lines().filter(|line| line.contains("\"event\":\"repeat\"")).count() - 1;
    let began = results["run"]["started_unix_ns"].as_u64().unwrap();
    assert!(windows.iter().all(|start| *start > began) && kept >= 2);
    assert_clean(dir.path());
    let (code, said, _) = run(&probe.url, dir.path(), &["--resume"]);
    assert!(code == 64 && said.contains("no run in it"), "{code} {said}");
    let (code, said, _) = run(&probe.url, dir.path(), &["--resume", "--crf", "1"]);
    assert!(code == 64 && said.contains("leave out"), "{code} {said}");
}

#[test]
fn ctrl_c_ends_our_children_alone_keeps_what_was_measured_and_cleans_up() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let (probe, dir) = (probe(&[]), tempfile::tempdir().unwrap());
    // Somebody else's ffmpeg.
    let mut other = Command::new("ffmpeg")
        .args(["-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", "testsrc", "-t", "60", "-f", "null", "-"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let args = [
        "suite",
        "--encoder",
        "libx264",
        "--crf",
        "20,30",
        "--repeats",
        "2",
        "--duration",
        "3",
        "--realtime",
        "--baseline",
        "0",
    ];
    let child = command(&probe.url, dir.path(), &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_journal(dir.path(), "\"event\":\"repeat\"");
    thread::sleep(Duration::from_millis(700));
    // SAFETY: our child, which is waited for below.
    unsafe { libc::kill(libc::pid_t::try_from(child.id()).unwrap(), libc::SIGINT) };
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("--resume"), "{said}");
    assert!(other.try_wait().unwrap().is_none(), "the other ffmpeg lives");
    other.kill().unwrap();
    other.wait().unwrap();
    let results_now = results(dir.path());
    assert_eq!(results_now["run"]["status"], "stopped");
    let statuses: Vec<String> = rows(&results_now).into_values().flatten().map(|(_, status)| status).collect();
    assert!(statuses.contains(&"ok".to_owned()) && statuses.contains(&"stopped".to_owned()), "{statuses:?}");
    assert_clean(dir.path());
    // By its name, from wherever one is: results go where the journal is.
    let (elsewhere, journal) = (tempfile::tempdir().unwrap(), only(dir.path(), ".ndjson"));
    let (code, said, _) = run(&probe.url, elsewhere.path(), &[&format!("--resume={}", journal.display())]);
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert_eq!(code, 0, "{said}");
    assert!(
        rows(&results(dir.path()))
            .values()
            .all(|rows| rows.len() == 2 && rows.iter().all(|(_, status)| status == "ok"))
    );
}

#[test]
fn whatever_goes_wrong_is_a_row_a_message_and_a_code_and_the_rest_is_kept() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let probe = probe(&[]);
    let scratch = tempfile::tempdir().unwrap();
    let dies = "printf 'frame=9\\nout_time_us=300000\\nprogress=continue\\n'; sleep 0.3; echo 'it died' >&2; exit 7";
    let hangs = "printf 'frame=1\\nout_time_us=30000\\nprogress=continue\\n'; sleep 60";
    for (what, encode, args, code, word) in [
        ("dies", dies, &["--repeats", "1"][..], 1, "code 7: it died"),
        ("hangs", hangs, &["--repeats", "1", "--stall-timeout", "1"], 1, "no progress for 1 s"),
        (
            "unknown encoder",
            ":",
            &["suite", "--encoder", "libx264,libx26", "--bitrate", "1M", "--repeats", "1"],
            1,
            "it has libx26",
        ),
        ("no encoder at all", ":", &["--encoder", "nonsense"], 1, "no encoder \"nonsense\""),
        // ffmpeg goes on, and says in a warning that it did not do what the label says.
        ("unknown option", ":", &["--encoder", "mpeg4", "--crf", "20", "--repeats", "1"], 1, "does not know all"),
        ("unreadable source", ":", &["--source", "/etc/passwd"], 3, "the source cannot be read"),
        ("absent source", ":", &["--source", "/nonexistent.mp4"], 3, "/nonexistent.mp4"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let ffmpeg = stand_in(scratch.path(), encode);
        let (got, said, _) = run(&probe.url, dir.path(), &[args, &["--ffmpeg", ffmpeg.to_str().unwrap()]].concat());
        assert_eq!(got, code, "{what}: {said}");
        let results = results(dir.path());
        let text = results["cells"].to_string();
        assert!(said.contains(word) || text.contains(&word.replace('"', "\\\"")), "{what}: {said}\n{text}");
        let statuses: Vec<String> = rows(&results).into_values().flatten().map(|(_, status)| status).collect();
        assert!(statuses.iter().any(|status| status != "ok"), "{what}: {statuses:?}");
        if what == "unknown encoder" {
            assert!(statuses.contains(&"ok".to_owned()), "the other was run");
        }
        assert_clean(dir.path());
    }
    let dir = tempfile::tempdir().unwrap();
    // Without an ffmpeg at all; --force measures nothing either, and says so.
    let (code, said, _) = run(&probe.url, dir.path(), &["--ffmpeg", "/nonexistent/ffmpeg"]);
    assert!(
        code != 0
            && said.contains("--ffmpeg")
            && rows(&results(dir.path())).values().flatten().all(|(_, status)| status != "ok"),
        "{said}"
    );
    // Where nothing can be written nothing is begun.
    let file = scratch.path().join("a-file");
    fs::write(&file, "").unwrap();
    let (code, said, _) = run(&probe.url, &file.join("results"), &[]);
    assert!(code == 5 && said.contains("--output-dir"), "{code} {said}");
    let sealed = Command::new("unshare")
        .args(["-m", "sh", "-c", "mount -t tmpfs -o ro none \"$0\" && exec \"$@\""])
        .arg(scratch.path())
        .arg(support::binary())
        .args(["run", "--skip-wait", "--probe-url", &probe.url, "--output-dir"])
        .arg(scratch.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&sealed.stderr);
    assert!(sealed.status.code() == Some(5) && said.contains("Read-only"), "{said}");
    // Nobody to ask for joules.
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(support::binary())
        .args(["run", "--skip-wait", "--probe-url", NOBODY, "--output-dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(3) && said.contains("--force") && said.contains("Start the probe"), "{said}");
    assert_eq!(results(dir.path())["run"]["status"], "failed");
}

#[test]
fn a_full_disk_is_a_row_and_what_was_measured_is_kept() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let (probe, dir) = (probe(&[]), tempfile::tempdir().unwrap());
    // Room for the source (1.3 MB) and a small file, and not for one without loss.
    let script =
        "mount -t tmpfs -o size=1450k none \"$1\" && shift && \"$@\"; code=$?; cat \"$OUT\"/*.json; exit $code";
    let mut inner = command(
        &probe.url,
        dir.path(),
        &["suite", "--crf", "0,40", "--encoder", "libx264", "--repeats", "1", "--seed", "1"],
    );
    let mut outer = Command::new("unshare");
    outer
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(inner.get_program())
        .args(inner.get_args())
        .env("OUT", dir.path());
    let output = outer.stdin(Stdio::null()).output().unwrap();
    let _ = inner.stdout(Stdio::null());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device") || said.contains("frames that were encoded"), "{said}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let results: Value = serde_json::from_str(&text[text.find("{\n").unwrap()..]).unwrap();
    let rows = rows(&results);
    assert!(rows["libx264 ultrafast crf 40 320x180 30 fps"].contains(&(1, "ok".to_owned())), "{rows:?}");
    assert!(rows["libx264 ultrafast crf 0 320x180 30 fps"].contains(&(1, "failed".to_owned())), "{rows:?}");
}

#[test]
fn two_at_once_would_measure_each_other() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let (probe, dir, other) = (probe(&[]), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut first = command(&probe.url, dir.path(), &["--duration", "4", "--realtime", "--repeats", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // From here on it holds the machine.
    until_journal(dir.path(), "\"event\":\"run\"");
    let (code, said, _) = run(&probe.url, other.path(), &["--repeats", "1"]);
    assert!(code == 4 && said.contains("another run"), "{code} {said}");
    assert!(first.wait().unwrap().success());
    assert_eq!(run(&probe.url, other.path(), &["--repeats", "1"]).0, 0);
}

#[test]
fn a_probe_that_goes_away_ends_the_run_and_what_was_measured_is_kept() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let (mut gone, dir) = (probe(&[]), tempfile::tempdir().unwrap());
    let args = [
        "suite",
        "--encoder",
        "libx264",
        "--crf",
        "20,30",
        "--repeats",
        "2",
        "--duration",
        "2",
        "--realtime",
        "--baseline",
        "0",
    ];
    let child = command(&gone.url, dir.path(), &args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until_journal(dir.path(), "\"event\":\"repeat\"");
    gone.program.alive().unwrap();
    gone.program.stop().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("--resume"), "{said}");
    let results_now = results(dir.path());
    let statuses: Vec<String> = rows(&results_now).into_values().flatten().map(|(_, status)| status).collect();
    assert!(statuses.contains(&"ok".to_owned()) && statuses.contains(&"failed".to_owned()), "{statuses:?}");
    assert_clean(dir.path());
    // With another probe it goes on.
    let back = probe(&[]);
    assert_eq!(run(&back.url, dir.path(), &["--resume"]).0, 0);
}

#[test]
fn without_rights_the_probe_holds_a_scope_and_the_encoder_is_counted_in_it() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let probe = probe(&["--scope.socket=DIR/scope.sock", "--scope.group=65534"]);
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("results");
    fs::create_dir(&dir).unwrap();
    for path in [home.path(), &dir] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    // The program, where that user may read it.
    let program = home.path().join("wattcast-analysis");
    fs::copy(support::binary(), &program).unwrap();
    let unprivileged = |command: Command| {
        let mut own = Command::new(&program);
        own.args(command.get_args()).uid(UNPRIVILEGED).gid(UNPRIVILEGED).stdin(Stdio::null()).output().unwrap()
    };
    let socket = probe.dir.path().join("scope.sock");
    let real = command(&probe.url, &dir, &["--repeats", "1", "--scope.socket", socket.to_str().unwrap()]);
    let output = unprivileged(real);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("the probe's scope wattcast/scope-"), "{said}");
    let results = results(&dir);
    let repeat = &results["cells"][0]["repeats"][0];
    assert!(
        repeat["container"].as_str().unwrap().starts_with("wattcast/scope-") && joules(repeat, "container") > 0.0,
        "{repeat}"
    );
    // Without the socket there is no cgroup for that user; a file can do without, and says what its joules are.
    let alone = command(&probe.url, &dir, &["--repeats", "1", "--scope.socket", "/nonexistent"]);
    let output = unprivileged(alone);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success()
            && said.contains("whole host's")
            && said.contains("Delegate=yes")
            && said.contains("--scope.group"),
        "{said}"
    );
    // A live run cannot.
    let live = command(&probe.url, &dir, &["--repeats", "1", "--mode", "rtmp", "--scope.socket", "/nonexistent"]);
    let output = unprivileged(live);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(3) && said.contains("a live run is refused") && said.contains("Delegate=yes"),
        "{said}"
    );
}

#[test]
fn in_a_container_the_encoder_is_the_container_s() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let engine = match Engine::find() {
        Ok(engine) => engine,
        Err(reason) => {
            println!("skipped: {reason:#}");
            return;
        }
    };
    let _ = engine;
    let (probe, dir) = (probe(&[]), tempfile::tempdir().unwrap());
    // Longer than a tick of the probe, which else does not meet it.
    let mut args = vec![
        "--repeats".to_owned(),
        "1".to_owned(),
        "--duration".to_owned(),
        "2".to_owned(),
        "--realtime".to_owned(),
        "--container.image".to_owned(),
        testkit::docker::IMAGE.to_owned(),
    ];
    args.extend(["--container.ffmpeg".to_owned(), which("ffmpeg").unwrap().display().to_string()]);
    for mount in MOUNTS.iter().filter(|mount| Path::new(mount).exists()) {
        args.extend(["--container.volume".to_owned(), format!("{mount}:{mount}:ro")]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (code, said, _) = run(&probe.url, dir.path(), &args);
    assert_eq!(code, 0, "{said}");
    let results = results(dir.path());
    let repeat = &results["cells"][0]["repeats"][0];
    assert!(repeat["container"].as_str().is_some_and(|name| name.starts_with("wattcast-run-")), "{repeat} {said}");
    assert!(joules(repeat, "container") > 0.0 && joules(repeat, "container") < joules(repeat, "host"), "{repeat}");
    let left =
        Command::new("docker").args(["ps", "--all", "--quiet", "--filter", "name=wattcast-run-"]).output().unwrap();
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
}

#[test]
fn a_live_run_charges_the_encoder_and_not_its_generator_and_server() {
    needs!();
    let _cpus = hold(Resource::Runner);
    if which("nginx").is_none() && !Path::new("/usr/sbin/nginx").exists() {
        println!("skipped: nginx is not installed");
        return;
    }
    let (probe, dir) = (probe(&[]), tempfile::tempdir().unwrap());
    let (code, said, _) = run(
        &probe.url,
        dir.path(),
        &[
            "multi",
            "--mode",
            "rtmp",
            "--bitrate",
            "500k",
            "--repeats",
            "2",
            "--duration",
            "3",
            "--stabilization",
            "1",
            "--wait-timeout",
            "30",
        ],
    );
    assert_eq!(code, 0, "{said}");
    let results = results(dir.path());
    for repeat in results["cells"][0]["repeats"].as_array().unwrap() {
        let frames = repeat["frames"]["encoded"].as_u64().unwrap();
        // Two streams of 30 a second, as reported within 0.2 s of the marks. A machine that stood still makes the window longer; the streams' pace stays.
        let most = 60.0 * repeat["window"]["seconds"].as_f64().unwrap() + 40.0;
        assert!((140.0..=most).contains(&(frames as f64)), "{frames} frames of about 180, at most {most}");
        let beside = &repeat["beside_microjoules"];
        let (own, generator) = (joules(repeat, "container"), beside["generator"].as_f64().unwrap() / 1e6);
        assert!(own > 0.0 && generator > 0.0 && own + generator < joules(repeat, "host"), "{repeat}");
        assert!(beside["server"].is_u64(), "{beside}");
    }
    assert!(run(&probe.url, dir.path(), &["--mode", "rtmp", "--encoder", "libx265"]).1.contains("H.264 alone"));
    assert_clean(dir.path());
}

#[test]
fn repeats_go_on_until_the_interval_is_small_enough_or_there_are_enough() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let (probe, dir) = (probe(&[]), tempfile::tempdir().unwrap());
    let count = |args: &[&str]| {
        let (code, said, _) = run(&probe.url, dir.path(), &[&["--repeats", "2", "--baseline", "0"], args].concat());
        assert_eq!(code, 0, "{said}");
        results(dir.path())["cells"][0]["repeats"].as_array().unwrap().len()
    };
    assert_eq!(count(&["--ci-target", "0.01%", "--max-repeats", "4"]), 4);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(count(&[]), 2);
}

#[test]
fn a_preset_that_costs_more_is_found_and_the_same_run_is_the_same() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let (probe, fast, slow) = (probe(&[]), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (dir, preset) in [(&fast, "ultrafast"), (&slow, "slower")] {
        let args = [
            "suite",
            "--encoder",
            "libx264",
            "--bitrate",
            "300k,600k",
            "--repeats",
            "4",
            "--baseline",
            "0",
            "--duration",
            "2",
            "--preset",
            preset,
            // The slow one looks ahead as far as this clip is long, and reports nothing until its end.
            "--stall-timeout",
            "60",
        ];
        let (code, said, _) = run(&probe.url, dir.path(), &args);
        assert_eq!(code, 0, "{said}");
    }
    let file = |dir: &tempfile::TempDir| {
        let mut all = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        all.find(|path| path.extension().is_some_and(|ending| ending == "json")).unwrap()
    };
    let compare = |a: &Path, b: &Path, flags: &[&str]| {
        let output = Command::new(support::binary())
            .arg("compare")
            .args([a, b])
            .args(flags)
            .args(["--probe-url", NOBODY, "--json"])
            .output()
            .unwrap();
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let (code, found) = compare(&file(&fast), &file(&slow), &["--metrics", "energy"]);
    assert_eq!(code, Some(1), "{found}");
    assert_eq!(found["changed"]["preset"], serde_json::json!(["ultrafast", "slower"]));
    let rows = found["rows"].as_array().unwrap();
    assert!(
        rows.len() == 2
            && rows.iter().all(|row| row["verdict"] == "worse" && row["difference_percent"].as_f64().unwrap() > 50.0),
        "{found}"
    );
    assert!(
        rows.iter().all(|row| row["p_adjusted"].as_f64() >= row["p"].as_f64() && row["effect"].as_f64().unwrap() > 1.0)
    );
    // The other way round it is a gain, and no gate falls.
    assert_eq!(compare(&file(&slow), &file(&fast), &["--metrics", "energy"]).0, Some(0));
    let (code, found) = compare(&file(&fast), &file(&fast), &[]);
    assert_eq!(code, Some(0), "{found}");
    assert!(
        found["rows"].as_array().unwrap().iter().all(|row| row["verdict"] == "same" || row["metric"] == "vmaf"),
        "{found}"
    );
    // Nothing in common.
    let (code, found) = compare(&file(&fast), &file(&slow), &["--metrics", "vmaf"]);
    assert_eq!(code, Some(3), "{found}");
}

#[test]
fn a_search_finds_how_many_streams_keep_up() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let (probe, dir) = (probe(&[]), tempfile::tempdir().unwrap());
    let (code, said, _) =
        run(&probe.url, dir.path(), &["search", "streams", "--max-streams", "2", "--duration", "2", "--baseline", "0"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("2 streams keep up with real time"), "{said}");
    assert_eq!(rows(&results(dir.path())).len(), 2);
    let (code, said, _) = run(&probe.url, dir.path(), &["--resume"]);
    assert!(code == 64 && said.contains("no run in it"), "a search begins anew: {code} {said}");
    for (flags, word) in [(&["--max-streams", "0"][..], "1..=256"), (&["--duration", "0.5"], "2 s and more")] {
        let (code, said, _) = run(&probe.url, dir.path(), &[&["search", "streams"], flags].concat());
        assert!(code != 0 && said.contains(word), "{code} {said}");
    }
}

/// An ffmpeg with libvmaf: of the environment, or of the Python package imageio-ffmpeg.
fn with_vmaf() -> Option<PathBuf> {
    let of_python = || {
        let asked = ["python3", "/usr/bin/python3"].into_iter().find_map(|python| {
            let output = Command::new(python)
                .args(["-c", "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())"])
                .output()
                .ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        });
        asked.map(PathBuf::from)
    };
    std::env::var_os("QUALITY_FFMPEG").map(PathBuf::from).or_else(of_python)
}

#[test]
fn vmaf_is_scored_by_a_second_ffmpeg_and_a_bitrate_is_found_for_it() {
    needs!();
    let _cpus = hold(Resource::Runner);
    let Some(scorer) = with_vmaf() else {
        println!("skipped: no ffmpeg with libvmaf here (pip install imageio-ffmpeg, or QUALITY_FFMPEG)");
        return;
    };
    let (probe, dir) = (probe(&[]), tempfile::tempdir().unwrap());
    let args = [
        "search",
        "quality",
        "--target-vmaf",
        "90",
        "--tolerance",
        "2",
        "--baseline",
        "0",
        "--duration",
        "1",
        "--quality-ffmpeg",
        scorer.to_str().unwrap(),
    ];
    let (code, said, _) = run(&probe.url, dir.path(), &args);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("the smallest found that reaches 90"), "{said}");
    let results = results(dir.path());
    let vmaf = |cell: &Value| {
        let all = cell["repeats"][0]["quality"].as_array().unwrap().clone();
        let mean = all.into_iter().find(|score| score["metric"] == "vmaf" && score["pooling"] == "mean").unwrap();
        assert!(!mean["model"].as_str().unwrap().is_empty() && !mean["version"].as_str().unwrap().is_empty());
        (
            cell["axes"]["bitrate"].as_str().unwrap().trim_end_matches('k').parse::<u32>().unwrap(),
            mean["value"].as_f64().unwrap(),
        )
    };
    let mut tried: Vec<(u32, f64)> = results["cells"].as_array().unwrap().iter().map(vmaf).collect();
    tried.sort_by_key(|(rate, _)| *rate);
    assert!(tried.len() > 2 && tried[0].1 < 90.0 && tried[tried.len() - 1].1 > 90.0, "{tried:?}");
    let xpsnr = results["cells"][0]["repeats"][0]["quality"]
        .as_array()
        .unwrap()
        .iter()
        .any(|score| score["metric"] == "xpsnr" && score["value"].is_f64());
    assert!(xpsnr, "{}", results["cells"][0]["repeats"][0]["quality"]);
    // Debian's own has none, and says so.
    let (code, said, _) =
        run(&probe.url, dir.path(), &["search", "quality", "--baseline", "0", "--ffmpeg", "/usr/bin/ffmpeg"]);
    assert!(
        code == 0 || (code == 3 && said.contains("no VMAF to look for") && said.contains("imageio-ffmpeg")),
        "{code} {said}"
    );
}

#[test]
fn a_dry_run_says_what_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let args = ["suite", "--crf", "20,30", "--encoder", "libx264", "--seed", "5", "--dry-run"];
    let (code, said, output) = run(NOBODY, &out, &args);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(code == 0 && text.contains("2 configurations, 3 times each") && text.contains("Seed 5"), "{said}{text}");
    assert!(!out.exists());
    let (_, _, output) =
        run(NOBODY, &out, &["search", "streams", "--max-streams", "5", "--duration", "2", "--dry-run"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("search for the most streams, up to 5"), "{output:?}");
    for (args, word) in [
        (&["--bitrate", "1M,2M"][..], "run suite"),
        (&["--bitrate", "fast"], "2500k or 5M"),
        (&["--ci-target", "1%", "--repeats", "1"], "--repeats 2"),
        (&["suite", "/nonexistent.toml"], "/nonexistent.toml"),
        (&["--duration", "0.01"], "0.2 s"),
    ] {
        let (code, said, _) = run(NOBODY, &out, &[args, &["--dry-run"]].concat());
        assert!(code == 64 && said.contains(word), "{args:?}: {code} {said}");
    }
}
