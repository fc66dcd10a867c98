//! A cache of the newest runs of a directory. Each file is read once. A file that could not be read
//! is tried again at the next refresh; one with invalid content is tried again when it is
//! rewritten.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use tracing::{info, warn};

use super::{MAX_FILE, ResultFile, list, read};
use crate::run::Run;

/// Maximum size of all cached files, in bytes: four of the largest, each of which takes up to three
/// times its size in memory. Older runs are dropped above it; the newest run is always complete.
pub const MAX_CACHED: u64 = 64 << 20;

/// The cached runs of one directory.
pub struct RunCache {
    dir: PathBuf,
    max_runs: usize,
    /// Maximum number of scenarios of all runs. Older runs are dropped above it; the newest run is
    /// always complete.
    max_scenarios: usize,
    /// Maximum size of all cached files.
    max_bytes: u64,
    /// Runs among the newest `max_runs` that are not cached because of the other limits.
    over_limit: usize,
    /// The newest of them, if it was read, with its number of scenarios: it is not read again.
    dropped: Option<(ResultFile, usize)>,
    runs: Vec<(ResultFile, Arc<Run>)>,
    /// Files with invalid content, and their errors.
    invalid: Vec<(ResultFile, String)>,
    problems: Vec<String>,
    files: usize,
    reason: &'static str,
}

impl RunCache {
    /// An empty cache of at most `max_runs` runs with `max_scenarios` scenarios in total.
    #[must_use]
    pub fn new(dir: &Path, max_runs: usize, max_scenarios: usize) -> Self {
        Self {
            dir: dir.to_owned(),
            max_runs: max_runs.max(1),
            max_scenarios,
            max_bytes: MAX_CACHED,
            over_limit: 0,
            dropped: None,
            runs: Vec::new(),
            invalid: Vec::new(),
            problems: Vec::new(),
            files: 0,
            reason: "absent",
        }
    }

    /// The runs with their files, newest first.
    #[must_use]
    pub fn runs(&self) -> &[(ResultFile, Arc<Run>)] {
        &self.runs
    }

    /// Number of result files in the directory, cached or not.
    #[must_use]
    pub fn files(&self) -> usize {
        self.files
    }

    /// Number of runs among the newest that are not cached because of the limits of scenarios and
    /// of memory.
    #[must_use]
    pub fn over_limit(&self) -> usize {
        self.over_limit
    }

    /// Files and rows that could not be read, with the reason.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The value of the label `reason`: `absent`, `denied` or `broken`; empty if the directory and
    /// its files are readable.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// Modification time of the newest cached run.
    #[must_use]
    pub fn newest_modified(&self) -> Option<SystemTime> {
        self.runs.first().map(|(file, _)| file.modified)
    }

    /// Reads new and changed files. True if the runs or the problems have changed.
    pub fn refresh(&mut self) -> bool {
        let before: Vec<ResultFile> = self.runs.iter().map(|(file, _)| file.clone()).collect();
        let files = match list(&self.dir) {
            Ok(files) => files,
            Err(error) => {
                self.reason = error.reason();
                // Cached runs are kept, because the directory may be missing only for a moment.
                let remedy = "Create the directory, or choose another one with --results-dir";
                return self.set_problems(vec![format!("{error}. {remedy}")]);
            }
        };
        self.files = files.len();
        self.reason = if files.is_empty() { "absent" } else { "" };
        let mut problems = Vec::new();
        if files.is_empty() {
            problems.push(format!("{}: no test_results_YYYYMMDD_HHMMSS.json in it yet", self.dir.display()));
        }
        let (mut cached, mut runs, mut scenarios) = (std::mem::take(&mut self.runs), Vec::new(), 0);
        let known_invalid = std::mem::take(&mut self.invalid);
        let (mut bytes, mut left) = (0, files.len());
        for file in files {
            // A file that is too large is not read, so it takes no memory.
            let size = if file.bytes > MAX_FILE { 0 } else { file.bytes };
            let dropped = self.dropped.as_ref().filter(|(known, _)| *known == file);
            let least = dropped.map_or(1, |(_, count)| *count);
            let fits = scenarios + least <= self.max_scenarios && bytes + size <= self.max_bytes;
            if runs.len() >= self.max_runs || (!fits && !runs.is_empty()) {
                break;
            }
            let run = match cached.iter().position(|(known, _)| *known == file) {
                Some(index) => Ok(cached.swap_remove(index).1),
                None => self.read(&file, &known_invalid),
            };
            let run = match run {
                Ok(run) => run,
                Err(problem) => {
                    self.reason = "broken";
                    problems.push(problem);
                    left -= 1;
                    continue;
                }
            };
            scenarios += run.scenarios.len();
            if scenarios > self.max_scenarios && !runs.is_empty() {
                self.dropped = Some((file, run.scenarios.len()));
                break;
            }
            (bytes, left) = (bytes + size, left - 1);
            problems.extend(run.problems.iter().map(|problem| format!("{}: {problem}", file.path.display())));
            runs.push((file, run));
        }
        // Files that are left may be invalid: the number is an upper bound.
        let over_limit = left.min(self.max_runs - runs.len());
        if over_limit > self.over_limit {
            warn!(
                "{}: {over_limit} of the newest {} runs are not served: the limits are {} scenarios \
                 (--limit.scenarios) and {} MiB of files",
                self.dir.display(),
                self.max_runs,
                self.max_scenarios,
                self.max_bytes >> 20
            );
        }
        let limit_changed = std::mem::replace(&mut self.over_limit, over_limit) != over_limit;
        self.runs = runs;
        let changed = limit_changed || self.runs.iter().map(|(file, _)| file).ne(before.iter());
        self.set_problems(problems) || changed
    }

