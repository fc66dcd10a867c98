//! Port 9505: GPU metrics, under Wattcast's names and under those of the legacy GPU exporter. They
//! answer two questions of a streaming operator: can the GPU encode one more stream, and does every
//! session reach its frame rate.

use std::collections::BTreeMap;

use cli::program;
use metrics::family::{Def, Families, Family};

use crate::{
    containers::ChargeTarget,
    energy::zone::{Origin, ZoneKind},
    gpu::{AttributedSession, GpuStatus, THROTTLE_REASONS, engines::Engine},
    ledger::streams::JobUsage,
    snapshot::Snapshot,
};

const GPU: &[&str] = &["gpu", "name", "source"];
const SESSION: &[&str] = &["gpu", "name", "source", "codec", "resolution", "container", "id", "stream"];
const LEGACY: &[&str] = &["gpu_id", "gpu_name", "gpu_uuid"];

static COUNT: Def = Def::gauge("wattcast_gpus", &["source"], "Known GPUs by source.");
static UP: Def = Def::gauge(
    "wattcast_gpu_up",
    &["gpu", "name", "source", "reason"],
    "1 while a GPU responds; 0 with reason absent, denied or broken, for example after it has fallen off the bus.",
);
static READING_UP: Def = Def::gauge(
    "wattcast_gpu_reading_up",
    &["gpu", "name", "source", "reading", "reason"],
    "0 for each reading that a GPU does not provide, with the reason: absent (not supported by chip or driver), denied, broken.",
);
static ENERGY: Def = Def::counter(
    "wattcast_gpu_energy_joules_total",
    GPU,
    "Energy of a board since wattcast_totals_start_timestamp_seconds; source nvml, drm: the board's energy counter, nvml_power, drm_power: integrated power of a board without one.",
);
static POWER: Def =
    Def::gauge("wattcast_gpu_power_watts", GPU, "Mean power of a board over the last tick, computed from its energy.");
static LIMIT: Def = Def::gauge("wattcast_gpu_power_limit_watts", GPU, "Power limit enforced by the driver.");
static UTILIZATION: Def = Def::gauge(
    "wattcast_gpu_engine_utilization_ratio",
    &["gpu", "name", "source", "engine"],
    "Utilization of an engine type (0–1) over the driver's sampling period (source drm: over the last tick), averaged \
     over its engines: two encoders of which one is fully used show 0.5.",
);
static MEMORY: Def = Def::gauge(
    "wattcast_gpu_memory_bytes",
    &["gpu", "name", "source", "state"],
    "Memory of a board in bytes: used, free, reserved by the driver.",
);
static CONTAINER_MEMORY: Def = Def::gauge(
    "wattcast_container_gpu_memory_bytes",
    &["container", "id", "gpu"],
    "GPU memory of a container's processes.",
);
static SESSIONS: Def = Def::gauge(
    "wattcast_gpu_encoder_sessions",
    &["gpu", "name", "source", "codec"],
    "Open encoder sessions by codec; codec=\"all\" for their sum. Consumer boards limit their number.",
);
static FPS: Def = Def::gauge(
    "wattcast_gpu_encoder_session_fps",
    SESSION,
    "Frames per second of an encoder session, the driver's moving average; sessions with the same labels are added \
     up. Compare with wattcast_gpu_encoder_session_target_fps to find sessions that fall behind.",
);
static TARGET: Def = Def::gauge(
    "wattcast_gpu_encoder_session_target_fps",
    SESSION,
    "Frames per second that the job's command line requests, times its sessions; absent if it requests none. The \
     actual rate by stream is ffmpeg_fps on port 9506.",
);
static LATENCY: Def = Def::gauge(
    "wattcast_gpu_encoder_session_latency_seconds",
    SESSION,
    "Encode latency per frame of a session, the driver's moving average; the maximum of sessions with the same labels.",
);
static HEADROOM: Def = Def::gauge(
    "wattcast_gpu_encoder_headroom_ratio",
    &["gpu", "name", "source", "codec"],
    "Free encoder capacity for a codec (0–1), as the driver reports it.",
);
static TEMPERATURE: Def = Def::gauge("wattcast_gpu_temperature_celsius", GPU, "Temperature of the GPU chip.");
static CLOCK: Def = Def::gauge(
    "wattcast_gpu_clock_hertz",
    &["gpu", "name", "source", "clock"],
    "Clock frequencies: graphics, sm, memory, video (encoder and decoder).",
);
static THROTTLE: Def = Def::gauge(
    "wattcast_gpu_throttle",
    &["gpu", "name", "source", "reason"],
    "Throttle reasons: 1 while a reason limits the clocks; idle is one of them.",
);
static LINK: Def = Def::gauge(
    "wattcast_gpu_pcie_link",
    &["gpu", "name", "source", "what", "bound"],
    "Generation and width (lanes) of the PCIe link, current and maximum.",
);
static REPLAYS: Def =
    Def::counter("wattcast_gpu_pcie_replays_total", GPU, "Replayed PCIe packets since the driver was loaded.");
