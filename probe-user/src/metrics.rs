//! Every metric of port 9500: name, type, labels and help, in the order of the page.

use exporter::family::Def;

/// Label sets that several families share.
const ZONE: &[&str] = &["package", "zone", "source"];
const CONTAINER_ZONE: &[&str] = &["container", "id", "image", "runtime", "package", "zone", "source"];

pub(crate) static ENERGY: Def = Def::counter(
    "wattcast_energy_joules_total",
    ZONE,
    "Energy of a zone in joules since the probe's start, wraps undone; source says whether it was measured. Zones overlap: package contains core and \
     uncore, dram and gpu (package is the GPU's uuid there) stand beside it, psys contains all; sum package, dram and gpu only.",
);
pub(crate) static POWER: Def = Def::gauge("wattcast_power_watts", ZONE, "Mean power of a zone over the last tick.");
pub(crate) static CONTAINER_ENERGY: Def = Def::counter(
    "wattcast_container_energy_joules_total",
    CONTAINER_ZONE,
    "Dynamic energy given to a container in joules: the zone's energy less idle, divided by CPU time on that package; zone gpu by use of the \
     GPU's engines, and so is what an integrated GPU used of a package. Attributed, not measured. Interrupts and kernel threads that work for a container count as system.",
);
pub(crate) static CONTAINER_IDLE: Def = Def::counter(
    "wattcast_container_idle_energy_joules_total",
    CONTAINER_ZONE,
    "A container's part of the idle energy in joules, only under an idle policy that shares it (--idle.policy); never in the row above.",
);
pub(crate) static ENGINE_SECONDS: Def = Def::counter(
    "wattcast_container_gpu_engine_seconds_total",
    &["container", "id", "gpu", "engine"],
    "For how long a container kept a GPU's engines busy, as the driver tells it by process; only engines that it used.",
);
pub(crate) static ENGINE_WEIGHT: Def = Def::gauge(
    "wattcast_gpu_engine_weight",
    &["engine"],
    "What a second of an engine is worth of a second of all shaders when a GPU's joules are shared: an assumption, and an option (--gpu.engine-weights).",
);
pub(crate) static CONTAINER_POWER: Def = Def::gauge(
    "wattcast_container_power_watts",
    &["container", "id", "image", "runtime", "zone", "source"],
    "Mean dynamic power given to a container over the last tick, all packages.",
);
pub(crate) static SYSTEM: Def = Def::counter(
    "wattcast_system_energy_joules_total",
    ZONE,
    "Dynamic energy of what runs outside of containers: the root cgroup, kernel threads, system units, this probe.",
);
pub(crate) static IDLE: Def = Def::counter(
    "wattcast_idle_energy_joules_total",
    ZONE,
    "Idle energy that is nobody's: idle power times time, less what an idle policy shares out. Zero while the idle power is \
     not known; see wattcast_idle_power_watts.",
);
pub(crate) static UNATTRIBUTED: Def = Def::counter(
    "wattcast_unattributed_energy_joules_total",
    ZONE,
    "Dynamic energy that could not be given to anybody: nobody ran in that tick, or nothing tells who used it.",
);
pub(crate) static RETIRED: Def = Def::counter(
    "wattcast_retired_energy_joules_total",
    ZONE,
    "Dynamic energy of containers whose series have ended, or that never got series because of the ceiling.",
);
pub(crate) static CONSERVATION: Def = Def::gauge(
    "wattcast_conservation_error_joules",
    &["package", "zone"],
    "Containers + retired + system + idle + unattributed as rendered on this page, less the measured counter. Must be 0; \
     what rounding to a double explains (above 2^32 J a row) is not an error.",
);
pub(crate) static IDLE_POWER: Def = Def::gauge(
    "wattcast_idle_power_watts",
    &["package", "zone"],
    "Idle power that the account uses: the intercept of power against load; absent until load has varied enough to tell.",
);
pub(crate) static IDLE_INTERVAL: Def = Def::gauge(
    "wattcast_idle_power_interval_watts",
    &["package", "zone", "bound"],
    "Lower and upper end of the idle power's 95 % interval; absent where it is known by construction, or not at all.",
);
pub(crate) static UNCERTAINTY: Def = Def::gauge(
    "wattcast_energy_uncertainty_ratio",
    &["container", "id"],
    "By what part of themselves a container's joules of the last tick may be off: counter steps and updates, reading skew, idle \
     interval, shared cores. Joules of GPUs and the hardware's own bias are not in it. Absent where nobody can say, as for a model.",
);
pub(crate) static DISTRIBUTION: Def = Def::histogram(
    "wattcast_power_distribution_watts",
    &["package", "source"],
    "Sub-second power of a package, one value for each reading of --power.distribution.",
);
pub(crate) static REJECTS: Def = Def::counter(
    "wattcast_energy_rejects_total",
    &["package", "zone", "reason"],
    "Energy readings refused: nothing could be said about the time since the reading before.",
);
pub(crate) static CONTAINER_CPU: Def = Def::counter(
    "wattcast_container_cpu_seconds_total",
    &["container", "id", "package", "mode"],
    "CPU seconds of a container since the probe's start, as the scheduler counts them (se.sum_exec_runtime), running tasks \
     included. mode: shared while the CPU's hyperthread sibling was busy too, else alone; all, and package=\"all\", where the tier \
     cannot tell.",
);
pub(crate) static CONTAINER_COUNTERS: Def = Def::counter(
    "wattcast_container_hardware_events_total",
    &["container", "id", "package", "event"],
    "What the processor counted while a container was on it: cycles, instructions, llc_misses. Only with tier=\"counters\".",
);
pub(crate) static COUNTER_RATIO: Def = Def::gauge(
    "wattcast_hardware_counters_running_ratio",
    &[],
    "For which part of the time the hardware had a place for our counters, all three together, since they were opened; below 1 the counts are too small \
     by as much, and joules are shared by time alone.",
);
pub(crate) static SMT_WEIGHT: Def = Def::gauge(
    "wattcast_smt_weight",
    &[],
    "What a second beside a busy hyperthread sibling is worth of a second alone, where joules are shared (--cpu.smt-weight).",
);
pub(crate) static QUEUE_WAIT: Def = Def::histogram(
    "wattcast_container_runqueue_wait_seconds",
    &["container", "id"],
    "How long a container's tasks were runnable and not running before each stint on a CPU (sched_info.run_delay): what starves \
     an encoder. Stints that still last are not in it; a wait on one CPU that ended in a move to another is counted where it ran.",
);
pub(crate) static SWITCHES: Def = Def::counter(
    "wattcast_container_context_switches_total",
    &["container", "id", "kind"],
    "Stints on a CPU that ended: voluntary when the task waits for something, involuntary when it could have gone on.",
);
pub(crate) static CONTAINER_LABEL: Def = Def::gauge(
    "wattcast_container_label_info",
    &["container", "id", "label", "value"],
    "1; a label of a container that the user asked to see (--container.labels).",
);
pub(crate) static STREAM_ENERGY: Def = Def::counter(
    "wattcast_stream_energy_joules_total",
    &["stream", "container", "id", "codec", "source", "share"],
    "Dynamic energy of one ffmpeg job in joules: its part of its container's, all packages. share: process, by its CPU time; pixels, one output of \
     a job of several, by the pixels that each delivers; outputs, the same, evenly, where the command line does not tell pixels. Frames and media \
     seconds come from wattcast_stream_frames_total of wattcast-analysis with the same stream.",
);
pub(crate) static STREAM_INFO: Def = Def::gauge(
    "wattcast_stream_info",
    &["stream", "container", "id", "input", "output", "codec", "encoder", "preset", "resolution", "fps", "bitrate"],
    "1; what the command line of the newest job of this name says. Addresses, keys and tokens are never in it.",
);
pub(crate) static STREAM_RUNNING: Def = Def::gauge(
    "wattcast_stream_jobs",
    &["stream", "container", "id"],
    "ffmpeg processes that run under this name; 0 for one that has ended and is shown for the time of --retain.dead.",
);
pub(crate) static JOBS_DROPPED: Def = Def::counter(
    "wattcast_jobs_dropped_total",
    &[],
    "ffmpeg processes that have no series of their own, because a ceiling was reached; their joules are in their containers' rows.",
);
pub(crate) static CPU_INFO: Def = Def::gauge(
    "wattcast_cpu_source_info",
    &["tier", "reason"],
    "1; which tier counts CPU time, and why not a better one.",
);
pub(crate) static CPU_OVERFLOW: Def = Def::counter(
    "wattcast_cpu_overflow_seconds_total",
    &[],
    "CPU seconds of cgroups that found no slot in the kernel side (4096, fewer on machines of very many CPUs); accounted as system. Also what a cgroup ran that had seemed gone, up to the next tick.",
);
pub(crate) static CPU_MISSED: Def = Def::counter(
    "wattcast_cpu_intervals_missed_total",
    &[],
    "Intervals of CPU time lost in whole or in part: a switch reached no tracing program, and no figure of the kernel says \
     what ran meanwhile. Of tier=\"kernel\": cgroups beyond the 4096 that a walk has room for, once for each walk; they are in system.",
);
pub(crate) static UNNAMED: Def = Def::counter(
    "wattcast_cgroups_unnamed_total",
    &[],
    "Cgroups that ran and had gone before they could be named; accounted as system.",
);
pub(crate) static SCANS: Def = Def::counter(
    "wattcast_cgroup_scans_incomplete_total",
    &[],
    "Looks at the cgroup trees that could not see all of them (more than 65536 cgroups, or an error); no cgroup counts as \
     gone on the word of such a look.",
);
pub(crate) static SKEW: Def = Def::gauge(
    "wattcast_read_skew_seconds",
    &[],
    "From before the reading of energy to after the reading of CPU time in the last tick.",
);
pub(crate) static BPF_SECONDS: Def = Def::counter(
    "wattcast_bpf_run_seconds_total",
    &["program"],
    "CPU seconds of the probe's programs inside the kernel since they were loaded; absent unless the kernel keeps statistics \
     (sysctl kernel.bpf_stats_enabled=1, which costs some 40 ns a run itself).",
);
pub(crate) static BPF_RUNS: Def = Def::counter(
    "wattcast_bpf_runs_total",
    &["program"],
    "Runs of the probe's programs inside the kernel since they were loaded, while the kernel keeps statistics.",
);
pub(crate) static SELF_ENERGY: Def = Def::counter(
    "wattcast_self_energy_joules_total",
    &["source"],
    "Dynamic energy that the probe's own process used: its share of all CPU time. Part of wattcast_system_energy_joules_total; what its \
     programs inside the kernel take is billed to whoever is switched.",
);
pub(crate) static SOURCE_UP: Def = Def::gauge(
    "wattcast_source_up",
    &["source", "reason"],
    "1 when the source is usable; 0 with the reason absent, denied or broken.",
);
pub(crate) static COLLECTOR_DURATION: Def =
    Def::gauge("wattcast_collector_duration_seconds", &["collector"], "Time a collector took in the last tick.");
