//! Shipped configurations, adapted for tests: with free ports of this machine, and short intervals.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::scrape_config;
use testkit::{ports::free_port, shell::root};

/// The free port of this machine for each port of the stack.
#[derive(Debug)]
pub struct PortMap(Vec<(u16, &'static str, u16)>);

impl PortMap {
    pub fn allocate() -> Result<Self> {
        scrape_config::ports().map(|(port, host)| Ok((port, host, free_port()?))).collect::<Result<_>>().map(Self)
    }

    /// The port for a port of the stack.
    #[must_use]
    pub fn port(&self, shipped: u16) -> u16 {
        self.0.iter().find(|(port, ..)| *port == shipped).map_or(shipped, |(.., here)| *here)
    }

    /// Flags of the probe for its ports.
    #[must_use]
    pub fn probe_flags(&self) -> [String; 3] {
        [
            format!("--web.listen-address=127.0.0.1:{}", self.port(9500)),
            format!("--stats.port={}", self.port(9501)),
            format!("--gpu.port={}", self.port(9505)),
        ]
    }

    /// Flags of `wattcast-analysis serve` for the probe and its own ports.
    #[must_use]
    pub fn analysis_flags(&self) -> Vec<String> {
        let ports = [("qoe", 9503), ("cost", 9504), ("ffmpeg", 9506), ("health", 9600), ("nginx", 9728)];
        let ports = ports.map(|(flag, port)| format!("--{flag}.port={}", self.port(port)));
        let probe = format!("--probe-url=http://127.0.0.1:{}", self.port(9500));
        let web = format!("--web.listen-address=127.0.0.1:{}", self.port(9502));
        [probe, web].into_iter().chain(ports).collect()
    }

    /// Reads a file of `deploy/compose`, and replaces addresses of the stack by these ports, and
    /// that of VictoriaMetrics by the URL `victoria`, unless it is empty.
    pub fn substitute(&self, file: &str, victoria: &str) -> Result<String> {
        let path = root().join(file);
        let mut text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let before = text.clone();
        if !victoria.is_empty() {
            text = text.replace("http://victoriametrics:8428", victoria);
        }
        for (port, host, here) in &self.0 {
            text = text.replace(&format!("{host}:{port}"), &format!("127.0.0.1:{here}"));
        }
        ensure!(text != before, "{file} contains no address of the stack");
        Ok(text)
    }
}

/// Shortens the intervals of a configuration or rule file to seconds.
#[must_use]
pub fn short_intervals(text: &str) -> String {
    const INTERVALS: [(&str, &str); 7] = [
        ("for: 1m", "for: 2s"),
        ("scrape_interval: 5s", "scrape_interval: 1s"),
        ("scrape_timeout: 5s", "scrape_timeout: 1s"),
        ("evaluation_interval: 5s", "evaluation_interval: 1s"),
        ("interval: 15s", "interval: 1s"),
        ("group_wait: 10s", "group_wait: 1s"),
        ("group_interval: 1m", "group_interval: 2s"),
    ];
    INTERVALS.iter().fold(text.to_owned(), |text, (shipped, here)| text.replace(shipped, here))
}

/// Writes the shipped rules with [`short_intervals`] into a new directory.
pub fn short_rules(dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    for entry in fs::read_dir(root().join("deploy/prometheus/rules"))? {
        let path = entry?.path();
        let name = path.file_name().context("a file without a name")?;
        fs::write(dir.join(name), short_intervals(&fs::read_to_string(&path)?))?;
    }
    Ok(())
}