static DROPPED: Def = Def::counter(
    "wattcast_gpu_samples_dropped_total",
    &["gpu", "name", "source", "reason"],
    "Dropped utilization samples of processes: stale (already counted), impossible (over 100 %, or of another time), \
     limit (too many processes). Samples with reason unknown were counted: the process had ended or its cgroup is \
     unknown, and its energy is unattributed.",
);
static INFO: Def = Def::gauge(
    "wattcast_gpu_info",
    &["gpu", "name", "source", "index", "mig"],
    "1; NVIDIA's index of a GPU, and whether it is in MIG mode.",
);

static LEGACY_ALIVE: Def = Def::gauge("gpu_exporter_alive", &[], "1 while the GPU collector is enabled.").compat();
static LEGACY_COUNT: Def = Def::gauge("gpu_count", &[], "Known NVIDIA GPUs; 0 without a driver.").compat();
static LEGACY_POWER: Def = Def::gauge("gpu_power_draw_watts", LEGACY, "Power as the driver reports it.").compat();
static LEGACY_LIMIT: Def = Def::gauge("gpu_power_limit_watts", LEGACY, "Power limit enforced by the driver.").compat();
static LEGACY_TEMPERATURE: Def = Def::gauge("gpu_temperature_celsius", LEGACY, "Temperature of the GPU chip.").compat();
static LEGACY_UTILIZATION: Def =
    Def::gauge("gpu_utilization_percent", LEGACY, "Percent of time in which the shaders were used.").compat();
static LEGACY_MEMORY_UTILIZATION: Def =
    Def::gauge("gpu_memory_utilization_percent", LEGACY, "Percent of time in which memory was read or written.")
        .compat();
static LEGACY_ENCODER: Def =
    Def::gauge("gpu_encoder_utilization_percent", LEGACY, "Utilization of the encoders.").compat();
static LEGACY_DECODER: Def =
    Def::gauge("gpu_decoder_utilization_percent", LEGACY, "Utilization of the decoders.").compat();
static LEGACY_USED: Def = Def::gauge("gpu_memory_used_bytes", LEGACY, "Used memory of the board.").compat();
static LEGACY_TOTAL: Def = Def::gauge("gpu_memory_total_bytes", LEGACY, "Total memory of the board.").compat();
static LEGACY_GRAPHICS: Def = Def::gauge("gpu_clocks_graphics_mhz", LEGACY, "Clock of the graphics engine.").compat();
static LEGACY_SM: Def = Def::gauge("gpu_clocks_sm_mhz", LEGACY, "Clock of the shaders.").compat();
static LEGACY_MEMORY_CLOCK: Def = Def::gauge("gpu_clocks_memory_mhz", LEGACY, "Clock of the memory.").compat();
static LEGACY_INFO: Def =
    Def::gauge("gpu_exporter_info", &["version", "language"], "1; version and language of the exporter.").compat();

