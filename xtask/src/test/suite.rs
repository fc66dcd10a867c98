//! Builds and runs the tests with cargo-nextest, or with `cargo test` where it is not installed,
//! and reads their results.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use quick_xml::{escape::resolve_predefined_entity, events::Event};
use testkit::shell::{self, PROGRAMS, output, root, step, target};

use super::report::Report;

/// Integration tests that need neither root nor services.
const FAST: [&str; 7] = ["golden", "compare", "variants", "replay", "bad_input", "deploy", "documents"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// Every test of the workspace.
    All,
    /// Unit and property tests, and [`FAST`].
    Fast,
}

#[derive(Debug)]
pub(super) struct Suite<'a> {
    pub(super) set: Set,
    /// Parts of test names; empty for all tests.
    pub(super) names: &'a [String],
    /// Directory of the programs under test; `None` for those that cargo builds with the tests.
    pub(super) programs: Option<&'a Path>,
}

impl Suite<'_> {
    /// Compiles the tests, and saves the metadata for nextest: while the tests run, another cargo
    /// may hold the lock of the target directory.
    pub(super) fn build(&self) -> Result<()> {
        if !has_nextest() {
            let mut command = self.command(&["test"]);
            return shell::run("building the tests", command.args(["--no-fail-fast", "--no-run"]));
        }
        let metadata = output(Command::new("cargo").args(["metadata", "--format-version", "1"]).current_dir(root()))?;
        let mut list = self.command(&["nextest", "list"]);
        list.args(["--list-type", "binaries-only", "--message-format", "json"]);
        let start = Instant::now();
        eprint!("  building the tests ... ");
        let binaries = output(&mut list).inspect_err(|_| eprintln!("failed"))?;
        eprintln!("{:.1} s", start.elapsed().as_secs_f64());
        fs::create_dir_all(nextest_dir())?;
        fs::write(nextest_dir().join(METADATA), metadata)?;
        fs::write(nextest_dir().join(BINARIES), binaries)?;
        Ok(())
    }

    /// Runs the tests and counts their results.
    ///
    /// # Errors
    /// When the runner fails or writes no results.
    pub(super) fn run(&self, report: &mut Report) -> Result<()> {
        if has_nextest() {
            return self.run_nextest(report);
        }
        step("cargo-nextest is not installed: cargo test runs end-to-end tests sequentially, which takes longer");
        step("(cargo install cargo-nextest --locked)");
        self.run_cargo_test(report)
    }

    fn command(&self, subcommand: &[&str]) -> Command {
        let mut command = Command::new("cargo");
        command.args(subcommand).arg("--workspace").current_dir(root()).stdin(Stdio::null());
        if self.set == Set::Fast {
            command.arg("--lib").args(FAST.iter().flat_map(|test| ["--test", test]));
        }
        if let Some(programs) = self.programs {
            command.env(PROGRAMS, programs);
        }
        command
    }

    fn run_nextest(&self, report: &mut Report) -> Result<()> {
        let results = nextest_dir().join("default/junit.xml");
        let _ = fs::remove_file(&results);
        let mut command = Command::new("cargo");
        command.args(["nextest", "run", "--no-tests=pass", "--cargo-metadata"]).arg(nextest_dir().join(METADATA));
        command.arg("--binaries-metadata").arg(nextest_dir().join(BINARIES)).args(self.names);
        if let Some(programs) = self.programs {
            command.env(PROGRAMS, programs);
        }
        let status = command.current_dir(root()).stdin(Stdio::null()).status().context("cannot run cargo nextest")?;
        let text = match fs::read_to_string(&results) {
            Ok(text) => text,
            Err(error) => bail!("cargo nextest ended with {status} and wrote no {}: {error}", results.display()),
        };
        let before = report.failed();
        for case in junit(&text)? {
            report.test(&case.name, case.time, case.failed, &case.reasons);
        }
        if !status.success() && report.failed() == before {
            bail!("cargo nextest ended with {status}, but no test failed");
        }
        Ok(())
    }

    /// Shows the output of failed tests only, and collects the lines `skipped: reason`.
    fn run_cargo_test(&self, report: &mut Report) -> Result<()> {
        let mut command = self.command(&["test"]);
        command.args(["--no-fail-fast", "--", "--show-output"]);
        if self.set == Set::All {
            command.arg("--test-threads=1");
        }
        let mut child = command.args(self.names).stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
        let lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        let (mut shown, mut skips, before) = (false, 0, report.failed());
        for line in lines {
            let line = line?;
            if let Some(reason) = line.strip_prefix("skipped: ") {
                report.skip(reason);
                skips += 1;
            } else if line == "failures:" {
                shown = true;
            } else if let Some(counts) = line.strip_prefix("test result: ") {
                shown = false;
                // Cargo counts a skipped test as passed.
                report.passed(count(counts, "passed").saturating_sub(std::mem::take(&mut skips)));
                if count(counts, "passed") + count(counts, "failed") > 0 {
                    eprintln!("    {counts}");
                }
            } else if let Some(test) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
                report.test(test, Duration::ZERO, true, &[]);
            }
            if shown {
                eprintln!("    {line}");
            }
        }
        let status = child.wait()?;
        if !status.success() && report.failed() == before {
            bail!("cargo test ended with {status}");
        }
        Ok(())
    }
}

