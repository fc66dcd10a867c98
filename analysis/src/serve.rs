//! `serve`: one thread keeps the newest run and its joules, the server hands out what it rendered.

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use crate::{
    results::{self, Row},
    run::Run,
    sheet::Sheet,
    store::{self, Candidate},
    window::{Probe, Refused},
};

/// A probe that did not answer is asked again after this long, doubled each time up to the second figure.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The page of port 9502. A probe that does not answer holds the loader up for one time-out per scenario.
#[must_use]
pub fn sheet(refresh: Duration) -> Sheet {
    let stale = refresh * 5 + Duration::from_secs(60);
    Sheet::new("wattcast-analysis", "Turns runs into results, with the joules that the probe measured.", stale)
}

fn shown(row: &Row) -> Vec<String> {
    let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1}"));
    let (energy, note) = match &row.energy {
        None if row.scenario.open_window().is_some() => ("–".to_owned(), "the probe was not asked yet".to_owned()),
        None if row.scenario.brings_energy() => (String::new(), "energy is in the file".to_owned()),
        None => ("–".to_owned(), "the file has neither energy nor times".to_owned()),
        Some(Err(refused)) => ("–".to_owned(), refused.to_string()),
        Some(Ok(all)) => (
            all.iter().map(|j| format!("{} {:.1} J", j.scope.as_str(), j.joules)).collect::<Vec<_>>().join(", "),
            all.first().map(|joules| format!("source: {}", joules.source)).unwrap_or_default(),
        ),
    };
    vec![
        row.scenario.name.clone(),
        number(row.scenario.seconds()),
        row.scenario.total_frames.map_or_else(|| "–".to_owned(), |frames| frames.to_string()),
        energy,
        note,
    ]
}

/// Keeps the newest run of a directory.
pub struct Loader {
    dir: PathBuf,
    /// How often it is looked at.
    refresh: Duration,
    probe: Probe,
    /// The file that is served.
    served: Option<Candidate>,
    /// Files that can only become readable by being written again, and why.
    spoilt: Vec<(Candidate, String)>,
    /// How the directory and the probe stand: name, and the reason when it does not serve.
    sources: [(&'static str, &'static str); 2],
    run: Option<(Run, Vec<Row>)>,
    problems: Vec<String>,
    ask_at: Instant,
    backoff: Duration,
}

impl Loader {
    /// Has read nothing yet.
    #[must_use]
    pub fn new(dir: &Path, probe: Probe, refresh: Duration) -> Self {
        Self {
            dir: dir.to_owned(),
            refresh,
            probe,
            served: None,
            spoilt: Vec::new(),
            sources: [("results", "absent"), ("probe", "")],
            run: None,
            problems: Vec::new(),
            ask_at: Instant::now(),
            backoff: ASK_AGAIN.0,
        }
    }

    /// Looks at the directory and publishes, until `stop` says so.
    pub fn run(mut self, sheet: &Sheet, stop: &mpsc::Receiver<()>) {
        loop {
            self.look();
            self.publish(sheet);
            if self.ask() {
                self.publish(sheet);
            }
            if !matches!(stop.recv_timeout(self.refresh), Err(mpsc::RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }

    /// Serves the newest file that can be read. A file that is newer than the served one and unreadable is tried again:
    /// at once where only the reading failed, when it was written again where its content is wrong.
    fn look(&mut self) {
        let candidates = match store::list(&self.dir) {
            Ok(candidates) => candidates,
            Err(error) => {
                self.sources[0].1 = error.reason();
                self.set_problems(vec![format!("{error}. Create it, or name another with --results-dir")]);
                return;
            }
        };
        let mut problems = Vec::new();
        let (mut spoilt, mut served) = (Vec::new(), None);
        self.sources[0].1 = if candidates.is_empty() { "absent" } else { "" };
        if candidates.is_empty() {
            problems.push(format!("{}: no test_results_YYYYMMDD_HHMMSS.json in it yet", self.dir.display()));
        }
        for candidate in candidates {
            if self.served.as_ref() == Some(&candidate) {
                served = Some(candidate);
                break;
            }
            if let Some(known) = self.spoilt.iter().find(|(known, _)| *known == candidate) {
                self.sources[0].1 = "broken";
                problems.push(known.1.clone());
                spoilt.push(known.clone());
                continue;
            }
            match store::read(&candidate) {
                Ok(run) => {
                    info!("{}: {} scenarios", candidate.path.display(), run.scenarios.len());
                    let rows =
                        run.scenarios.iter().map(|scenario| Row { scenario: scenario.clone(), energy: None }).collect();
                    self.run = Some((run, rows));
                    (self.ask_at, self.backoff) = (Instant::now(), ASK_AGAIN.0);
                    served = Some(candidate);
                    break;
                }
                Err(error) => {
                    self.sources[0].1 = error.reason();
                    problems.push(error.to_string());
                    if !error.is_passing() {
                        spoilt.push((candidate, error.to_string()));
                    }
                }
            }
        }
        match (&served, &self.run) {
            (Some(candidate), Some((run, _))) => {
                problems.extend(run.problems.iter().map(|what| format!("{}: {what}", candidate.path.display())));
            }
            _ => self.run = None,
        }
        (self.served, self.spoilt) = (served, spoilt);
        self.set_problems(problems);
    }

    fn set_problems(&mut self, problems: Vec<String>) {
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!("{problem}");
        }
        self.problems = problems;
    }

    /// Asks the probe for windows that are still open. True when something was learnt.
    fn ask(&mut self) -> bool {
        let Some((run, rows)) = &mut self.run else { return false };
        if Instant::now() < self.ask_at {
            return false;
        }
        let (mut learnt, mut again) = (false, false);
        for row in rows {
            let Some((start, end)) = row.scenario.open_window() else { continue };
            if row.settled() {
                continue;
            }
            let answer = self.probe.window(start, end, row.scenario.container.as_deref());
            again |= answer.as_ref().is_err_and(Refused::is_passing);
            let away = matches!(answer, Err(Refused::Unreachable(_)));
            self.sources[1].1 = if away { "absent" } else { "" };
            let answer = Some(answer);
            if row.energy != answer {
                if let Some(Err(refused)) = &answer {
                    warn!("run {}, {}: no energy: {refused}", run.id, row.scenario.name);
                }
                row.energy = answer;
                learnt = true;
            }
            if away {
                // The other windows would wait as long.
                break;
            }
        }
        if again {
            self.ask_at = Instant::now() + self.backoff;
            self.backoff = (self.backoff * 2).min(ASK_AGAIN.1);
        }
        learnt
    }

    fn publish(&self, sheet: &Sheet) {
        let heads = |heads: &[&str]| heads.iter().map(|head| (*head).to_owned()).collect::<Vec<_>>();
        let mut tables = Vec::new();
        if let Some((run, rows)) = &self.run {
            let heads = heads(&["scenario", "seconds", "frames", "energy", ""]);
            tables.push((format!("Run {}", run.id), heads, rows.iter().map(shown).collect()));
        }
        if !self.problems.is_empty() {
            let rows = self.problems.iter().map(|problem| vec![problem.clone()]).collect();
            tables.push(("Problems".to_owned(), heads(&[""]), rows));
        }
        // With a run to serve, problems are those of others.
        let missing = if self.run.is_none() { self.problems.clone() } else { Vec::new() };
        let run = self.run.as_ref().map(|(run, rows)| (run, &**rows));
        sheet.write(results::families(run, self.problems.len(), &self.sources), tables, missing);
    }
}