/// All metrics of the page, in its order.
pub static DEFS: &[&Def] = &[
    &COUNT,
    &UP,
    &READING_UP,
    &INFO,
    &ENERGY,
    &POWER,
    &LIMIT,
    &UTILIZATION,
    &SESSIONS,
    &FPS,
    &TARGET,
    &LATENCY,
    &HEADROOM,
    &MEMORY,
    &CONTAINER_MEMORY,
    &TEMPERATURE,
    &CLOCK,
    &THROTTLE,
    &LINK,
    &REPLAYS,
    &DROPPED,
    &LEGACY_ALIVE,
    &LEGACY_COUNT,
    &LEGACY_POWER,
    &LEGACY_LIMIT,
    &LEGACY_TEMPERATURE,
    &LEGACY_UTILIZATION,
    &LEGACY_MEMORY_UTILIZATION,
    &LEGACY_ENCODER,
    &LEGACY_DECODER,
    &LEGACY_USED,
    &LEGACY_TOTAL,
    &LEGACY_GRAPHICS,
    &LEGACY_SM,
    &LEGACY_MEMORY_CLOCK,
    &LEGACY_INFO,
];

/// The metric families of the page, in its order.
#[must_use]
pub(crate) fn families(snapshot: &Snapshot, compat: bool) -> Vec<Family> {
    let mut all = Families::new(DEFS);
    let mut counts: BTreeMap<&str, u32> = [(Origin::Nvml.as_str(), 0)].into();
    for status in &snapshot.gpus {
        *counts.entry(status.gpu.origin.as_str()).or_default() += 1;
        device(&mut all, status);
        energy(&mut all, status, snapshot);
        sessions(&mut all, status, snapshot);
        memory(&mut all, status, snapshot);
    }
    for (source, count) in counts {
        all.push(&COUNT, &[source], f64::from(count));
    }
    if compat {
        legacy(&mut all, snapshot);
    }
    all.into_vec()
}

/// Converts milliwatts to watts.
fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1000.0
}

fn labels(status: &GpuStatus) -> [String; 3] {
    [status.gpu.id.to_string(), status.gpu.name.clone(), status.gpu.origin.as_str().to_owned()]
}

