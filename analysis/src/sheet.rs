//! A page that one thread keeps fresh and any number of requests are shown.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use exporter::{
    family::Family,
    landing::Landing,
    page::{self, Page, Writer},
    program,
    server::Pages,
};
use tracing::error;

struct Written {
    page: Arc<Page>,
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
    collectors: &'static [&'static str],
    compat: bool,
    stale: Duration,
    written: ArcSwapOption<Written>,
}

impl Sheet {
    /// An empty sheet; one that is not written for `stale` is sick. What is written is of the last collector, and what stands before it of the others.
    /// `compat` shows the names of the exporters that we replace, too.
    #[must_use]
    pub fn new(
        name: &'static str,
        about: &'static str,
        collectors: &'static [&'static str],
        compat: bool,
        stale: Duration,
    ) -> Self {
        Self { name, about, collectors, compat, stale, written: ArcSwapOption::empty() }
    }

    /// Renders a page and shows it from now on, with tables for people, and what is missing.
    pub fn write(&self, families: Vec<Family>, tables: Vec<Table>, missing: Vec<String>) {
        self.write_after(&Page::default(), families, tables, missing);
    }

    /// The same after a part of the page that was rendered before.
    pub fn write_after(&self, before: &Page, families: Vec<Family>, tables: Vec<Table>, missing: Vec<String>) {
        let render = || -> Result<Page, page::Error> {
            let mut writer = Writer::compat(self.compat);
            writer.copy(before);
            writer.write(self.collectors.last().copied().unwrap_or_default(), families)?;
            Ok(writer.finish())
        };
        match render() {
            Ok(page) => {
                let written = Written { page: Arc::new(page), tables, missing, at: Instant::now() };
                self.written.store(Some(Arc::new(written)));
            }
            Err(error) => error!("cannot render the page of {}: {error}", self.name),
        }
    }
}

impl Pages for Sheet {
    fn page(&self) -> Option<Arc<Page>> {
        self.written.load().as_ref().map(|written| written.page.clone())
    }

    fn collectors(&self) -> Vec<&'static str> {
        self.collectors.to_vec()
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
