//! Port 9501: what containers and their engines use, under the names of the docker stats exporter and under Prometheus' own.

use exporter::{
    family::{Def, Family},
    program,
};

use crate::{containers::stats::Bytes, snapshot::Snapshot, window::seconds};

const WHO: &[&str] = &["container", "id", "image", "runtime"];
const WHO_WAY: &[&str] = &["container", "id", "image", "runtime", "direction"];
const SEED: &[&str] = &["container", "name", "id"];
const SEED_WAY: &[&str] = &["container", "name", "id", "direction"];

static MEMORY: Def = Def::gauge(
    "wattcast_container_memory_bytes",
    WHO,
    "Memory charged to a container, page cache included (memory.current; on v1 memory.usage_in_bytes).",
);
static WORKING: Def = Def::gauge(
    "wattcast_container_memory_working_set_bytes",
    WHO,
    "The same without inactive file cache, as docker stats shows it; the cache's figure is up to five ticks old.",
);
static LIMIT: Def = Def::gauge(
    "wattcast_container_memory_limit_bytes",
    WHO,
    "What a container may use: its limit, or what the machine has where it has none.",
);
static NETWORK: Def = Def::counter(
    "wattcast_container_network_bytes_total",
    WHO_WAY,
    "Bytes that a container's network received and sent, loopback left out; absent where its network is the host's.",
);
static BLOCK: Def = Def::counter(
    "wattcast_container_block_bytes_total",
    WHO_WAY,
    "Bytes that a container read from and wrote to devices; absent where the kernel does not count them.",
);
static ENGINE_CPU: Def = Def::counter(
    "wattcast_engine_cpu_seconds_total",
    &["engine"],
    "CPU seconds of an engine's own processes since the probe's start: dockerd, containerd, podman, crio; looked for every ten ticks.",
);
static ENGINE_MEMORY: Def =
    Def::gauge("wattcast_engine_memory_bytes", &["engine"], "Resident memory of an engine's own processes.");

static UP: Def = Def::gauge("docker_stats_exporter_up", &[], "1 while containers are read.").seed();
static TOTAL: Def = Def::gauge("docker_containers_total", &[], "Containers that run.").seed();
static SEED_ENGINE_CPU: Def = Def::gauge(
    "docker_engine_cpu_percent",
    &[],
    "CPU of the Docker engine's own process (dockerd) over the last tick; 100 is one CPU.",
)
.seed();
static SEED_ENGINE_MEMORY: Def = Def::gauge(
    "docker_engine_memory_percent",
    &[],
    "Resident memory of the Docker engine's own process, of the machine's memory.",
)
.seed();
static SEED_ALL_CPU: Def =
    Def::gauge("docker_containers_total_cpu_percent", &[], "CPU of all containers over the last tick; 100 is one CPU.")
        .seed();
static SEED_CPU: Def =
    Def::gauge("docker_container_cpu_percent", SEED, "CPU of a container over the last tick; 100 is one CPU.").seed();
static SEED_MEMORY: Def = Def::gauge(
    "docker_container_memory_percent",
    SEED,
    "Memory of a container, inactive file cache left out, of what it may use.",
)
.seed();
static SEED_USAGE: Def =
    Def::gauge("docker_container_memory_usage", SEED, "Memory of a container in bytes, inactive file cache left out.")
        .seed();
static SEED_NETWORK: Def = Def::counter(
    "docker_container_network_io",
    SEED_WAY,
    "Bytes that a container's network received (rx) and sent (tx).",
)
.seed();
static SEED_BLOCK: Def =
    Def::counter("docker_container_block_io", SEED_WAY, "Bytes that a container read from and wrote to devices.")
        .seed();
static INFO: Def =
    Def::gauge("docker_stats_exporter_info", &["version", "language"], "1; which exporter this is.").seed();

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
    &SEED_ENGINE_CPU,
    &SEED_ENGINE_MEMORY,
    &SEED_ALL_CPU,
    &SEED_CPU,
    &SEED_MEMORY,
    &SEED_USAGE,
    &SEED_NETWORK,
    &SEED_BLOCK,
    &INFO,
];

