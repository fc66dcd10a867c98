//! `doctor`: checks which sources are available on this machine, and how to enable the others.

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    process::ExitCode,
};

use cli::{
    colour::Meaning,
    terminal::{Cell, Column, Table, View},
};
use serde::Serialize;
use units::provenance::Unmeasured;

use crate::{
    cgroup::tree::Trees,
    config::Config,
    containers::docker_state,
    cpu::{self, Tier},
    energy::{
        self, Source,
        processor::Processor,
        zone::{Ceiling, Origin, Range, ZoneKind},
    },
    gpu,
    host::{
        availability::{Reason, Unavailable},
        topology::Topology,
    },
    reference, start,
};

/// The complete report.
#[derive(Debug, Serialize)]
struct Report {
    /// Processor, CPUs, packages.
    machine: Vec<Fact>,
    /// Energy sources, in the order of preference of `auto`.
    sources: Vec<SourceReport>,
    /// Tiers of CPU time, the best first.
    tiers: Vec<Finding>,
    /// NVIDIA's library, the kernel's drivers, and each device.
    gpus: Vec<Finding>,
    /// Everything else that is needed for attribution.
    parts: Vec<Finding>,
    /// The source that `auto` would choose; absent if none works.
    chosen: Option<&'static str>,
    /// False if energy can only be modelled.
    measures: bool,
    /// True if the chosen source is simulated.
    simulated: bool,
    /// One sentence for each kind of energy here that is not measured.
    banners: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Fact {
    what: &'static str,
    is: String,
}

#[derive(Debug, Serialize)]
struct Finding {
    name: String,
    state: &'static str,
    detail: String,
}

#[derive(Debug, Serialize)]
struct SourceReport {
    #[serde(flatten)]
    finding: Finding,
    zones: Vec<Finding>,
    /// Zones that are present but not used: duplicates, counters of a single core, zones that
    /// always read zero.
    left_out: Vec<String>,
    remedy: Option<String>,
}

impl Finding {
    fn new(name: impl Into<String>, outcome: &Result<String, Unavailable>) -> Self {
        let (state, detail) = match outcome {
            Ok(detail) => ("usable", detail.clone()),
            Err(why) => (why.reason.as_str(), why.detail.clone()),
        };
        Self { name: name.into(), state, detail }
    }

