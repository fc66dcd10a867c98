//! Port 9501: resource usage of containers and container engines, with primary names and with the
//! names of the legacy docker stats exporter.

use std::collections::HashMap;

use cli::program;
use metrics::family::{Def, Family};

use crate::{
    containers::stats::IoBytes,
    snapshot::{ContainerRow, Snapshot, history::seconds_of},
};

const CONTAINER: &[&str] = &["container", "id", "image", "runtime"];
const CONTAINER_DIRECTION: &[&str] = &["container", "id", "image", "runtime", "direction"];
const LEGACY_CONTAINER: &[&str] = &["container", "name", "id"];
const LEGACY_CONTAINER_DIRECTION: &[&str] = &["container", "name", "id", "direction"];

static MEMORY: Def = Def::gauge(
    "wattcast_container_memory_bytes",
    CONTAINER,
    "Memory charged to a container in bytes, page cache included (memory.current; on v1 memory.usage_in_bytes).",
);
static WORKING: Def = Def::gauge(
    "wattcast_container_memory_working_set_bytes",
    CONTAINER,
    "Working set of a container in bytes: memory without inactive page cache, as in docker stats; the cache \
     size is up to five ticks old.",
);
static LIMIT: Def = Def::gauge(
    "wattcast_container_memory_limit_bytes",
    CONTAINER,
    "Memory limit of a container in bytes; without a limit, the machine's memory. It is up to ten ticks old.",
);
static NETWORK: Def = Def::counter(
    "wattcast_container_network_bytes_total",
    CONTAINER_DIRECTION,
    "Network traffic of a container in bytes, without loopback; absent if it uses the host's network.",
);
static BLOCK: Def = Def::counter(
    "wattcast_container_block_bytes_total",
    CONTAINER_DIRECTION,
    "Block I/O of a container in bytes; absent if the kernel does not count it.",
);
static ENGINE_CPU: Def = Def::counter(
    "wattcast_engine_cpu_seconds_total",
    &["engine"],
    "CPU seconds of a container engine's processes since the probe's start: dockerd, containerd, podman, crio. \
     New processes are found every sixty ticks, and ten ticks after the end of one.",
);
static ENGINE_MEMORY: Def = Def::gauge(
    "wattcast_engine_memory_bytes",
    &["engine"],
    "Resident memory of a container engine's processes, in bytes.",
);

static UP: Def = Def::gauge("docker_stats_exporter_up", &[], "1 while containers are read.").compat();
static TOTAL: Def = Def::gauge("docker_containers_total", &[], "Number of running containers.").compat();
static LEGACY_ENGINE_CPU: Def = Def::gauge(
    "docker_engine_cpu_percent",
    &[],
    "CPU usage of the Docker engine (dockerd) in the last tick; 100 is one CPU.",
)
.compat();
static LEGACY_ENGINE_MEMORY: Def = Def::gauge(
    "docker_engine_memory_percent",
    &[],
    "Resident memory of the Docker engine as a percentage of the machine's memory.",
)
.compat();
static LEGACY_ALL_CPU: Def = Def::gauge(
    "docker_containers_total_cpu_percent",
    &[],
    "CPU usage of all containers in the last tick; 100 is one CPU.",
)
.compat();
static LEGACY_CPU: Def = Def::gauge(
    "docker_container_cpu_percent",
    LEGACY_CONTAINER,
    "CPU usage of a container in the last tick; 100 is one CPU.",
)
.compat();
static LEGACY_MEMORY: Def = Def::gauge(
    "docker_container_memory_percent",
    LEGACY_CONTAINER,
    "Memory of a container without inactive page cache, as a percentage of its limit.",
)
.compat();
static LEGACY_USAGE: Def = Def::gauge(
    "docker_container_memory_usage",
    LEGACY_CONTAINER,
    "Memory of a container without inactive page cache, in bytes.",
)
.compat();
static LEGACY_NETWORK: Def = Def::counter(
    "docker_container_network_io",
    LEGACY_CONTAINER_DIRECTION,
    "Network traffic of a container in bytes, received (rx) and sent (tx).",
)
.compat();
static LEGACY_BLOCK: Def =
    Def::counter("docker_container_block_io", LEGACY_CONTAINER_DIRECTION, "Block I/O of a container in bytes.")
        .compat();
static INFO: Def =
    Def::gauge("docker_stats_exporter_info", &["version", "language"], "1; version and language of the exporter.")
        .compat();

/// All of the above, in the order of the page.
pub static DEFS: &[&Def] = &[
    &MEMORY,
    &WORKING,
    &LIMIT,
    &NETWORK,
    &BLOCK,
    &ENGINE_CPU,
    &ENGINE_MEMORY,
    &UP,
    &TOTAL,
    &LEGACY_ENGINE_CPU,
    &LEGACY_ENGINE_MEMORY,
    &LEGACY_ALL_CPU,
    &LEGACY_CPU,
    &LEGACY_MEMORY,
    &LEGACY_USAGE,
    &LEGACY_NETWORK,
    &LEGACY_BLOCK,
    &INFO,
];

