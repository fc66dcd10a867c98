//! The report on a command: its energy and cost, and what they lack.

use std::{
    collections::BTreeSet, ffi::OsString, os::unix::process::ExitStatusExt as _, path::Path, process::ExitStatus,
    time::Duration,
};

use cli::number::{money, short, with_unit, with_unit_and_half_width};
use serde::Serialize;
use units::{model_interval::ModelInterval, provenance::Unmeasured};

use crate::{
    host::availability::SourceState,
    snapshot::{
        ContainerRow, Snapshot,
        history::{AccountSum, ContainerSum, EnergySum, seconds},
    },
};

/// Two counts of CPU time differ by the run of the command before it is in its cgroup, and by what
/// runs between two readings: up to this many seconds, or this part of the time.
const CPU_TOLERANCE: (f64, f64) = (0.05, 0.02);

/// Programs that let others run their work, outside of the command's cgroup.
const CLIENTS: [&str; 8] = ["docker", "podman", "nerdctl", "ctr", "crictl", "kubectl", "systemd-run", "machinectl"];

/// The energy of the command in one zone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ZoneCost {
    /// Package index; `all` for the machine.
    pub(super) package: String,
    /// `package`, `dram`, …
    pub(super) zone: &'static str,
    /// Energy source; `model` is not a measurement.
    pub(super) source: &'static str,
    /// True if the counter is simulated: nothing was measured.
    pub(super) simulated: bool,
    /// Dynamic energy of the command; absent if its cgroup has no row.
    pub(super) joules: Option<f64>,
    /// Uncertainty of `joules`; absent if unknown.
    pub(super) uncertainty_joules: Option<f64>,
    /// Total energy of the zone.
    pub(super) machine_joules: f64,
    /// Idle energy of the zone.
    pub(super) idle_joules: f64,
    /// False if `joules` includes idle energy, because the idle power is not learnt yet.
    pub(super) idle_known: bool,
    /// What is to be said instead of the uncertainty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) idle_note: Option<&'static str>,
    /// 90 % interval of modelled energy, as the truth per estimate; absent if it is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model_interval_ratio: Option<ModelInterval>,
}

impl ZoneCost {
    /// Its source, or that it is not measured, for people.
    pub(super) fn origin(&self) -> String {
        Unmeasured::of(self.source).map_or_else(|| format!("by {}", self.source), |kind| kind.word().to_owned())
    }

    /// How the energy is known, for people.
    fn provenance(&self) -> String {
        let origin = self.origin();
        match self.model_interval_ratio {
            Some(interval) => format!("{origin}, {interval}"),
            None => origin,
        }
    }

    /// The energy of the command and of the machine.
    fn text(&self) -> String {
        let joules = match self.joules {
            None => "unknown".to_owned(),
            Some(joules) => match self.idle_note {
                Some(note) => format!("{} ({note})", with_unit(joules, "J")),
                None => with_unit_and_half_width(joules, self.uncertainty_joules, "J"),
            },
        };
        let how = self.provenance();
        format!(
            "{joules}  {} {}, {how}; {} {}, of which idle {}",
            self.zone,
            self.package,
            if self.zone == "gpu" { "GPU" } else { "machine" },
            with_unit(self.machine_joules, "J"),
            with_unit(self.idle_joules, "J")
        )
    }
}

/// Statistics from ffmpeg's progress reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct FrameStats {
    /// Frames of the first video stream.
    pub(super) frames: u64,
    /// Frames per second of wall-clock time.
    pub(super) fps: f64,
    pub(super) dropped: u64,
    pub(super) duplicated: u64,
    /// Length of the output.
    pub(super) media_seconds: f64,
    /// Energy of all zones per frame; absent without energy or frames.
    pub(super) joules_per_frame: Option<f64>,
    pub(super) joules_per_media_second: Option<f64>,
}