    /// A row of a table: name, state and detail.
    fn row(&self, indent: &str) -> [Cell; 3] {
        let meaning = match self.state {
            "usable" => Meaning::Better,
            "absent" => Meaning::Quiet,
            _ => Meaning::Worse,
        };
        [format!("{indent}{}", self.name).into(), Cell::coloured(self.state, meaning), Cell::from(&*self.detail)]
    }
}

impl SourceReport {
    /// The rows of the source, of its zones, of what is left out, and of the remedy.
    fn rows(&self) -> Vec<[Cell; 3]> {
        let text = |text: String| ["".into(), "".into(), Cell::from(text)];
        let zones = self.zones.iter().map(|zone| zone.row("  "));
        let left_out = self.left_out.iter().map(|what| text(format!("left out: {what}")));
        let remedy = self.remedy.iter().map(|remedy| text(format!("remedy: {remedy}")));
        std::iter::once(self.finding.row("")).chain(zones).chain(left_out).chain(remedy).collect()
    }
}

/// Exit code when energy can only be modelled.
const ONLY_MODELLED: u8 = 3;

/// Prints the report. Exit code 0 when energy can be measured, 3 when it can only be modelled.
#[must_use]
pub fn run(config: &Config, json: bool) -> ExitCode {
    let report = examine(config);
    let text = if json { report.json() } else { report.text(View::stdout()) };
    // A failed write means that the reader has closed the pipe and needs no more.
    let _ = io::stdout().write_all(text.as_bytes());
    if report.measures { ExitCode::SUCCESS } else { ExitCode::from(ONLY_MODELLED) }
}

/// Opens and loads everything that the probe would use, and closes it again.
fn examine(config: &Config) -> Report {
    let paths = config.paths.source_paths();
    let (topology, processor) = (Topology::read(&paths.sysfs), Processor::read(&paths.procfs));
    let mut sources = Vec::new();
    // As in the probe: the first complete source, else the first partial one, else the model.
    let (mut complete, mut partial, mut measures, mut unmeasured) = (None, None, false, Vec::new());
    // Only where it is set: other machines have no host.
    let host = paths.host.as_ref().map(|_| Origin::Host);
    let measured = [Origin::Perf, Origin::Powercap, Origin::Msr, Origin::Hwmon];
    for origin in measured.into_iter().chain(host).chain([Origin::Model]) {
        let opened = energy::open(origin, config.energy.cpu_power(), &paths, &topology);
        let (mut zones, mut left_out) = (Vec::new(), Vec::new());
        let outcome = opened.and_then(|mut source| {
            (zones, left_out) = (zone_reports(&mut *source), source.inventory().left_out.clone());
            energy::wait_for_movement(source)
        });
        if outcome.is_err() {
            // None of the source's root zones changes, so its values are not counters.
            for zone in zones.iter_mut().filter(|zone| zone.state == "usable") {
                zone.state = Reason::Broken.as_str();
                zone.detail.insert_str(0, "readable, but the value does not change; ");
            }
        }
        if let Ok(source) = &outcome {
            match source.energy_origin().unmeasured() {
                Some(kind) => unmeasured.push((origin, kind)),
                None => measures = true,
            }
            // MSRs and the host are used only if they are requested explicitly.
            let by_request = match origin {
                Origin::Msr => true,
                Origin::Host => config.energy.source != energy::SourceChoice::Host,
                _ => false,
            };
            if !by_request {
                let choice = if energy::missing_zones(&**source).is_some() { &mut partial } else { &mut complete };
                choice.get_or_insert(origin);
            }
        }
        let outcome = outcome.and_then(|source| match energy::missing_zones(&*source) {
            Some(lacks) => Err(lacks),
            None => Ok(energy::source_state(&*source).detail),
        });
        let remedy = outcome.as_ref().err().map(|why| remedy(origin, why));
        sources.push(SourceReport { finding: Finding::new(origin.as_str(), &outcome), zones, left_out, remedy });
    }
    let tiers = tiers(config, &topology);
    let chosen = match (complete, partial) {
        (Some(Origin::Model) | None, Some(partial)) => Some(partial),
        (complete, _) => complete,
    };
    let unmeasured = unmeasured.into_iter().find(|(origin, _)| Some(*origin) == chosen).map(|(_, kind)| kind);
    let simulated = unmeasured == Some(Unmeasured::Simulated);
    let (gpus, unmeasured_gpus) = gpus(config);
    Report {
        machine: machine(&topology, &processor),
        measures,
        sources,
        gpus,
        parts: parts(config, &tiers, if simulated { Some(Origin::Simulated) } else { chosen }),
        tiers,
        simulated,
        banners: unmeasured.into_iter().chain(unmeasured_gpus).map(Unmeasured::banner).collect(),
        chosen: chosen.map(Origin::as_str),
    }
}

fn zone_reports(source: &mut dyn Source) -> Vec<Finding> {
    let mut raw: Vec<io::Result<u64>> = Vec::new();
    source.read(&mut raw);
    let mut all: Vec<Finding> = source
        .zones()
        .iter()
        .zip(raw)
        .map(|(zone, raw)| {
            let range = match zone.range {
                Range::Wraps(counts) => format!("wraps after {:.0} J", zone.unit.microjoules(counts).joules()),
                Range::Endless => "never wraps".to_owned(),
                Range::Unknown => "unknown range: decreases are rejected".to_owned(),
            };
            let ceiling = match zone.ceiling {
                Ceiling::Limit(limit) => format!(", limit {:.0} W", units::Microjoules(limit).joules()),
                Ceiling::Learned(_) | Ceiling::None => String::new(),
            };
            let quirk = match zone.id.kind {
                ZoneKind::Psys if zone.step_uj >= 1_000_000 && source.origin() != Origin::Hwmon => {
                    ", resolution 1 J: too coarse for one second"
                }
                ZoneKind::Dram if zone.unit == energy::msr::FIXED_DRAM_UNIT => {
                    ", unit 15.3 µJ independent of the unit register (perf uses 15.26 µJ)"
                }
                _ => "",
            };
            let (state, detail) = match raw {
                Ok(_) => ("usable", format!("{range}{ceiling}{quirk}, {}", zone.location)),
                Err(error) => (Reason::of(&error).as_str(), format!("{}: {error}", zone.location)),
            };
            Finding { name: zone.id.to_string(), state, detail }
        })
        .collect();
    all.extend(source.inventory().refused.iter().map(|(id, why)| Finding::new(id.to_string(), &Err(why.clone()))));
    all
}

/// How to make a source available.
fn remedy(origin: Origin, why: &Unavailable) -> String {
    use Reason::{Absent, Broken, Denied};
    match (origin, why.reason) {
        (Origin::Perf, Absent) => {
            "modprobe rapl (CONFIG_PERF_EVENTS_INTEL_RAPL; AMD from 5.8). Guests have none: measure on the host"
        }
        (Origin::Perf, Denied) => {
            "run as root, or grant CAP_PERFMON; in a container also allow perf_event_open in the seccomp profile"
        }
        (Origin::Powercap, Absent) => {
            "modprobe intel_rapl_msr (CONFIG_INTEL_RAPL; AMD from 5.11). In a container mount the host's /sys and give --path.sysfs"
        }
        (Origin::Powercap, Denied) => "run as root, or grant CAP_DAC_READ_SEARCH: energy_uj is mode 0400 since 5.10",
        (Origin::Msr, Absent) => "modprobe msr (CONFIG_X86_MSR); in a container mount the host's /dev/cpu and give --path.dev",
        (Origin::Msr, Denied) => {
            "run as root with CAP_SYS_RAWIO; a locked-down kernel (Secure Boot) denies it: use perf or powercap"
        }
        (Origin::Hwmon, Absent) => "modprobe acpi_power_meter, or the driver of the board's sensors; many boards have none",
        (Origin::Hwmon, Denied) => "run as root",
        (Origin::Host, _) => "see --energy.host.url, --energy.host.token-file, and --guest.tokens-file of the host's probe",
        (
            Origin::Model
            | Origin::Simulated
            | Origin::Replay
            | Origin::Scmi
            | Origin::Pmic
            | Origin::Nvml
            | Origin::NvmlPower
            | Origin::Fake
            | Origin::Drm
            | Origin::DrmPower,
            _,
        ) => "mount /proc, or set --path.procfs",
        (_, Broken) => "in a guest the hypervisor does not emulate these counters; on bare metal check dmesg and the firmware's RAPL setting",
    }
    .to_owned()
}

fn machine(topology: &Topology, processor: &Processor) -> Vec<Fact> {
    let fact = |what, is: String| Fact { what, is };
    let name = if processor.name.is_empty() { "unknown".to_owned() } else { processor.name.clone() };
    let packages = topology.packages(false);
    let dies: usize = packages.iter().map(|package| topology.dies(package.package)).sum();
    let smt = if topology.has_smt() {
        "on: CPU time with a busy sibling has a weight between 0.5 and 1, which increases the uncertainty"
    } else {
        "off, or unknown"
    };
    vec![
        fact("processor", format!("{name} (family {:#x}, model {:#x})", processor.family, processor.model)),
        fact("CPUs", format!("{} on {} packages with {dies} dies", topology.cpus(false).count(), packages.len())),
        fact("SMT", smt.to_owned()),
    ]
}

/// Loads every tier of CPU time that this kernel supports, and takes a reading.
fn tiers(config: &Config, topology: &Topology) -> Vec<Finding> {
    let paths = config.paths.cpu_paths();
    let check = |tier| {
        let mut reader = cpu::open(tier, &paths, topology)?;
        reader
            .read(&mut cpu::CpuReading::default())
            .map_err(|error| Unavailable::new(Reason::of(&error), format!("{error}")))?;
        let capabilities = reader.capabilities();
        let missing = |capability: bool, text| if capability { "" } else { text };
        Ok(format!(
            "{}{}{}",
            reader.detail(),
            missing(capabilities.cpus, "; not by CPU"),
            missing(capabilities.siblings, "; not by state of the hyperthread sibling")
        ))
    };
    let all = [Tier::Counters, Tier::Switch, Tier::Kernel, Tier::Files];
    all.into_iter().map(|tier| Finding::new(tier.as_str(), &check(tier))).collect()
}

/// The GPU drivers, and what each device supports; and the kinds of their energy that are not
/// measured.
fn gpus(config: &Config) -> (Vec<Finding>, BTreeSet<Unmeasured>) {
    let mut unmeasured = BTreeSet::new();
    if !config.collectors.gpu() {
        return (Vec::new(), unmeasured);
    }
    // Drivers' libraries run without capabilities. These belong to a thread, so the GPUs are opened
    // on a thread of their own, as in the probe.
    let result = std::thread::scope(|scope| {
        let poll = || {
            let mut reader = gpu::GpuReader::open(&config.gpu_paths())?;
            let (_, gpus) = reader.poll(&[]);
            anyhow::Ok((reader.states(), gpus))
        };
        scope.spawn(poll).join()
    });
    let (states, gpus) = match result {
        Ok(Ok(reading)) => reading,
        Ok(Err(error)) => {
            let why = Unavailable::new(Reason::Broken, format!("cannot drop privileges: {error}"));
            return (vec![Finding::new("nvml", &Err(why))], unmeasured);
        }
        Err(_) => {
            let why = Unavailable::new(Reason::Broken, "the GPU check panicked; see the line above");
            return (vec![Finding::new("nvml", &Err(why))], unmeasured);
        }
    };
    let states = states.into_iter();
    let mut all: Vec<Finding> =
        states.map(|(name, state, detail)| Finding::new(name, &state.map(|()| detail))).collect();
    for gpu in gpus {
        unmeasured.extend(gpu.origin.unmeasured());
        let energy = gpu.zone.as_ref().map_or_else(|| "no energy counter".to_owned(), |zone| zone.location.clone());
        let mut detail = format!("{}, {energy}", gpu.name);
        for (reading, reason) in &gpu.unavailable {
            detail += &format!("; {reading} {reason}");
        }
        all.push(Finding::new(gpu.id.to_string(), &gpu.state.map(|()| detail)));
    }
    (all, unmeasured)
}

/// What else attribution needs, with energy of `origin`.
fn parts(config: &Config, tiers: &[Finding], origin: Option<Origin>) -> Vec<Finding> {
    let trees = Trees::find(&config.paths.cgroupfs).map(|trees| format!("cgroup {}", trees.layout()));
    let trees = trees.map_err(|error| {
        Unavailable::new(Reason::of(&error), format!("{error}. Set the mount point with --path.cgroupfs"))
    });
    // As in the probe: the first allowed tier that works; if none works, the reason of the last.
    let allowed = |tier: &&Finding| config.cpu.tier.tiers().iter().any(|allowed| allowed.as_str() == tier.name);
    let chosen = tiers.iter().filter(allowed).find(|tier| tier.state == "usable");
    let cpu = match chosen.or_else(|| tiers.iter().rfind(allowed)) {
        Some(Finding { name, state: "usable", detail }) => {
            Finding { name: "cpu".to_owned(), state: "usable", detail: format!("by tier {name}: {detail}") }
        }
        Some(Finding { name, state, detail }) => Finding {
            name: "cpu".to_owned(),
            state,
            detail: format!("tier {name}: {detail}; energy is not attributed"),
        },
        None => Finding { name: "cpu".to_owned(), state: "absent", detail: "no tier is allowed".to_owned() },
    };
    let mut all = vec![Finding::new("cgroups", &trees), cpu, Finding::new("docker", &docker(config))];
    let meter = reference::check(&config.reference.settings(false), &config.paths.source_paths());
    all.extend(meter.map(|outcome| Finding::new("reference", &outcome)));
    all.extend(origin.map(|origin| calibration(config, origin)));
    for fault in config.path_faults() {
        all.push(Finding::new("path", &Err(Unavailable::new(Reason::Absent, fault))));
    }
    all
}

/// Whether this machine was calibrated, with the source that the probe would use.
fn calibration(config: &Config, origin: Origin) -> Finding {
    let outcome = match start::calibration(config, origin) {
        Ok(None) if start::is_calibrated(origin) && start::state_dir(config).is_none() => {
            let what = "not known without the state directory: run as root, or name it with --state.dir";
            Err(Unavailable::new(Reason::Denied, what))
        }
        Ok(Some(calibration)) => {
            let done = format!("done {} on this machine", calibration.age(start::unix_seconds()));
            Ok([vec![done], calibration.gaps()].concat().join("; "))
        }
        Ok(None) if start::is_calibrated(origin) => {
            let what = "not done: run `wattcast-probe calibrate` (2 minutes on a quiet host)";
            Err(Unavailable::new(Reason::Absent, what))
        }
        Ok(None) => Err(Unavailable::new(Reason::Absent, format!("not possible with {}: needs RAPL", origin.as_str()))),
        Err(why) => Err(Unavailable::new(Reason::Broken, format!("not used: {why}"))),
    };
    Finding::new("calibration", &outcome)
}

fn docker(config: &Config) -> Result<String, Unavailable> {
    let socket = &config.paths.docker_socket;
    docker_state(socket).map(|()| format!("{} accepts connections", socket.display()))
}

impl Report {
    /// The report for programs.
    fn json(&self) -> String {
        // Serialisation of plain data without maps does not fail.
        serde_json::to_string_pretty(self).map_or_else(|_| String::new(), |text| text + "\n")
    }