pub(crate) static COLLECTOR_SUCCESS: Def =
    Def::gauge("wattcast_collector_success", &["collector"], "1 when a collector gave its data in the last tick.");
pub(crate) static TICK: Def = Def::gauge("wattcast_tick_seconds", &[], "Measured length of the last tick.");
pub(crate) static JITTER: Def =
    Def::histogram("wattcast_tick_jitter_seconds", &[], "How late ticks began, against the schedule.");
pub(crate) static MISSED: Def = Def::counter(
    "wattcast_ticks_missed_total",
    &[],
    "Ticks that were skipped because one before took too long; their energy is in the tick after.",
);
pub(crate) static WINDOW_REACH: Def =
    Def::gauge("wattcast_window_reach_seconds", &[], "How far back /api/v1/window reaches.");
pub(crate) static WINDOW_BYTES: Def =
    Def::gauge("wattcast_window_bytes", &[], "Memory held by the ring behind /api/v1/window.");
pub(crate) static DROPPED: Def = Def::counter(
    "wattcast_series_dropped_total",
    &["family"],
    "Series not made because of a ceiling; their values are in the retired rows.",
);

pub(crate) static RAPL_POWER: Def = Def::gauge(
    "rapl_power_watts",
    &["package", "zone"],
    "Mean power of a RAPL zone over the last tick. Measured only: absent when energy is modelled.",
)
.seed();
pub(crate) static RAPL_ENERGY: Def = Def::counter(
    "rapl_energy_joules_total",
    &["package", "zone"],
    "Energy of a RAPL zone since the probe's start. Measured only: absent when energy is modelled.",
)
.seed();
pub(crate) static RAPL_ZONES: Def = Def::gauge("rapl_zones_discovered", &[], "RAPL zones that are read.").seed();
pub(crate) static RAPL_AVAILABLE: Def =
    Def::gauge("rapl_available", &[], "1 when RAPL is read; 0 when energy is modelled or missing.").seed();