/// Energy and cost of a command.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CostReport {
    /// The program without arguments, which may contain secrets.
    pub(super) program: String,
    /// The exit code as in a shell: 128 plus the number of the signal that ended the command.
    pub(super) exit_code: i32,
    /// Wall-clock time.
    pub(super) seconds: f64,
    /// CPU time of the command's cgroup and of all cgroups below it, as the kernel counts it.
    /// Absent if it is unknown, with the reason in `notes`.
    pub(super) cpu_seconds: Option<f64>,
    /// The part of `cpu_seconds` that is in no row, so that `joules` lacks its energy; absent if
    /// the kernel's count cannot be read.
    pub(super) unattributed_cpu_seconds: Option<f64>,
    /// CPU time of processes that left the cgroup, at least; it is in neither figure above.
    pub(super) outside_cpu_seconds: Option<f64>,
    /// Absent if the tier does not count it.
    pub(super) runqueue_wait_seconds: Option<f64>,
    /// Empty without an energy source.
    pub(super) zones: Vec<ZoneCost>,
    /// Sum of all accounting roots; absent if it is unknown, with the reason in `notes`.
    pub(super) joules: Option<f64>,
    pub(super) uncertainty_joules: Option<f64>,
    /// Mean dynamic power.
    pub(super) watts: Option<f64>,
    pub(super) watt_hours: Option<f64>,
    /// Cost of `watt_hours`.
    pub(super) money: Option<f64>,
    /// ISO 4217.
    pub(super) currency: String,
    pub(super) price_per_kwh: f64,
    /// Present if the command was ffmpeg and reported to the probe.
    pub(super) frames: Option<FrameStats>,
    /// Limitations of the values above.
    pub(super) notes: Vec<String>,
}

pub(super) fn nanoseconds_to_seconds(ns: u64) -> f64 {
    seconds(i64::try_from(ns).unwrap_or(i64::MAX))
}

/// A run of the command.
pub(super) struct CommandRun<'a> {
    pub(super) status: ExitStatus,
    pub(super) wall: Duration,
    /// The tick before the command.
    pub(super) first: &'a Snapshot,
    /// The tick after it.
    pub(super) last: &'a Snapshot,
    /// Path of its cgroup from the root of the tree, without the leading slash.
    pub(super) cgroup: &'a str,
    /// Short ids of the containers below that cgroup.
    pub(super) containers: &'a BTreeSet<String>,
    /// CPU seconds that the kernel counts for the cgroup and those below it.
    pub(super) cgroup_cpu: Option<f64>,
    /// CPU seconds of the command and of the descendants that were waited for, in any cgroup.
    pub(super) reaped_cpu: Option<f64>,
}

impl CommandRun<'_> {
    /// True for the row of the command's cgroup, and for those of cgroups and containers below it.
    fn owns(&self, name: &str, id: &str) -> bool {
        let below = name.strip_prefix(self.cgroup).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        below || self.containers.contains(id)
    }

    /// Why rows are missing.
    fn missing_reason(&self) -> String {
        let last = self.last;
        let needed = |source: &&SourceState| ["cpu", "cgroups"].contains(&source.source);
        if let Some(problem) = last.sources.iter().filter(needed).find_map(SourceState::problem) {
            problem
        } else if last.cpu.is_none() {
            "CPU time is not counted (--no-collector.cpu)".to_owned()
        } else if last.containers_dropped > 0 {
            format!(
                "the table of containers is full and lacks {} of them (--limit.containers)",
                last.containers_dropped
            )
        } else if last.cpu_overflow_ns > 0 {
            "the kernel's table of cgroups is full".to_owned()
        } else if last.cgroups_unnamed > 0 {
            format!("{} cgroups ended before a tick found their path (--tick)", last.cgroups_unnamed)
        } else if self.cgroup_cpu.is_some_and(|used| used < 0.001) {
            "it used less than a millisecond of CPU time".to_owned()
        } else {
            "no tick found its cgroup".to_owned()
        }
    }
}

/// By how much one count of CPU seconds exceeds another, if by more than counts differ anyway.
fn excess(more: f64, less: f64) -> Option<f64> {
    let (absolute, relative) = CPU_TOLERANCE;
    let by = more - less;
    (by > absolute.max(more * relative)).then_some(by)
}

/// What the rows lack: `counted` are the CPU seconds of all rows, absent without a row.
fn cpu_notes(counted: Option<f64>, cgroup: Option<f64>, reaped: Option<f64>, reason: &str) -> Vec<String> {
    let mut notes = Vec::new();
    match (counted, cgroup) {
        (None, _) => notes.push(format!("the command's energy is unknown, because its cgroup has no row: {reason}")),
        (Some(_), None) => {
            notes.push("the kernel's count of its cgroup cannot be read, so the CPU time may be incomplete".to_owned());
        }
        (Some(counted), Some(cgroup)) => {
            if let Some(by) = excess(cgroup, counted) {
                notes.push(format!(
                    "{by:.3} s of the {cgroup:.3} s of CPU time of its cgroup are in no row, and their energy is not included: {reason}"
                ));
            }
        }
    }
    if let (Some(reaped), Some(cgroup)) = (reaped, cgroup)
        && let Some(by) = excess(reaped, cgroup)
    {
        notes.push(format!(
            "{by:.3} s of CPU time ran outside of its cgroup, because processes of the command moved to another cgroup; their energy is not included"
        ));
    }
    notes
}

