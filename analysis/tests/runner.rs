//! End-to-end tests of the experiment runner with real ffmpeg, probe, cgroups, containers and
//! nginx.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use support::{NO_SERVER, Service};
use testkit::{
    docker::{IMAGE, MOUNTS},
    eventually,
    lock::{Lock, Resource, hold},
    netns,
    program::{Program, children, raise_child_priority},
    require, requires,
    shell::{output, programs, which},
    wait::eventually_ok,
};

/// User id without privileges.
const UNPRIVILEGED: u32 = 65_534;
/// Timeout of the runner's waits in seconds. Other programs are slow on a loaded machine.
const TIMEOUT: &str = "60";

/// A host as a runner sees it: a network namespace, which has its own abstract socket for the lock
/// of the host, with a probe and a results directory.
struct Host {
    probe: Probe,
    dir: tempfile::TempDir,
    _others_wait: Option<Lock>,
}

impl Host {
    fn new() -> Self {
        Self::with_probe(&[])
    }

    /// `DIR` in a flag of the probe is replaced by its directory.
    fn with_probe(flags: &[&str]) -> Self {
        // Without network namespaces tests run one at a time.
        let others_wait = netns::enter().err().map(|_| hold(Resource::Runner));
        Self { probe: Probe::start(flags), dir: tempfile::tempdir().unwrap(), _others_wait: others_wait }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs with results in the host's directory.
    fn run(&self, args: &[&str]) -> Ended {
        self.run_in(self.dir(), args)
    }

    fn run_in(&self, dir: &Path, args: &[&str]) -> Ended {
        run(&self.probe.url, dir, args)
    }

    /// Starts a run with results in the host's directory.
    fn begin(&self, args: &[&str]) -> Child {
        spawn(&mut command(&self.probe.url, self.dir(), args))
    }
}

struct Probe {
    program: Program,
    url: String,
    dir: tempfile::TempDir,
}

impl Probe {
    fn start(flags: &[&str]) -> Self {
        let bin = programs().unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(bin.join("wattcast-probe"));
        command.args(["--web.listen-address=127.0.0.1:0", "--energy.source=model"]);
        command.args(flags.iter().map(|flag| flag.replace("DIR", &dir.path().display().to_string())));
        // It must respond within 5 s even on a loaded machine, or a repeat is lost.
        raise_child_priority(&mut command);
        let mut program = Program::start_with_state("probe", &mut command, dir.path()).unwrap();
        let url = program.client().unwrap().url("");
        Self { program, url, dir }
    }
}

/// A runner command with a small workload.
fn command(probe: &str, dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(support::binary());
    command.arg("run").args(args);
    let small = [
        ("--duration", "0.5"),
        ("--resolution", "320x180"),
        ("--preset", "ultrafast"),
        ("--baseline", "0"),
        ("--cooldown", "0"),
        ("--stabilization", "0"),
        ("--wait-timeout", TIMEOUT),
        ("--stall-timeout", TIMEOUT),
    ];
    let args = if args.is_empty() { &["single"][..] } else { args };
    for (flag, value) in small {
        // A resumed run takes these values from its plan.
        if !args.contains(&flag) && !args[0].starts_with("--resume") {
            command.args([flag, value]);
        }
    }
    // Other tests load the machine, so the load check may fail.
    command.args(["--force", "--probe-url", probe, "--output-dir"]).arg(dir);
    command
}

/// A finished runner.
struct Ended {
    pid: u32,
    code: i32,
    stderr: String,
    stdout: String,
}

fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn ended(child: Child) -> Ended {
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let [stderr, stdout] = [output.stderr, output.stdout].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ended { pid, code: output.status.code().unwrap_or(-1), stderr, stdout }
}

fn run(probe: &str, dir: &Path, args: &[&str]) -> Ended {
    ended(spawn(&mut command(probe, dir, args)))
}

/// The only file of a directory with this extension.
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

/// Number and status of the repeats, by configuration.
fn rows(results: &Value) -> BTreeMap<String, Vec<(u64, String)>> {
    let row = |repeat: &Value| (repeat["n"].as_u64().unwrap(), repeat["status"].as_str().unwrap().to_owned());
    let cell = |cell: &Value| {
        let rows = cell["repeats"].as_array().unwrap().iter().map(row).collect();
        (cell["name"].as_str().unwrap().to_owned(), rows)
    };
    results["cells"].as_array().unwrap().iter().map(cell).collect()
}

fn statuses(results: &Value) -> Vec<String> {
    rows(results).into_values().flatten().map(|(_, status)| status).collect()
}

fn joules(repeat: &Value, scope: &str) -> f64 {
    let energy = repeat["energy"].as_array().unwrap().iter().filter(|row| row["scope"] == scope);
    energy.map(|row| row["microjoules"].as_f64().unwrap() / 1e6).sum()
}

/// The journal in a directory; empty before the run begins.
fn journal(dir: &Path) -> String {
    let mut all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let journal = all.find(|path| path.to_string_lossy().ends_with(".ndjson"));
    journal.map_or_else(String::new, |path| fs::read_to_string(path).unwrap())
}

/// Waits until a run has measured some repeats and encodes the next. Returns the encoder's pid.
fn wait_for_encoder_after(repeats: usize, runner: &Child, dir: &Path) -> u32 {
    let measured = || journal(dir).matches("\"event\":\"repeat\"").count() >= repeats;
    eventually(60.0, "repeats in the journal", measured);
    let encoder = || children(runner.id()).into_iter().find(|pid| is_encoder(*pid));
    eventually_ok(60.0, "an encoder runs", || encoder().ok_or_else(|| journal(dir)))
}

/// True for an ffmpeg with the arguments of a measured encoder.
fn is_encoder(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains("-stats_period"))
}

