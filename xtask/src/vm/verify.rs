//! Compares the figures of the probes with those of the guest kernel.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::matrix::{Kernel, Machine, TIERS};

/// The moments of the script's snapshots: both loops run; one was stopped; a CPU is offline; it is
/// online again, and a new loop runs on it.
const PHASES: [&str; 4] = ["running", "before-offline", "offline", "online"];
/// The cgroups in which the scripts use CPU time.
pub(super) const CGROUPS: [&str; 2] = ["one", "two"];

/// Checks the console output of a guest; returns the figures to print.
///
/// # Errors
/// With the first wrong figure.
pub(super) fn verify(console: &str, kernel: &Kernel, machine: &Machine) -> Result<Vec<String>> {
    let script = script(console, kernel)?;
    let doctor: Vec<&str> = console.lines().filter_map(|line| line.trim_end().strip_prefix("doctor: ")).collect();
    let found = |name: &str| doctor.iter().find(|line| line.starts_with(&format!("{name} "))).copied();
    let mut findings = vec![stages(&script)];
    for tier in TIERS {
        let state = found(tier).unwrap_or_default();
        findings.push(state.to_owned());
        if !kernel.tiers.contains(&tier) {
            ensure!(state.contains(" absent "), "tier {tier} is not absent: {state}");
            continue;
        }
        ensure!(state.contains(" usable "), "tier {tier} is not usable: {state}");
        let mut last = BTreeMap::new();
        for phase in PHASES {
            let prefix = format!("{phase} {tier} ");
            let snapshot = Snapshot {
                tier,
                phase,
                machine,
                lines: script.iter().filter_map(|line| line.strip_prefix(&*prefix)).collect(),
            };
            snapshot.verify(&mut last, &mut findings).with_context(|| format!("{tier}, {phase}"))?;
        }
    }
    Ok(findings)
}

/// The lines of a guest's script, which ran to its end.
///
/// # Errors
/// It did not, or ran on another kernel.
pub(super) fn script<'a>(console: &'a str, kernel: &Kernel) -> Result<Vec<&'a str>> {
    let script: Vec<&str> = console.lines().filter_map(|line| line.trim_end().strip_prefix("VM ")).collect();
    ensure!(script.contains(&"end"), "the script did not complete; the end of its console:{}", console_end(console));
    let release = script.iter().find_map(|line| line.strip_prefix("kernel ")).unwrap_or_default();
    ensure!(release.starts_with(&format!("{}.", kernel.version)), "the kernel is {release}, not {}", kernel.version);
    Ok(script)
}

/// The last lines of the console, indented. A panic of the kernel takes up to about 50.
fn console_end(console: &str) -> String {
    let lines: Vec<&str> = console.lines().map(str::trim_end).collect();
    let end = lines.get(lines.len().saturating_sub(60)..).unwrap_or_default();
    end.iter().fold(String::new(), |text, line| text + "\n    " + line)
}

/// Start time of each stage by the guest's clock.
pub(super) fn stages(script: &[&str]) -> String {
    script.iter().filter_map(|line| line.strip_prefix("stage ")).collect::<Vec<_>>().join(", ")
}

/// The output of the script for one probe at one moment.
struct Snapshot<'a> {
    tier: &'a str,
    phase: &'a str,
    machine: &'a Machine,
    lines: Vec<&'a str>,
}

