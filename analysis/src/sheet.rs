//! A page that one thread keeps fresh and any number of requests are shown.

use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use exporter::{family::Family, landing::Landing, page, program, server::Pages};
use tracing::error;

struct Written {
    metrics: Bytes,
    tables: Vec<Table>,
    missing: Vec<String>,
    at: Instant,
}

/// Title, heads, rows.
pub type Table = (String, Vec<String>, Vec<Vec<String>>);

/// One port's pages.
pub struct Sheet {
    name: &'static str,
    about: &'static str,
    stale: Duration,
    written: ArcSwapOption<Written>,
}

impl Sheet {
    /// An empty sheet; one that is not written for `stale` is sick.
    #[must_use]
    pub fn new(name: &'static str, about: &'static str, stale: Duration) -> Self {
        Self { name, about, stale, written: ArcSwapOption::empty() }
    }

    /// Renders a page and shows it from now on, with tables for people, and what is missing.
    pub fn write(&self, families: Vec<Family>, tables: Vec<Table>, missing: Vec<String>) {
        self.write_after(&Bytes::new(), families, tables, missing);
    }

    /// The same after a part of the page that was rendered before.
    pub fn write_after(&self, before: &Bytes, families: Vec<Family>, tables: Vec<Table>, missing: Vec<String>) {
        match page::render(families) {
            Ok(after) => {
                let metrics = if before.is_empty() { after } else { [&**before, &after].concat().into() };
                self.written.store(Some(std::sync::Arc::new(Written { metrics, tables, missing, at: Instant::now() })));
            }
            Err(error) => error!("cannot render the page of {}: {error}", self.name),
        }
    }
}

impl Pages for Sheet {
    fn metrics(&self) -> Option<Bytes> {
        self.written.load().as_ref().map(|written| written.metrics.clone())
    }

    fn unhealthy(&self) -> Option<String> {
        let age = self.written.load().as_ref()?.at.elapsed();
        (age > self.stale).then(|| format!("the page was last written {:.0} s ago", age.as_secs_f64()))
    }

    fn unready(&self) -> Vec<String> {
        match &*self.written.load() {
            None => vec!["nothing was read yet".to_owned()],
            Some(written) => self.unhealthy().into_iter().chain(written.missing.iter().cloned()).collect(),
        }
    }

    fn landing(&self) -> Landing {
        let link = |path: &str, what: &str| (path.to_owned(), what.to_owned());
        let tables = self.written.load().as_ref().map(|written| written.tables.clone()).unwrap_or_default();
        Landing {
            name: self.name.to_owned(),
            about: self.about.to_owned(),
            version: program::version().into(),
            links: vec![
                link("/metrics", "for Prometheus"),
                link("/health", "alive?"),
                link("/ready", "is there anything to show?"),
            ],
            tables,
        }
    }
}