/// Sends a signal to a child that has not been waited for.
fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: the pid is that of our child until it is waited for.
    unsafe { libc::kill(libc::pid_t::try_from(pid).unwrap(), signal) };
}

/// Asserts that the runners left no cgroups, and no temporary files next to the results.
fn assert_clean(dir: &Path, runners: &[u32]) {
    let left = |dir: &Path, start: &str| -> Vec<String> {
        let names = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(start)).collect()
    };
    // Runners create cgroups below our own.
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_start_matches('/').to_owned();
    for tree in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        for runner in runners {
            let name = format!("wattcast-run-{runner}-");
            assert_eq!(left(&Path::new(tree).join(&own), &name), Vec::<String>::new());
        }
    }
    let drafts = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    let drafts: Vec<PathBuf> = drafts.filter(|path| path.to_string_lossy().ends_with(".part")).collect();
    assert!(drafts.is_empty(), "{drafts:?}");
    assert_eq!(left(dir, ".wattcast-run-"), Vec::<String>::new());
}

/// A script that runs `encode` in place of a measured encode, and the real ffmpeg otherwise.
fn stand_in(dir: &Path, encode: &str) -> PathBuf {
    let path = dir.join("stand-in");
    let real = which("ffmpeg").unwrap();
    let text = format!("#!/bin/sh\ncase \"$*\" in *stats_period*) {encode} ;; esac\nexec {} \"$@\"\n", real.display());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_suite_is_measured_scored_and_written_in_all_formats() {
    requires!(root, ffmpeg);
    let host = Host::new();
    let plan = ["suite", "--name", "a \"suite\"", "--encoder", "libx264,libx265", "--crf", "1,30"];
    let protocol = ["--repeats", "2", "--baseline", "1", "--seed", "7", "--analyze-quality"];
    let done = host.run(&[&plan[..], &protocol].concat());
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.starts_with("Energy is MODELLED"), "{}", done.stdout);
    let (dir, results) = (host.dir(), results(host.dir()));
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
            // Nearly lossless: frames shifted by one would lose at least 20 dB.
            let (mean, worst) = (score("psnr", "mean_mse").unwrap(), score("psnr", "min").unwrap());
            if cell["axes"]["rate_control"]["crf"] == 1 {
                assert!(mean > 45.0 && worst > 40.0, "{mean} {worst}");
            } else {
                assert!(mean > 25.0 && mean < 45.0, "{mean}");
            }
            assert!(score("ssim", "p5").unwrap() <= score("ssim", "mean").unwrap());
            let frames: Value =
                serde_json::from_slice(&fs::read(dir.join(repeat["quality_frames"].as_str().unwrap())).unwrap())
                    .unwrap();
            assert_eq!(frames["psnr"].as_array().unwrap().len(), 15, "scores of all frames are kept");
            for artefact in repeat["artefacts"].as_array().unwrap() {
                assert!(dir.join(artefact["file"].as_str().unwrap()).exists());
            }
        }
        let stats = &cell["stats"]["joules"];
        assert!(stats["n"] == 2 && stats["ci95"][0].as_f64().unwrap() <= stats["mean"].as_f64().unwrap());
    }
    let sheet = fs::read_to_string(only(dir, "_analysis.csv")).unwrap();
    assert!(sheet.starts_with(
        "name,bitrate,resolution,fps,duration,mean_power_w,median_power_w,total_energy_wh,predicted_mean_power_w,net_power_w,net_energy_wh,net_container_cpu_pct,\
         docker_overhead_w,docker_overhead_pct,container_cpu_pct,container_power_w,efficiency_score,efficiency_rank,output_ladder,total_pixels,"
    ));
    assert_eq!(sheet.lines().count(), 5, "{sheet}");
    assert!(sheet.contains("\"a \"\"suite\"\" libx264 ultrafast crf 1 320x180 30 fps\""), "{sheet}");
    let report = fs::read_to_string(only(dir, ".html")).unwrap();
    let (banner, table) = (report.find("MODELLED").unwrap(), report.find("<table").unwrap());
    assert!(
        banner < table
            && report.matches("<svg").count() >= 2
            && !report.contains("<script")
            && !report.contains("src="),
        "self-contained"
    );
    assert!(report.contains("a &quot;suite&quot;"));
    assert_clean(dir, &[done.pid]);

    // The service serves the run with intervals, and with the same energy on all ports.
    let service = Service::start(dir, NO_SERVER, &["--energy.scope=container"]);
    let page = service.eventually("the run is shown", |page| page.contains("wattcast_cell_energy_interval_joules{"));
    assert_eq!(page.lines().filter(|line| line.starts_with("wattcast_cell_repeats{")).count(), 4);
    assert!(service.port(3).text("/metrics").unwrap().contains("wattcast_quality_psnr_decibels{"));
    assert!(service.port(4).text("/metrics").unwrap().contains("wattcast_cell_cost_interval_amount{"));
    // The file matches the schema.
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results-schema.json");
    let file = only(dir, ".json");
    let check =
        "import json,sys,jsonschema; jsonschema.validate(json.load(open(sys.argv[2])), json.load(open(sys.argv[1])))";
    if let Some((python, _)) = require::python("import jsonschema") {
        output(Command::new(python).args(["-c", check]).arg(schema).arg(file)).unwrap();
    }
}

