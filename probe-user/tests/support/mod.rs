//! Shared helpers of the tests that run the probe.

// Each test file uses a part of them.
#![allow(dead_code, unused_macros, unused_imports)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use testkit::{
    api::{Client, Sample},
    cgroup::{self, Cgroup},
    docker::Engine,
    eventually,
    program::{Program, kill_on_parent_exit},
    require, shell, sleep,
    wait::eventually_ok,
};

/// The probe under test.
pub(crate) fn binary() -> PathBuf {
    shell::under_test(env!("CARGO_BIN_EXE_wattcast-probe"))
}

/// A running probe on its own port.
pub(crate) struct Probe {
    pub(crate) program: Program,
    pub(crate) client: Client,
    _logs: tempfile::TempDir,
}

impl Probe {
    /// Starts the binary with additional flags.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::start_command(&mut Command::new(binary()), flags)
    }

    pub(crate) fn start_command(command: &mut Command, flags: &[&str]) -> Self {
        let logs = tempfile::tempdir().unwrap();
        command.arg("--web.listen-address=127.0.0.1:0").args(flags);
        let mut program = Program::start_with_state("probe", command, logs.path()).unwrap();
        let client = program.client().unwrap();
        Self { program, client, _logs: logs }
    }

    pub(crate) fn metrics(&self) -> Page {
        Page(self.client.metrics().unwrap())
    }

    /// The page of a tick that begins after this call.
    pub(crate) fn fresh(&self) -> Page {
        self.client.mark().unwrap();
        self.metrics()
    }

    /// Waits for the first regular tick, soon after the start. With a long `--tick`, later ticks
    /// come from marks only.
    pub(crate) fn first_regular_tick(&self) {
        let regular = || self.metrics().get("wattcast_tick_jitter_seconds_count", &[]);
        eventually(20.0, "a regular tick", || regular() >= 1.0);
    }

    /// A tick of at least `seconds` without an interruption of the energy readings at both of its
    /// ends. Needs a long `--tick`.
    pub(crate) fn undisturbed_tick(&self, seconds: f64) -> Tick {
        self.first_regular_tick();
        let took = |page: &Page| page.get("wattcast_collector_duration_seconds", &[("collector", "energy")]);
        eventually_ok(30.0, "energy is read within 1 ms at both ends of a tick", || {
            let (start, before) = (self.client.mark().unwrap(), self.metrics());
            sleep(seconds);
            let (end, page) = (self.client.mark().unwrap(), self.metrics());
            let longest = took(&page).max(took(&before));
            if longest < 0.001 { Ok(Tick { before, page, seconds: end - start }) } else { Err(longest) }
        })
    }

    /// Ends it cleanly. False if it had no time to save its state, as on a disk that other programs
    /// keep busy.
    pub(crate) fn end(self) -> bool {
        let Self { program, _logs: logs, .. } = self;
        assert!(program.stop().unwrap().success());
        let log = fs::read_to_string(logs.path().join("probe.log")).unwrap();
        !log.contains("without saving totals and idle power")
    }

    /// State and reason of a source.
    pub(crate) fn source(&self, name: &str) -> (String, String) {
        let sources = self.client.json("/api/v1/sources").unwrap();
        let source = sources.as_array().unwrap().iter().find(|source| source["source"] == name);
        let source = source.unwrap_or_else(|| panic!("no source {name} in {sources}"));
        (source["state"].as_str().unwrap().to_owned(), source["detail"].as_str().unwrap().to_owned())
    }
}

/// A process in its own cgroup that wakes ten times a second and computes a little. It ends when
/// this is dropped.
pub(crate) struct Workload {
    child: Child,
    cgroup: Cgroup,
}

impl Workload {
    /// Starts it in a new cgroup called `name`.
    pub(crate) fn start(name: &str) -> Self {
        let cgroup = Cgroup::create(&cgroup::v2().unwrap(), name).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do sleep 0.1; done"]);
        cgroup.enter(&mut command).unwrap();
        kill_on_parent_exit(&mut command);
        Self { child: command.spawn().unwrap(), cgroup }
    }

