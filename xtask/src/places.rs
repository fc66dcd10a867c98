//! Shipped configurations with addresses of this machine in them: for each port of the stack one that was free a moment ago.

use std::fs;

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