#[test]
fn a_killed_run_is_resumed_and_missing_files_are_measured_again() {
    requires!(root, ffmpeg);
    let host = Host::new();
    let plan = ["suite", "--encoder", "libx264", "--crf", "10,20,30", "--duration", "1", "--realtime"];
    let mut killed = host.begin(&[&plan[..], &["--repeats", "2", "--seed", "3", "--baseline", "1"]].concat());
    let encoder = wait_for_encoder_after(3, &killed, host.dir());
    killed.kill().unwrap();
    killed.wait().unwrap();
    // The run was killed during an encode, so its encoder is killed too.
    eventually(20.0, "the encoder is gone", || !is_encoder(encoder));
    let path = only(host.dir(), ".ndjson");
    let before = fs::read_to_string(&path).unwrap();
    let first: Value = before
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["event"] == "repeat")
        .unwrap();
    fs::remove_file(host.dir().join(first["artefacts"][0]["file"].as_str().unwrap())).unwrap();
    fs::write(&path, format!("{before}{{\"event\":\"rep")).unwrap();

    // The plan of a resumed run cannot be changed.
    for (flag, value) in [("--repeats", "7"), ("--duration", "3"), ("--analyze-quality", "")] {
        let args: Vec<&str> = ["--resume", flag, value].into_iter().filter(|word| !word.is_empty()).collect();
        let Ended { code, stderr, .. } = host.run(&args);
        assert!(code == 64 && stderr.contains(flag), "{code} {stderr}");
    }
    let resumed = host.run(&["--resume"]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(resumed.stderr.contains("again"), "{}", resumed.stderr);
    let results = results(host.dir());
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
    assert_clean(host.dir(), &[killed.id(), resumed.pid]);
    for (args, word) in [(&["--resume"][..], "no unfinished run"), (&["--resume", "--crf", "1"], "leave out")] {
        let Ended { code, stderr, .. } = host.run(args);
        assert!(code == 64 && stderr.contains(word), "{code} {stderr}");
    }
}

#[test]
fn ctrl_c_stops_only_our_children_and_keeps_the_results() {
    requires!(root, ffmpeg);
    let host = Host::new();
    let mut command = Command::new("ffmpeg");
    command.args([
        "-nostdin",
        "-loglevel",
        "error",
        "-re",
        "-f",
        "lavfi",
        "-i",
        "testsrc",
        "-t",
        "3600",
        "-f",
        "null",
        "-",
    ]);
    let logs = tempfile::tempdir().unwrap();
    let mut unrelated = Program::start("ffmpeg", &mut command, logs.path()).unwrap();
    let plan = ["suite", "--encoder", "libx264", "--crf", "20,30", "--duration", "1", "--realtime", "--repeats", "2"];
    let runner = host.begin(&plan);
    wait_for_encoder_after(1, &runner, host.dir());
    signal(runner.id(), libc::SIGINT);
    let stopped = ended(runner);
    assert_eq!(stopped.code, 130, "{}", stopped.stderr);
    assert!(stopped.stderr.contains("--resume"), "{}", stopped.stderr);
    unrelated.alive().unwrap();
    let results_now = results(host.dir());
    assert_eq!(results_now["run"]["status"], "stopped");
    let statuses = statuses(&results_now);
    assert!(statuses.contains(&"ok".to_owned()) && statuses.contains(&"stopped".to_owned()), "{statuses:?}");
    assert_clean(host.dir(), &[stopped.pid]);
    // A journal given by name: its directory gets the results.
    let (elsewhere, journal) = (tempfile::tempdir().unwrap(), only(host.dir(), ".ndjson"));
    let resumed = host.run_in(elsewhere.path(), &[&format!("--resume={}", journal.display())]);
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(
        rows(&results(host.dir()))
            .values()
            .all(|rows| rows.len() == 2 && rows.iter().all(|(_, status)| status == "ok"))
    );
}