/// Energy of the command by zone. `own` are the sums of its rows.
fn zone_costs(accounts: &[AccountSum], own: &[&ContainerSum]) -> Vec<ZoneCost> {
    accounts
        .iter()
        .map(|account| {
            let energy: Vec<&EnergySum> = own
                .iter()
                .flat_map(|own| own.energy.iter())
                .filter(|sum| {
                    // A source that changes during the command gives its zone a second account.
                    (&sum.package, sum.zone, sum.source) == (&account.package, account.zone, account.source)
                })
                .collect();
            let has_row = !own.is_empty();
            ZoneCost {
                package: account.package.clone(),
                zone: account.zone,
                source: account.source,
                simulated: Unmeasured::of(account.source) == Some(Unmeasured::Simulated),
                joules: has_row.then(|| energy.iter().map(|sum| sum.joules).sum()),
                // The rows share the counter's error, so their bounds add up.
                uncertainty_joules: energy
                    .iter()
                    .map(|sum| sum.uncertainty_joules)
                    .sum::<Option<f64>>()
                    .filter(|_| has_row && account.source != "model"),
                machine_joules: account.measured_joules,
                idle_joules: account.idle_joules,
                idle_known: account.idle_known,
                idle_note: account.idle_note,
                model_interval_ratio: account.model_interval_ratio,
            }
        })
        .collect()
}

/// The report on a run. `price` is that of a kilowatt hour, in `currency`.
pub(super) fn cost_report(price: f64, currency: &str, program: &OsString, run: &CommandRun<'_>) -> CostReport {
    let (first, last) = (run.first, run.last);
    let rows: Vec<&ContainerRow> =
        last.containers.iter().filter(|row| run.owns(&row.container.name, &row.container.id)).collect();
    let waits: Vec<u64> = rows.iter().filter_map(|row| row.queue.map(|queue| queue.wait_ns)).collect();
    let add = |sum: u64, ns: u64| sum.saturating_add(ns);
    let mut notes = Vec::new();
    let (zones, counted) = match last.window(seconds(first.unix_ns), seconds(last.unix_ns)) {
        Ok(window) => {
            let own: Vec<&ContainerSum> =
                window.containers.iter().filter(|sum| run.owns(&sum.container, &sum.id)).collect();
            let counted = own.iter().flat_map(|own| own.cpu.iter()).map(|cpu| cpu.seconds).sum::<f64>();
            for account in window.accounts.iter().filter(|account| account.zone != "gpu") {
                if account.missing_seconds > 0.001 {
                    notes.push(format!(
                        "the {} of package {} gave no energy for {:.3} s, which is not included",
                        account.zone, account.package, account.missing_seconds
                    ));
                }
            }
            if window.accounts.is_empty() {
                notes.push("no energy: no source of energy works here; see wattcast-probe doctor".to_owned());
            }
            (zone_costs(&window.accounts, &own), (!own.is_empty()).then_some(counted))
        }
        Err(error) => {
            notes.push(format!("no energy: {error}"));
            let ns = rows.iter().flat_map(|row| row.cpu.iter()).map(|share| share.ns()).fold(0, add);
            (Vec::new(), (!rows.is_empty()).then(|| nanoseconds_to_seconds(ns)))
        }
    };
    notes.extend(cpu_notes(counted, run.cgroup_cpu, run.reaped_cpu, &run.missing_reason()));
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    if CLIENTS.contains(&&*name) {
        notes.push(format!(
            "what {name} starts outside of the command's cgroup is not included; a running probe shows it by container"
        ));
    }
    let above = |more: Option<f64>, less: Option<f64>| more.zip(less).map(|(more, less)| (more - less).max(0.0));
    let mut cost = CostReport {
        program: name,
        exit_code: run.status.code().or_else(|| run.status.signal().map(|signal| 128 + signal)).unwrap_or(1),
        seconds: run.wall.as_secs_f64(),
        cpu_seconds: run.cgroup_cpu.or(counted),
        unattributed_cpu_seconds: above(run.cgroup_cpu, Some(counted.unwrap_or(0.0))),
        outside_cpu_seconds: above(run.reaped_cpu, run.cgroup_cpu),
        runqueue_wait_seconds: (!waits.is_empty()).then(|| nanoseconds_to_seconds(waits.into_iter().fold(0, add))),
        joules: zones.iter().map(|zone| zone.joules).sum::<Option<f64>>().filter(|_| !zones.is_empty()),
        uncertainty_joules: zones.iter().map(|zone| zone.uncertainty_joules).sum(),
        zones,
        watts: None,
        watt_hours: None,
        money: None,
        currency: currency.to_owned(),
        price_per_kwh: price,
        frames: None,
        notes,
    };
    if cost.zones.is_empty() {
        cost.uncertainty_joules = None;
    }
    cost.watts = cost.joules.map(|joules| joules / cost.seconds.max(1e-9));
    cost.watt_hours = cost.joules.map(|joules| joules / 3600.0);
    cost.money = cost.watt_hours.map(|hours| hours / 1000.0 * price);
    let is_gpu = |zone: &&ZoneCost| zone.zone == "gpu";
    let machine_zones = cost.zones.iter().filter(|zone| !is_gpu(zone));
    let unmeasured = Unmeasured::among(cost.zones.iter().map(|zone| zone.source));
    cost.notes.extend(unmeasured.iter().map(|kind| kind.banner().to_owned()));
    let used = |zone: &ZoneCost| zone.joules.is_some_and(|joules| joules > 0.0);
    if cost.zones.iter().filter(is_gpu).any(|zone| used(zone) && zone.idle_joules == 0.0) {
        cost.notes.push(
            "the idle power of the GPU is unknown, so its idle energy is included; a probe that runs for a while learns it"
                .to_owned(),
        );
    }
    if unmeasured.contains(&Unmeasured::Model) {
        cost.notes.push("wattcast-probe doctor says why nothing is measured".to_owned());
    } else if machine_zones.filter(|zone| zone.zone != "dram").any(|zone| zone.idle_note.is_some()) {
        cost.notes.push(
            "the idle power of this machine is not learnt yet, so idle energy is shared by all running workloads; run wattcast-probe calibrate once, or a probe for a while, with the same --state.dir"
                .to_owned(),
        );
    }
    cost
}

