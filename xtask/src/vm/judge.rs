//! The probes' figures against those of the guest's kernel.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::{Kernel, Machine, TIERS};

/// When the script looks: both loops run; one was stopped; a CPU is offline; it is online again, and
/// a new loop runs there.
const PHASES: [&str; 4] = ["running", "before-offline", "offline", "online"];
/// The cgroups in which the script burns CPU time.
const CGROUPS: [&str; 2] = ["one", "two"];

/// Holds a console against what the kernel and the machine must show; gives the figures to print.
///
/// # Errors
/// The first figure that is wrong.
pub(super) fn judge(console: &str, kernel: &Kernel, machine: &Machine) -> Result<Vec<String>> {
    let script: Vec<&str> = console.lines().filter_map(|line| line.trim_end().strip_prefix("VM ")).collect();
    let doctor: Vec<&str> = console.lines().filter_map(|line| line.trim_end().strip_prefix("doctor: ")).collect();
    let found = |name: &str| doctor.iter().find(|line| line.starts_with(&format!("{name} "))).copied();
    let last = console.lines().last().unwrap_or_default();
    ensure!(script.contains(&"end"), "the script did not come to its end; the last line of its console: {last}");
    let release = script.iter().find_map(|line| line.strip_prefix("kernel ")).unwrap_or_default();
    ensure!(release.starts_with(&format!("{}.", kernel.version)), "the kernel is {release}, not {}", kernel.version);
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
            let look = Look {
                tier,
                phase,
                machine,
                lines: script.iter().filter_map(|line| line.strip_prefix(&*prefix)).collect(),
            };
            look.judge(&mut last, &mut findings).with_context(|| format!("{tier}, {phase}"))?;
        }
    }
    Ok(findings)
}

/// When each stage began, by the guest's clock.
fn stages(script: &[&str]) -> String {
    script.iter().filter_map(|line| line.strip_prefix("stage ")).collect::<Vec<_>>().join(", ")
}

/// What the script printed of one probe at one moment.
struct Look<'a> {
    tier: &'a str,
    phase: &'a str,
    machine: &'a Machine,
    lines: Vec<&'a str>,
}

impl<'a> Look<'a> {
    /// `last` has each cgroup's figure of the look before.
    fn judge(&self, last: &mut BTreeMap<&str, f64>, findings: &mut Vec<String>) -> Result<()> {
        let Self { tier, phase, .. } = self;
        let information = self.page("wattcast_cpu_source_info{").next();
        let served = information.is_some_and(|line| line.contains(&format!("tier=\"{tier}\"")));
        ensure!(served, "not served by this tier: {information:?}");
        for name in CGROUPS {
            let figure = self.compare(name)?;
            let before = last.insert(name, figure.ours).unwrap_or(0.0);
            ensure!(figure.ours >= before, "the counter of {name} fell from {before} to {}", figure.ours);
            findings.extend(self.judge_rows(name, &figure)?);
            let Figure { ours, before, after, .. } = figure;
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

    /// Where and beside whom a cgroup ran: each loop is pinned to a CPU of its own.
    fn judge_rows(&self, name: &str, Figure { rows, ours, .. }: &Figure<'_>) -> Result<Option<String>> {
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
        // The other loop was on the sibling all the time but for its start.
        let beside = rows.iter().filter(|(labels, _)| labels.contains("mode=\"shared\""));
        let shared: f64 = beside.map(|(_, value)| *value).sum();
        ensure!(shared >= 0.8 * ours, "{name} ran {ours} s, {shared} s of it beside the other");
        Ok(Some(format!("{}: {name} {shared:.3} s beside the other", self.phase)))
    }

    /// Series of the probe's page that begin so.
    fn page(&self, start: &str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(|line| line.strip_prefix("page ")).filter(move |line| line.starts_with(start))
    }

    /// What the probe and the kernel say of a cgroup, which must agree.
    fn compare(&self, name: &str) -> Result<Figure<'a>> {
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
            "{name} ran {ours:.3} s, and by the kernel {before:.3} to {after:.3} s"
        );
        Ok(Figure { rows, ours, before, after })
    }
}

/// The CPU seconds of a cgroup by the probe, and by the kernel before and after.
struct Figure<'a> {
    /// Labels and CPU seconds.
    rows: Vec<(&'a str, f64)>,
    ours: f64,
    before: f64,
    after: f64,
}