impl<'a> Snapshot<'a> {
    /// `last` has the CPU seconds of each cgroup in the previous snapshot.
    fn verify(&self, last: &mut BTreeMap<&str, f64>, findings: &mut Vec<String>) -> Result<()> {
        let Self { tier, phase, .. } = self;
        let information = self.page("wattcast_cpu_source_info{").next();
        let served = information.is_some_and(|line| line.contains(&format!("tier=\"{tier}\"")));
        ensure!(served, "the probe uses another tier: {information:?}");
        for name in CGROUPS {
            let figure = self.compare(name)?;
            let before = last.insert(name, figure.ours).unwrap_or(0.0);
            ensure!(figure.ours >= before, "the counter of {name} fell from {before} to {}", figure.ours);
            findings.extend(self.verify_rows(name, &figure)?);
            let CpuSeconds { ours, before, after, .. } = figure;
            findings.push(format!("{tier}, {phase}: {name} {ours:.3} s, kernel {before:.3} to {after:.3} s"));
        }
        let job = self.page("wattcast_stream_energy_joules_total{stream=\"unnamed\"").next();
        let joules = job.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0);
        let up = self.page("wattcast_source_up{source=\"jobs\"").next();
        ensure!(up.is_some_and(|line| line.ends_with(" 1")) && joules > 0.0, "jobs: {up:?}, {job:?}");
        let errors: Vec<&str> = self.page("wattcast_conservation_error_joules").collect();
        ensure!(!errors.is_empty() && errors.iter().all(|line| line.ends_with(" 0")), "{errors:?}");
        Ok(())
    }

    /// Checks package and mode of a cgroup's CPU time: each loop is pinned to its own CPU.
    fn verify_rows(&self, name: &str, CpuSeconds { rows, ours, .. }: &CpuSeconds<'_>) -> Result<Option<String>> {
        let Machine { packages, siblings, .. } = *self.machine;
        let expected = match self.tier {
            "switch" if siblings => 2 * packages,
            "files" => 1,
            _ => packages,
        };
        ensure!(rows.len() == expected, "{name} has {rows:?}, not {expected} rows");
        if self.phase != "running" {
            return Ok(None);
        }
        if packages > 1 && self.tier != "files" {
            let own = rows.iter().map(|(_, value)| *value).fold(0.0, f64::max);
            ensure!(own >= 0.95 * ours, "{name} ran on both sockets: {rows:?}");
        }
        if !siblings || self.tier != "switch" {
            return Ok(None);
        }
        // The other loop ran on the sibling for all of the time except its start.
        let shared = rows.iter().filter(|(labels, _)| labels.contains("mode=\"shared\""));
        let shared: f64 = shared.map(|(_, value)| *value).sum();
        ensure!(shared >= 0.8 * ours, "{name} ran {ours} s, only {shared} s of it while the sibling was busy");
        Ok(Some(format!("{}: {name} {shared:.3} s with a busy sibling", self.phase)))
    }

    /// Series of the probe's page that begin with `start`.
    fn page(&self, start: &str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(|line| line.strip_prefix("page ")).filter(move |line| line.starts_with(start))
    }

    /// Compares the CPU seconds of a cgroup by the probe and by the kernel.
    fn compare(&self, name: &str) -> Result<CpuSeconds<'a>> {
        let usage = |edge: &str| -> Result<f64> {
            let line = self.lines.iter().find_map(|line| line.strip_prefix(&format!("{name} {edge} ")));
            Ok(line.with_context(|| format!("no {edge} of {name}"))?.parse::<f64>()? / 1e6)
        };
        let rows: Vec<(&str, f64)> = self
            .page("wattcast_container_cpu_seconds_total{")
            .filter(|line| line.contains(&format!("container=\"{name}\"")))
            .filter_map(|line| line.rsplit_once("} ").and_then(|(labels, value)| Some((labels, value.parse().ok()?))))
            .collect();
        let ours: f64 = rows.iter().map(|(_, value)| value).sum();
        let (before, after) = (usage("before")?, usage("after")?);
        let truth = ours.clamp(before, after);
        ensure!(
            (ours - truth).abs() <= 0.005 * truth,
            "{name}: {ours:.3} s by the probe, {before:.3} to {after:.3} s by the kernel"
        );
        Ok(CpuSeconds { rows, ours, before, after })
    }
}

/// CPU seconds of a cgroup by the probe, and by the kernel before and after.
struct CpuSeconds<'a> {
    /// Labels and CPU seconds.
    rows: Vec<(&'a str, f64)>,
    ours: f64,
    before: f64,
    after: f64,
}