impl CostReport {
    /// The report for people.
    #[must_use]
    pub(super) fn text(&self) -> String {
        let mut lines = vec![format!(
            "\nwattcast: {} ended with {} after {} s\n",
            self.program,
            self.exit_code,
            short(self.seconds)
        )];
        let mut line = |head: &str, text: String| lines.push(format!("  {head:<8}{text}\n"));
        // GPUs that the command did not use are left out.
        for zone in
            self.zones.iter().filter(|zone| zone.zone != "gpu" || zone.joules.is_some_and(|joules| joules > 0.0))
        {
            line("energy", zone.text());
        }
        if let (Some(watts), Some(hours), Some(amount)) = (self.watts, self.watt_hours, self.money) {
            let (price, currency) = (self.price_per_kwh, &self.currency);
            let (watts, hours) = (with_unit(watts, "W"), with_unit(hours, "Wh"));
            let amount = money(amount, currency);
            line("cost", format!("{watts} mean, {hours}, {amount} at {price} {currency}/kWh"));
        }
        let wait =
            self.runqueue_wait_seconds.map_or_else(String::new, |wait| format!("; run-queue wait {} s", short(wait)));
        line(
            "CPU",
            self.cpu_seconds.map_or_else(
                || format!("unknown{wait}"),
                |used| format!("{} s, {} CPUs busy{wait}", short(used), short(used / self.seconds.max(1e-9))),
            ),
        );
        if let Some(frames) = &self.frames {
            line(
                "frames",
                format!(
                    "{}, {} fps, {} dropped, {} duplicated, {} s of media",
                    frames.frames,
                    short(frames.fps),
                    frames.dropped,
                    frames.duplicated,
                    short(frames.media_seconds)
                ),
            );
            if let (Some(frame), Some(second)) = (frames.joules_per_frame, frames.joules_per_media_second) {
                let (frame, second) = (with_unit(frame, "J/frame"), with_unit(second, "J"));
                line("", format!("{frame}, {second} per second of media"));
            }
        }
        for note in &self.notes {
            line("note", note.clone());
        }
        lines.concat()
    }