fn with<'a>(gpu_labels: &'a [String; 3], more: &[&'a str]) -> Vec<&'a str> {
    gpu_labels.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

fn device(all: &mut Families, status: &GpuStatus) {
    let (gpu, telemetry) = (&status.gpu, &status.gpu.telemetry);
    let gpu_labels = labels(status);
    match &gpu.state {
        Ok(()) => all.push(&UP, &with(&gpu_labels, &[""]), 1.0),
        Err(why) => all.push(&UP, &with(&gpu_labels, &[why.reason.as_str()]), 0.0),
    }
    for (reading, reason) in &gpu.unavailable {
        all.push(&READING_UP, &with(&gpu_labels, &[reading, reason.as_str()]), 0.0);
    }
    let index = gpu.index.map(|index| index.to_string()).unwrap_or_default();
    all.push(&INFO, &with(&gpu_labels, &[&index, if gpu.mig { "true" } else { "false" }]), 1.0);
    if let Some(limit) = telemetry.limit_mw {
        all.push(&LIMIT, &with(&gpu_labels, &[]), watts(limit));
    }
    for (engine, ratio) in Engine::ALL.into_iter().zip(telemetry.engines) {
        if let Some(ratio) = ratio {
            all.push(&UTILIZATION, &with(&gpu_labels, &[engine.as_str()]), ratio);
        }
    }
    for (codec, ratio) in &telemetry.headroom {
        all.push(&HEADROOM, &with(&gpu_labels, &[codec]), *ratio);
    }
    if let Some(memory) = telemetry.memory {
        for (state, bytes) in [("used", memory.used), ("free", memory.free), ("reserved", memory.reserved)] {
            all.push(&MEMORY, &with(&gpu_labels, &[state]), float(bytes));
        }
    }
    if let Some(celsius) = telemetry.celsius {
        all.push(&TEMPERATURE, &with(&gpu_labels, &[]), f64::from(celsius));
    }
    if let Some(clocks) = telemetry.clocks {
        let mhz = [
            ("graphics", Some(clocks.graphics_mhz)),
            ("sm", Some(clocks.sm_mhz)),
            ("memory", Some(clocks.memory_mhz)),
            ("video", clocks.video_mhz),
        ];
        for (clock, mhz) in mhz {
            if let Some(mhz) = mhz {
                all.push(&CLOCK, &with(&gpu_labels, &[clock]), f64::from(mhz) * 1e6);
            }
        }
    }
    if let Some(bits) = telemetry.throttle {
        for (flag, reason) in THROTTLE_REASONS {
            all.push(&THROTTLE, &with(&gpu_labels, &[reason]), f64::from(u8::from(bits & flag.bits() != 0)));
        }
    }
    if let Some(link) = telemetry.link {
        for (property, bound, value) in [
            ("generation", "current", link.generation),
            ("generation", "most", link.max_generation),
            ("width", "current", link.width),
            ("width", "most", link.max_width),
        ] {
            all.push(&LINK, &with(&gpu_labels, &[property, bound]), f64::from(value));
        }
        if let Some(replays) = link.replays {
            all.push(&REPLAYS, &with(&gpu_labels, &[]), f64::from(replays));
        }
    }
    let [stale, impossible, limit] = gpu.dropped;
    for (reason, count) in [("stale", stale), ("impossible", impossible), ("limit", limit), ("unknown", status.unknown)]
    {
        all.push(&DROPPED, &with(&gpu_labels, &[reason]), float(count));
    }
}

/// Energy and power from the accounts, with the source that they use.
fn energy(all: &mut Families, status: &GpuStatus, snapshot: &Snapshot) {
    let Some(zone) = snapshot.zones.iter().find(|zone| zone.id.kind == ZoneKind::Gpu(status.gpu.id)) else { return };
    let mut gpu_labels = labels(status);
    gpu_labels[2] = zone.origin.as_str().to_owned();
    all.push(&ENERGY, &with(&gpu_labels, &[]), zone.total.joules());
    if let Some(watts) = zone.watts {
        all.push(&POWER, &with(&gpu_labels, &[]), watts);
    }
}

fn sessions(all: &mut Families, status: &GpuStatus, snapshot: &Snapshot) {
    let gpu_labels = labels(status);
    // Without a session list there is no session count.
    if !status.gpu.unavailable.contains_key("encoder_sessions")
        && status.gpu.state.is_ok()
        && status.gpu.origin != Origin::Drm
    {
        let mut counts: BTreeMap<&str, u32> = [("all", 0)].into();
        for attributed in &status.sessions {
            *counts.entry("all").or_default() += 1;
            *counts.entry(attributed.session.codec).or_default() += 1;
        }
        for (codec, count) in counts {
            all.push(&SESSIONS, &with(&gpu_labels, &[codec]), f64::from(count));
        }
    }
    /// Totals of the sessions with the same labels.
    #[derive(Default)]
    struct SessionTotals {
        fps: f64,
        target: f64,
        targets: bool,
        latency: f64,
    }
    let mut sums: BTreeMap<[String; 5], SessionTotals> = BTreeMap::new();
    for attributed in &status.sessions {
        let session = &attributed.session;
        let (name, id) = container(snapshot, attributed.charge_target);
        let (stream, target) = stream(snapshot, attributed);
        let key = [session.codec.to_owned(), format!("{}x{}", session.width, session.height), name, id, stream];
        let sum = sums.entry(key).or_insert_with(|| SessionTotals { targets: true, ..SessionTotals::default() });
        sum.fps += f64::from(session.fps);
        sum.targets &= target.is_some();
        sum.target += target.unwrap_or(0.0);
        sum.latency = sum.latency.max(f64::from(session.latency_us) / 1e6);
    }
    for (key, sum) in &sums {
        let key: Vec<&str> = key.iter().map(String::as_str).collect();
        let labels = with(&gpu_labels, &key);
        all.push(&FPS, &labels, sum.fps);
        if sum.targets {
            all.push(&TARGET, &labels, sum.target);
        }
        all.push(&LATENCY, &labels, sum.latency);
    }
}

/// Name and id of a container; empty for other charge targets.
fn container(snapshot: &Snapshot, charge_target: Option<ChargeTarget>) -> (String, String) {
    let Some(ChargeTarget::Container(number)) = charge_target else { return (String::new(), String::new()) };
    let row = snapshot.containers.iter().find(|row| row.container.number == number);
    row.map_or_else(Default::default, |row| (row.container.name.clone(), row.container.id.clone()))
}

/// The stream of a session: the job's only stream, or the output with the session's frame size; and
/// its target frame rate.
fn stream(snapshot: &Snapshot, attributed: &AttributedSession) -> (String, Option<f64>) {
    let Some(job) = attributed.job else { return (String::new(), None) };
    let Some(running) = snapshot.jobs.iter().find(|running| running.job.number == job) else {
        return (String::new(), None);
    };
    let JobUsage { job, streams, .. } = running;
    let outputs = &job.command.outputs;
    let size = Some((attributed.session.width, attributed.session.height));
    let at = outputs.iter().position(|output| output.size == size).or((outputs.len() == 1).then_some(0));
    let rate = at.and_then(|at| outputs.get(at)).and_then(|output| output.millifps);
    let name = match (&streams[..], at) {
        ([(id, ..)], _) => id.name.clone(),
        (_, Some(at)) => outputs.get(at).map(|output| output.name.clone()).unwrap_or_default(),
        _ => String::new(),
    };
    (name, rate.map(|milli| f64::from(milli) / 1000.0))
}

fn memory(all: &mut Families, status: &GpuStatus, snapshot: &Snapshot) {
    let gpu = status.gpu.id.to_string();
    for row in &snapshot.containers {
        let container = &*row.container;
        if let Some(bytes) = status.memory.get(&ChargeTarget::Container(container.number)) {
            let labels = [&*container.name, &*container.id, &gpu];
            all.push_with_extra(&CONTAINER_MEMORY, &labels, &container.pod_labels(), float(*bytes));
        }
    }
}

/// The metric names of the legacy GPU exporter, for NVIDIA's GPUs.
fn legacy(all: &mut Families, snapshot: &Snapshot) {
    let nvidia: Vec<&GpuStatus> = snapshot.gpus.iter().filter(|status| status.gpu.index.is_some()).collect();
    all.push(&LEGACY_ALIVE, &[], 1.0);
    all.push(&LEGACY_COUNT, &[], float(nvidia.len() as u64));
    all.push(&LEGACY_INFO, &[program::VERSION, "rust"], 1.0);
    for status in nvidia {
        let telemetry = &status.gpu.telemetry;
        let index = status.gpu.index.map(|index| index.to_string()).unwrap_or_default();
        let labels = [&*index, &*status.gpu.name, &*status.gpu.id.to_string()];
        let percent = |engine: Engine| telemetry.engines[engine.index()].map(|ratio| (ratio * 100.0).round());
        let (memory, clocks) = (telemetry.memory, telemetry.clocks);
        for (def, value) in [
            (&LEGACY_POWER, telemetry.power_mw.map(watts)),
            (&LEGACY_LIMIT, telemetry.limit_mw.map(watts)),
            (&LEGACY_TEMPERATURE, telemetry.celsius.map(f64::from)),
            (&LEGACY_UTILIZATION, percent(Engine::Sm)),
            (&LEGACY_MEMORY_UTILIZATION, percent(Engine::Memory)),
            (&LEGACY_ENCODER, percent(Engine::Encoder)),
            (&LEGACY_DECODER, percent(Engine::Decoder)),
            (&LEGACY_USED, memory.map(|memory| float(memory.used))),
            (&LEGACY_TOTAL, memory.map(|memory| float(memory.total))),
            (&LEGACY_GRAPHICS, clocks.map(|clocks| f64::from(clocks.graphics_mhz))),
            (&LEGACY_SM, clocks.map(|clocks| f64::from(clocks.sm_mhz))),
            (&LEGACY_MEMORY_CLOCK, clocks.map(|clocks| f64::from(clocks.memory_mhz))),
        ] {
            if let Some(value) = value {
                all.push(def, &labels, value);
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes and counts, for output")]
fn float(count: u64) -> f64 {
    count as f64
}