    /// Reads a file that is not cached. An error of the content is remembered until the file is
    /// rewritten.
    fn read(&mut self, file: &ResultFile, known_invalid: &[(ResultFile, String)]) -> Result<Arc<Run>, String> {
        if let Some(known) = known_invalid.iter().find(|(known, _)| known == file) {
            self.invalid.push(known.clone());
            return Err(known.1.clone());
        }
        match read(file) {
            Ok(mut run) => {
                // Only the report of a single file needs what is in the text and not in the rows.
                run.text = String::new();
                let count = run.scenarios.len();
                info!("{}: {count} scenario{}", file.path.display(), if count == 1 { "" } else { "s" });
                Ok(Arc::new(run))
            }
            Err(error) => {
                if !error.is_transient() {
                    self.invalid.push((file.clone(), error.to_string()));
                }
                Err(error.to_string())
            }
        }
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

    fn ids(cache: &RunCache) -> Vec<&str> {
        cache.runs().iter().map(|(file, _)| &*file.id).collect()
    }

    #[test]
    fn newest_runs_are_kept_and_incomplete_files_skipped() {
        let dir = tempfile::tempdir().unwrap();
        for day in 1..=5 {
            write(dir.path(), &format!("2025010{day}_000000"), r#"{"scenarios":[{"name":"a"}]}"#);
        }
        write(dir.path(), "20250104_000000", "{");
        let mut cache = RunCache::new(dir.path(), 3, 100);
        assert!(cache.refresh());
        assert_eq!(ids(&cache), ["20250105_000000", "20250103_000000", "20250102_000000"]);
        assert_eq!((cache.files(), cache.problems().len(), cache.reason()), (5, 1, "broken"));
        assert!(!cache.refresh(), "nothing has changed");
        write(dir.path(), "20250104_000000", r#"{"scenarios":[{"name":"complete now"}]}"#);
        assert!(cache.refresh());
        assert_eq!(ids(&cache), ["20250105_000000", "20250104_000000", "20250103_000000"]);
        assert_eq!(cache.reason(), "");
        fs::remove_file(dir.path().join("test_results_20250105_000000.json")).unwrap();
        assert!(cache.refresh());
        assert_eq!(ids(&cache)[0], "20250104_000000");
    }

    #[test]
    fn scenario_limit_reduces_the_number_of_runs() {
        let dir = tempfile::tempdir().unwrap();
        let rows = vec![r#"{"name":"a"}"#; 60].join(",");
        for day in 1..=3 {
            write(dir.path(), &format!("2025010{day}_000000"), &format!(r#"{{"scenarios":[{rows}]}}"#));
        }
        let mut cache = RunCache::new(dir.path(), 10, 100);
        cache.refresh();
        assert_eq!(ids(&cache), ["20250103_000000"]);
        assert_eq!(cache.over_limit(), 2);
        assert_eq!(cache.dropped.as_ref().map(|(file, count)| (&*file.id, *count)), Some(("20250102_000000", 60)));
        assert!(!cache.refresh());
        assert_eq!((ids(&cache).len(), cache.over_limit()), (1, 2));
    }

    #[test]
    fn size_limit_reduces_the_number_of_runs() {
        let dir = tempfile::tempdir().unwrap();
        for day in 1..=4 {
            let text = format!(r#"{{"scenarios":[{{"name":"a"}}],"x":"{}"}}"#, "x".repeat(1000));
            write(dir.path(), &format!("2025010{day}_000000"), &text);
        }
        let mut cache = RunCache::new(dir.path(), 3, 100);
        cache.max_bytes = 2500;
        cache.refresh();
        assert_eq!((ids(&cache), cache.over_limit()), (vec!["20250104_000000", "20250103_000000"], 1));
        cache.max_bytes = 10;
        cache.runs.clear();
        cache.refresh();
        assert_eq!((ids(&cache).len(), cache.over_limit()), (1, 2), "the newest run is always served");
    }

    #[test]
    fn runs_are_kept_if_the_directory_disappears() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("results");
        fs::create_dir(&inner).unwrap();
        write(&inner, "20250101_000000", r#"{"scenarios":[{"name":"a"}]}"#);
        let mut cache = RunCache::new(&inner, 3, 100);
        cache.refresh();
        fs::rename(&inner, dir.path().join("away")).unwrap();
        assert!(cache.refresh());
        assert_eq!((cache.runs().len(), cache.reason()), (1, "absent"));
    }
}
