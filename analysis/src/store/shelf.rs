//! The newest runs of a directory, read once each. A file that is newer than what is served and cannot be read is tried again: at the next look where only
//! the reading failed, when it was written again where its content is wrong.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use tracing::{info, warn};

use super::{Candidate, list, read};
use crate::run::Run;

/// The runs of one directory.
pub struct Shelf {
    dir: PathBuf,
    /// Runs that stay visible.
    keep: usize,
    /// Scenarios of them all, beyond which older runs go; the newest stays whole.
    most: usize,
    runs: Vec<(Candidate, Arc<Run>)>,
    /// Files that can only become readable by being written again, and why.
    spoilt: Vec<(Candidate, String)>,
    problems: Vec<String>,
    files: usize,
    reason: &'static str,
}

impl Shelf {
    /// Has read nothing yet.
    #[must_use]
    pub fn new(dir: &Path, keep: usize, most: usize) -> Self {
        Self {
            dir: dir.to_owned(),
            keep: keep.max(1),
            most,
            runs: Vec::new(),
            spoilt: Vec::new(),
            problems: Vec::new(),
            files: 0,
            reason: "absent",
        }
    }

    /// The runs, newest first.
    #[must_use]
    pub fn runs(&self) -> &[(Candidate, Arc<Run>)] {
        &self.runs
    }

    /// Result files in the directory, whether they are shown or not.
    #[must_use]
    pub fn files(&self) -> usize {
        self.files
    }

    /// Files and rows that could not be read, and why.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// How the directory stands: `absent`, `denied`, `broken`, or empty.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// When the newest run that is served was written.
    #[must_use]
    pub fn newest(&self) -> Option<SystemTime> {
        self.runs.first().map(|(candidate, _)| candidate.modified)
    }

    /// Looks at the directory. True when other runs, or other problems, are there than before.
    pub fn look(&mut self) -> bool {
        let before: Vec<Candidate> = self.runs.iter().map(|(candidate, _)| candidate.clone()).collect();
        let candidates = match list(&self.dir) {
            Ok(candidates) => candidates,
            Err(error) => {
                self.reason = error.reason();
                // What was read stays: a directory that is away for a moment took no run back.
                return self.set_problems(vec![format!("{error}. Create it, or name another with --results-dir")]);
            }
        };
        self.files = candidates.len();
        self.reason = if candidates.is_empty() { "absent" } else { "" };
        let mut problems = Vec::new();
        if candidates.is_empty() {
            problems.push(format!("{}: no test_results_YYYYMMDD_HHMMSS.json in it yet", self.dir.display()));
        }
        let (mut old, mut runs, mut spoilt, mut rows) = (std::mem::take(&mut self.runs), Vec::new(), Vec::new(), 0);
        for candidate in candidates {
            if runs.len() >= self.keep || rows >= self.most {
                break;
            }
            let known = old.iter().position(|(known, _)| *known == candidate).map(|at| old.swap_remove(at).1);
            let run = match known {
                Some(run) => run,
                None => {
                    if let Some(known) = self.spoilt.iter().find(|(known, _)| *known == candidate) {
                        self.reason = "broken";
                        problems.push(known.1.clone());
                        spoilt.push(known.clone());
                        continue;
                    }
                    match read(&candidate) {
                        Ok(run) => {
                            let count = run.scenarios.len();
                            info!(
                                "{}: {count} scenario{}",
                                candidate.path.display(),
                                if count == 1 { "" } else { "s" }
                            );
                            Arc::new(run)
                        }
                        Err(error) => {
                            self.reason = "broken";
                            problems.push(error.to_string());
                            if !error.is_passing() {
                                spoilt.push((candidate, error.to_string()));
                            }
                            continue;
                        }
                    }
                }
            };
            rows += run.scenarios.len();
            if rows > self.most && !runs.is_empty() {
                break;
            }
            problems.extend(run.problems.iter().map(|what| format!("{}: {what}", candidate.path.display())));
            runs.push((candidate, run));
        }
        (self.runs, self.spoilt) = (runs, spoilt);
        let changed = self.runs.iter().map(|(candidate, _)| candidate).ne(before.iter());
        self.set_problems(problems) || changed
    }

    fn set_problems(&mut self, problems: Vec<String>) -> bool {
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!("{problem}");
        }
        let changed = self.problems != problems;
        self.problems = problems;
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(dir: &Path, id: &str, text: &str) {
        fs::write(dir.join(format!("test_results_{id}.json")), text).unwrap();
    }

    fn ids(shelf: &Shelf) -> Vec<&str> {
        shelf.runs().iter().map(|(candidate, _)| &*candidate.id).collect()
    }

    #[test]
    fn the_newest_stay_and_torn_ones_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        for day in 1..=5 {
            write(dir.path(), &format!("2025010{day}_000000"), r#"{"scenarios":[{"name":"a"}]}"#);
        }
        write(dir.path(), "20250104_000000", "{");
        let mut shelf = Shelf::new(dir.path(), 3, 100);
        assert!(shelf.look());
        assert_eq!(ids(&shelf), ["20250105_000000", "20250103_000000", "20250102_000000"]);
        assert_eq!((shelf.files(), shelf.problems().len(), shelf.reason()), (5, 1, "broken"));
        assert!(!shelf.look(), "nothing is new");
        write(dir.path(), "20250104_000000", r#"{"scenarios":[{"name":"whole now"}]}"#);
        assert!(shelf.look());
        assert_eq!(ids(&shelf), ["20250105_000000", "20250104_000000", "20250103_000000"]);
        assert_eq!(shelf.reason(), "");
        fs::remove_file(dir.path().join("test_results_20250105_000000.json")).unwrap();
        assert!(shelf.look());
        assert_eq!(ids(&shelf)[0], "20250104_000000");
    }

    #[test]
    fn many_scenarios_leave_room_for_fewer_runs() {
        let dir = tempfile::tempdir().unwrap();
        let rows = vec![r#"{"name":"a"}"#; 60].join(",");
        for day in 1..=3 {
            write(dir.path(), &format!("2025010{day}_000000"), &format!(r#"{{"scenarios":[{rows}]}}"#));
        }
        let mut shelf = Shelf::new(dir.path(), 10, 100);
        shelf.look();
        assert_eq!(ids(&shelf), ["20250103_000000"]);
    }

    #[test]
    fn a_directory_that_goes_takes_no_run_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("results");
        fs::create_dir(&inner).unwrap();
        write(&inner, "20250101_000000", r#"{"scenarios":[{"name":"a"}]}"#);
        let mut shelf = Shelf::new(&inner, 3, 100);
        shelf.look();
        fs::rename(&inner, dir.path().join("away")).unwrap();
        assert!(shelf.look());
        assert_eq!((shelf.runs().len(), shelf.reason()), (1, "absent"));
    }
}