/// Runs with a stand-in for the encoder. Each case has a name, the script, flags, the expected exit
/// code, and a part of the output or the results.
fn assert_failures_are_recorded(cases: &[(&str, &str, &[&str], i32, &str)]) {
    let (host, scratch) = (Host::new(), tempfile::tempdir().unwrap());
    for (what, encode, args, code, word) in cases {
        let dir = tempfile::tempdir().unwrap();
        let ffmpeg = stand_in(scratch.path(), encode);
        let done = host.run_in(dir.path(), &[*args, &["--ffmpeg", ffmpeg.to_str().unwrap()]].concat());
        let stderr = &done.stderr;
        assert_eq!(done.code, *code, "{what}: {stderr}");
        let results = results(dir.path());
        let text = results["cells"].to_string();
        assert!(stderr.contains(word) || text.contains(&word.replace('"', "\\\"")), "{what}: {stderr}\n{text}");
        let statuses = statuses(&results);
        assert!(statuses.iter().any(|status| status != "ok"), "{what}: {statuses:?}");
        if *what == "unknown encoder" {
            assert!(statuses.contains(&"ok".to_owned()), "the other configuration was measured");
        }
        assert_clean(dir.path(), &[done.pid]);
    }
}

#[test]
fn a_failing_encoder_is_recorded_and_the_rest_is_kept() {
    requires!(root, ffmpeg);
    let dies = "printf 'frame=9\\nout_time_us=300000\\nprogress=continue\\n'; sleep 0.3; echo 'it died' >&2; exit 7";
    let hangs = "printf 'frame=1\\nout_time_us=30000\\nprogress=continue\\n'; sleep 60";
    let some_unknown = ["suite", "--encoder", "libx264,libx26", "--bitrate", "1M", "--repeats", "1"];
    assert_failures_are_recorded(&[
        ("dies", dies, &["--repeats", "1"], 1, "code 7: it died"),
        ("hangs", hangs, &["--repeats", "1", "--stall-timeout", "1"], 1, "no progress for 1 s"),
        ("unknown encoder", ":", &some_unknown, 1, "it has libx26"),
        ("no encoder at all", ":", &["--encoder", "nonsense"], 1, "no encoder \"nonsense\""),
        // ffmpeg goes on with a warning, although it does not apply the setting that the label
        // names.
        ("unknown option", ":", &["--encoder", "mpeg4", "--crf", "20", "--repeats", "1"], 1, "does not know an option"),
    ]);
}

#[test]
fn an_unreadable_source_is_recorded() {
    requires!(root, ffmpeg);
    assert_failures_are_recorded(&[
        ("unreadable source", ":", &["--source", "/etc/passwd"], 3, "cannot read the source"),
        ("absent source", ":", &["--source", "/nonexistent.mp4"], 3, "/nonexistent.mp4"),
    ]);
}

#[test]
fn missing_ffmpeg_directory_or_probe_is_reported() {
    requires!(root, ffmpeg);
    let (host, scratch) = (Host::new(), tempfile::tempdir().unwrap());
    // Without an ffmpeg nothing can be measured, even with --force.
    let Ended { code, stderr, .. } = host.run(&["--ffmpeg", "/nonexistent/ffmpeg"]);
    assert!(
        code != 0 && stderr.contains("--ffmpeg") && statuses(&results(host.dir())).iter().all(|status| status != "ok"),
        "{stderr}"
    );
    // An unwritable directory ends the run before it begins.
    let file = scratch.path().join("a-file");
    fs::write(&file, "").unwrap();
    let Ended { code, stderr, .. } = host.run_in(&file.join("results"), &[]);
    assert!(code == 5 && stderr.contains("--output-dir"), "{code} {stderr}");
    let mut sealed = Command::new("unshare");
    sealed.args(["-m", "sh", "-c", "mount -t tmpfs -o ro none \"$0\" && exec \"$@\""]).arg(scratch.path());
    sealed.arg(support::binary()).args(["run", "--skip-wait", "--probe-url", &host.probe.url, "--output-dir"]);
    let Ended { code, stderr, .. } = ended(spawn(sealed.arg(scratch.path())));
    assert!(code == 5 && stderr.contains("Read-only"), "{stderr}");
    // Without a probe no energy is available.
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(support::binary());
    command.args(["run", "--skip-wait", "--probe-url", NO_SERVER, "--output-dir"]).arg(dir.path());
    let Ended { code, stderr, .. } = ended(spawn(&mut command));
    assert!(code == 3 && stderr.contains("--force") && stderr.contains("Start the probe"), "{stderr}");
    assert_eq!(results(dir.path())["run"]["status"], "failed");
}

#[test]
fn a_full_disk_is_recorded_and_earlier_repeats_are_kept() {
    requires!(root, ffmpeg);
    let host = Host::new();
    // Room for the source (1.3 MB) and a small output file, but not for a lossless one.
    let script =
        "mount -t tmpfs -o size=1450k none \"$1\" && shift && \"$@\"; code=$?; cat \"$OUT\"/*.json; exit $code";
    let args = ["suite", "--crf", "0,40", "--encoder", "libx264", "--repeats", "1", "--seed", "1"];
    let inner = command(&host.probe.url, host.dir(), &args);
    let mut outer = Command::new("unshare");
    outer.args(["-m", "sh", "-c", script, "sh"]).arg(host.dir()).env("OUT", host.dir());
    let Ended { code, stderr, stdout, .. } = ended(spawn(outer.arg(inner.get_program()).args(inner.get_args())));
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("No space left on device") || stderr.contains("frames that were encoded"), "{stderr}");
    let results: Value = serde_json::from_str(&stdout[stdout.find("{\n").unwrap()..]).unwrap();
    let rows = rows(&results);
    assert!(rows["libx264 ultrafast crf 40 320x180 30 fps"].contains(&(1, "ok".to_owned())), "{rows:?}");
    assert!(rows["libx264 ultrafast crf 0 320x180 30 fps"].contains(&(1, "failed".to_owned())), "{rows:?}");
}

