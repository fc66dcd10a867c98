//! `doctor`: what can be measured on this machine, what cannot, why exactly, and what exactly to do about it.

use std::{fmt::Write as _, io};

use serde::Serialize;

use crate::{
    config::Config,
    containers::tree::Trees,
    cpu::{self, Tier},
    energy::{
        self, Source,
        processor::Processor,
        zone::{Ceiling, Origin, Range, ZoneKind},
    },
    gpu,
    state::Unavailable,
    topology::Topology,
};

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Processor, CPUs, packages.
    machine: Vec<Fact>,
    /// Each way to joules, in the order in which `auto` takes them.
    sources: Vec<SourceReport>,
    /// Each way to CPU time, the best first.
    tiers: Vec<Finding>,
    /// GPUs: NVIDIA's library, the kernel's drivers, and each device.
    gpus: Vec<Finding>,
    /// Everything else that the account needs.
    parts: Vec<Finding>,
    /// What `auto` would take; absent when nothing works.
    chosen: Option<&'static str>,
    /// False when joules could only be calculated.
    measures: bool,
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
    /// Twins, counters of a single core, zones that read nothing: found and not used.
    left_out: Vec<String>,
    remedy: Option<String>,
}

impl Finding {
    fn of(name: impl Into<String>, outcome: &Result<String, Unavailable>) -> Self {
        let (state, detail) = match outcome {
            Ok(detail) => ("usable", detail.clone()),
            Err(why) => (why.reason.as_str(), why.detail.clone()),
        };
        Self { name: name.into(), state, detail }
    }
}

/// Looks at everything. Opens and loads what the probe would, and lets it go again.
#[must_use]
pub fn examine(config: &Config) -> Report {
    let places = config.paths.places();
    let (topology, processor) = (Topology::read(&places.sysfs), Processor::read(&places.procfs));
    let mut sources = Vec::new();
    // As the probe chooses: the first that lacks nothing, else the first that gives anything, else the model.
    let (mut whole, mut partial, mut measures) = (None, None, false);
    for origin in [Origin::Perf, Origin::Powercap, Origin::Msr, Origin::Hwmon, Origin::Model] {
        let opened = energy::open(origin, config.energy.line(), &places, &topology);
        let (mut zones, mut left_out) = (Vec::new(), Vec::new());
        let outcome = opened.and_then(|mut source| {
            (zones, left_out) = (zone_reports(&mut *source), source.found().left_out.clone());
            energy::moving(source)
        });
        if outcome.is_err() {
            // No root of it moves: what can be read here is no counter.
            for zone in zones.iter_mut().filter(|zone| zone.state == "usable") {
                zone.state = crate::state::Reason::Broken.as_str();
                zone.detail.insert_str(0, "reads, and does not count; ");
            }
        }
        if let Ok(source) = &outcome {
            measures |= origin.is_measured() && !source.found().simulated;
            // The registers are never chosen by themselves.
            if origin != Origin::Msr {
                let place = if energy::lacks(&**source).is_some() { &mut partial } else { &mut whole };
                place.get_or_insert(origin);
            }
        }
        let outcome = outcome.and_then(|source| match energy::lacks(&*source) {
            Some(lacks) => Err(lacks),
            None => Ok(energy::state(&*source).detail),
        });
        let remedy = outcome.as_ref().err().map(|why| remedy(origin, why));
        sources.push(SourceReport { finding: Finding::of(origin.as_str(), &outcome), zones, left_out, remedy });
    }
    let tiers = tiers(config, &topology);
    Report {
        machine: machine(&topology, &processor),
        measures,
        sources,
        gpus: gpus(config),
        parts: parts(config, &tiers),
        tiers,
        chosen: match (whole, partial) {
            (Some(Origin::Model) | None, Some(partial)) => Some(partial.as_str()),
            (whole, _) => whole.map(Origin::as_str),
        },
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
                Range::Unknown => "its range is unknown: a fall is refused, not guessed".to_owned(),
            };
            let ceiling = match zone.ceiling {
                Ceiling::Limit(limit) => format!(", limit {:.0} W", crate::units::Microjoules(limit).joules()),
                Ceiling::Learned(_) | Ceiling::None => String::new(),
            };
            let quirk = match zone.id.kind {
                ZoneKind::Psys if zone.step_uj >= 1_000_000 && source.origin() != Origin::Hwmon => {
                    ", counts whole joules: too coarse for a second"
                }
                ZoneKind::Dram if zone.unit == energy::msr::FIXED_DRAM_UNIT => {
                    ", counts 15.3 µJ whatever the unit register says (perf takes 15.26 µJ)"
                }
                _ => "",
            };
            let (state, detail) = match raw {
                Ok(_) => ("usable", format!("{range}{ceiling}{quirk}, {}", zone.place)),
                Err(error) => (crate::state::Reason::of(&error).as_str(), format!("{}: {error}", zone.place)),
            };
            Finding { name: zone.id.to_string(), state, detail }
        })
        .collect();
    all.extend(source.found().refused.iter().map(|(id, why)| Finding::of(id.to_string(), &Err(why.clone()))));
    all
}

