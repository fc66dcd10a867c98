//! The loader thread: reads the newest runs, requests their energy and renders ports 9502, 9503 and
//! 9504.
//!
//! The server hands out rendered pages only, so that a scrape never waits for a file or a source.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use metrics::{
    family::Family,
    page::{self, Page, Writer},
};
use tracing::{error, info, warn};

use crate::{
    alerts::{self, AlertState, Rule, webhook::WebhookSender},
    index_tables,
    live::LiveState,
    pages::{cost as cost_page, quality, scenarios},
    rendered_page::{IndexContent, RenderedPage},
    web::view::{ResultsView, RunSummary, SharedView, summaries},
};
use results::{
    cost::Prices,
    energy::{EnergyLookup, EnergyMethod, EnergySources, QueryRound, Scope, SourceError},
    model::{Entry, Model},
    run::{Run, Scenario},
    store::{run_cache::RunCache, watch::DirectoryWatch},
};

/// Pause before unanswered requests are repeated: the first one, doubled each time up to the
/// second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Time for requests of energy before the pages are written again, plus one timeout.
const REQUEST_FOR: Duration = Duration::from_secs(2);
/// Interval between updates of values that change without a new run.
const WRITE_EVERY: Duration = Duration::from_secs(2);
/// Interval between checks for events of inotify.
const WAKE_EVERY: Duration = Duration::from_millis(200);

/// The pages of ports 9502, 9503 and 9504.
#[derive(Clone)]
pub struct ResultPages {
    pub results: Arc<RenderedPage>,
    pub quality: Arc<RenderedPage>,
    pub cost: Arc<RenderedPage>,
    /// The runs, for the HTML pages.
    pub view: SharedView,
}

impl ResultPages {
    /// Empty pages; `compat` includes the legacy metric names.
    #[must_use]
    pub fn new(compat: bool) -> Self {
        let collectors = &["runs", "service"];
        // A database or probe that does not answer delays the loader by one timeout at a time.
        let page = |name, about| Arc::new(RenderedPage::new(name, about, collectors, compat, Duration::from_secs(120)));
        Self {
            results: page("wattcast-analysis", "Results of encoding runs, with the energy measured by the probe."),
            quality: page("wattcast-analysis: quality", "Picture quality of runs, and quality per joule."),
            cost: page("wattcast-analysis: cost", "Cost of runs, and current prices of energy, compute and carbon."),
            view: Arc::new(ArcSwapOption::empty()),
        }
    }
}

/// Sources, prices and alert rules of the loader.
pub struct LoaderSetup {
    pub sources: EnergySources,
    pub prices: Prices,
    /// Energy that a run is charged with: the host's or the container's.
    pub scope: Scope,
    /// VMAF scores at which scenarios are compared.
    pub vmaf_targets: Vec<f64>,
    pub rules: Vec<Rule>,
    pub webhooks: WebhookSender,
    pub alerts: AlertState,
    /// Age after which the newest run counts as stale.
    pub stale: Duration,
    /// Whether pages include the legacy metric names.
    pub compat: bool,
}

fn render(compat: bool, families: impl IntoIterator<Item = Family>) -> Result<Page, page::Error> {
    let mut writer = Writer::compat(compat);
    writer.write("runs", families)?;
    Ok(writer.finish())
}

/// Reads the newest runs of a directory and renders their pages.
pub struct Loader {
    cache: RunCache,
    watch: DirectoryWatch,
    setup: LoaderSetup,
    runs: Vec<(Arc<Run>, Vec<EnergyLookup>)>,
    /// Shared with the HTML pages, as the next two are.
    model: Arc<Model>,
    summaries: Arc<Vec<RunSummary>>,
    prices: Arc<Prices>,
    /// The parts of the three pages that change with the model.
    rendered: [Page; 3],
    computed_in: Duration,
    carbon_version: u64,
    request_at: Instant,
    backoff: Duration,
    round: QueryRound,
    /// Scenarios that the current round of requests has passed.
    requested: usize,
}

impl Loader {
    /// A loader that has read nothing yet.
    #[must_use]
    pub fn new(dir: &Path, keep: usize, max_scenarios: usize, ttl: Duration, setup: LoaderSetup) -> Self {
        Self {
            cache: RunCache::new(dir, keep, max_scenarios),
            watch: DirectoryWatch::new(dir, ttl),
            prices: Arc::new(setup.prices.clone()),
            setup,
            runs: Vec::new(),
            model: Arc::default(),
            summaries: Arc::default(),
            rendered: [Page::default(), Page::default(), Page::default()],
            computed_in: Duration::ZERO,
            carbon_version: 0,
            request_at: Instant::now(),
            backoff: RETRY.0,
            round: QueryRound::default(),
            requested: 0,
        }
    }