#[test]
fn a_second_run_on_the_same_host_is_refused() {
    requires!(root, ffmpeg);
    let (host, other) = (Host::new(), tempfile::tempdir().unwrap());
    // An encoder that waits for a file.
    let gate = host.probe.dir.path().join("gate");
    let waits = stand_in(host.probe.dir.path(), &format!("while [ ! -e {} ]; do sleep 0.05; done", gate.display()));
    let mut first = host.begin(&["--repeats", "1", "--ffmpeg", waits.to_str().unwrap()]);
    // From now on the first run holds the lock.
    eventually(60.0, "it has begun", || journal(host.dir()).contains("\"event\":\"run\""));
    let Ended { code, stderr, .. } = host.run_in(other.path(), &["--repeats", "1"]);
    assert!(code == 4 && stderr.contains("another run"), "{code} {stderr}");
    assert!(first.try_wait().unwrap().is_none(), "the first run continues");
    fs::write(gate, "").unwrap();
    let first = ended(first);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert_eq!(host.run_in(other.path(), &["--repeats", "1"]).code, 0);
}

#[test]
fn a_lost_probe_ends_the_run_and_repeats_are_kept() {
    requires!(root, ffmpeg);
    let mut host = Host::new();
    let plan = ["suite", "--encoder", "libx264", "--crf", "20,30", "--duration", "1", "--realtime", "--repeats", "2"];
    let runner = host.begin(&[&plan[..], &["--wait-timeout", "1"]].concat());
    wait_for_encoder_after(1, &runner, host.dir());
    host.probe.program.alive().unwrap();
    signal(host.probe.program.pid(), libc::SIGTERM);
    eventually(20.0, "the probe has ended", || host.probe.program.alive().is_err());
    let done = ended(runner);
    assert!(done.code == 1 && done.stderr.contains("--resume"), "{}", done.stderr);
    let statuses = statuses(&results(host.dir()));
    assert!(statuses.contains(&"ok".to_owned()) && statuses.contains(&"failed".to_owned()), "{statuses:?}");
    assert_clean(host.dir(), &[done.pid]);
    // The run can be resumed with another probe.
    host.probe = Probe::start(&[]);
    assert_eq!(host.run(&["--resume"]).code, 0);
}

#[test]
fn without_rights_the_encoder_runs_in_a_leased_cgroup() {
    requires!(root, ffmpeg);
    let _scopes = hold(Resource::Scopes);
    let host = Host::with_probe(&["--scope.socket=DIR/scope.sock", "--scope.group=65534"]);
    let (dir, socket) = (host.dir().join("results"), host.probe.dir.path().join("scope.sock"));
    fs::create_dir(&dir).unwrap();
    for path in [host.dir(), &dir] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    // Copy the program to where the unprivileged user may read it.
    let program = host.dir().join("wattcast-analysis");
    fs::copy(support::binary(), &program).unwrap();
    let unprivileged = |args: &[&str], socket: &str| {
        let args = [&["--repeats", "1", "--scope.socket", socket], args].concat();
        let mut own = Command::new(&program);
        own.args(command(&host.probe.url, &dir, &args).get_args());
        ended(spawn(own.uid(UNPRIVILEGED).gid(UNPRIVILEGED)))
    };
    let done = unprivileged(&[], socket.to_str().unwrap());
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("the probe's scope wattcast/scope-"), "{}", done.stderr);
    let results = results(&dir);
    let repeat = &results["cells"][0]["repeats"][0];
    assert!(
        repeat["container"].as_str().unwrap().starts_with("wattcast/scope-") && joules(repeat, "container") > 0.0,
        "{repeat}"
    );
    // Without the socket that user has no cgroup. With output files the run continues with the
    // energy of the host.
    let Ended { code, stderr, .. } = unprivileged(&[], "/nonexistent");
    assert_eq!(code, 0, "{stderr}");
    for word in ["energy is that of the whole host", "Delegate=yes", "--scope.group"] {
        assert!(stderr.contains(word), "{word}: {stderr}");
    }
    // A live run is refused.
    let Ended { code, stderr, .. } = unprivileged(&["--mode", "rtmp"], "/nonexistent");
    assert_eq!(code, 3, "{stderr}");
    for word in ["a live run is refused", "Delegate=yes"] {
        assert!(stderr.contains(word), "{word}: {stderr}");
    }
}