    /// The report for programs: one line.
    #[must_use]
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).map(|text| text + "\n").unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::history::CpuSum;

    fn sum(container: &str, id: &str, joules: f64, uncertainty_joules: Option<f64>) -> ContainerSum {
        let (package, image) = ("0".to_owned(), String::new());
        ContainerSum {
            container: container.to_owned(),
            id: id.to_owned(),
            image,
            runtime: "cgroup",
            energy: vec![EnergySum {
                package: package.clone(),
                zone: "package",
                source: "powercap",
                joules,
                awake_joules: 0.0,
                idle_joules: 0.0,
                edge_error_joules: 0.0,
                uncertainty_joules,
            }],
            cpu: vec![CpuSum { package, seconds: 1.0 }],
        }
    }

    fn account(source: &'static str) -> AccountSum {
        AccountSum {
            package: "0".to_owned(),
            zone: "package",
            source,
            measured_joules: 100.0,
            containers_joules: 0.0,
            awake_joules: 0.0,
            retired_joules: 0.0,
            system_joules: 0.0,
            idle_joules: 10.0,
            unattributed_joules: 0.0,
            unsettled_joules: 0.0,
            idle_known: true,
            idle_known_seconds: 1.0,
            edge_error_joules: 0.0,
            missing_seconds: 0.0,
            uncertainty_joules: None,
            model_interval_ratio: None,
            idle_note: None,
        }
    }

    #[test]
    fn child_cgroups_and_containers_below_belong_to_the_command() {
        let (first, last) = (Snapshot::default(), Snapshot::default());
        let containers = BTreeSet::from(["0123456789ab".to_owned()]);
        let run = CommandRun {
            status: ExitStatus::from_raw(0),
            wall: Duration::from_secs(1),
            first: &first,
            last: &last,
            cgroup: "wattcast-exec-1",
            containers: &containers,
            cgroup_cpu: Some(0.0),
            reaped_cpu: Some(0.0),
        };
        assert!(run.owns("wattcast-exec-1", "cgroup2:7") && run.owns("wattcast-exec-1/inner/deeper", "cgroup2:8"));
        assert!(run.owns("0123456789ab", "0123456789ab"));
        assert!(!run.owns("wattcast-exec-12", "cgroup2:9") && !run.owns("cam", "ba9876543210"));
    }

    #[test]
    fn energy_of_all_rows_is_summed() {
        let (own, inner) = (sum("a", "1", 1.5, Some(0.25)), sum("a/inner", "2", 2.0, Some(0.5)));
        let zones = zone_costs(&[account("powercap")], &[&own, &inner]);
        assert_eq!((zones[0].joules, zones[0].uncertainty_joules), (Some(3.5), Some(0.75)));
        let unsure = sum("a/unsure", "3", 2.0, None);
        assert_eq!(zone_costs(&[account("powercap")], &[&own, &unsure])[0].uncertainty_joules, None);
    }

    /// Each of the two accounts of the package got the energy of both sources.
    #[test]
    fn energy_of_a_source_that_changed_is_counted_once() {
        let mut own = sum("a", "1", 1.0, None);
        own.energy.push(EnergySum { source: "model", joules: 2.0, ..own.energy[0].clone() });
        let zones = zone_costs(&[account("model"), account("powercap")], &[&own]);
        assert_eq!(zones.iter().map(|zone| zone.joules).collect::<Vec<_>>(), [Some(2.0), Some(1.0)]);
    }

    #[test]
    fn energy_without_a_row_is_unknown_and_not_zero() {
        let zones = zone_costs(&[account("powercap")], &[]);
        assert_eq!((zones[0].joules, zones[0].uncertainty_joules), (None, None));
        let total: Option<f64> = zones.iter().map(|zone| zone.joules).sum();
        assert_eq!(total, None);
        assert_eq!(
            cpu_notes(None, Some(2.0), Some(2.0), "no tick found its cgroup"),
            ["the command's energy is unknown, because its cgroup has no row: no tick found its cgroup"]
        );
    }

    /// Zero seconds were printed where neither the kernel nor a row gave a figure.
    #[test]
    fn cpu_time_that_is_not_counted_is_unknown_and_not_zero() {
        let (first, last, containers) = (Snapshot::default(), Snapshot::default(), BTreeSet::new());
        let run = CommandRun {
            status: ExitStatus::from_raw(0),
            wall: Duration::from_secs(1),
            first: &first,
            last: &last,
            cgroup: "wattcast-exec-1",
            containers: &containers,
            cgroup_cpu: None,
            reaped_cpu: None,
        };
        let cost = cost_report(0.12, "EUR", &"true".into(), &run);
        assert_eq!((cost.cpu_seconds, cost.joules, cost.money), (None, None, None));
        assert!(cost.text().contains("  CPU     unknown\n"), "{}", cost.text());
        assert!(cost.notes.iter().any(|note| note.contains("unknown")), "{:?}", cost.notes);
    }

    #[test]
    fn missing_cpu_time_is_said_with_its_seconds() {
        assert!(cpu_notes(Some(2.0), Some(2.01), Some(2.03), "").is_empty(), "within the tolerance");
        assert_eq!(
            cpu_notes(Some(0.5), Some(2.0), Some(2.0), "the kernel's table of cgroups is full"),
            [
                "1.500 s of the 2.000 s of CPU time of its cgroup are in no row, and their energy is not included: the kernel's table of cgroups is full"
            ]
        );
        assert_eq!(
            cpu_notes(Some(0.0), Some(0.001), Some(2.0), ""),
            [
                "1.999 s of CPU time ran outside of its cgroup, because processes of the command moved to another cgroup; their energy is not included"
            ]
        );
        assert_eq!(
            cpu_notes(Some(1.0), None, Some(1.0), ""),
            ["the kernel's count of its cgroup cannot be read, so the CPU time may be incomplete"]
        );
    }

    /// A ratio of some hundred per cent was printed, or nothing.
    #[test]
    fn unknown_idle_power_is_said_instead_of_an_uncertainty() {
        let own = sum("a", "1", 1.0, Some(1.08));
        let mut unknown = account("powercap");
        (unknown.idle_known, unknown.idle_note) = (false, Some("idle not learnt yet"));
        let zones = zone_costs(&[unknown], &[&own]);
        assert!(zones[0].text().starts_with("1.00 J (idle not learnt yet)  package 0"), "{}", zones[0].text());
        let known = zone_costs(&[account("powercap")], &[&own])[0].text();
        assert!(known.starts_with("1.0 ± 1.1 J  package 0"), "{known}");
    }

    #[test]
    fn modelled_energy_is_shown_with_its_interval() {
        let mut own = sum("a", "1", 1.0, None);
        own.energy[0].source = "model";
        let interval = ModelInterval::from_thousandths([-400, 880]);
        let modelled = AccountSum { model_interval_ratio: Some(interval), ..account("model") };
        let zone = zone_costs(&[modelled], &[&own]).remove(0);
        assert_eq!(zone.provenance(), "MODELLED, 90 % interval -40 % … +88 %");
        assert_eq!(serde_json::to_value(&zone).unwrap()["model_interval_ratio"], serde_json::json!([0.6, 1.88]));
        let measured = zone_costs(&[account("powercap")], &[&own]).remove(0);
        assert_eq!(measured.provenance(), "by powercap");
        assert_eq!(serde_json::to_value(&measured).unwrap().get("model_interval_ratio"), None);
    }

    /// Energy had its millijoules, and money nine decimals.
    #[test]
    fn the_report_has_the_digits_of_its_uncertainty() {
        let mut account = account("powercap");
        account.measured_joules = 1_234.567_8;
        let zone = zone_costs(&[account], &[&sum("a", "1", 378.567_89, Some(4.321))]).remove(0);
        assert_eq!(zone.text(), "378.6 ± 4.3 J  package 0, by powercap; machine 1.23 kJ, of which idle 10.0 J");
        let learning = ZoneCost { idle_known: false, idle_note: Some("idle not learnt yet"), ..zone.clone() };
        assert!(learning.text().starts_with("379 J (idle not learnt yet)  package 0"), "{}", learning.text());
        let unknown = ZoneCost { joules: None, uncertainty_joules: None, ..zone };
        assert!(unknown.text().starts_with("unknown  package 0"), "{}", unknown.text());
    }

    #[test]
    fn simulated_energy_is_labelled() {
        let zones = zone_costs(&[account("simulated"), account("fake")], &[&sum("a", "1", 1.0, None)]);
        assert!(zones[0].simulated && !zones[1].simulated);
    }
}
