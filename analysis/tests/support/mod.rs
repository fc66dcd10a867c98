//! Shared by the tests of the service: the running service, and real databases.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test uses a part, and a panic fails the test"
)]

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

pub use testkit::databases::Series;
use testkit::{api::Client, program::Program, shell, wait::eventually_ok};

/// An address without a server.
pub const NO_SERVER: &str = "http://127.0.0.1:1";

/// The service under test.
pub fn binary() -> PathBuf {
    shell::under_test(env!("CARGO_BIN_EXE_wattcast-analysis"))
}

/// A port that no other test uses.
pub fn free_port() -> u16 {
    testkit::ports::free_port().unwrap()
}

/// Unix seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Writes a result file as a runner should: under a temporary name, and then renamed.
pub fn write(dir: &Path, id: &str, text: &str) {
    let temporary = dir.join(format!(".{id}"));
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, dir.join(format!("test_results_{id}.json"))).unwrap();
}

pub struct Service {
    program: RefCell<Program>,
    pub client: Client,
    _logs: tempfile::TempDir,
}

impl Service {
    pub fn start(results: &Path, probe: &str, flags: &[&str]) -> Self {
        let logs = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary());
        command.args(["serve", "--web.listen-address=127.0.0.1:0", "--cache-ttl=1h", "--probe-url", probe]).args(flags);
        command.arg("--results-dir").arg(results);
        let mut program = Program::start("analysis", &mut command, logs.path()).unwrap();
        let client = program.client().unwrap();
        Self { program: program.into(), client, _logs: logs }
    }

    /// 0 results, 1 ffmpeg, 2 nginx, 3 quality, 4 cost, 5 health.
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
        let client = self.port(port);
        eventually_ok(20.0, what, || {
            let page = client.text("/metrics").map_err(|error| format!("{error:#}\n{}", self.log()))?;
            if so(&page) { Ok(page) } else { Err(format!("{page}\n{}", self.log())) }
        })
    }
}

/// A Prometheus or VictoriaMetrics with samples.
pub struct Database {
    pub url: String,
    real: testkit::databases::Database,
}

impl Database {
    pub fn victoria(all: &[Series]) -> Self {
        Self::of(testkit::databases::Database::victoria(all, None).unwrap())
    }

    pub fn prometheus(all: &[Series]) -> Self {
        Self::of(testkit::databases::Database::prometheus(all, "global: {}\n", None).unwrap())
    }

    fn of(real: testkit::databases::Database) -> Self {
        Self { url: real.url.clone(), real }
    }

    /// Makes written samples visible to queries.
    pub fn flush(&self) {
        self.real.flush().unwrap();
    }
}

/// Writes a file into a directory of the test.
pub fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}
