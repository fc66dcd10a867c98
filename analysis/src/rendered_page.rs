//! A page that one thread renders and any number of requests read.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use cli::program;
use http::{index_page::IndexPage, server::Pages};
use metrics::{
    family::Family,
    page::{self, Page, Writer},
};
use tracing::error;

struct Rendered {
    page: Arc<Page>,
    banners: Vec<String>,
    tables: Vec<Table>,
    missing: Vec<String>,
    at: Instant,
}

/// A table of the index page: title, column heads, rows.
pub type Table = (String, Vec<String>, Vec<Vec<String>>);

/// The content of an index page.
#[derive(Clone, Debug, Default)]
pub struct IndexContent {
    /// Sentences at its top that must not be overlooked.
    pub banners: Vec<String>,
    pub tables: Vec<Table>,
}

/// The metrics page and the index page of one port.
pub struct RenderedPage {
    name: &'static str,
    about: &'static str,
    collectors: &'static [&'static str],
    compat: bool,
    stale: Duration,
    rendered: ArcSwapOption<Rendered>,
}

impl RenderedPage {
    /// An empty page, unhealthy once it has not been written for `stale`. [`Self::write`] renders
    /// the last of `collectors`; `compat` includes the legacy metric names.
    #[must_use]
    pub fn new(
        name: &'static str,
        about: &'static str,
        collectors: &'static [&'static str],
        compat: bool,
        stale: Duration,
    ) -> Self {
        Self { name, about, collectors, compat, stale, rendered: ArcSwapOption::empty() }
    }

    /// Renders and publishes a page, with tables for the index page and the reasons why it is
    /// incomplete.
    pub fn write(&self, families: Vec<Family>, tables: Vec<Table>, missing: Vec<String>) {
        self.write_after(&Page::default(), families, IndexContent { tables, banners: Vec::new() }, missing);
    }

    /// Renders and publishes a page that begins with an already rendered part.
    pub fn write_after(&self, before: &Page, families: Vec<Family>, index: IndexContent, missing: Vec<String>) {
        let render = || -> Result<Page, page::Error> {
            let mut writer = Writer::compat(self.compat);
            writer.copy(before);
            writer.write(self.collectors.last().copied().unwrap_or_default(), families)?;
            Ok(writer.finish())
        };
        match render() {
            Ok(page) => {
                let IndexContent { banners, tables } = index;
                let rendered = Rendered { page: Arc::new(page), banners, tables, missing, at: Instant::now() };
                self.rendered.store(Some(Arc::new(rendered)));
            }
            Err(error) => error!("cannot render the page of {}: {error}", self.name),
        }
    }
}

impl Pages for RenderedPage {
    fn page(&self) -> Option<Arc<Page>> {
        self.rendered.load().as_ref().map(|rendered| rendered.page.clone())
    }

    fn collectors(&self) -> Vec<&'static str> {
        self.collectors.to_vec()
    }

    fn unhealthy(&self) -> Option<String> {
        let age = self.rendered.load().as_ref()?.at.elapsed();
        (age > self.stale).then(|| format!("last page update {:.0} s ago", age.as_secs_f64()))
    }

    fn unready(&self) -> Vec<String> {
        match &*self.rendered.load() {
            None => vec!["no data has been read yet".to_owned()],
            Some(rendered) => self.unhealthy().into_iter().chain(rendered.missing.iter().cloned()).collect(),
        }
    }

    fn index_page(&self) -> IndexPage {
        let link = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let rendered = self.rendered.load();
        let (banners, tables) = match &*rendered {
            Some(rendered) => (rendered.banners.clone(), rendered.tables.clone()),
            None => (Vec::new(), Vec::new()),
        };
        IndexPage {
            name: self.name.to_owned(),
            about: self.about.to_owned(),
            version: program::version().into(),
            banners,
            links: vec![link("/metrics", "metrics"), link("/health", "liveness"), link("/ready", "readiness")],
            tables,
        }
    }
}