    /// Reads the directory, requests energy and writes the pages, until `stop` is dropped.
    pub fn run(mut self, pages: &ResultPages, live: &ArcSwap<LiveState>, stop: &mpsc::Receiver<()>) {
        let mut written: Option<Instant> = None;
        loop {
            let now = live.load_full();
            let mut changed = self.watch.is_due() && self.cache.refresh();
            if changed {
                self.take_runs();
            }
            if now.version != self.carbon_version {
                self.carbon_version = now.version;
                self.setup.prices.carbon.clone_from(&now.carbon);
                changed = true;
            }
            if changed || written.is_none() {
                self.compute();
                // The contents of the files are on the page before any source is requested.
                self.write(pages, &now);
                written = Some(Instant::now());
            }
            if self.request_energy() {
                self.compute();
                changed = true;
            }
            if changed || written.is_none_or(|written| written.elapsed() >= WRITE_EVERY) {
                self.write(pages, &now);
                self.send_alerts(&now);
                written = Some(Instant::now());
            }
            if !matches!(stop.recv_timeout(WAKE_EVERY), Err(mpsc::RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }

    /// Takes over the runs that were read; energy that was requested for a run is kept.
    fn take_runs(&mut self) {
        let mut old = std::mem::take(&mut self.runs);
        self.runs = self
            .cache
            .runs()
            .iter()
            .map(|(_, run)| match old.iter().position(|(known, _)| Arc::ptr_eq(known, run)) {
                Some(at) => old.swap_remove(at),
                None => (run.clone(), run.scenarios.iter().map(energy_in_file).collect()),
            })
            .collect();
        (self.request_at, self.backoff) = (Instant::now(), RETRY.0);
        (self.requested, self.round) = (0, QueryRound::default());
    }

    /// Computes the model and renders the parts of the pages that depend on it alone.
    fn compute(&mut self) {
        let start = Instant::now();
        self.model = Arc::new(Model::new(&self.runs, self.setup.scope, &self.setup.prices));
        self.summaries = Arc::new(summaries(&self.model, self.cache.runs()));
        self.prices = Arc::new(self.setup.prices.clone());
        let compat = self.setup.compat;
        let pages = [
            render(compat, scenarios::families(&self.model)),
            render(compat, quality::families(&self.model, &self.setup.vmaf_targets)),
            render(compat, cost_page::families(&self.model, &self.setup.prices)),
        ];
        for (rendered, page) in self.rendered.iter_mut().zip(pages) {
            match page {
                Ok(page) => *rendered = page,
                Err(error) => error!("cannot render a page: {error}"),
            }
        }
        self.computed_in = start.elapsed();
    }

    /// Requests the energy of scenarios that lack it, for at most [`REQUEST_FOR`]; the next call
    /// goes on with the rest. Returns whether any lookup changed.
    fn request_energy(&mut self) -> bool {
        if Instant::now() < self.request_at {
            return false;
        }
        let (start, mut changed) = (Instant::now(), false);
        let mut number = 0;
        for (run, lookups) in &mut self.runs {
            for (scenario, lookup) in run.scenarios.iter().zip(lookups) {
                number += 1;
                if number <= self.requested || lookup.is_settled() {
                    continue;
                }
                if start.elapsed() > REQUEST_FOR {
                    self.requested = number - 1;
                    return changed;
                }
                let new = self.setup.sources.look_up(run, scenario, lookup, &mut self.round);
                if *lookup != new {
                    log_energy_problems(run, scenario, &new);
                    *lookup = new;
                    changed = true;
                }
            }
        }
        let open = self.runs.iter().flat_map(|(_, lookups)| lookups).any(|lookup| !lookup.is_settled());
        // A new round repeats open requests after a pause, and tries unreachable sources again.
        (self.requested, self.round) = (0, QueryRound::default());
        self.backoff = if open { (self.backoff * 2).min(RETRY.1) } else { RETRY.0 };
        self.request_at = Instant::now() + self.backoff;
        changed
    }

    /// Sends the alerts that started or ended.
    fn send_alerts(&mut self, live: &LiveState) {
        if self.setup.rules.is_empty() {
            return;
        }
        let now = Timestamp::now();
        let evaluation = alerts::evaluate(&self.setup.rules, &self.model, &live.budgets, now);
        let events = self.setup.alerts.update(evaluation, now);
        if !events.is_empty() {
            info!("{} alerts started or ended; {} are active", events.len(), self.setup.alerts.active());
            self.setup.webhooks.send(&events, now);
        }
    }

    fn write(&self, pages: &ResultPages, live: &LiveState) {
        // With a run to serve, the pages are complete in spite of unreadable files.
        let missing = if self.runs.is_empty() { self.cache.problems().to_vec() } else { Vec::new() };
        let [results, quality, cost] = &self.rendered;
        let (prices, now) = (&self.setup.prices, Timestamp::now());
        let (newest, run) = self.newest();
        let index = |tables| IndexContent { banners: index_tables::banners(&newest), tables };

        let sources = self.data_sources(live);
        let state = scenarios::state(&self.model, &self.directory(), &sources);
        let tables = index_tables::results(run, &newest, self.cache.problems());
        pages.results.write_after(results, state, index(tables), missing.clone());

        let state = quality::state(&self.model, self.computed_in);
        let tables = index_tables::quality(run, &newest);
        pages.quality.write_after(quality, state, index(tables), missing.clone());

        let state = cost_page::state(&self.model, prices, &live.budgets, now);
        let tables = index_tables::cost(run, &newest, prices, now);
        pages.cost.write_after(cost, state, index(tables), missing);

        pages.view.store(Some(Arc::new(self.view(live, sources))));
    }

    /// What the HTML pages show, of the same model as the metrics.
    fn view(&self, live: &LiveState, sources: Vec<(String, String)>) -> ResultsView {
        ResultsView {
            model: self.model.clone(),
            runs: self.summaries.clone(),
            prices: self.prices.clone(),
            budgets: live.budgets.clone(),
            sources,
            problems: self.cache.problems().to_vec(),
        }
    }

    /// Scenarios and id of the newest run.
    fn newest(&self) -> (Vec<&Entry>, &str) {
        let Some((run, _)) = self.runs.first() else { return (Vec::new(), "") };
        (self.model.entries.iter().filter(|entry| Arc::ptr_eq(&entry.run, run)).collect(), &run.id)
    }

    fn directory(&self) -> scenarios::Directory {
        scenarios::Directory {
            newest: self.cache.newest_modified(),
            files: self.cache.files(),
            problems: self.cache.problems().len(),
            over_limit: self.cache.over_limit(),
            watched: self.watch.is_notified(),
            stale: self.setup.stale,
        }
    }

    /// Names of all data sources with the reason if they are unavailable, else empty.
    fn data_sources(&self, live: &LiveState) -> Vec<(String, String)> {
        let mut sources = vec![("results".to_owned(), self.cache.reason().to_owned())];
        sources.extend(live.sources.iter().cloned());
        if self.setup.prices.carbon.is_some() || live.carbon_error.is_some() {
            let reason = if live.carbon_error.is_some() { "absent" } else { "" };
            sources.push(("carbon".to_owned(), reason.to_owned()));
        }
        sources
    }
}

/// The energy in the file; open if a source may have more.
fn energy_in_file(scenario: &Scenario) -> EnergyLookup {
    let mut lookup = EnergySources::from_file(scenario);
    if scenario.counters.is_empty() && scenario.window().is_some() {
        lookup.failures = vec![(EnergyMethod::Probe, SourceError::NotQueried)];
    }
    lookup
}

/// Logs why the energy of a scenario is missing or incomplete.
fn log_energy_problems(run: &Run, scenario: &Scenario, lookup: &EnergyLookup) {
    let name = format!("run {}, {}", run.id, scenario.name);
    let Some(energy) = &lookup.energy else {
        for (method, error) in &lookup.failures {
            warn!("{name}: no energy from the {}: {error}", method.as_str());
        }
        return;
    };
    if !energy.is_whole() {
        let part = energy.coverage.map_or("an unknown part".to_owned(), |part| format!("{:.0} %", part * 100.0));
        warn!("{name}: its power samples cover {part} of its window, so its energy is not comparable");
    }
    if energy.gap_seconds > 0.0 || energy.resets > 0 {
        let (gap, resets) = (energy.gap_seconds, energy.resets);
        warn!("{name}: no sample in the database for {gap:.1} s of its window; number of counter resets: {resets}");
    }
}

/// Starts a thread that runs until its sender is dropped.
///
/// # Errors
/// The thread cannot be created.
pub fn spawn(name: &str, run: impl FnOnce(&mpsc::Receiver<()>) + Send + 'static) -> std::io::Result<mpsc::Sender<()>> {
    let (stop, stopped) = mpsc::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || run(&stopped))?;
    Ok(stop)
}