/// What would make a source usable.
fn remedy(origin: Origin, why: &Unavailable) -> String {
    use crate::state::Reason::{Absent, Broken, Denied};
    match (origin, why.reason) {
        (Origin::Perf, Absent) => {
            "modprobe rapl (CONFIG_PERF_EVENTS_INTEL_RAPL; AMD from 5.8). In a guest there is none: measure on the host"
        }
        (Origin::Perf, Denied) => {
            "run as root, or grant CAP_PERFMON; in a container also a seccomp profile that allows perf_event_open"
        }
        (Origin::Powercap, Absent) => {
            "modprobe intel_rapl_msr (CONFIG_INTEL_RAPL; AMD from 5.11). In a container mount the host's /sys and give --path.sysfs"
        }
        (Origin::Powercap, Denied) => "run as root, or grant CAP_DAC_READ_SEARCH: energy_uj is mode 0400 since 5.10",
        (Origin::Msr, Absent) => "modprobe msr (CONFIG_X86_MSR); in a container mount the host's /dev/cpu and give --path.dev",
        (Origin::Msr, Denied) => {
            "run as root with CAP_SYS_RAWIO; a locked-down kernel (Secure Boot) refuses: use perf or powercap"
        }
        (Origin::Hwmon, Absent) => "modprobe acpi_power_meter, or the driver of your board's sensors; many boards have none",
        (Origin::Hwmon, Denied) => "run as root",
        (Origin::Model | Origin::Replay | Origin::Nvml | Origin::NvmlPower | Origin::Fake | Origin::Drm, _) => "mount /proc, or name it with --path.procfs",
        (_, Broken) => "a guest shows counters that its hypervisor does not count; on bare metal look at dmesg and the firmware's RAPL setting",
    }
    .to_owned()
}

fn machine(topology: &Topology, processor: &Processor) -> Vec<Fact> {
    let fact = |what, is: String| Fact { what, is };
    let name = if processor.name.is_empty() { "unknown".to_owned() } else { processor.name.clone() };
    let packages = topology.packages(false);
    let dies: usize = packages.iter().map(|package| topology.dies(package.package)).sum();
    let smt = if topology.has_smt() {
        "on: a second beside a busy sibling is worth between half and a whole one, which widens the bounds"
    } else {
        "off, or the machine does not say"
    };
    vec![
        fact("processor", format!("{name} (family {:#x}, model {:#x})", processor.family, processor.model)),
        fact("CPUs", format!("{} on {} packages with {dies} dies", topology.cpus(false).count(), packages.len())),
        fact("SMT", smt.to_owned()),
    ]
}

/// Loads every tier of CPU time, as far as this kernel has it, and takes a reading.
fn tiers(config: &Config, topology: &Topology) -> Vec<Finding> {
    let places = config.paths.cpu_places();
    let look = |tier| {
        let mut reader = cpu::open(tier, &places, topology)?;
        reader
            .read(&mut cpu::Reading::default())
            .map_err(|error| Unavailable::new(crate::state::Reason::of(&error), format!("{error}")))?;
        let knows = reader.knows();
        let told = |known: bool, what| if known { "" } else { what };
        Ok(format!(
            "{}{}{}",
            reader.detail(),
            told(knows.cpus, "; not on which CPU"),
            told(knows.siblings, "; not beside whom")
        ))
    };
    let all = [Tier::Counters, Tier::Switch, Tier::Kernel, Tier::Files];
    all.into_iter().map(|tier| Finding::of(tier.as_str(), &look(tier))).collect()
}

