//! `backfill`: the history of runs into VictoriaMetrics, each number at the time at which its run ended, and the samples of power at theirs. What a page shows is now; a
//! graph of a page that shows the same run for a week is a flat line, and means nothing.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use exporter::family::{Def, Family};
use jiff::{civil::DateTime, tz::TimeZone};

use crate::{
    client::Client,
    columns::{SCENARIO, labels},
    cost,
    energy::{Answer, Round, database, samples},
    figures::{self, Entry, Model},
    qoe, results,
    run::Run,
    settings::Setup,
    store,
};

/// Longest that a post may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes after which a post is sent.
const POST: usize = 4 << 20;
/// Progress is shown this often.
const SHOW_EVERY: Duration = Duration::from_secs(1);

static SAMPLE: Def = Def::gauge(
    "wattcast_run_power_sample_watts",
    SCENARIO,
    "A sample of power of a result file, at its own time. Written to a database by wattcast-analysis backfill; on no page.",
);

/// What only the history has, for the documentation.
pub static DEFS: &[&Def] = &[&SAMPLE];

/// Where lines go.
pub enum Target<'a> {
    /// VictoriaMetrics, by its client and the path of its import.
    Database(Box<Client>, String),
    /// For looking at, or for a pipe.
    Text(&'a mut dyn std::io::Write),
}