/// The directory of nextest's results (`.config/nextest.toml`) and of the metadata for it.
fn nextest_dir() -> PathBuf {
    target().join("nextest")
}

const METADATA: &str = "cargo.json";
const BINARIES: &str = "binaries.json";

fn has_nextest() -> bool {
    output(Command::new("cargo").args(["nextest", "--version"])).is_ok()
}

/// The number before a word of `ok. 138 passed; 0 failed; …`.
fn count(counts: &str, word: &str) -> u32 {
    let words: Vec<&str> = counts.split([' ', ';']).filter(|word| !word.is_empty()).collect();
    let found = words.windows(2).find(|pair| pair[1] == word);
    found.and_then(|pair| pair[0].parse().ok()).unwrap_or_default()
}

/// A test in a JUnit file.
#[derive(Debug, Default, PartialEq)]
struct JunitCase {
    /// Binary and name.
    name: String,
    time: Duration,
    failed: bool,
    /// The reasons of its lines `skipped: reason`.
    reasons: Vec<String>,
}

/// Reads the results that nextest writes: <https://nexte.st/docs/machine-readable/junit/>.
fn junit(text: &str) -> Result<Vec<JunitCase>> {
    let mut reader = quick_xml::Reader::from_str(text);
    let (mut cases, mut current, mut printed) = (Vec::new(), None, None);
    loop {
        let event = reader.read_event().context("cannot read the results of nextest")?;
        match &event {
            Event::Start(tag) | Event::Empty(tag) => match tag.name().as_ref() {
                b"testcase" => {
                    let value = |name: &str| -> Result<String> {
                        let attribute = tag.try_get_attribute(name)?.with_context(|| format!("no {name}"))?;
                        Ok(attribute.unescape_value()?.into_owned())
                    };
                    let time = Duration::try_from_secs_f64(value("time")?.parse()?)?;
                    let name = format!("{} {}", value("classname")?, value("name")?);
                    let case = JunitCase { name, time, ..JunitCase::default() };
                    if matches!(event, Event::Empty(_)) { cases.push(case) } else { current = Some(case) }
                }
                b"failure" | b"error" => current.iter_mut().for_each(|case: &mut JunitCase| case.failed = true),
                b"system-out" if matches!(event, Event::Start(_)) => printed = Some(String::new()),
                _ => {}
            },
            Event::Text(text) => {
                if let Some(printed) = &mut printed {
                    printed.push_str(&text.decode()?);
                }
            }
            Event::GeneralRef(reference) => {
                if let Some(printed) = &mut printed {
                    let named = || resolve_predefined_entity(&reference.decode().ok()?).map(str::to_owned);
                    let text = reference.resolve_char_ref()?.map(String::from).or_else(named);
                    printed.push_str(&text.unwrap_or_default());
                }
            }
            Event::End(tag) => match tag.name().as_ref() {
                b"testcase" => cases.extend(current.take()),
                b"system-out" => {
                    let printed = printed.take().unwrap_or_default();
                    let reasons = printed.lines().filter_map(|line| line.strip_prefix("skipped: ")).map(str::to_owned);
                    current.iter_mut().for_each(|case| case.reasons.extend(reasons.clone()));
                }
                _ => {}
            },
            Event::Eof => return Ok(cases),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn junit_results_have_names_times_failures_and_reasons() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3" failures="1" errors="0" time="3.0">
  <testsuite name="probe-user::kernel" tests="3">
    <testcase name="one" classname="probe-user::kernel" timestamp="2026-11-29T22:00:00Z" time="1.500">
      <system-out>running 1 test
skipped: docker is not in PATH &amp; so on
</system-out>
    </testcase>
    <testcase name="two" classname="probe-user::kernel" time="0.250"/>
    <testcase name="three" classname="probe-user::kernel" time="2">
      <failure message="x" type="test failure">at line 3</failure>
      <system-out>skip nothing</system-out>
    </testcase>
  </testsuite>
</testsuites>"#;
        let cases = junit(text).unwrap();
        let short = |case: &JunitCase| (case.name.clone(), case.time.as_millis(), case.failed, case.reasons.len());
        assert_eq!(
            cases.iter().map(short).collect::<Vec<_>>(),
            [
                ("probe-user::kernel one".to_owned(), 1500, false, 1),
                ("probe-user::kernel two".to_owned(), 250, false, 0),
                ("probe-user::kernel three".to_owned(), 2000, true, 0),
            ]
        );
        assert_eq!(cases[0].reasons, ["docker is not in PATH & so on"]);
    }

    #[test]
    fn cargo_test_counts_are_parsed() {
        let counts = "ok. 138 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 10.78s";
        assert_eq!((count(counts, "passed"), count(counts, "failed")), (138, 2));
    }
}