/// Each way to GPUs, and what each device gives and refuses.
fn gpus(config: &Config) -> Vec<Finding> {
    if !config.collectors.gpu() {
        return Vec::new();
    }
    // Capabilities are a thread's, and drivers' libraries run without: as the probe opens them, on one that may lose them.
    let looked = std::thread::scope(|scope| {
        let look = || {
            let mut reader = gpu::Reader::open(&config.gpu_places())?;
            let (_, gpus) = reader.look(&[]);
            anyhow::Ok((reader.states(), gpus))
        };
        scope.spawn(look).join()
    });
    let (states, gpus) = match looked {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            let why = Unavailable::new(crate::state::Reason::Broken, format!("cannot drop privileges: {error}"));
            return vec![Finding::of("nvml", &Err(why))];
        }
        Err(_) => {
            let why =
                Unavailable::new(crate::state::Reason::Broken, "looking at GPUs has failed; the line above says where");
            return vec![Finding::of("nvml", &Err(why))];
        }
    };
    let states = states.into_iter();
    let mut all: Vec<Finding> =
        states.map(|(name, state, detail)| Finding::of(name, &state.map(|()| detail))).collect();
    for gpu in gpus {
        let energy = gpu.zone.as_ref().map_or_else(|| "no joules of its own".to_owned(), |zone| zone.place.clone());
        let mut detail = format!("{}, {energy}", gpu.name);
        for (reading, reason) in &gpu.refused {
            detail += &format!("; {reading} {reason}");
        }
        all.push(Finding::of(gpu.id.to_string(), &gpu.state.map(|()| detail)));
    }
    all
}

fn parts(config: &Config, tiers: &[Finding]) -> Vec<Finding> {
    let trees = Trees::find(&config.paths.cgroupfs).map(|trees| format!("cgroup {}", trees.layout()));
    let trees = trees.map_err(|error| {
        Unavailable::new(crate::state::Reason::of(&error), format!("{error}. Name the mount with --path.cgroupfs"))
    });
    // As the probe chooses: the first that works of those that may serve; where none does, the last says why.
    let may = |tier: &&Finding| config.cpu.tier.tiers().iter().any(|may| may.as_str() == tier.name);
    let chosen = tiers.iter().filter(may).find(|tier| tier.state == "usable");
    let cpu = match chosen.or_else(|| tiers.iter().rfind(may)) {
        Some(Finding { name, state: "usable", detail }) => {
            Finding { name: "cpu".to_owned(), state: "usable", detail: format!("by tier {name}: {detail}") }
        }
        Some(Finding { name, state, detail }) => Finding {
            name: "cpu".to_owned(),
            state,
            detail: format!("tier {name}: {detail}; joules are given to nobody"),
        },
        None => Finding { name: "cpu".to_owned(), state: "absent", detail: "no tier may serve".to_owned() },
    };
    let docker = std::os::unix::net::UnixStream::connect(&config.paths.docker_socket)
        .map(|_| format!("{} answers", config.paths.docker_socket.display()));
    let docker = docker.map_err(|error| {
        Unavailable::new(
            crate::state::Reason::of(&error),
            format!(
                "{}: {error}. Containers go by their ids; name the socket with --docker.socket",
                config.paths.docker_socket.display()
            ),
        )
    });
    vec![Finding::of("cgroups", &trees), cpu, Finding::of("docker", &docker)]
}

impl Report {
    /// True when joules can be measured here.
    #[must_use]
    pub fn measures(&self) -> bool {
        self.measures
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> String {
        // Plain data without maps: there is nothing that could fail.
        serde_json::to_string_pretty(self).map_or_else(|_| String::new(), |text| text + "\n")
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "Machine")?;
        for Fact { what, is } in &self.machine {
            writeln!(out, "  {what:<10} {is}")?;
        }
        writeln!(out, "\nEnergy")?;
        for source in &self.sources {
            let Finding { name, state, detail } = &source.finding;
            writeln!(out, "  {name:<10} {state:<7} {detail}")?;
            for Finding { name, state, detail } in &source.zones {
                writeln!(out, "    {name:<26} {state:<7} {detail}")?;
            }
            for what in &source.left_out {
                writeln!(out, "    left out: {what}")?;
            }
            if let Some(remedy) = &source.remedy {
                writeln!(out, "             remedy: {remedy}")?;
            }
        }
        writeln!(out, "\nCPU time")?;
        for Finding { name, state, detail } in &self.tiers {
            writeln!(out, "  {name:<10} {state:<7} {detail}")?;
        }
        writeln!(out, "\nGPUs")?;
        for Finding { name, state, detail } in &self.gpus {
            writeln!(out, "  {name:<10} {state:<7} {detail}")?;
        }
        writeln!(out, "\nThe rest of the account")?;
        for Finding { name, state, detail } in &self.parts {
            writeln!(out, "  {name:<10} {state:<7} {detail}")?;
        }
        writeln!(out)?;
        match (self.measures, self.chosen) {
            (true, Some(Origin::MODEL) | None) => {
                writeln!(
                    out,
                    "Energy can be measured here, but only by a source that must be asked for: --energy.source=msr."
                )
            }
            (true, Some(chosen)) => writeln!(out, "Energy is measured here, by {chosen}."),
            (false, Some(_)) => {
                writeln!(
                    out,
                    "Energy cannot be measured here. It would be modelled, and every name and page would say so."
                )
            }
            (false, None) => writeln!(out, "Energy can be neither measured nor modelled here."),
        }
    }
}
