//! `backfill`: writes the history of runs into VictoriaMetrics.
//!
//! Each value gets the time at which its run ended, and each power sample its own time. A scrape
//! stamps values with the current time, so a graph of scraped results is a flat line.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use jiff::{civil::DateTime, tz::TimeZone};
use metrics::family::{Def, Family};

use crate::pages::{
    cost as cost_page, quality,
    scenario_metrics::{SCENARIO, labels},
    scenarios,
};
use client::Client;
use results::{
    convert::timestamp,
    energy::{EnergyLookup, QueryRound, database, samples},
    model::{Entry, Model},
    run::Run,
    settings::DataSettings,
    store,
};

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes after which a request is sent.
const POST: usize = 4 << 20;
/// Interval between lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

static SAMPLE: Def = Def::gauge(
    "wattcast_run_power_sample_watts",
    SCENARIO,
    "Power sample of a result file in watts, at its own timestamp; written to a database by \
     wattcast-analysis backfill, on no page.",
);

/// Metrics that only the history has, for the documentation.
pub static DEFS: &[&Def] = &[&SAMPLE];

/// Destination of the exported lines.
pub enum Destination<'a> {
    /// VictoriaMetrics, by its client and the path of its import.
    Database(Box<Client>, String),
    /// Standard output, for `--dry-run`.
    Text(&'a mut dyn std::io::Write),
}

impl Destination<'_> {
    /// The database of the configuration.
    ///
    /// # Errors
    /// No database is configured, or its settings are invalid.
    pub fn database(settings: &database::DatabaseSettings) -> Result<Self> {
        let Some(url) = settings.write_url.as_deref().or(settings.url.as_deref()) else {
            bail!(
                "no database configured: set --database.url (PROMETHEUS_URL) to a VictoriaMetrics, or print \
                 the lines with --dry-run"
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
                        "{}{path}: status {}; not a VictoriaMetrics (Prometheus cannot import history over HTTP)",
                        client.display_url(),
                        reply.status
                    ),
                    status => bail!("{}{path}: status {status}: {}", client.display_url(), reply.excerpt()),
                }
            }
        }
    }
}

/// Counts of a backfill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub runs: usize,
    pub samples: usize,
    /// Unreadable files.
    pub skipped: usize,
    /// Scenarios skipped because a probe or database that may have their energy did not answer.
    pub open: usize,
}

/// Writes every run of a directory, oldest first. A second backfill writes the same samples again.
///
/// # Errors
/// The directory cannot be listed, or the destination rejects the lines.
pub fn backfill(dir: &Path, settings: &DataSettings, destination: &mut Destination<'_>) -> Result<Summary> {
    let mut files = store::list(dir).with_context(|| "cannot list the results directory (--results-dir)")?;
    files.reverse();
    let (mut summary, mut lines, mut reported_at, mut round) =
        (Summary::default(), String::new(), Instant::now(), QueryRound::default());
    let total = files.len();
    for (at, file) in files.iter().enumerate() {
        match store::read(file) {
            Ok(run) => {
                for problem in &run.problems {
                    eprintln!("{}: {problem}", file.path.display());
                }
                export_run(&Arc::new(run), settings, &mut round, &mut lines, &mut summary);
                summary.runs += 1;
            }
            Err(error) => {
                eprintln!("{error}");
                summary.skipped += 1;
            }
        }
        if lines.len() >= POST {
            destination.send(&std::mem::take(&mut lines))?;
        }
        if reported_at.elapsed() >= PROGRESS_EVERY {
            reported_at = Instant::now();
            let mut err = std::io::stderr();
            let end = if err.is_terminal() { "\r" } else { "\n" };
            let _ = write!(err, "{} of {total} files, {} samples{end}", at + 1, summary.samples);
        }
    }
    if !lines.is_empty() {
        destination.send(&lines)?;
    }
    Ok(summary)
}

/// Appends the lines of one run.
fn export_run(
    run: &Arc<Run>,
    settings: &DataSettings,
    round: &mut QueryRound,
    lines: &mut String,
    summary: &mut Summary,
) {
    let ask = |scenario| settings.sources.look_up(run, scenario, &EnergyLookup::default(), round);
    let lookups = run.scenarios.iter().map(ask).collect();
    let model = Model::new(&[(run.clone(), lookups)], settings.scope, &settings.prices);
    let Some(last) = model.entries.iter().filter_map(ended_ms).max() else { return };
    for entry in &model.entries {
        let at = ended_ms(entry).unwrap_or(last);
        if !entry.lookup.is_settled() {
            // Its values may still change, and a database keeps both.
            summary.open += 1;
            continue;
        }
        let one = Model { entries: vec![entry.clone()] };
        let families = scenarios::families(&one)
            .chain(quality::families(&one, &[]))
            .chain(cost_page::families(&one, &settings.prices));
        for family in families.filter(|family| !is_of_whole_run(family)) {
            summary.samples += write_family(&family, at, lines);
        }
        summary.samples += write_samples(entry, lines);
    }
    let families = scenarios::families(&model)
        .chain(quality::families(&model, &settings.vmaf_targets))
        .chain(cost_page::families(&model, &settings.prices));
    for family in families.filter(is_of_whole_run) {
        summary.samples += write_family(&family, last, lines);
    }
}

/// True for families over several scenarios of a run: curves, and means over repeats.
fn is_of_whole_run(family: &Family) -> bool {
    family.def().labels.first() == Some(&"run") || family.def().name.starts_with("wattcast_cell_")
}

/// End of a scenario in Unix milliseconds: of its window, else of the file name, which has local
/// time.
fn ended_ms(entry: &Entry) -> Option<i64> {
    if let Some((_, end)) = entry.scenario().window() {
        return timestamp(end).map(|end| end.as_millisecond());
    }
    let named = DateTime::strptime("%Y%m%d_%H%M%S", &entry.run.id).ok()?;
    Some(named.to_zoned(TimeZone::system()).ok()?.timestamp().as_millisecond())
}

fn write_family(family: &Family, at: i64, lines: &mut String) -> usize {
    let mut count = 0;
    for (values, value) in family.rows() {
        write_line(family.def(), &values, value, at, lines);
        count += 1;
    }
    count
}

fn write_line(def: &Def, values: &[&str], value: f64, at: i64, lines: &mut String) {
    lines.push_str(def.name);
    for (index, (name, text)) in def.labels.iter().zip(values).enumerate() {
        lines.push(if index == 0 { '{' } else { ',' });
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

/// Appends the power samples of a scenario, the first at the start of its window.
fn write_samples(entry: &Entry, lines: &mut String) -> usize {
    let scenario = entry.scenario();
    let Some((start, _)) = scenario.window() else { return 0 };
    let step = scenario.samples.step.unwrap_or(samples::DEFAULT_STEP);
    let labels = labels(entry, &SAMPLE);
    let labels: Vec<&str> = labels.iter().map(|label| &**label).collect();
    let mut at = start;
    for watts in &scenario.samples.watts {
        if let Some(time) = timestamp(at) {
            write_line(&SAMPLE, &labels, *watts, time.as_millisecond(), lines);
        }
        at += step;
    }
    scenario.samples.watts.len()
}