    /// The name of its cgroup.
    pub(crate) fn name(&self) -> &str {
        self.cgroup.dir.file_name().unwrap().to_str().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, and returns when the kernel reports it as dead. It is not reaped, so its number is
    /// not reused.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        let stat = format!("/proc/{}/stat", self.pid());
        eventually(10.0, "the process is dead", || fs::read_to_string(&stat).unwrap().contains(") Z "));
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A tick: the page before it, its own page, and its length.
pub(crate) struct Tick {
    pub(crate) before: Page,
    pub(crate) page: Page,
    pub(crate) seconds: f64,
}

/// A metrics page.
pub(crate) struct Page(pub(crate) Vec<Sample>);

impl Page {
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    /// The one sample with these labels.
    pub(crate) fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found =
            self.all(name).filter(|sample| labels.iter().all(|(label, value)| sample.label(label) == *value));
        let first = found.next()?;
        assert!(found.next().is_none(), "{name}{labels:?} exists twice");
        Some(first.value)
    }

    pub(crate) fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("no {name}{labels:?}"))
    }

    /// CPU seconds of a container on all packages.
    pub(crate) fn cpu(&self, container: &str) -> f64 {
        self.all("wattcast_container_cpu_seconds_total")
            .filter(|sample| sample.label("container") == container)
            .map(|sample| sample.value)
            .sum()
    }

    /// Asserts that the parts of every root sum to its measured energy, in integer microjoules.
    /// Returns the parts of package 0.
    pub(crate) fn assert_conserved(&self) -> Account {
        let mut sums: BTreeMap<(String, String), i64> = BTreeMap::new();
        let mut account = Account::default();
        for (part, (name, sign)) in testkit::account::PARTS.into_iter().enumerate() {
            for sample in self.all(name).filter(|sample| matches!(sample.label("zone"), "package" | "dram" | "gpu")) {
                let key = (sample.label("package").to_owned(), sample.label("zone").to_owned());
                if key == ("0".to_owned(), "package".to_owned()) {
                    account.0[part] += sample.value;
                }
                *sums.entry(key).or_default() += sign * testkit::account::microjoules(sample.value);
            }
        }
        assert!(!sums.is_empty(), "no account on the page");
        for (root, error) in sums {
            assert_eq!(error, 0, "microjoules of {root:?}");
            let labels = [("package", &*root.0), ("zone", &*root.1)];
            assert_eq!(self.get("wattcast_conservation_error_joules", &labels), 0.0);
        }
        account
    }
}

/// Joules of package 0: containers, retired, system, idle, unattributed, measured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account([f64; 6]);

impl Account {
    pub(crate) fn containers(&self) -> f64 {
        self.0[0]
    }

    pub(crate) fn system_and_unattributed(&self) -> f64 {
        self.0[2] + self.0[4]
    }

    pub(crate) fn dynamic(&self) -> f64 {
        self.0[5] - self.0[3]
    }
}

/// Checks by means of a probe that eBPF programs can be loaded.
///
/// # Errors
/// Why not.
///
/// # Panics
/// When they are neither usable, absent nor denied, which is a failure and no reason to skip.
pub(crate) fn ebpf() -> Result<(), String> {
    require::root()?;
    require::cgroup_v2()?;
    let probe = Probe::start(&["--energy.source=model", "--cpu.tier=switch"]);
    match probe.source("cpu") {
        (state, _) if state == "usable" => Ok(()),
        (state, detail) if state == "absent" || state == "denied" => Err(format!("eBPF is {state}: {detail}")),
        (state, detail) => panic!("eBPF is {state}: {detail}"),
    }
}

/// The Docker engine, if eBPF programs can be loaded too.
///
/// # Errors
/// When the engine or a requirement of eBPF is missing.
pub(crate) fn ebpf_and_docker() -> Result<Engine, String> {
    ebpf()?;
    engine()
}

/// The Docker engine.
///
/// # Errors
/// Why it is unavailable.
pub(crate) fn engine() -> Result<Engine, String> {
    require::root()?;
    Engine::find().map_err(|error| format!("{error:#}"))
}

/// The stand-in for NVIDIA's library, which cargo builds next to the tests as their dependency.
pub(crate) fn fake_nvml() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let library = exe.parent().unwrap().join("libfake_nvml.so");
    assert!(library.exists(), "{} is not built", library.display());
    library
}

/// A machine as a directory tree.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A copy of a fixture, in which a test may change counters.
pub(crate) fn copy_fixture(name: &str) -> tempfile::TempDir {
    testkit::fixture::copy(&fixture(name)).unwrap()
}
