//! `serve`: one thread keeps the model of the newest runs and writes three pages from it; the server hands out what was rendered.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use exporter::{
    family::Family,
    page::{self, Page, Writer},
};
use jiff::Timestamp;
use tracing::{error, info, warn};

use crate::{
    alerts::{self, Book, Rule, post::Posts},
    cost::{self, Prices},
    energy::{Answer, Refused, Round, Scope, Sources, Way},
    figures::{self, Entry, Model},
    follow::Live,
    qoe, results,
    run::{Run, Scenario},
    sheet::{Sheet, Table},
    store::{shelf::Shelf, watch::Watch},
};

/// Whoever did not answer is asked again after this long, doubled each time up to the second figure.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Pages are written again at the latest after so long of asking, and one time-out.
const ASK_FOR: Duration = Duration::from_secs(2);
/// How often the parts of pages that change by themselves are written.
const WRITE_EVERY: Duration = Duration::from_secs(2);
/// How often the loader wakes to see whether the kernel told of a file.
const WAKE_EVERY: Duration = Duration::from_millis(200);

/// The pages of ports 9502, 9503 and 9504.
pub struct Sheets {
    /// 9502.
    pub results: Arc<Sheet>,
    /// 9503.
    pub qoe: Arc<Sheet>,
    /// 9504.
    pub cost: Arc<Sheet>,
}

impl Sheets {
    /// Empty ones; with the names of the exporters that we replace, or without.
    #[must_use]
    pub fn new(compat: bool) -> Self {
        // Databases and probes that do not answer hold the loader up for one time-out at a time.
        let collectors = &["runs", "service"];
        let sheet = |name, about| Arc::new(Sheet::new(name, about, collectors, compat, Duration::from_secs(120)));
        Self {
            results: sheet("wattcast-analysis", "Turns runs into results, with the joules that the probe measured."),
            qoe: sheet(
                "wattcast-analysis: quality",
                "What the pictures of runs are worth, and what a joule bought of it.",
            ),
            cost: sheet("wattcast-analysis: cost", "What runs cost, and what energy, compute and carbon cost now."),
        }
    }
}

/// What the loader is given.
pub struct Given {
    /// Whom to ask.
    pub sources: Sources,
    /// What things cost.
    pub prices: Prices,
    /// Whose energy a run's is.
    pub scope: Scope,
    /// VMAF at which scenarios are compared.
    pub targets: Vec<f64>,
    /// What to tell of.
    pub rules: Vec<Rule>,
    /// Whom to tell.
    pub posts: Posts,
    /// What was told.
    pub book: Book,
    /// A newest run that is older is stale.
    pub stale: Duration,
    /// The names of the exporters that we replace are shown, too.
    pub compat: bool,
}

fn rendered(compat: bool, families: impl IntoIterator<Item = Family>) -> Result<Page, page::Error> {
    let mut writer = Writer::compat(compat);
    writer.write("runs", families)?;
    Ok(writer.finish())
}

/// Keeps the newest runs of a directory.
pub struct Loader {
    shelf: Shelf,
    watch: Watch,
    given: Given,
    runs: Vec<(Arc<Run>, Vec<Answer>)>,
    model: Model,
    /// The parts of the three pages that change with the model.
    rendered: [Page; 3],
    worked_out_in: Duration,
    known_carbon: u64,
    ask_at: Instant,
    backoff: Duration,
    round: Round,
    /// Scenarios that this round has come past.
    asked: usize,
}

impl Loader {
    /// Has read nothing yet.
    #[must_use]
    pub fn new(dir: &Path, keep: usize, most: usize, ttl: Duration, given: Given) -> Self {
        Self {
            shelf: Shelf::new(dir, keep, most),
            watch: Watch::new(dir, ttl),
            given,
            runs: Vec::new(),
            model: Model::default(),
            rendered: [Page::default(), Page::default(), Page::default()],
            worked_out_in: Duration::ZERO,
            known_carbon: 0,
            ask_at: Instant::now(),
            backoff: ASK_AGAIN.0,
            round: Round::default(),
            asked: 0,
        }
    }

