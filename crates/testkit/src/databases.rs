//! Prometheus and VictoriaMetrics on free ports, with given samples.

use std::{fmt::Write as _, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};

use crate::{
    api::Client,
    ports::free_port,
    program::Program,
    shell::{output, which},
};

/// A series with its samples.
#[derive(Clone, Debug)]
pub struct Series {
    /// The metric name.
    pub name: &'static str,
    /// The labels as they are written between braces.
    pub labels: String,
    /// Unix seconds, and values in millionths.
    pub samples: Vec<(u64, u64)>,
}

/// A running database, which ends when this is dropped.
#[derive(Debug)]
pub struct Database {
    /// The base URL.
    pub url: String,
    _program: Program,
    _dir: tempfile::TempDir,
}

fn value(micro: u64) -> String {
    format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000)
}

impl Database {
    /// Starts VictoriaMetrics, with a scrape configuration if `scrape` is given.
    ///
    /// # Errors
    /// When it is not installed, or does not start.
    pub fn victoria(all: &[Series], scrape: Option<&Path>) -> Result<Self> {
        let binary = which("victoria-metrics").context("victoria-metrics is not in PATH")?;
        let (dir, port) = (tempfile::tempdir()?, free_port()?);
        let mut command = Command::new(binary);
        command.arg(format!("-storageDataPath={}", dir.path().join("data").display()));
        command.arg(format!("-httpListenAddr=127.0.0.1:{port}"));
        command.args(["-retentionPeriod=100y", "-search.latencyOffset=1s", "-memory.allowedPercent=10"]);
        if let Some(scrape) = scrape {
            command.arg(format!("-promscrape.config={}", scrape.display()));
        }
        let program = Program::start("victoria", &mut command, dir.path())?;
        let database = Self::wait(program, dir, port, "/health")?;
        let mut lines = String::new();
        for series in all {
            for (at, micro) in &series.samples {
                let _ = writeln!(lines, "{}{{{}}} {} {}", series.name, series.labels, value(*micro), at * 1000);
            }
        }
        if !all.is_empty() {
            let agent = ureq::Agent::new_with_defaults();
            agent.post(format!("{}/api/v1/import/prometheus", database.url)).send(&lines)?;
            database.flush()?;
        }
        Ok(database)
    }

    /// Makes all written samples visible to queries.
    ///
    /// # Errors
    /// When VictoriaMetrics does not respond.
    pub fn flush(&self) -> Result<()> {
        ureq::Agent::new_with_defaults().get(format!("{}/internal/force_flush", self.url)).call()?;
        Ok(())
    }

    /// Starts Prometheus with a configuration, in whose directory `rules` links to the given
    /// directory.
    ///
    /// # Errors
    /// When it is not installed, or does not start.
    pub fn prometheus(all: &[Series], config: &str, rules: Option<&Path>) -> Result<Self> {
        let binary = which("prometheus").context("prometheus is not in PATH")?;
        let promtool = which("promtool").context("promtool is not in PATH")?;
        let (dir, port) = (tempfile::tempdir()?, free_port()?);
        let data = dir.path().join("data");
        if !all.is_empty() {
            let fixture = dir.path().join("fixture.om");
            fs::write(&fixture, openmetrics(all))?;
            output(
                Command::new(promtool).args(["tsdb", "create-blocks-from", "openmetrics"]).arg(&fixture).arg(&data),
            )?;
        }
        let file = dir.path().join("prometheus.yml");
        fs::write(&file, config)?;
        if let Some(rules) = rules {
            std::os::unix::fs::symlink(rules, dir.path().join("rules"))?;
        }
        let mut command = Command::new(binary);
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", data.display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        command.args(["--storage.tsdb.retention.time=100y", "--web.enable-remote-write-receiver"]);
        Self::wait(Program::start("prometheus", &mut command, dir.path())?, dir, port, "/-/ready")
    }

    fn wait(mut program: Program, dir: tempfile::TempDir, port: u16, path: &str) -> Result<Self> {
        let url = format!("http://127.0.0.1:{port}");
        Client::new(&url)
            .wait(path, Duration::from_secs(30), || program.alive())
            .with_context(|| format!("log of the database:\n{}", program.log()))?;
        Ok(Self { url, _program: program, _dir: dir })
    }
}

/// The series in the format of `promtool tsdb create-blocks-from openmetrics`. Names that end in
/// `_total` must be counters.
fn openmetrics(all: &[Series]) -> String {
    let mut text = String::new();
    let mut names: Vec<_> = all.iter().map(|series| series.name).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let (family, kind) = match name.strip_suffix("_total") {
            Some(family) => (family, "counter"),
            None => (name, "gauge"),
        };
        let _ = writeln!(text, "# TYPE {family} {kind}");
        for series in all.iter().filter(|series| series.name == name) {
            for (at, micro) in &series.samples {
                let _ = writeln!(text, "{name}{{{}}} {} {at}", series.labels, value(*micro));
            }
        }
    }
    text.push_str("# EOF\n");
    text
}