/// The page's families, in order.
#[must_use]
pub(crate) fn families(snapshot: &Snapshot, compat: bool) -> Vec<Family> {
    let [mut memory, mut working, mut limit] = [&MEMORY, &WORKING, &LIMIT].map(Family::new);
    let [mut network, mut block] = [&NETWORK, &BLOCK].map(Family::new);
    for row in &snapshot.usage {
        let (who, usage) = (&row.container, &row.usage);
        let labels = [&*who.name, &who.id, &who.image, who.runtime];
        for (family, bytes) in [(&mut memory, usage.memory), (&mut working, usage.working), (&mut limit, usage.limit)] {
            if let Some(bytes) = bytes {
                family.push(&labels, float(bytes));
            }
        }
        for (family, bytes, ways) in
            [(&mut network, usage.network, ["receive", "transmit"]), (&mut block, usage.block, ["read", "write"])]
        {
            both(family, &labels, bytes, ways);
        }
    }
    let (mut engine_cpu, mut engine_memory) = (Family::new(&ENGINE_CPU), Family::new(&ENGINE_MEMORY));
    for engine in &snapshot.engines {
        engine_cpu.push(&[engine.name], seconds(i64::try_from(engine.cpu_ns).unwrap_or(i64::MAX)));
        engine_memory.push(&[engine.name], float(engine.resident));
    }
    let mut all = vec![memory, working, limit, network, block, engine_cpu, engine_memory];
    if compat {
        all.extend(seed(snapshot));
    }
    all
}

fn both(family: &mut Family, labels: &[&str], bytes: Option<Bytes>, ways: [&str; 2]) {
    let Some(bytes) = bytes else { return };
    for (way, bytes) in ways.into_iter().zip([bytes.inward, bytes.outward]) {
        let labels: Vec<&str> = labels.iter().copied().chain([way]).collect();
        family.push(&labels, float(bytes));
    }
}

/// The names of the exporter that we replace.
fn seed(snapshot: &Snapshot) -> Vec<Family> {
    let (mut cpu, mut percent, mut usage) =
        (Family::new(&SEED_CPU), Family::new(&SEED_MEMORY), Family::new(&SEED_USAGE));
    let (mut network, mut block) = (Family::new(&SEED_NETWORK), Family::new(&SEED_BLOCK));
    let mut all_cpu = 0.0;
    for row in &snapshot.usage {
        let labels = [&*row.container.name, &row.container.name, &row.container.id];
        let ran = snapshot.containers.iter().find(|known| known.container.number == row.container.number);
        if let Some(percent) = ran.and_then(|row| row.cpu_ratio).map(|ratio| ratio * 100.0) {
            all_cpu += percent;
            cpu.push(&labels, percent);
        }
        if let Some(working) = row.usage.working {
            usage.push(&labels, float(working));
            if let Some(limit) = row.usage.limit.filter(|limit| *limit > 0) {
                percent.push(&labels, float(working) / float(limit) * 100.0);
            }
        }
        both(&mut network, &labels, row.usage.network, ["rx", "tx"]);
        both(&mut block, &labels, row.usage.block, ["read", "write"]);
    }
    let (mut engine_cpu, mut engine_memory) = (Family::new(&SEED_ENGINE_CPU), Family::new(&SEED_ENGINE_MEMORY));
    if let Some(engine) = snapshot.engines.iter().find(|engine| engine.name == "dockerd") {
        if let Some(ratio) = snapshot.engine_cpu_ratio {
            engine_cpu.push(&[], ratio * 100.0);
        }
        if snapshot.machine_memory > 0 {
            engine_memory.push(&[], float(engine.resident) / float(snapshot.machine_memory) * 100.0);
        }
    }
    let running = snapshot.usage.iter().filter(|row| row.usage.memory.is_some() || row.usage.block.is_some()).count();
    vec![
        Family::new(&UP).with(&[], 1.0),
        Family::new(&TOTAL).with(&[], float(running as u64)),
        engine_cpu,
        engine_memory,
        Family::new(&SEED_ALL_CPU).with(&[], all_cpu),
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