impl Target<'_> {
    /// The database of the settings.
    ///
    /// # Errors
    /// When there is none, or its settings are wrong.
    pub fn database(settings: &database::Settings) -> Result<Self> {
        let Some(url) = settings.write_url.as_deref().or(settings.url.as_deref()) else {
            bail!(
                "no database: name a VictoriaMetrics with --database.url (PROMETHEUS_URL), or print the lines with --dry-run"
            );
        };
        let client = Client::new(url, &settings.access(), TIMEOUT, 1 << 20)?;
        let path = format!("{}/api/v1/import/prometheus", settings.tenant_path("insert")?);
        Ok(Self::Database(Box::new(client), path))
    }

    fn send(&mut self, lines: &str) -> Result<()> {
        match self {
            Self::Text(out) => Ok(out.write_all(lines.as_bytes())?),
            Self::Database(client, path) => {
                let reply = client.post(path, &[("Content-Type", "text/plain")], lines.as_bytes())?;
                match reply.status {
                    200..=299 => Ok(()),
                    404 | 405 => bail!(
                        "{}{path}: status {}; that is no VictoriaMetrics, and Prometheus takes no history over HTTP",
                        client.shown(),
                        reply.status
                    ),
                    status => bail!("{}{path}: status {status}: {}", client.shown(), reply.excerpt()),
                }
            }
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Runs written.
    pub runs: usize,
    /// Samples written.
    pub samples: usize,
    /// Files passed over.
    pub skipped: usize,
    /// Scenarios left out, because a probe or a database that may still know their joules did not answer.
    pub open: usize,
}

/// Writes every run of a directory, the oldest first. A second time writes the same samples at the same times.
///
/// # Errors
/// When the directory cannot be listed, or the target does not take the lines.
pub fn backfill(dir: &Path, setup: &Setup, target: &mut Target<'_>) -> Result<Done> {
    let mut files = store::list(dir).with_context(|| "the directory of results (--results-dir)")?;
    files.reverse();
    let (mut done, mut lines, mut shown, mut round) =
        (Done::default(), String::new(), Instant::now(), Round::default());
    let total = files.len();
    for (at, file) in files.iter().enumerate() {
        match store::read(file) {
            Ok(run) => {
                for problem in &run.problems {
                    eprintln!("{}: {problem}", file.path.display());
                }
                of_run(&Arc::new(run), setup, &mut round, &mut lines, &mut done);
                done.runs += 1;
            }
            Err(error) => {
                eprintln!("{error}");
                done.skipped += 1;
            }
        }
        if lines.len() >= POST {
            target.send(&std::mem::take(&mut lines))?;
        }
        if shown.elapsed() >= SHOW_EVERY {
            shown = Instant::now();
            let mut err = std::io::stderr();
            let end = if err.is_terminal() { "\r" } else { "\n" };
            let _ = write!(err, "{} of {total} files, {} samples{end}", at + 1, done.samples);
        }
    }
    if !lines.is_empty() {
        target.send(&lines)?;
    }
    Ok(done)
}

/// The lines of one run.
fn of_run(run: &Arc<Run>, setup: &Setup, round: &mut Round, lines: &mut String, done: &mut Done) {
    let ask = |scenario| setup.sources.ask(run, scenario, &Answer::default(), round);
    let answers = run.scenarios.iter().map(ask).collect();
    let model = figures::model(&[(run.clone(), answers)], setup.scope, &setup.prices);
    let Some(last) = model.entries.iter().filter_map(ended_ms).max() else { return };
    for entry in &model.entries {
        let at = ended_ms(entry).unwrap_or(last);
        if !entry.answer.is_settled() {
            // Written now, it would stand beside what is known later.
            done.open += 1;
            continue;
        }
        // A page of one scenario has that scenario's rows.
        let one = Model { entries: vec![entry.clone()] };
        let families =
            results::families(&one).chain(qoe::families(&one, &[])).chain(cost::page::families(&one, &setup.prices));
        for family in families.filter(|family| !of_several(family)) {
            done.samples += write(&family, at, lines);
        }
        done.samples += of_samples(entry, lines);
    }
    // And what is of several scenarios.
    let families = results::families(&model)
        .chain(qoe::families(&model, &setup.targets))
        .chain(cost::page::families(&model, &setup.prices));
    for family in families.filter(of_several) {
        done.samples += write(&family, last, lines);
    }
}

/// True for what only a whole run says: curves, and means over repeats.
fn of_several(family: &Family) -> bool {
    family.def().labels.first() == Some(&"run") || family.def().name.starts_with("wattcast_cell_")
}

/// When a scenario ended, in unix milliseconds: as its window says, else as the file's name does, which is in local time.
fn ended_ms(entry: &Entry) -> Option<i64> {
    if let Some((_, end)) = entry.scenario().window() {
        return figures::timestamp(end).map(|end| end.as_millisecond());
    }
    let named = DateTime::strptime("%Y%m%d_%H%M%S", &entry.run.id).ok()?;
    Some(named.to_zoned(TimeZone::system()).ok()?.timestamp().as_millisecond())
}

fn write(family: &Family, at: i64, lines: &mut String) -> usize {
    let mut count = 0;
    for (values, value) in family.rows() {
        line(family.def(), &values, value, at, lines);
        count += 1;
    }
    count
}

fn line(def: &Def, values: &[&str], value: f64, at: i64, lines: &mut String) {
    lines.push_str(def.name);
    for (place, (name, text)) in def.labels.iter().zip(values).enumerate() {
        lines.push(if place == 0 { '{' } else { ',' });
        lines.push_str(name);
        lines.push_str("=\"");
        for c in text.chars() {
            match c {
                '\\' => lines.push_str("\\\\"),
                '"' => lines.push_str("\\\""),
                '\n' => lines.push_str("\\n"),
                other => lines.push(other),
            }
        }
        lines.push('"');
    }
    if !def.labels.is_empty() {
        lines.push('}');
    }
    let _ = writeln!(lines, " {value} {at}");
}

/// The samples of a file, the first at the window's start.
fn of_samples(entry: &Entry, lines: &mut String) -> usize {
    let scenario = entry.scenario();
    let Some((start, _)) = scenario.window() else { return 0 };
    let step = scenario.samples.step.unwrap_or(samples::DEFAULT_STEP);
    let labels = labels(entry, &SAMPLE);
    let labels: Vec<&str> = labels.iter().map(|label| &**label).collect();
    let mut at = start;
    for watts in &scenario.samples.watts {
        if let Some(moment) = figures::timestamp(at) {
            line(&SAMPLE, &labels, *watts, moment.as_millisecond(), lines);
        }
        at += step;
    }
    scenario.samples.watts.len()
}