/// The page's families, in order.
#[must_use]
pub(crate) fn families(snapshot: &Snapshot, compat: bool) -> Vec<Family> {
    let [mut memory, mut working, mut limit] = [&MEMORY, &WORKING, &LIMIT].map(Family::new);
    let [mut network, mut block] = [&NETWORK, &BLOCK].map(Family::new);
    for row in &snapshot.usage {
        let (container, usage) = (&row.container, &row.usage);
        let labels = [&*container.name, &container.id, &container.image, container.runtime];
        let pod = container.pod_labels();
        for (family, bytes) in [(&mut memory, usage.memory), (&mut working, usage.working), (&mut limit, usage.limit)] {
            if let Some(bytes) = bytes {
                family.push_with_extra(&labels, &pod, float(bytes));
            }
        }
        for (family, bytes, directions) in
            [(&mut network, usage.network, ["receive", "transmit"]), (&mut block, usage.block, ["read", "write"])]
        {
            push_directions(family, &labels, &pod, bytes, directions);
        }
    }
    let (mut engine_cpu, mut engine_memory) = (Family::new(&ENGINE_CPU), Family::new(&ENGINE_MEMORY));
    for engine in &snapshot.engines {
        engine_cpu.push(&[engine.name], seconds_of(engine.cpu_ns));
        engine_memory.push(&[engine.name], float(engine.resident));
    }
    let mut all = vec![memory, working, limit, network, block, engine_cpu, engine_memory];
    if compat {
        all.extend(legacy(snapshot));
    }
    all
}

fn push_directions(
    family: &mut Family,
    labels: &[&str],
    pod: &[(&'static str, &str)],
    bytes: Option<IoBytes>,
    directions: [&str; 2],
) {
    let Some(bytes) = bytes else { return };
    for (direction, bytes) in directions.into_iter().zip([bytes.inward, bytes.outward]) {
        let labels: Vec<&str> = labels.iter().copied().chain([direction]).collect();
        family.push_with_extra(&labels, pod, float(bytes));
    }
}

/// The metrics of the legacy docker stats exporter.
fn legacy(snapshot: &Snapshot) -> Vec<Family> {
    let (mut cpu, mut percent, mut usage) =
        (Family::new(&LEGACY_CPU), Family::new(&LEGACY_MEMORY), Family::new(&LEGACY_USAGE));
    let (mut network, mut block) = (Family::new(&LEGACY_NETWORK), Family::new(&LEGACY_BLOCK));
    let mut all_cpu = 0.0;
    let ratio = |row: &ContainerRow| Some((row.container.number, row.cpu_ratio?));
    let ratios: HashMap<u32, f64> = snapshot.containers.iter().filter_map(ratio).collect();
    // The exporter that had these names knew no guests.
    for row in snapshot.usage.iter().filter(|row| row.container.is_of_engine()) {
        let labels = [&*row.container.name, &row.container.name, &row.container.id];
        if let Some(percent) = ratios.get(&row.container.number).map(|ratio| ratio * 100.0) {
            all_cpu += percent;
            cpu.push(&labels, percent);
        }
        if let Some(working) = row.usage.working {
            usage.push(&labels, float(working));
            if let Some(limit) = row.usage.limit.filter(|limit| *limit > 0) {
                percent.push(&labels, float(working) / float(limit) * 100.0);
            }
        }
        // Nor pods.
        push_directions(&mut network, &labels, &[], row.usage.network, ["rx", "tx"]);
        push_directions(&mut block, &labels, &[], row.usage.block, ["read", "write"]);
    }
    let (mut engine_cpu, mut engine_memory) = (Family::new(&LEGACY_ENGINE_CPU), Family::new(&LEGACY_ENGINE_MEMORY));
    if let Some(engine) = snapshot.engines.iter().find(|engine| engine.name == "dockerd") {
        if let Some(ratio) = snapshot.engine_cpu_ratio {
            engine_cpu.push(&[], ratio * 100.0);
        }
        if snapshot.machine_memory > 0 {
            engine_memory.push(&[], float(engine.resident) / float(snapshot.machine_memory) * 100.0);
        }
    }
    vec![
        Family::new(&UP).with(&[], 1.0),
        Family::new(&TOTAL).with(&[], float(snapshot.container_count as u64)),
        engine_cpu,
        engine_memory,
        Family::new(&LEGACY_ALL_CPU).with(&[], all_cpu),
        cpu,
        percent,
        usage,
        network,
        block,
        Family::new(&INFO).with(&[program::VERSION, "rust"], 1.0),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "a count, for output")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::containers::{
        Container,
        stats::{Usage, UsageRow},
    };

    /// Traffic and memory of a pod's containers were without it.
    #[test]
    fn rows_of_a_pod_name_it_except_under_legacy_names() {
        let container = Container {
            pod: "cam-1".into(),
            namespace: "tv".into(),
            ..Container::new(1, "cam".into(), "0a".into(), "containerd")
        };
        let bytes = IoBytes { inward: 3, outward: 4 };
        let usage = Usage {
            memory: Some(9),
            working: Some(5),
            limit: Some(10),
            network: Some(bytes),
            block: Some(bytes),
            ..Usage::default()
        };
        let row = UsageRow { container: Arc::new(container), usage };
        let snapshot = Snapshot { usage: vec![row], ..Snapshot::default() };
        let page = metrics::page::render("usage", families(&snapshot, true)).unwrap();
        let page = String::from_utf8(page.text().to_vec()).unwrap();
        let rows: Vec<&str> = page.lines().filter(|line| line.contains("container=\"cam\"")).collect();
        let (legacy, primary): (Vec<&str>, Vec<&str>) = rows.into_iter().partition(|row| row.starts_with("docker_"));
        assert_eq!((primary.len(), legacy.len()), (7, 6), "{page}");
        assert!(primary.iter().all(|row| row.contains("pod=\"cam-1\"") && row.contains("namespace=\"tv\"")), "{page}");
        assert!(legacy.iter().all(|row| !row.contains("pod=")), "{page}");
    }
}