    /// The report for people. A pipe gets one line for each row, for grep.
    fn text(&self, view: View) -> String {
        let findings = |all: &[Finding]| all.iter().map(|finding| finding.row("")).collect::<Vec<_>>();
        let machine = self.machine.iter().map(|Fact { what, is }| [Cell::from(*what), "".into(), Cell::from(&**is)]);
        let sections: [(&str, Vec<[Cell; 3]>); 5] = [
            ("Machine", machine.collect()),
            ("Energy", self.sources.iter().flat_map(SourceReport::rows).collect()),
            ("CPU time", findings(&self.tiers)),
            ("GPUs", findings(&self.gpus)),
            ("Attribution", findings(&self.parts)),
        ];
        let mut out = String::new();
        for (heading, rows) in sections {
            out += &section(heading, rows, view);
        }
        for banner in &self.banners {
            out += &view.fit(&format!("{}\n", view.paint(Meaning::Warning, banner)));
        }
        if let Some((verdict, meaning)) = self.verdict() {
            out += &view.fit(&format!("{}\n", view.paint(meaning, &verdict)));
        }
        out
    }

    /// The last sentence; `None` where a banner says it.
    fn verdict(&self) -> Option<(String, Meaning)> {
        if self.simulated {
            return None;
        }
        let warning = |text: &str| (text.to_owned(), Meaning::Warning);
        Some(match (self.measures, self.chosen) {
            (true, Some(Origin::MODEL) | None) => warning(
                "Energy can be measured here, but only with a source that must be requested: --energy.source=msr.",
            ),
            (true, Some(chosen)) => (format!("Energy is measured here, by {chosen}."), Meaning::Better),
            (false, Some(_)) => {
                warning("Energy cannot be measured here. It would be modelled, and labelled as modelled on every page.")
            }
            (false, None) => warning("Energy can be neither measured nor modelled here."),
        })
    }
}

/// A heading and its rows of name, state and detail, with an empty line after them.
fn section(heading: &str, rows: Vec<[Cell; 3]>, view: View) -> String {
    const INDENT: &str = "  ";
    let mut table = Table::new([Column::left(""), Column::left(""), Column::prose("")]);
    rows.into_iter().for_each(|row| table.push(row));
    let whole = view.with_whole_lines();
    let text = table.text(View { columns: whole.columns.saturating_sub(INDENT.len()), ..whole });
    let lines = text.lines().map(|line| format!("{INDENT}{line}\n"));
    format!("{}\n{}\n", view.paint(Meaning::Heading, heading), lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let detail = "/sys/bus/event_source/devices/power: it has no event energy-pkg, which happens in guests";
        let finding =
            |name: &str, state, detail: &str| Finding { name: name.to_owned(), state, detail: detail.to_owned() };
        Report {
            machine: vec![Fact {
                what: "processor",
                is: "a processor with \x1b[31mcolours\x1b[0m in its name".to_owned(),
            }],
            sources: vec![SourceReport {
                finding: finding("perf", "absent", detail),
                zones: vec![finding("package of package 0", "broken", "readable, but the value does not change")],
                left_out: vec!["intel-rapl-mmio:0: a duplicate of another zone".to_owned()],
                remedy: Some("modprobe rapl (CONFIG_PERF_EVENTS_INTEL_RAPL; AMD from 5.8)".to_owned()),
            }],
            tiers: vec![finding("files", "usable", "cgroup v2")],
            gpus: Vec::new(),
            parts: Vec::new(),
            chosen: Some(Origin::MODEL),
            measures: false,
            simulated: false,
            banners: vec![Unmeasured::Model.banner()],
        }
    }

    #[test]
    fn the_report_fits_the_terminal_and_breaks_no_word() {
        for columns in [60, 80, 160] {
            let text = report().text(View { columns, is_terminal: true, ..View::PLAIN });
            let longest = text.lines().map(cli::terminal::width).max().unwrap();
            assert!(longest <= columns, "{longest} of {columns}:\n{text}");
            for word in ["energy-pkg,", "CONFIG_PERF_EVENTS_INTEL_RAPL;", "intel-rapl-mmio:0:", "GPUs", "modelled"] {
                assert!(text.split_whitespace().any(|found| found.trim_start_matches('(') == word), "{word}:\n{text}");
            }
        }
    }

    #[test]
    fn a_pipe_gets_whole_lines_and_no_name_controls_the_terminal() {
        let text = report().text(View::PLAIN);
        assert!(text.contains("remedy: modprobe rapl (CONFIG_PERF_EVENTS_INTEL_RAPL; AMD from 5.8)\n"), "{text}");
        assert!(text.lines().any(|line| line.trim_start().starts_with("perf ") && line.contains(" absent ")), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
    }
}
