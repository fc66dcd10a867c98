//! `cargo xtask test`: every test, with a count of what could not run here and why.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, check_dashboards};
use testkit::{
    program::die_with_us,
    shell::{is_root, output, root, step, target, which},
};

/// Runs everything.
///
/// # Errors
/// When a check or a test fails.
pub fn test() -> Result<()> {
    let mut outcome = Outcome::default();
    eprintln!("Checks");
    outcome.check("cargo fmt", &["fmt", "--all", "--check"]);
    outcome.check("cargo clippy", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    // Only checked: running them wants a nightly compiler and time. What no longer compiles would be found too late.
    outcome.check("fuzz targets compile", &["check", "--quiet", "--manifest-path", "fuzz/Cargo.toml"]);
    if which("cargo-deny").is_some() || output(Command::new("cargo").args(["deny", "--version"])).is_ok() {
        outcome.check("cargo deny", &["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]);
    } else {
        outcome.skip("cargo deny: not installed (cargo install cargo-deny --locked)");
    }
    match build_ebpf::Toolchain::find() {
        Ok(toolchain) => outcome.report("cargo xtask build-ebpf", toolchain.build().map(|_| ())),
        Err(error) => outcome.skip(&format!("eBPF programs: no toolchain for them here: {error:#}")),
    }
    let docker = Docker::start();
    if let Err(reason) = &docker {
        step(format!("no Docker engine: {reason:#}"));
    }

    eprintln!("Tests");
    let start = Instant::now();
    outcome.cargo_test()?;
    eprintln!("Dashboards");
    match check_dashboards::check() {
        Ok(Ok(())) => outcome.passed += 1,
        Ok(Err(why)) => outcome.skip(&format!("dashboards: {why}")),
        Err(error) => outcome.report("cargo xtask check-dashboards", Err(error)),
    }
    eprintln!();
    eprintln!(
        "{} passed, {} failed, {} skipped in {:.0} s",
        outcome.passed,
        outcome.failed.len(),
        outcome.skipped.values().sum::<u32>(),
        start.elapsed().as_secs_f64()
    );
    for (reason, count) in &outcome.skipped {
        eprintln!("  skipped {count}: {reason}");
    }
    for failed in &outcome.failed {
        eprintln!("  failed: {failed}");
    }
    if !outcome.failed.is_empty() {
        bail!("{} failed", outcome.failed.len());
    }
    Ok(())
}

#[derive(Default)]
struct Outcome {
    passed: u32,
    failed: Vec<String>,
    skipped: BTreeMap<String, u32>,
}

impl Outcome {
    fn skip(&mut self, reason: &str) {
        *self.skipped.entry(reason.to_owned()).or_default() += 1;
    }

    fn check(&mut self, what: &str, args: &[&str]) {
        self.report(what, testkit::shell::run(what, Command::new("cargo").args(args).current_dir(root())));
    }

    fn report(&mut self, what: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.passed += 1,
            Err(error) => {
                eprintln!("{error:#}");
                self.failed.push(what.to_owned());
            }
        }
    }

    /// Runs the tests of the workspace. What a test prints is shown only when it fails, but for its `skipped: reason`.
    fn cargo_test(&mut self) -> Result<()> {
        let mut child = Command::new("cargo")
            .args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"])
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run cargo test")?;
        let lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        let mut shown = false;
        let mut skips = 0;
        for line in lines {
            let line = line?;
            if let Some(reason) = line.strip_prefix("skipped: ") {
                self.skip(reason);
                skips += 1;
            } else if line == "failures:" {
                shown = true;
            } else if let Some(counts) = line.strip_prefix("test result: ") {
                shown = false;
                let count = |word: &str| -> u32 {
                    let mut words = counts.split([' ', ';']).collect::<Vec<_>>();
                    words.retain(|word| !word.is_empty());
                    words
                        .windows(2)
                        .find(|pair| pair[1] == word)
                        .and_then(|pair| pair[0].parse().ok())
                        .unwrap_or_default()
                };
                // A test that says why it cannot run passes for cargo.
                self.passed += count("passed").saturating_sub(std::mem::take(&mut skips));
                if count("passed") + count("failed") > 0 {
                    eprintln!("    {counts}");
                }
            } else if let Some(test) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
                self.failed.push(test.to_owned());
            }
            if shown {
                eprintln!("    {line}");
            }
        }
        if !child.wait()?.success() && self.failed.is_empty() {
            self.failed.push("cargo test".to_owned());
        }
        Ok(())
    }
}

/// A Docker engine for the tests: the one that runs, or one of our own that ends with us.
struct Docker(Option<Child>);

impl Docker {
    fn start() -> Result<Self> {
        let answers = || output(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"])).is_ok();
        if which("docker").is_none() {
            bail!("docker is not installed (Debian: apt-get install docker.io)");
        }
        if answers() {
            return Ok(Self(None));
        }
        if !is_root() {
            bail!("none answers, and starting one needs root");
        }
        let dockerd = which("dockerd").context("dockerd is not installed (Debian: apt-get install docker.io)")?;
        let log = target().join("dockerd.log");
        let file = File::create(&log)?;
        let mut command = Command::new(dockerd);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        die_with_us(&mut command);
        let engine = Self(Some(command.spawn()?));
        let end = Instant::now() + Duration::from_secs(30);
        while !answers() {
            if Instant::now() > end {
                bail!("dockerd does not come up; see {}", log.display());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        step("started a Docker engine for the tests");
        Ok(engine)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0
            && let Ok(pid) = libc::pid_t::try_from(child.id())
        {
            // SAFETY: the child was not waited for, so the pid is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
            let _ = child.wait();
        }
    }
}