#[test]
fn an_encoder_in_a_container_is_charged_to_it() {
    requires!(root, ffmpeg, docker);
    let host = Host::new();
    let ffmpeg = which("ffmpeg").unwrap();
    let volumes = MOUNTS.iter().filter(|mount| Path::new(mount).exists());
    let volumes: Vec<String> = volumes.map(|mount| format!("--container.volume={mount}:{mount}:ro")).collect();
    // Longer than a tick, so that the probe discovers the container.
    let mut args = vec!["--repeats", "1", "--duration", "2", "--realtime", "--container.image", IMAGE];
    args.extend(["--container.ffmpeg", ffmpeg.to_str().unwrap()]);
    args.extend(volumes.iter().map(String::as_str));
    let done = host.run(&args);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let results = results(host.dir());
    let repeat = &results["cells"][0]["repeats"][0];
    let own = format!("wattcast-run-{}-", done.pid);
    assert!(repeat["container"].as_str().is_some_and(|name| name.starts_with(&own)), "{repeat} {}", done.stderr);
    assert!(joules(repeat, "container") > 0.0 && joules(repeat, "container") < joules(repeat, "host"), "{repeat}");
    let mut left = Command::new("docker");
    left.args(["ps", "--all", "--quiet", "--filter", &format!("name={own}")]);
    assert_eq!(output(&mut left).unwrap(), "");
}

/// Live streams, which need their share of the CPUs in real time.
mod whole_machine {
    use super::*;

