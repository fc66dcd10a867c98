//! Shipped configurations as tests run them: with free ports of this machine in place of the stack's, and with short intervals.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::scrape;
use testkit::{ports::free_port, shell::root};

/// Which port stands for each of the stack's.
#[derive(Debug)]
pub struct Places(Vec<(u16, &'static str, u16)>);

impl Places {
    /// A free port for each.
    ///
    /// # Errors
    /// When there is none.
    pub fn choose() -> Result<Self> {
        scrape::ports().map(|(port, host)| Ok((port, host, free_port()?))).collect::<Result<_>>().map(Self)
    }

    /// The port that stands for one of the stack's.
    #[must_use]
    pub fn port(&self, shipped: u16) -> u16 {
        self.0.iter().find(|(port, ..)| *port == shipped).map_or(shipped, |(.., here)| *here)
    }

    /// A file of `deploy/compose` with these addresses in it, and the VictoriaMetrics of that URL, if one is given.
    ///
    /// # Errors
    /// When it cannot be read, or names nobody of the stack.
    pub fn put_into(&self, file: &str, victoria: &str) -> Result<String> {
        let path = root().join(file);
        let mut text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let before = text.clone();
        if !victoria.is_empty() {
            text = text.replace("http://victoriametrics:8428", victoria);
        }
        for (port, host, here) in &self.0 {
            text = text.replace(&format!("{host}:{port}"), &format!("127.0.0.1:{here}"));
        }
        ensure!(text != before, "{file} names nobody of the stack");
        Ok(text)
    }
}

/// A shipped configuration or file of rules with seconds in place of the minutes that suit people; nothing else changes.
#[must_use]
pub fn short_intervals(text: &str) -> String {
    const SHORTER: [(&str, &str); 7] = [
        ("for: 1m", "for: 2s"),
        ("scrape_interval: 5s", "scrape_interval: 1s"),
        ("scrape_timeout: 5s", "scrape_timeout: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ("interval: 15s", "interval: 1s"),
        ("group_wait: 10s", "group_wait: 1s"),
        ("group_interval: 1m", "group_interval: 2s"),
    ];
    SHORTER.iter().fold(text.to_owned(), |text, (shipped, here)| text.replace(shipped, here))
}

/// Writes the shipped rules with [`short_intervals`] into a new directory.
///
/// # Errors
/// When they cannot be read or written.
pub fn short_rules(dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    for entry in fs::read_dir(root().join("deploy/prometheus/rules"))? {
        let path = entry?.path();
        let name = path.file_name().context("a file without a name")?;
        fs::write(dir.join(name), short_intervals(&fs::read_to_string(&path)?))?;
    }
    Ok(())
}
