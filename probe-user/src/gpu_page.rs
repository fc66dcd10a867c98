//! Port 9505: what GPUs say of themselves, under the names of the GPU exporter and under Prometheus' own, and what a streaming operator asks
//! first: is there room for one more stream, and does every session keep up.

use std::collections::BTreeMap;

use exporter::{
    family::{Def, Families, Family},
    program,
};

use crate::{
    containers::Container,
    energy::zone::{Origin, ZoneKind},
    gpu::{Encoding, Shown, THROTTLES, engines::Engine},
    ledger::{Holder, streams::Running},
    snapshot::Snapshot,
};

const GPU: &[&str] = &["gpu", "name", "source"];
const SESSION: &[&str] = &["gpu", "name", "source", "codec", "resolution", "container", "id", "stream"];
const SEED: &[&str] = &["gpu_id", "gpu_name", "gpu_uuid"];

static COUNT: Def = Def::gauge("wattcast_gpus", &["source"], "GPUs that are known: by source.");
static UP: Def = Def::gauge(
    "wattcast_gpu_up",
    &["gpu", "name", "source", "reason"],
    "1 while a GPU answers; 0 with reason absent, denied or broken, as when it has fallen off the bus.",
);
static READING_UP: Def = Def::gauge(
    "wattcast_gpu_reading_up",
    &["gpu", "name", "source", "reading", "reason"],
    "0 for each reading that a GPU does not give, with the reason: absent (this chip or driver has none), denied, broken.",
);
static ENERGY: Def = Def::counter(
    "wattcast_gpu_energy_joules_total",
    GPU,
    "Energy of a board since the probe's start; source nvml is its own counter, nvml_power its power integrated here because it has none.",
);
static POWER: Def =
    Def::gauge("wattcast_gpu_power_watts", GPU, "Mean power of a board over the last tick, from its energy.");
static LIMIT: Def = Def::gauge("wattcast_gpu_power_limit_watts", GPU, "The power limit that the driver enforces.");
static UTILIZATION: Def = Def::gauge(
    "wattcast_gpu_engine_utilization_ratio",
    &["gpu", "name", "source", "engine"],
    "Use of a kind of engine, 0 to 1, over the driver's sampling period (source drm: over the last tick). All engines of a kind together: two \
     encoders of which one is full show 0.5.",
);
static MEMORY: Def = Def::gauge(
    "wattcast_gpu_memory_bytes",
    &["gpu", "name", "source", "state"],
    "Memory of a board: used, free, reserved by the driver.",
);
static CONTAINER_MEMORY: Def = Def::gauge(
    "wattcast_container_gpu_memory_bytes",
    &["container", "id", "gpu"],
    "Memory that a container's processes have on a GPU.",
);
static SESSIONS: Def = Def::gauge(
    "wattcast_gpu_encoder_sessions",
    &["gpu", "name", "source", "codec"],
    "Encoder sessions that are open; all codecs together with codec=\"all\". Consumer boards allow a few of them.",
);
static FPS: Def = Def::gauge(
    "wattcast_gpu_encoder_session_fps",
    SESSION,
    "Frames a second of an encoder session, the driver's moving average; sessions that share all labels are added up. Against \
     wattcast_gpu_encoder_session_target_fps it says who keeps up.",
);
static TARGET: Def = Def::gauge(
    "wattcast_gpu_encoder_session_target_fps",
    SESSION,
    "Frames a second that the job's command line asks for, times its sessions; absent where it does not say. What it takes in is ffmpeg_fps of 9506, \
     by stream.",
);
static LATENCY: Def = Def::gauge(
    "wattcast_gpu_encoder_session_latency_seconds",
    SESSION,
    "Time that a session's encoder takes for a frame, the driver's moving average; of several sessions the longest.",
);
static HEADROOM: Def = Def::gauge(
    "wattcast_gpu_encoder_headroom_ratio",
    &["gpu", "name", "source", "codec"],
    "What the driver says is left of the encoder's capacity for a codec, 0 to 1.",
);
static TEMPERATURE: Def = Def::gauge("wattcast_gpu_temperature_celsius", GPU, "Temperature of the chip.");
static CLOCK: Def = Def::gauge(
    "wattcast_gpu_clock_hertz",
    &["gpu", "name", "source", "clock"],
    "Clocks: graphics, sm, memory, video (encoder and decoder).",
);
static THROTTLE: Def = Def::gauge(
    "wattcast_gpu_throttle",
    &["gpu", "name", "source", "reason"],
    "1 while a reason keeps the clocks below what they could be; idle is one.",
);
static LINK: Def = Def::gauge(
    "wattcast_gpu_pcie_link",
    &["gpu", "name", "source", "what", "bound"],
    "Generation and width (lanes) of the link to the bus, now and at most.",
);
static REPLAYS: Def = Def::counter(
    "wattcast_gpu_pcie_replays_total",
    GPU,
    "Packets that had to be sent again on the bus since the driver was loaded.",
);
static DROPPED: Def = Def::counter(
    "wattcast_gpu_samples_dropped_total",
    &["gpu", "name", "source", "reason"],
    "Samples of processes' use that were not counted: stale (seen before), impossible (over 100 %, or of another time), limit (no room for the process). With reason unknown they were: \
     the process had ended or nobody knows its cgroup, and its joules are unattributed.",
);
static INFO: Def = Def::gauge(
    "wattcast_gpu_info",
    &["gpu", "name", "source", "index", "mig"],
    "1; NVIDIA's number of a GPU, and whether it is cut into instances.",
);

