//! What the tests of the service share: the service itself, and real databases beside it.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test uses its part, and one that cannot go on has failed"
)]

use std::{
    cell::RefCell,
    fmt::Write as _,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use xtask::{
    api::Client,
    program::Program,
    shell::{output, which},
};

/// Nobody listens there.
pub const NOBODY: &str = "http://127.0.0.1:1";

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Unix seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Writes a result file as a runner should: beside, and then in its place.
pub fn write(dir: &Path, id: &str, text: &str) {
    let beside = dir.join(format!(".{id}"));
    fs::write(&beside, text).unwrap();
    fs::rename(beside, dir.join(format!("test_results_{id}.json"))).unwrap();
}

/// The running service.
pub struct Service {
    program: RefCell<Program>,
    pub client: Client,
    _logs: tempfile::TempDir,
}

impl Service {
    pub fn start(results: &Path, probe: &str, flags: &[&str]) -> Self {
        let logs = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_wattcast-analysis"));
        command.args(["serve", "--web.listen-address=127.0.0.1:0", "--cache-ttl=1h", "--probe-url", probe]).args(flags);
        command.arg("--results-dir").arg(results);
        let mut program = Program::start("analysis", &mut command, logs.path()).unwrap();
        let client = program.client().unwrap();
        Self { program: program.into(), client, _logs: logs }
    }

    /// 0 results, 1 ffmpeg, 2 nginx, 3 quality, 4 cost.
    pub fn port(&self, number: usize) -> Client {
        self.program.borrow_mut().client_of(number).unwrap()
    }

    pub fn log(&self) -> String {
        self.program.borrow().log()
    }

    pub fn pid(&self) -> u32 {
        self.program.borrow().pid()
    }

    pub fn page(&self) -> String {
        self.client.text("/metrics").unwrap()
    }

    pub fn eventually(&self, what: &str, so: impl Fn(&str) -> bool) -> String {
        self.eventually_at(0, what, so)
    }

    pub fn eventually_at(&self, port: usize, what: &str, so: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + Duration::from_secs(20);
        let client = self.port(port);
        loop {
            let page = client.text("/metrics").unwrap();
            if so(&page) {
                return page;
            }
            assert!(Instant::now() < end, "not within 20 s: {what}\n{page}\n{}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A series with its samples: unix seconds, and millionths.
pub struct Series {
    pub name: &'static str,
    pub labels: String,
    pub samples: Vec<(u64, u64)>,
}

fn value(micro: u64) -> String {
    format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000)
}

/// A Prometheus or a VictoriaMetrics that holds samples.
pub struct Database {
    pub url: String,
    _program: Program,
    _dir: tempfile::TempDir,
}

impl Database {
    /// A VictoriaMetrics; `None`, and the reason printed, where there is none.
    pub fn victoria(all: &[Series]) -> Option<Self> {
        let Some(binary) = which("victoria-metrics") else {
            println!("skipped: victoria-metrics is not in PATH");
            return None;
        };
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut command = Command::new(binary);
        command.arg(format!("-storageDataPath={}", dir.path().join("data").display()));
        command.arg(format!("-httpListenAddr=127.0.0.1:{port}"));
        command.args(["-retentionPeriod=100y", "-search.latencyOffset=1s", "-memory.allowedPercent=10"]);
        let database = Self::wait(Program::start("victoria", &mut command, dir.path()).unwrap(), dir, port, "/health");
        let mut lines = String::new();
        for series in all {
            for (at, micro) in &series.samples {
                let _ = writeln!(lines, "{}{{{}}} {} {}", series.name, series.labels, value(*micro), at * 1000);
            }
        }
        let agent = ureq::Agent::new_with_defaults();
        let reply = agent.post(format!("{}/api/v1/import/prometheus", database.url)).send(&lines).unwrap();
        assert!(reply.status().is_success());
        database.flush();
        Some(database)
    }

    /// What was written is found from now on.
    pub fn flush(&self) {
        let agent = ureq::Agent::new_with_defaults();
        agent.get(format!("{}/internal/force_flush", self.url)).call().unwrap();
    }

    /// A Prometheus; `None`, and the reason printed, where there is none.
    pub fn prometheus(all: &[Series]) -> Option<Self> {
        let (Some(binary), Some(promtool)) = (which("prometheus"), which("promtool")) else {
            println!("skipped: prometheus and promtool are not in PATH");
            return None;
        };
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut text = String::new();
        let mut names: Vec<_> = all.iter().map(|series| series.name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let _ = writeln!(text, "# TYPE {} counter", name.trim_end_matches("_total"));
            for series in all.iter().filter(|series| series.name == name) {
                for (at, micro) in &series.samples {
                    let _ = writeln!(text, "{name}{{{}}} {} {at}", series.labels, value(*micro));
                }
            }
        }
        text.push_str("# EOF\n");
        let fixture = dir.path().join("fixture.om");
        fs::write(&fixture, text).unwrap();
        let data = dir.path().join("data");
        output(Command::new(promtool).args(["tsdb", "create-blocks-from", "openmetrics"]).arg(&fixture).arg(&data))
            .unwrap();
        let config = dir.path().join("prometheus.yml");
        fs::write(&config, "global: {}\n").unwrap();
        let mut command = Command::new(binary);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", data.display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        command.arg("--storage.tsdb.retention.time=100y");
        Some(Self::wait(Program::start("prometheus", &mut command, dir.path()).unwrap(), dir, port, "/-/ready"))
    }

    fn wait(mut program: Program, dir: tempfile::TempDir, port: u16, path: &str) -> Self {
        let url = format!("http://127.0.0.1:{port}");
        let client = Client::new(&url);
        let end = Instant::now() + Duration::from_secs(30);
        while client.get(path).is_ok_and(|(status, _)| status != 200) || client.get(path).is_err() {
            program.alive().unwrap();
            assert!(Instant::now() < end, "{}", program.log());
            thread::sleep(Duration::from_millis(50));
        }
        Self { url, _program: program, _dir: dir }
    }
}

/// A file in a directory of the test.
pub fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}