pub(crate) static EXPORTER_INFO: Def =
    Def::gauge("cpu_exporter_info", &["version", "language"], "1; which exporter this is.").seed();

/// All of the above, in the order of the page.
pub static DEFS: &[&Def] = &[
    &ENERGY,
    &POWER,
    &CONTAINER_ENERGY,
    &CONTAINER_IDLE,
    &ENGINE_SECONDS,
    &ENGINE_WEIGHT,
    &CONTAINER_POWER,
    &SYSTEM,
    &IDLE,
    &UNATTRIBUTED,
    &RETIRED,
    &CONSERVATION,
    &IDLE_POWER,
    &IDLE_INTERVAL,
    &UNCERTAINTY,
    &DISTRIBUTION,
    &REJECTS,
    &CONTAINER_CPU,
    &QUEUE_WAIT,
    &SWITCHES,
    &CONTAINER_COUNTERS,
    &COUNTER_RATIO,
    &CONTAINER_LABEL,
    &SMT_WEIGHT,
    &CPU_INFO,
    &CPU_OVERFLOW,
    &CPU_MISSED,
    &UNNAMED,
    &SCANS,
    &SKEW,
    &STREAM_ENERGY,
    &STREAM_INFO,
    &STREAM_RUNNING,
    &BPF_SECONDS,
    &BPF_RUNS,
    &SELF_ENERGY,
    &SOURCE_UP,
    &COLLECTOR_DURATION,
    &COLLECTOR_SUCCESS,
    &TICK,
    &JITTER,
    &MISSED,
    &WINDOW_REACH,
    &WINDOW_BYTES,
    &JOBS_DROPPED,
    &DROPPED,
    &RAPL_POWER,
    &RAPL_ENERGY,
    &RAPL_ZONES,
    &RAPL_AVAILABLE,
    &EXPORTER_INFO,
];