    #[test]
    fn a_live_run_charges_only_the_encoder() {
        let _cpus = hold(Resource::Cpus);
        requires!(root, ffmpeg, nginx_rtmp);
        let host = Host::new();
        // Small streams, which are encoded in real time even on a loaded machine.
        let plan = ["multi", "--mode", "rtmp", "--bitrate", "500k", "--resolution", "64x36", "--repeats", "2"];
        let done = host.run(&[&plan[..], &["--duration", "3", "--stabilization", "1", "--baseline", "1"]].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        let results = results(host.dir());
        for repeat in results["cells"][0]["repeats"].as_array().unwrap() {
            let frames = repeat["frames"]["encoded"].as_u64().unwrap();
            // Two streams of 30 fps, as reported within 0.2 s of the marks. A suspended machine
            // lengthens the window, but not the frame rate.
            let most = 60.0 * repeat["window"]["seconds"].as_f64().unwrap() + 40.0;
            assert!((140.0..=most).contains(&(frames as f64)), "{frames} frames of about 180, at most {most}");
            let companions = &repeat["beside_microjoules"];
            let (own, generator) = (joules(repeat, "container"), companions["generator"].as_f64().unwrap() / 1e6);
            assert!(own > 0.0 && generator > 0.0 && own + generator < joules(repeat, "host"), "{repeat}");
            assert!(companions["server"].is_u64(), "{companions}");
        }
        assert!(host.run(&["--mode", "rtmp", "--encoder", "libx265"]).stderr.contains("supports only H.264"));
        assert_clean(host.dir(), &[done.pid]);
    }

    #[test]
    fn a_live_stream_is_scored_by_a_sample() {
        let _cpus = hold(Resource::Cpus);
        requires!(root, ffmpeg, nginx_rtmp, vmaf);
        let (host, scorer) = (Host::new(), require::vmaf_ffmpeg().unwrap());
        let plan = ["--mode", "rtmp", "--bitrate", "2M", "--resolution", "128x72", "--repeats", "1"];
        let quality = ["--analyze-quality", "--quality-ffmpeg", scorer.to_str().unwrap(), "--fps", "30000/1001"];
        let times = ["--duration", "3", "--stabilization", "1", "--baseline", "1"];
        let done = host.run(&[&plan[..], &quality, &times].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        let results = results(host.dir());
        let cell = &results["cells"][0];
        assert_eq!(cell["frame_rate"], "30000/1001");
        let repeat = &cell["repeats"][0];
        let scores = repeat["quality"].as_array().unwrap();
        let first = |metric: &str| scores.iter().find(|score| score["metric"] == metric).unwrap();
        let (vmaf, psnr) = (first("vmaf"), first("psnr"));
        // Frames shifted by one would lose 20 dB and more.
        assert!(vmaf["value"].as_f64().unwrap() > 60.0 && psnr["value"].as_f64().unwrap() > 30.0, "{repeat}");
        assert!(vmaf["pieces"].as_u64().unwrap() >= 1, "{vmaf}");
        assert!(host.dir().join(repeat["quality_frames"].as_str().unwrap()).exists());
        let kept = fs::read_dir(only(host.dir(), ".files")).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(kept.into_iter().all(|name| !name.to_string_lossy().ends_with("-live.mkv")), "samples are deleted");
        assert_clean(host.dir(), &[done.pid]);
    }
}

#[test]
fn ci_target_repeats_until_the_interval_or_the_maximum() {
    requires!(root, ffmpeg);
    let host = Host::new();
    let count = |args: &[&str]| {
        let done = host.run(&[&["--repeats", "2"], args].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        results(host.dir())["cells"][0]["repeats"].as_array().unwrap().len()
    };
    assert_eq!(count(&["--ci-target", "0.01%", "--max-repeats", "4"]), 4);
    assert_eq!(count(&[]), 2);
}

#[test]
fn compare_detects_a_slower_preset_and_no_other_change() {
    requires!(root, ffmpeg);
    let (host, fast, slow) = (Host::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (dir, preset) in [(&fast, "ultrafast"), (&slow, "slower")] {
        let plan = ["suite", "--encoder", "libx264", "--bitrate", "300k,600k", "--preset", preset];
        let done = host.run_in(dir.path(), &[&plan[..], &["--duration", "1", "--repeats", "4"]].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
    }
    let file = |dir: &tempfile::TempDir| only(dir.path(), ".json");
    let compare = |a: &Path, b: &Path, flags: &[&str]| {
        let output = Command::new(support::binary())
            .arg("compare")
            .args([a, b])
            .args(flags)
            .args(["--probe-url", NO_SERVER, "--json"])
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
    // In the other direction it is an improvement, so the gate passes.
    assert_eq!(compare(&file(&slow), &file(&fast), &["--metrics", "energy"]).0, Some(0));
    let (code, found) = compare(&file(&fast), &file(&fast), &[]);
    assert_eq!(code, Some(0), "{found}");
    assert!(
        found["rows"].as_array().unwrap().iter().all(|row| row["verdict"] == "same" || row["metric"] == "vmaf"),
        "{found}"
    );
    // No common metric.
    let (code, found) = compare(&file(&fast), &file(&slow), &["--metrics", "vmaf"]);
    assert_eq!(code, Some(3), "{found}");
}

#[test]
fn a_search_finds_how_many_streams_keep_up() {
    requires!(root, ffmpeg);
    let (host, scratch) = (Host::new(), tempfile::tempdir().unwrap());
    // A third stream runs at half of real time. All start a second late, which is no lag that
    // grows.
    let encode = "for output; do :; done; speed=2; case $output in *-3.mkv) speed=1 ;; esac; \
        start=$(date +%s%N); sleep 1; while :; do us=$((($(date +%s%N) - start) / 1000 * speed / 2 - 900000)); \
        [ $us -gt 0 ] && printf 'frame=%d\\nout_time_us=%d\\nprogress=continue\\n' $((us / 33333)) $us; \
        sleep 0.1; done";
    let ffmpeg = stand_in(scratch.path(), encode);
    let goal = ["search", "streams", "--max-streams", "3", "--duration", "2"];
    let done = host.run(&[&goal[..], &["--resolution", "64x36", "--ffmpeg", ffmpeg.to_str().unwrap()]].concat());
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("2 streams keep up with real time; 3 do not"), "{}", done.stderr);
    assert_eq!(rows(&results(host.dir())).len(), 3);
    let Ended { code, stderr, .. } = host.run(&["--resume"]);
    assert!(code == 64 && stderr.contains("no unfinished run"), "a search is not resumed: {code} {stderr}");
    for (flags, word) in [(&["--max-streams", "0"][..], "1..=256"), (&["--duration", "0.5"], "2 s and more")] {
        let Ended { code, stderr, .. } = host.run(&[&["search", "streams"], flags].concat());
        assert!(code != 0 && stderr.contains(word), "{code} {stderr}");
    }
}

/// The number of real-time streams depends on the load of the machine; that the search reports what
/// it measured does not.
#[test]
fn a_stream_search_reports_what_it_measured() {
    requires!(root, ffmpeg);
    let host = Host::new();
    let goal = ["search", "streams", "--max-streams", "2", "--duration", "2", "--resolution", "64x36"];
    let done = host.run(&goal);
    let results = results(host.dir());
    let keeps_up = |streams: u64| {
        let mut cells = results["cells"].as_array().unwrap().iter();
        let cell = cells.find(|cell| cell["axes"]["streams"] == streams)?;
        // The latest repeat counts. By at most 2 %, or a tenth of a second.
        let lag = &cell["repeats"].as_array().unwrap().last()?["lag"];
        let grew = lag["grew_seconds"].as_f64().zip(lag["in_seconds"].as_f64());
        Some(grew.is_some_and(|(grew, seconds)| grew <= (0.02 * seconds).max(0.1)))
    };
    let (found, tried) = match (keeps_up(1), keeps_up(2)) {
        (Some(true), Some(true)) => ("2 streams keep up with real time; 2 and more: --max-streams", 2),
        (Some(true), Some(false)) => ("1 streams keep up with real time; 2 do not", 2),
        (Some(false), None) => ("0 streams keep up with real time; 1 do not", 1),
        measured => panic!("{measured:?}: {results}"),
    };
    assert!(done.stderr.contains(found), "{found}: {}", done.stderr);
    assert_eq!((done.code, rows(&results).len()), (i32::from(keeps_up(1) == Some(false)), tried), "{}", done.stderr);
}

#[test]
fn a_bitrate_search_scores_vmaf_with_a_second_ffmpeg() {
    requires!(root, ffmpeg, vmaf);
    let (host, scorer) = (Host::new(), require::vmaf_ffmpeg().unwrap());
    let goal = ["search", "quality", "--target-vmaf", "90", "--tolerance", "2", "--duration", "1", "--fps", "10"];
    let done = host.run(&[&goal[..], &["--quality-ffmpeg", scorer.to_str().unwrap()]].concat());
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("the smallest found that reaches 90"), "{}", done.stderr);
    let results = results(host.dir());
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
    // Debian's ffmpeg has no libvmaf.
    let Ended { code, stderr, .. } = host.run(&["search", "quality", "--ffmpeg", "/usr/bin/ffmpeg"]);
    assert!(
        code == 0
            || (code == 3
                && stderr.contains("cannot search, VMAF is unavailable")
                && stderr.contains("imageio-ffmpeg")),
        "{code} {stderr}"
    );
}

#[test]
fn an_energy_search_names_its_result_and_is_resumed() {
    requires!(root, ffmpeg);
    let host = Host::new();
    let goal = ["search", "energy", "--target-psnr", "20", "--encoder", "libx264", "--preset", "ultrafast,slower"];
    let size = ["--duration", "1", "--min-bitrate", "100", "--max-bitrate", "800", "--looks", "1", "--seed", "1"];
    let done = host.run(&[&goal[..], &size].concat());
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.starts_with("Least energy at PSNR 20 dB: "), "{}", done.stdout);
    let found = results(host.dir());
    let search = &found["search"];
    assert!(search["outcome"] == "winner" || search["outcome"] == "tie", "{search}");
    assert!(search["command"].as_str().unwrap().starts_with("ffmpeg -i INPUT -map 0:v:0 -an -c:v libx264"), "{search}");
    assert!(search["encodes"].as_u64() < search["full_grid_encodes"].as_u64(), "{search}");
    assert!(search["basis"].as_str().unwrap().starts_with("Compared is energy of the kind: "), "{search}");
    let cells: Vec<&Value> = found["cells"].as_array().unwrap().iter().map(|cell| &cell["id"]).collect();
    for candidate in search["candidates"].as_array().unwrap() {
        for tried in candidate["tried"].as_array().unwrap() {
            assert!(cells.contains(&&tried["cell"]) && tried["value"]["mean"].as_f64().unwrap() > 0.0, "{tried}");
        }
    }
    let report = fs::read_to_string(only(host.dir(), ".html")).unwrap();
    assert!(report.contains("<h2>Search</h2>") && report.contains("Least energy at PSNR 20 dB"));

    // One line says what differs, or why nothing can be compared.
    let mut compare = Command::new(support::binary());
    compare.arg("compare").arg(only(host.dir(), ".json")).args(["--by", "preset", "--probe-url", NO_SERVER]);
    let compared = ended(spawn(&mut compare));
    assert!(compared.stdout.starts_with("By preset: ") && [0, 3].contains(&compared.code), "{}", compared.stderr);

    // The journal ends after the third encode, as if the search had been killed.
    let path = only(host.dir(), ".ndjson");
    let is_repeat = |line: &str| line.contains("\"event\":\"repeat\"");
    let mut count = 0;
    let whole = fs::read_to_string(&path).unwrap();
    let kept = whole.lines().take_while(|line| {
        count += usize::from(is_repeat(line));
        count <= 3
    });
    let kept = kept.map(|line| format!("{line}\n")).collect::<String>();
    fs::write(&path, &kept).unwrap();
    // With the flags that it was started with, or without any; others are a contradiction.
    let again =
        |flags: &[&str]| host.run(&[&["--resume"][..], &goal, &size, &["--resolution", "320x180"], flags].concat());
    let refused = again(&["--max-kbps", "500"]);
    assert!(refused.code == 64 && refused.stderr.contains("another goal"), "{} {}", refused.code, refused.stderr);
    let resumed = again(&[]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    let whole = fs::read_to_string(&path).unwrap();
    assert!(whole.starts_with(&kept) && whole.lines().filter(|line| is_repeat(line)).count() > 3, "{whole}");
    let rows = rows(&results(host.dir()));
    let is_once = |repeats: &Vec<(u64, String)>| {
        repeats.iter().enumerate().all(|(at, (n, status))| *n == at as u64 + 1 && status == "ok")
    };
    assert!(rows.values().all(is_once), "no encode is measured again: {rows:?}");
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let args = ["suite", "--crf", "20,30", "--encoder", "libx264", "--seed", "5", "--dry-run"];
    let Ended { code, stderr, stdout: text, .. } = run(NO_SERVER, &out, &args);
    assert!(code == 0 && text.contains("2 configurations, 3 times each") && text.contains("Seed 5"), "{stderr}{text}");
    assert!(!out.exists());
    let Ended { stdout, .. } =
        run(NO_SERVER, &out, &["search", "streams", "--max-streams", "5", "--duration", "2", "--dry-run"]);
    assert!(stdout.contains("search for the most streams, up to 5"), "{stdout}");
    let Ended { stdout, .. } = run(NO_SERVER, &out, &["search", "energy", "--max-kbps", "4000", "--dry-run"]);
    assert!(stdout.contains("the least energy per second of media at VMAF 93, with at most 4000 kbit/s"), "{stdout}");
    assert!(stdout.contains("libx264 ultrafast: ") && stdout.contains("every rate three times"), "{stdout}");
    for (args, word) in [
        (&["--bitrate", "1M,2M"][..], "run suite"),
        (&["--bitrate", "fast"], "2500k or 5M"),
        (&["--ci-target", "1%", "--repeats", "1"], "--repeats 2"),
        (&["suite", "/nonexistent.toml"], "/nonexistent.toml"),
        (&["--duration", "0.01"], "0.2 s"),
    ] {
        let Ended { code, stderr, .. } = run(NO_SERVER, &out, &[args, &["--dry-run"]].concat());
        assert!(code == 64 && stderr.contains(word), "{args:?}: {code} {stderr}");
    }
}