static SEED_ALIVE: Def = Def::gauge("gpu_exporter_alive", &[], "1 while GPUs are looked for.").seed();
static SEED_COUNT: Def = Def::gauge("gpu_count", &[], "NVIDIA GPUs that are known; 0 without a driver.").seed();
static SEED_POWER: Def = Def::gauge("gpu_power_draw_watts", SEED, "Power as the driver says it.").seed();
static SEED_LIMIT: Def = Def::gauge("gpu_power_limit_watts", SEED, "The power limit that the driver enforces.").seed();
static SEED_TEMPERATURE: Def = Def::gauge("gpu_temperature_celsius", SEED, "Temperature of the chip.").seed();
static SEED_UTILIZATION: Def =
    Def::gauge("gpu_utilization_percent", SEED, "Part of the time in which something ran on the shaders.").seed();
static SEED_MEMORY_UTILIZATION: Def =
    Def::gauge("gpu_memory_utilization_percent", SEED, "Part of the time in which memory was read or written.").seed();
static SEED_ENCODER: Def = Def::gauge("gpu_encoder_utilization_percent", SEED, "Use of the encoders.").seed();
static SEED_DECODER: Def = Def::gauge("gpu_decoder_utilization_percent", SEED, "Use of the decoders.").seed();
static SEED_USED: Def = Def::gauge("gpu_memory_used_bytes", SEED, "Memory in use.").seed();
static SEED_TOTAL: Def = Def::gauge("gpu_memory_total_bytes", SEED, "Memory of the board.").seed();
static SEED_GRAPHICS: Def = Def::gauge("gpu_clocks_graphics_mhz", SEED, "Clock of the graphics engine.").seed();
static SEED_SM: Def = Def::gauge("gpu_clocks_sm_mhz", SEED, "Clock of the shaders.").seed();
static SEED_MEMORY_CLOCK: Def = Def::gauge("gpu_clocks_memory_mhz", SEED, "Clock of the memory.").seed();
static SEED_INFO: Def = Def::gauge("gpu_exporter_info", &["version", "language"], "1; which exporter this is.").seed();

/// All of the above, in the order of the page.
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
    &SEED_ALIVE,
    &SEED_COUNT,
    &SEED_POWER,
    &SEED_LIMIT,
    &SEED_TEMPERATURE,
    &SEED_UTILIZATION,
    &SEED_MEMORY_UTILIZATION,
    &SEED_ENCODER,
    &SEED_DECODER,
    &SEED_USED,
    &SEED_TOTAL,
    &SEED_GRAPHICS,
    &SEED_SM,
    &SEED_MEMORY_CLOCK,
    &SEED_INFO,
];

/// The page's families, in order.
#[must_use]
pub(crate) fn families(snapshot: &Snapshot, compat: bool) -> Vec<Family> {
    let mut all = Families::new(DEFS);
    let mut counts: BTreeMap<&str, u32> = [(Origin::Nvml.as_str(), 0)].into();
    for shown in &snapshot.gpus {
        *counts.entry(shown.gpu.origin.as_str()).or_default() += 1;
        device(&mut all, shown);
        energy(&mut all, shown, snapshot);
        sessions(&mut all, shown, snapshot);
        memory(&mut all, shown, snapshot);
    }
    for (source, count) in counts {
        all.push(&COUNT, &[source], f64::from(count));
    }
    if compat {
        seed(&mut all, snapshot);
    }
    all.into_vec()
}

/// Watts of milliwatts.
fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1000.0
}

fn labels(shown: &Shown) -> [String; 3] {
    [shown.gpu.id.to_string(), shown.gpu.name.clone(), shown.gpu.origin.as_str().to_owned()]
}