    /// Looks at the directory, asks, and writes the pages, until `stop` says so.
    pub fn run(mut self, sheets: &Sheets, live: &ArcSwap<Live>, stop: &mpsc::Receiver<()>) {
        let mut written: Option<Instant> = None;
        loop {
            let now = live.load_full();
            let mut changed = self.watch.is_due() && self.shelf.look();
            if changed {
                self.take();
            }
            if now.version != self.known_carbon {
                self.known_carbon = now.version;
                self.given.prices.carbon.clone_from(&now.carbon);
                changed = true;
            }
            if changed || written.is_none() {
                self.work_out();
                // What the files say is shown before anybody else is asked.
                self.write(sheets, &now);
                written = Some(Instant::now());
            }
            if self.ask() {
                self.work_out();
                changed = true;
            }
            if changed || written.is_none_or(|written| written.elapsed() >= WRITE_EVERY) {
                self.write(sheets, &now);
                self.tell(&now);
                written = Some(Instant::now());
            }
            if !matches!(stop.recv_timeout(WAKE_EVERY), Err(mpsc::RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }

    /// Takes over the runs of the shelf; what was asked for a run stays.
    fn take(&mut self) {
        let mut old = std::mem::take(&mut self.runs);
        self.runs = self
            .shelf
            .runs()
            .iter()
            .map(|(_, run)| match old.iter().position(|(known, _)| Arc::ptr_eq(known, run)) {
                Some(at) => old.swap_remove(at),
                None => (run.clone(), run.scenarios.iter().map(unasked).collect()),
            })
            .collect();
        (self.ask_at, self.backoff) = (Instant::now(), ASK_AGAIN.0);
        (self.asked, self.round) = (0, Round::default());
    }

    /// Works everything out, and renders what only changes now.
    fn work_out(&mut self) {
        let began = Instant::now();
        self.model = figures::model(&self.runs, self.given.scope, &self.given.prices);
        let compat = self.given.compat;
        let pages = [
            rendered(compat, results::families(&self.model)),
            rendered(compat, qoe::families(&self.model, &self.given.targets)),
            rendered(compat, cost::page::families(&self.model, &self.given.prices)),
        ];
        for (rendered, page) in self.rendered.iter_mut().zip(pages) {
            match page {
                Ok(page) => *rendered = page,
                Err(error) => error!("cannot render a page: {error}"),
            }
        }
        self.worked_out_in = began.elapsed();
    }

    /// Asks for windows that are still open, for as long as a page may wait; who was not reached is asked at the next call. True when something was learnt.
    fn ask(&mut self) -> bool {
        if Instant::now() < self.ask_at {
            return false;
        }
        let (began, mut learnt) = (Instant::now(), false);
        let mut number = 0;
        for (run, answers) in &mut self.runs {
            for (scenario, answer) in run.scenarios.iter().zip(answers) {
                number += 1;
                if number <= self.asked || answer.is_settled() {
                    continue;
                }
                if began.elapsed() > ASK_FOR {
                    self.asked = number - 1;
                    return learnt;
                }
                let new = self.given.sources.ask(run, scenario, answer, &mut self.round);
                if *answer != new {
                    say(run, scenario, &new);
                    *answer = new;
                    learnt = true;
                }
            }
        }
        let still = self.runs.iter().flat_map(|(_, answers)| answers).any(|answer| !answer.is_settled());
        // All round: those that are open are asked again after a while, and whoever was away may be back.
        (self.asked, self.round) = (0, Round::default());
        self.backoff = if still { (self.backoff * 2).min(ASK_AGAIN.1) } else { ASK_AGAIN.0 };
        self.ask_at = Instant::now() + self.backoff;
        learnt
    }

    /// Tells whoever wants to know of what began or ended to be bad.
    fn tell(&mut self, live: &Live) {
        if self.given.rules.is_empty() {
            return;
        }
        let now = Timestamp::now();
        let found = alerts::judge(&self.given.rules, &self.model, &live.budgets, now);
        let events = self.given.book.turn(found, now);
        if !events.is_empty() {
            info!("{} alerts began or ended; {} are active", events.len(), self.given.book.active());
            self.given.posts.tell(&events, now);
        }
    }

    fn write(&self, sheets: &Sheets, live: &Live) {
        let now = Timestamp::now();
        let directory = results::Directory {
            newest: self.shelf.newest(),
            files: self.shelf.files(),
            problems: self.shelf.problems().len(),
            watched: self.watch.is_told(),
            stale: self.given.stale,
        };
        let mut sources = vec![("results".to_owned(), self.shelf.reason().to_owned())];
        sources.extend(live.reached.iter().cloned());
        if self.given.prices.carbon.is_some() || live.trouble.is_some() {
            let reason = if live.trouble.is_some() { "absent" } else { "" };
            sources.push(("carbon".to_owned(), reason.to_owned()));
        }
        // With a run to serve, problems are those of others.
        let missing = if self.runs.is_empty() { self.shelf.problems().to_vec() } else { Vec::new() };
        let [of_results, of_qoe, of_cost] = &self.rendered;
        let newest: Vec<&Entry> = self
            .runs
            .first()
            .map(|(run, _)| self.model.entries.iter().filter(|entry| Arc::ptr_eq(&entry.run, run)).collect())
            .unwrap_or_default();
        let title =
            |what: &str| self.runs.first().map_or_else(String::new, |(run, _)| format!("{what} of run {}", run.id));
        let mut tables = Vec::new();
        if !newest.is_empty() {
            let rows = newest.iter().map(|entry| shown(entry)).collect();
            tables.push((title("Scenarios"), heads(&["scenario", "seconds", "frames", "energy", ""]), rows));
        }
        if !self.shelf.problems().is_empty() {
            let rows = self.shelf.problems().iter().map(|problem| vec![problem.clone()]).collect();
            tables.push(("Problems".to_owned(), heads(&[""]), rows));
        }
        let state = results::state(&self.model, &directory, &sources);
        sheets.results.write_after(of_results, state, tables, missing.clone());
        let rows = newest.iter().map(|entry| shown_quality(entry)).collect();
        let table: Table =
            (title("Quality"), heads(&["scenario", "VMAF", "PSNR", "SSIM", "score, 1 to 5", "made of"]), rows);
        let tables = if newest.is_empty() { Vec::new() } else { vec![table] };
        sheets.qoe.write_after(of_qoe, qoe::state(&self.model, self.worked_out_in), tables, missing.clone());
        let prices = &self.given.prices;
        let mut tables = vec![("Prices now".to_owned(), heads(&["", "price", ""]), cost::page::table(prices, now))];
        if !newest.is_empty() {
            let rows = newest.iter().map(|entry| shown_cost(entry, prices)).collect();
            tables.push((title("Cost"), heads(&["scenario", "energy", "compute", "total", "CO₂-eq."]), rows));
        }
        let state = cost::page::state(&self.model, prices, &live.budgets, now);
        sheets.cost.write_after(of_cost, state, tables, missing);
    }
}

/// What is known before anybody is asked; open wherever somebody can be.
fn unasked(scenario: &Scenario) -> Answer {
    let mut answer = Sources::in_file(scenario);
    if scenario.counters.is_empty() && scenario.window().is_some() {
        answer.refused = vec![(Way::Probe, Refused::Unasked)];
    }
    answer
}

/// Logs what is not as it should be with the energy of a scenario.
fn say(run: &Run, scenario: &Scenario, answer: &Answer) {
    let name = format!("run {}, {}", run.id, scenario.name);
    let Some(energy) = &answer.energy else {
        for (way, refused) in &answer.refused {
            warn!("{name}: no energy from the {}: {refused}", way.as_str());
        }
        return;
    };
    if !energy.is_whole() {
        let part = energy.coverage.map_or("nobody knows how much".to_owned(), |part| format!("{:.0} %", part * 100.0));
        warn!("{name}: its samples cover {part} of its window; its joules are of that");
    }
    if energy.gap_seconds > 0.0 || energy.resets > 0 {
        let (gap, resets) = (energy.gap_seconds, energy.resets);
        warn!(
            "{name}: the database has no sample for {gap:.1} s of its window, and counters were reset {resets} times"
        );
    }
}

fn heads(heads: &[&str]) -> Vec<String> {
    heads.iter().map(|head| (*head).to_owned()).collect()
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

fn shown(entry: &Entry) -> Vec<String> {
    let scenario = entry.scenario();
    let (energy, note) = match &entry.answer.energy {
        Some(energy) => {
            let rows = energy.rows.iter().map(|row| format!("{} {:.1} J", row.scope.as_str(), row.joules.joules()));
            let mut note = format!("{}, source: {}", energy.way.as_str(), entry.figures.source);
            if let Some(part) = energy.coverage.filter(|_| !energy.is_whole()) {
                note.push_str(&format!("; they cover {:.0} % of the window", part * 100.0));
            }
            if energy.gap_seconds > 0.0 || energy.resets > 0 {
                note.push_str(&format!("; {:.1} s without samples, {} resets", energy.gap_seconds, energy.resets));
            }
            (rows.collect::<Vec<_>>().join(", "), note)
        }
        None => {
            let why = entry.answer.refused.iter().map(|(way, why)| format!("{}: {why}", way.as_str()));
            let why = why.collect::<Vec<_>>().join("; ");
            ("–".to_owned(), if why.is_empty() { "the file has neither energy nor times".to_owned() } else { why })
        }
    };
    vec![
        scenario.name.clone(),
        number(entry.figures.seconds, 1),
        scenario.total_frames.map_or_else(|| "–".to_owned(), |frames| frames.to_string()),
        energy,
        note,
    ]
}

fn shown_quality(entry: &Entry) -> Vec<String> {
    let quality = &entry.scenario().quality;
    let value = |score: &Option<crate::run::Score>, digits| number(score.as_ref().map(|score| score.value), digits);
    let experience = qoe::experience(entry);
    vec![
        entry.scenario().name.clone(),
        value(&quality.vmaf, 2),
        value(&quality.psnr, 2),
        value(&quality.ssim, 4),
        number(experience.as_ref().map(|experience| experience.score), 2),
        experience.map_or_else(String::new, |experience| experience.made_of.to_owned()),
    ]
}

fn shown_cost(entry: &Entry, prices: &Prices) -> Vec<String> {
    let money = |amount: Option<rust_decimal::Decimal>| {
        amount.map_or_else(
            || "–".to_owned(),
            |amount| format!("{} {}", amount.round_sf(6).unwrap_or(amount).normalize(), prices.currency),
        )
    };
    let cost = &entry.cost;
    vec![
        entry.scenario().name.clone(),
        money(cost.energy),
        money(cost.compute),
        money(cost.total),
        cost.carbon
            .map_or_else(|| "–".to_owned(), |grams| format!("{} g", grams.round_sf(6).unwrap_or(grams).normalize())),
    ]
}

/// Starts a thread that ends with its channel.
///
/// # Errors
/// When there is none to be had.
pub fn spawn(name: &str, run: impl FnOnce(&mpsc::Receiver<()>) + Send + 'static) -> std::io::Result<mpsc::Sender<()>> {
    let (stop, stopped) = mpsc::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || run(&stopped))?;
    Ok(stop)
}
