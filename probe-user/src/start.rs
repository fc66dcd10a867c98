//! Opening everything the probe reads, while it still may. What cannot be had is a state, not an end.

use crate::{
    config::Config,
    containers::{Directory, Limits, docker::Names, tree::Trees},
    cpu::switch::Switch,
    energy::{self, Chosen},
    sampler::Parts,
    state::{Reason, SourceState, Unavailable},
    topology::Topology,
};

/// Opens every source that the configuration allows. Must run inside the runtime that serves, which asks Docker.
#[must_use]
pub fn open(config: &Config) -> Parts {
    let topology = Topology::read(&config.paths.sysfs);
    let Chosen { meter, tried: mut sources } = if config.collectors.energy() {
        energy::choose(config.energy.source, config.energy.line(), &config.paths.sysfs, &config.paths.procfs, &topology)
    } else {
        Chosen { meter: None, tried: Vec::new() }
    };

    if !topology.is_known() {
        sources.push(SourceState {
            source: "topology",
            state: Err(Unavailable::new(
                Reason::Absent,
                format!(
                    "{}: no CPU says which package it is on; the machine counts as one. Name sysfs with --path.sysfs",
                    config.paths.sysfs.join("devices/system/cpu").display()
                ),
            )),
            detail: String::new(),
            wanted: false,
        });
    }

    let cpu = config.collectors.cpu().then(Switch::load);
    let directory = cpu.is_some().then(|| directory(config, &mut sources)).flatten();
    let cpu = match cpu {
        Some(Ok(switch)) => {
            let layout = directory.as_ref().map_or("no cgroups", Directory::layout);
            let detail = format!("sched_switch by eBPF, cgroup {layout}");
            sources.push(SourceState { source: "cpu", state: Ok(()), detail, wanted: true });
            Some(switch)
        }
        Some(Err(why)) => {
            sources.push(SourceState { source: "cpu", state: Err(why), detail: String::new(), wanted: true });
            None
        }
        None => None,
    };
    Parts {
        tick: config.tick,
        meter,
        cpu,
        topology,
        sysfs: config.paths.sysfs.clone(),
        directory,
        sources,
        window_bytes: config.limits.window_bytes,
    }
}

fn directory(config: &Config, sources: &mut Vec<SourceState>) -> Option<Directory> {
    let trees = match Trees::find(&config.paths.cgroupfs) {
        Ok(trees) => trees,
        Err(error) => {
            sources.push(SourceState {
                source: "cgroups",
                state: Err(Unavailable::new(
                    Reason::of(&error),
                    format!("{error}. Everything counts as system; name the mount with --path.cgroupfs"),
                )),
                detail: String::new(),
                wanted: true,
            });
            return None;
        }
    };
    let names = config.collectors.docker().then(|| {
        let names = Names::start(&tokio::runtime::Handle::current(), &config.paths.docker_socket);
        sources.push(SourceState {
            source: "docker",
            state: names.state(),
            detail: format!("names from {}", config.paths.docker_socket.display()),
            wanted: config.collectors.wants_docker(),
        });
        names
    });
    let limits = Limits { containers: config.limits.containers, retain: config.limits.retain };
    Some(Directory::new(trees, names, limits))
}