fn with<'a>(who: &'a [String; 3], more: &[&'a str]) -> Vec<&'a str> {
    who.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

fn device(all: &mut Families, shown: &Shown) {
    let (gpu, facts) = (&shown.gpu, &shown.gpu.facts);
    let who = labels(shown);
    match &gpu.state {
        Ok(()) => all.push(&UP, &with(&who, &[""]), 1.0),
        Err(why) => all.push(&UP, &with(&who, &[why.reason.as_str()]), 0.0),
    }
    for (reading, reason) in &gpu.refused {
        all.push(&READING_UP, &with(&who, &[reading, reason.as_str()]), 0.0);
    }
    let index = gpu.index.map(|index| index.to_string()).unwrap_or_default();
    all.push(&INFO, &with(&who, &[&index, if gpu.mig { "true" } else { "false" }]), 1.0);
    if let Some(limit) = facts.limit_mw {
        all.push(&LIMIT, &with(&who, &[]), watts(limit));
    }
    for (engine, ratio) in Engine::ALL.into_iter().zip(facts.engines) {
        if let Some(ratio) = ratio {
            all.push(&UTILIZATION, &with(&who, &[engine.as_str()]), ratio);
        }
    }
    for (codec, ratio) in &facts.headroom {
        all.push(&HEADROOM, &with(&who, &[codec]), *ratio);
    }
    if let Some(memory) = facts.memory {
        for (state, bytes) in [("used", memory.used), ("free", memory.free), ("reserved", memory.reserved)] {
            all.push(&MEMORY, &with(&who, &[state]), float(bytes));
        }
    }
    if let Some(celsius) = facts.celsius {
        all.push(&TEMPERATURE, &with(&who, &[]), f64::from(celsius));
    }
    if let Some(clocks) = facts.clocks {
        let mhz = [
            ("graphics", Some(clocks.graphics_mhz)),
            ("sm", Some(clocks.sm_mhz)),
            ("memory", Some(clocks.memory_mhz)),
            ("video", clocks.video_mhz),
        ];
        for (clock, mhz) in mhz {
            if let Some(mhz) = mhz {
                all.push(&CLOCK, &with(&who, &[clock]), f64::from(mhz) * 1e6);
            }
        }
    }
    if let Some(bits) = facts.throttle {
        for (flag, reason) in THROTTLES {
            all.push(&THROTTLE, &with(&who, &[reason]), f64::from(u8::from(bits & flag.bits() != 0)));
        }
    }
    if let Some(link) = facts.link {
        for (what, bound, value) in [
            ("generation", "current", link.generation),
            ("generation", "most", link.most_generation),
            ("width", "current", link.width),
            ("width", "most", link.most_width),
        ] {
            all.push(&LINK, &with(&who, &[what, bound]), f64::from(value));
        }
        if let Some(replays) = link.replays {
            all.push(&REPLAYS, &with(&who, &[]), f64::from(replays));
        }
    }
    let [stale, impossible, limit] = gpu.dropped;
    for (reason, count) in [("stale", stale), ("impossible", impossible), ("limit", limit), ("unknown", shown.unknown)]
    {
        all.push(&DROPPED, &with(&who, &[reason]), float(count));
    }
}

/// As the account has it: what grew of the counter, and by what source.
fn energy(all: &mut Families, shown: &Shown, snapshot: &Snapshot) {
    let Some(zone) = snapshot.zones.iter().find(|zone| zone.id.kind == ZoneKind::Gpu(shown.gpu.id)) else { return };
    let mut who = labels(shown);
    who[2] = zone.origin.as_str().to_owned();
    all.push(&ENERGY, &with(&who, &[]), zone.total.joules());
    if let Some(watts) = zone.watts {
        all.push(&POWER, &with(&who, &[]), watts);
    }
}

fn sessions(all: &mut Families, shown: &Shown, snapshot: &Snapshot) {
    let who = labels(shown);
    // Where sessions cannot be told, no number of them is.
    if !shown.gpu.refused.contains_key("encoder_sessions") && shown.gpu.state.is_ok() && shown.gpu.origin != Origin::Drm
    {
        let mut counts: BTreeMap<&str, u32> = [("all", 0)].into();
        for encoding in &shown.encoding {
            *counts.entry("all").or_default() += 1;
            *counts.entry(encoding.session.codec).or_default() += 1;
        }
        for (codec, count) in counts {
            all.push(&SESSIONS, &with(&who, &[codec]), f64::from(count));
        }
    }
    /// What sessions of the same labels come to.
    #[derive(Default)]
    struct Sum {
        fps: f64,
        target: f64,
        targets: bool,
        latency: f64,
    }
    let mut sums: BTreeMap<[String; 5], Sum> = BTreeMap::new();
    for encoding in &shown.encoding {
        let session = &encoding.session;
        let (name, id) = container(snapshot, encoding.holder);
        let (stream, target) = stream(snapshot, encoding);
        let key = [session.codec.to_owned(), format!("{}x{}", session.width, session.height), name, id, stream];
        let sum = sums.entry(key).or_insert_with(|| Sum { targets: true, ..Sum::default() });
        sum.fps += f64::from(session.fps);
        sum.targets &= target.is_some();
        sum.target += target.unwrap_or(0.0);
        sum.latency = sum.latency.max(f64::from(session.latency_us) / 1e6);
    }
    for (key, sum) in &sums {
        let key: Vec<&str> = key.iter().map(String::as_str).collect();
        let labels = with(&who, &key);
        all.push(&FPS, &labels, sum.fps);
        if sum.targets {
            all.push(&TARGET, &labels, sum.target);
        }
        all.push(&LATENCY, &labels, sum.latency);
    }
}

/// Name and id of whoever is given joules.
fn container(snapshot: &Snapshot, holder: Option<Holder>) -> (String, String) {
    let Some(Holder::Container(number)) = holder else { return (String::new(), String::new()) };
    let row = snapshot.containers.iter().find(|row| row.container.number == number);
    row.map_or_else(Default::default, |row| (row.container.name.clone(), row.container.id.clone()))
}

/// The stream that a session is of: the job's only one, or the output of its size. And the frames a second that it should have.
fn stream(snapshot: &Snapshot, encoding: &Encoding) -> (String, Option<f64>) {
    let Some(job) = encoding.job else { return (String::new(), None) };
    let Some(running) = snapshot.jobs.iter().find(|running| running.job.number == job) else {
        return (String::new(), None);
    };
    let Running { job, streams, .. } = running;
    let outputs = &job.command.outputs;
    let size = Some((encoding.session.width, encoding.session.height));
    let at = outputs.iter().position(|output| output.size == size).or((outputs.len() == 1).then_some(0));
    let rate = at.and_then(|at| outputs.get(at)).and_then(|output| output.millifps);
    let name = match (&streams[..], at) {
        ([(id, ..)], _) => id.name.clone(),
        (_, Some(at)) => outputs.get(at).map(|output| output.name.clone()).unwrap_or_default(),
        _ => String::new(),
    };
    (name, rate.map(|milli| f64::from(milli) / 1000.0))
}

fn memory(all: &mut Families, shown: &Shown, snapshot: &Snapshot) {
    let gpu = shown.gpu.id.to_string();
    for row in &snapshot.containers {
        let Container { number, name, id, .. } = &*row.container;
        if let Some(bytes) = shown.memory.get(&Holder::Container(*number)) {
            all.push(&CONTAINER_MEMORY, &[name, id, &gpu], float(*bytes));
        }
    }
}

/// The names of the exporter that we replace, for NVIDIA's GPUs.
fn seed(all: &mut Families, snapshot: &Snapshot) {
    let nvidia: Vec<&Shown> = snapshot.gpus.iter().filter(|shown| shown.gpu.index.is_some()).collect();
    all.push(&SEED_ALIVE, &[], 1.0);
    all.push(&SEED_COUNT, &[], float(nvidia.len() as u64));
    all.push(&SEED_INFO, &[program::VERSION, "rust"], 1.0);
    for shown in nvidia {
        let facts = &shown.gpu.facts;
        let index = shown.gpu.index.map(|index| index.to_string()).unwrap_or_default();
        let labels = [&*index, &*shown.gpu.name, &*shown.gpu.id.to_string()];
        let percent = |engine: Engine| facts.engines[engine.index()].map(|ratio| (ratio * 100.0).round());
        let (memory, clocks) = (facts.memory, facts.clocks);
        for (def, value) in [
            (&SEED_POWER, facts.power_mw.map(watts)),
            (&SEED_LIMIT, facts.limit_mw.map(watts)),
            (&SEED_TEMPERATURE, facts.celsius.map(f64::from)),
            (&SEED_UTILIZATION, percent(Engine::Sm)),
            (&SEED_MEMORY_UTILIZATION, percent(Engine::Memory)),
            (&SEED_ENCODER, percent(Engine::Encoder)),
            (&SEED_DECODER, percent(Engine::Decoder)),
            (&SEED_USED, memory.map(|memory| float(memory.used))),
            (&SEED_TOTAL, memory.map(|memory| float(memory.total))),
            (&SEED_GRAPHICS, clocks.map(|clocks| f64::from(clocks.graphics_mhz))),
            (&SEED_SM, clocks.map(|clocks| f64::from(clocks.sm_mhz))),
            (&SEED_MEMORY_CLOCK, clocks.map(|clocks| f64::from(clocks.memory_mhz))),
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
