//! Every metric of port 9500: name, type, labels and help, in the order of the page.

use metrics::family::Def;

/// Label sets that several families share.
const ZONE: &[&str] = &["package", "zone", "source"];
const CONTAINER_ZONE: &[&str] = &["container", "id", "image", "runtime", "package", "zone", "source"];

pub(crate) static ENERGY: Def = Def::counter(
    "wattcast_energy_joules_total",
    ZONE,
    "Energy of a zone in joules since wattcast_totals_start_timestamp_seconds, counter wraps corrected; source is \
     model if it was not measured. Zones overlap: package contains core and uncore, psys and machine (the model's wall power) contain \
     everything; dram and gpu (package \
     is then the GPU's uuid) are separate. Sum only package, dram and gpu.",
);
pub(crate) static POWER: Def =
    Def::gauge("wattcast_power_watts", ZONE, "Mean power of a zone in the last tick, in watts.");
pub(crate) static CONTAINER_ENERGY: Def = Def::counter(
    "wattcast_container_energy_joules_total",
    CONTAINER_ZONE,
    "Dynamic energy attributed to a container in joules: the zone's energy less idle, divided by CPU time on \
     that package; the part of wattcast_container_awake_energy_joules_total by CPU time on all packages. Cycles or a \
     fitted mix count in place of time, and cache misses for zone dram, where wattcast_attribution_weight_info says \
     so. Zone gpu, and an integrated GPU's part of a package, are divided by engine time. Attributed, \
     not measured. Interrupts and kernel threads that work for a container count as system.",
);
pub(crate) static CONTAINER_IDLE: Def = Def::counter(
    "wattcast_container_idle_energy_joules_total",
    CONTAINER_ZONE,
    "Idle energy attributed to a container in joules; only under an idle policy that shares it (--idle.policy). \
     Not included in wattcast_container_energy_joules_total.",
);
pub(crate) static CONTAINER_AWAKE: Def = Def::counter(
    "wattcast_container_awake_energy_joules_total",
    CONTAINER_ZONE,
    "Energy attributed to a container in joules for keeping packages awake: one busy CPU wakes every package, so \
     it is divided by CPU time on all packages. Included in wattcast_container_energy_joules_total.",
);
pub(crate) static ENGINE_SECONDS: Def = Def::counter(
    "wattcast_container_gpu_engine_seconds_total",
    &["container", "id", "gpu", "engine"],
    "Busy time of a GPU's engines for a container in seconds, as the driver reports it by process; only engines \
     that the container used.",
);
pub(crate) static ENGINE_WEIGHT: Def = Def::gauge(
    "wattcast_gpu_engine_weight",
    &["engine"],
    "Weight of one engine second relative to one second of all shaders when a GPU's energy is divided; an \
     assumption that can be configured (--gpu.engine-weights).",
);
pub(crate) static CONTAINER_POWER: Def = Def::gauge(
    "wattcast_container_power_watts",
    &["container", "id", "image", "runtime", "zone", "source"],
    "Mean dynamic power attributed to a container in the last tick in watts, all packages.",
);
pub(crate) static SYSTEM: Def = Def::counter(
    "wattcast_system_energy_joules_total",
    ZONE,
    "Dynamic energy in joules of everything outside of containers: the root cgroup, kernel threads, system \
     units, this probe.",
);
pub(crate) static IDLE: Def = Def::counter(
    "wattcast_idle_energy_joules_total",
    ZONE,
    "Idle energy not attributed to any container in joules: idle power times time, less the part that an idle \
     policy shares. Zero while the idle power is unknown; see wattcast_idle_power_watts.",
);
pub(crate) static UNATTRIBUTED: Def = Def::counter(
    "wattcast_unattributed_energy_joules_total",
    ZONE,
    "Dynamic energy that could not be attributed, in joules: no CPU time or engine time in the tick, unknown users (ended GPU processes), or memory that is not attributed (--memory.policy).",
);
pub(crate) static RETIRED: Def = Def::counter(
    "wattcast_retired_energy_joules_total",
    ZONE,
    "Dynamic energy in joules of containers whose series have ended, or that had no series because of the limit.",
);
pub(crate) static CONSERVATION: Def = Def::gauge(
    "wattcast_conservation_error_joules",
    &["package", "zone"],
    "Conservation error in joules: containers + retired + system + idle + unattributed as rendered on this \
     page, less the measured counter. Must be 0; rounding to a double (above 2^32 J per row) is not counted as \
     an error.",
);
pub(crate) static IDLE_POWER: Def = Def::gauge(
    "wattcast_idle_power_watts",
    &["package", "zone"],
    "Idle power used for attribution in watts: that of a sleeping package, or with state base of \
     wattcast_idle_state_info the power of a package that never sleeps, without load; absent until it is known.",
);
pub(crate) static IDLE_INTERVAL: Def = Def::gauge(
    "wattcast_idle_power_interval_watts",
    &["package", "zone", "bound"],
    "Lower and upper bound of the idle power's 95 % interval in watts; absent if the source defines the idle \
     power, or if it is unknown.",
);
pub(crate) static IDLE_STATE: Def = Def::gauge(
    "wattcast_idle_state_info",
    &["package", "zone", "state"],
    "1; what is known of the idle power: known, calibrated (by wattcast-probe calibrate, until readings tell it), base \
     (sleep and awake power as one sum, for a package that never sleeps), learning, refused (never below half load, a power limit, or samples that contradict each other). Idle \
     energy is 0 with learning and refused.",
);
pub(crate) static CALIBRATION: Def = Def::gauge(
    "wattcast_calibration_timestamp_seconds",
    &[],
    "Time of the calibration in use (wattcast-probe calibrate) in unix seconds; absent without one of this machine.",
);
pub(crate) static AWAKE_POWER: Def = Def::gauge(
    "wattcast_awake_power_watts",
    &["package", "zone"],
    "Step between the power of a sleeping package and of one that is awake without load, in watts; absent until \
     both are known.",
);
pub(crate) static AWAKE_INTERVAL: Def = Def::gauge(
    "wattcast_awake_power_interval_watts",
    &["package", "zone", "bound"],
    "Lower and upper bound of the 95 % interval of wattcast_awake_power_watts.",
);
pub(crate) static AWAKE_RATIO: Def = Def::gauge(
    "wattcast_package_awake_ratio",
    &["package", "source"],
    "Share (0-1) of the last tick in which a package was not in a sleep state; source: cstate, by the residency \
     counters of the hardware; estimated, from the idle time of all CPUs of the machine.",
);
pub(crate) static WEIGHT_INFO: Def = Def::gauge(
    "wattcast_attribution_weight_info",
    &["package", "zone", "weight"],
    "1; by what the load energy of a zone was divided in the last tick: time (CPU time), cycles, mix (a fitted mix \
     of cycles, instructions and cache misses), misses, host_misses (cache misses on all packages, where there were \
     next to none on this one), none. Only for dram, and for all zones with tier=\"counters\".",
);
pub(crate) static WEIGHT: Def = Def::gauge(
    "wattcast_attribution_weight",
    &["package", "weight"],
    "Cost of a unit of the weight in use, fitted to the power of the package: joules of one cycle, instruction or \
     cache miss (weight cycles, instructions, misses), or watts of one busy CPU (time). Absent until it is known.",
);
pub(crate) static WEIGHT_ERROR: Def = Def::gauge(
    "wattcast_attribution_weight_error_ratio",
    &["package", "weight"],
    "Error of the load power that a weight (time, cycles, mix) predicts for times that were left out of its fit, \
     relative to that power. Energy is divided by mix only while its error is clearly the smallest.",
);
pub(crate) static MODEL_INTERVAL: Def = Def::gauge(
    "wattcast_model_interval_ratio",
    &["package", "zone", "load", "bound"],
    "Lower and upper bound of the 90 % interval of modelled energy, as the truth per estimate: load idle, full, \
     and all for the energy over all loads. From published servers that were left out of the fit; for a \
     package also the range of its share of the machine, which is an assumption. Absent if energy is measured, \
     and with configured watts.",
);
pub(crate) static UNCERTAINTY: Def = Def::gauge(
    "wattcast_energy_uncertainty_ratio",
    &["container", "id", "window"],
    "Relative uncertainty (0-1) of the container's energy in the last tick (window 1s) and in the last minute (60s, \
     absent in the first): counter steps and updates, read skew, intervals of idle and awake power, shared cores, and \
     where hardware counters run the error of the weight (wattcast_attribution_weight_error_ratio). \
     Energy of GPUs and hardware bias are not included. Absent if unknown, as for a model.",
);
pub(crate) static UNCERTAINTY_JOULES: Def = Def::gauge(
    "wattcast_energy_uncertainty_joules",
    &["container", "id"],
    "Uncertainty of the container's energy in the last 60 s in joules.",
);
pub(crate) static UNCERTAINTY_WATTS: Def = Def::gauge(
    "wattcast_energy_uncertainty_watts",
    &["container", "id"],
    "Uncertainty of the container's mean power in the last 60 s in watts.",
);
pub(crate) static DISTRIBUTION: Def = Def::histogram(
    "wattcast_power_distribution_watts",
    &["package", "source"],
    "Distribution of a package's sub-second power in watts, one value for each reading of --power.distribution.",
);
pub(crate) static REJECTS: Def = Def::counter(
    "wattcast_energy_rejects_total",
    &["package", "zone", "reason"],
    "Energy readings rejected because the energy since the previous reading could not be determined.",
);
pub(crate) static CONTAINER_CPU: Def = Def::counter(
    "wattcast_container_cpu_seconds_total",
    &["container", "id", "package", "mode"],
    "CPU seconds of a container since the probe's start, as the scheduler counts them (se.sum_exec_runtime), \
     including running tasks. mode: shared while the CPU's hyperthread sibling was busy too, else alone; all, \
     and package=\"all\", if the tier does not distinguish them.",
);
pub(crate) static CONTAINER_COUNTERS: Def = Def::counter(
    "wattcast_container_hardware_events_total",
    &["container", "id", "package", "event"],
    "Hardware events counted while a container ran: cycles, instructions, llc_misses. Only with tier=\"counters\".",
);
pub(crate) static COUNTER_RATIO: Def = Def::gauge(
    "wattcast_hardware_counters_running_ratio",
    &[],
    "Fraction of time perf counters were scheduled (running/enabled), all three together, since they were \
     opened. Below 1 the counts are too small by this factor, and energy is divided by CPU time alone.",
);
pub(crate) static SMT_WEIGHT: Def = Def::gauge(
    "wattcast_smt_weight",
    &[],
    "Weight of one CPU second with a busy hyperthread sibling relative to one second alone, when energy is \
     divided (--cpu.smt-weight).",
);
pub(crate) static QUEUE_WAIT: Def = Def::histogram(
    "wattcast_container_runqueue_wait_seconds",
    &["container", "id"],
    "Run-queue wait of a container's tasks before they ran (sched_info.run_delay), in seconds. Counted at the \
     context switch that ends the run, on the CPU where the task ran.",
);
pub(crate) static SWITCHES: Def = Def::counter(
    "wattcast_container_context_switches_total",
    &["container", "id", "kind"],
    "Context switches of a container's tasks: voluntary if the task waited for something, involuntary if it was \
     preempted.",
);
pub(crate) static CONTAINER_LABEL: Def = Def::gauge(
    "wattcast_container_label_info",
    &["container", "id", "label", "value"],
    "1; a container label selected with --container.labels.",
);
pub(crate) static STREAM_ENERGY: Def = Def::counter(
    "wattcast_stream_energy_joules_total",
    &["stream", "container", "id", "codec", "source", "share"],
    "Dynamic energy of one ffmpeg stream in joules: its part of its container's, all packages. share: process, \
     by CPU time of the job; pixels, one of several outputs of a job, by pixels delivered; outputs, one of \
     several outputs, in equal parts, if the command line does not contain the sizes; an output that is copied or \
     has no pictures weighs a hundredth of the smallest that is encoded; stages, one of several outputs, by CPU time \
     of its own threads and its part of the common ones, if ffmpeg names its threads. wattcast-analysis exports \
     frames and media seconds as wattcast_stream_frames_total with the same stream.",
);
pub(crate) static STREAM_STAGE_CPU: Def = Def::counter(
    "wattcast_stream_stage_cpu_seconds_total",
    &["stream", "container", "id", "codec", "share", "output", "stage"],
    "CPU time of a part of an ffmpeg stream in seconds: demux, decode, filter, encode, \
     mux, audio or other. output: number of the output in the command line whose threads these are; empty for \
     threads of all outputs, of which this is the stream's part. Absent if ffmpeg does not name its threads (before \
     7.0).",
);
pub(crate) static STREAM_STAGE_ENERGY: Def = Def::counter(
    "wattcast_stream_stage_energy_joules_total",
    &["stream", "container", "id", "codec", "source", "share", "output", "stage"],
    "Energy of a part of an ffmpeg stream in joules, by its CPU time. The parts sum to \
     wattcast_stream_energy_joules_total. Energy of a GPU is in the stage other.",
);
pub(crate) static STREAM_INFO: Def = Def::gauge(
    "wattcast_stream_info",
    &["stream", "container", "id", "input", "output", "codec", "encoder", "preset", "resolution", "fps", "bitrate"],
    "1; the command line of the newest job of this stream. It never contains addresses, keys or tokens.",
);
pub(crate) static STREAM_RUNNING: Def = Def::gauge(
    "wattcast_stream_jobs",
    &["stream", "container", "id"],
    "Running ffmpeg processes of this stream; 0 if it has ended and is kept for the time of --retain.dead.",
);
pub(crate) static JOBS_DROPPED: Def = Def::counter(
    "wattcast_jobs_dropped_total",
    &[],
    "ffmpeg processes without series of their own because a limit was reached; their energy is included in \
     their containers' series.",
);
pub(crate) static CPU_INFO: Def = Def::gauge(
    "wattcast_cpu_source_info",
    &["tier", "reason"],
    "1; the tier that counts CPU time, and why no better tier is used.",
);
pub(crate) static CPU_OVERFLOW: Def = Def::counter(
    "wattcast_cpu_overflow_seconds_total",
    &[],
    "CPU seconds of cgroups without a slot in the eBPF map (4096, fewer on machines with very many CPUs), \
     counted as system. Also CPU time of a cgroup that appeared removed and ran again, up to the next tick.",
);
pub(crate) static CPU_MISSED: Def = Def::counter(
    "wattcast_cpu_intervals_missed_total",
    &[],
    "CPU time intervals lost in whole or in part: a context switch reached no tracing program, and no kernel \
     counter covers the interval. With tier=\"kernel\": cgroups beyond the 4096 of one iteration, counted in \
     each iteration; their CPU time counts as system.",
);
pub(crate) static UNNAMED: Def = Def::counter(
    "wattcast_cgroups_unnamed_total",
    &[],
    "Cgroups that ran and were removed before their path was read; counted as system.",
);
pub(crate) static SCANS: Def = Def::counter(
    "wattcast_cgroup_scans_incomplete_total",
    &[],
    "Incomplete cgroup scans (more than 65536 cgroups, or an error); no cgroup counts as removed after such a scan.",
);
pub(crate) static SKEW: Def = Def::gauge(
    "wattcast_read_skew_seconds",
    &[],
    "Time from the start of the energy reading to the end of the CPU time reading in the last tick, in seconds.",
);
pub(crate) static REFERENCE_POWER: Def = Def::gauge(
    "wattcast_reference_power_watts",
    &["meter", "source"],
    "Power of the whole machine by a meter at the wall or on the board, in watts; absent while it cannot be read. \
     source: hwmon, http, file (--reference.url, --reference.file). Never attributed.",
);
pub(crate) static REFERENCE_ENERGY: Def = Def::counter(
    "wattcast_reference_energy_joules_total",
    &["meter", "source"],
    "Energy of the whole machine by a meter since the probe's start, in joules, without the time in which it could \
     not be read. It contains the energy of all zones: do not add it to them.",
);
pub(crate) static REFERENCE_OFFSET: Def = Def::gauge(
    "wattcast_reference_offset_watts",
    &["meter"],
    "Power of a meter while the counters of packages, memory and boards show none, in watts: offset of the line \
     meter = offset + slope * counters over the last hours; absent until the load has varied enough.",
);
pub(crate) static REFERENCE_SLOPE: Def = Def::gauge(
    "wattcast_reference_slope_ratio",
    &["meter"],
    "Watts of a meter for each watt of the counters: slope of the same line, with the losses of power supplies and \
     the power of fans that grow with the load.",
);
pub(crate) static REFERENCE_RESIDUAL: Def = Def::gauge(
    "wattcast_reference_residual_ratio",
    &["meter"],
    "Power of a meter in the last minutes less that of the line, relative to the meter. Above 0 the counters show \
     less than before, or something new draws power. The last ten windows of a minute do not take part in the line.",
);
pub(crate) static REFERENCE_INTERVAL: Def = Def::gauge(
    "wattcast_reference_residual_interval_ratio",
    &["meter", "bound"],
    "Lower and upper bound of the 95 % interval of wattcast_reference_residual_ratio.",
);
pub(crate) static BPF_SECONDS: Def = Def::counter(
    "wattcast_bpf_run_seconds_total",
    &["program"],
    "CPU seconds of the probe's eBPF programs since they were loaded, without its own measurement at the start; \
     absent unless the kernel collects statistics (sysctl kernel.bpf_stats_enabled=1, which itself costs some 40 ns \
     per run).",
);
pub(crate) static BPF_RUNS: Def = Def::counter(
    "wattcast_bpf_runs_total",
    &["program"],
    "Runs of the probe's eBPF programs since they were loaded, while the kernel collects statistics.",
);
pub(crate) static SELF_ENERGY: Def = Def::counter(
    "wattcast_self_energy_joules_total",
    &["part", "zone", "source"],
    "Dynamic energy of the probe in joules: its share of all CPU time. part=process is included in \
     wattcast_system_energy_joules_total. part=ebpf, its programs at context switches, is included in the rows of \
     the tasks that are switched: nanoseconds per run, measured at the start (with CAP_SYS_ADMIN) and while the \
     kernel collects statistics, times runs, counted every 10 s. Do not add either to the account.",
);
pub(crate) static SELF_WAKEUPS: Def = Def::counter(
    "wattcast_self_wakeups_total",
    &[],
    "Voluntary context switches of the probe's threads: how often one slept and was woken. Each may wake a CPU.",
);
pub(crate) static TOTALS_START: Def = Def::gauge(
    "wattcast_totals_start_timestamp_seconds",
    &[],
    "Start of the energy counters in unix seconds: before the start of the probe if they continued after a clean \
     restart on the same boot (--state.dir).",
);
pub(crate) static TOTALS_RESTARTS: Def = Def::counter(
    "wattcast_totals_restarts_total",
    &[],
    "Restarts of the probe after which the energy counters continued, since their start.",
);
pub(crate) static TOTALS_GAP: Def = Def::counter(
    "wattcast_totals_gap_seconds_total",
    &[],
    "Time in seconds in which no probe ran, between an end and a start over which the energy counters continued. \
     Energy of that time is in no counter.",
);
pub(crate) static SOURCE_UP: Def = Def::gauge(
    "wattcast_source_up",
    &["source", "reason"],
    "1 if the data source is available; 0 with the reason absent, denied or broken.",
);
pub(crate) static COLLECTOR_DURATION: Def = Def::gauge(
    "wattcast_collector_duration_seconds",
    &["collector"],
    "Duration of a collector in the last tick, in seconds.",
);
pub(crate) static COLLECTOR_SUCCESS: Def =
    Def::gauge("wattcast_collector_success", &["collector"], "1 if a collector succeeded in the last tick.");
pub(crate) static TICK: Def = Def::gauge("wattcast_tick_seconds", &[], "Measured length of the last tick, in seconds.");
pub(crate) static JITTER: Def =
    Def::histogram("wattcast_tick_jitter_seconds", &[], "Delay of ticks against the schedule, in seconds.");
pub(crate) static MISSED: Def = Def::counter(
    "wattcast_ticks_missed_total",
    &[],
    "Ticks skipped because the previous one took too long; their energy is included in the next tick.",
);
pub(crate) static WINDOW_REACH: Def =
    Def::gauge("wattcast_window_reach_seconds", &[], "Time span covered by /api/v1/window, in seconds.");
pub(crate) static WINDOW_BYTES: Def =
    Def::gauge("wattcast_window_bytes", &[], "Memory of the tick history behind /api/v1/window, in bytes.");
pub(crate) static DROPPED: Def = Def::counter(
    "wattcast_series_dropped_total",
    &["family"],
    "Series not created because of a limit; their values are included in the retired rows.",
);

pub(crate) static RAPL_POWER: Def = Def::gauge(
    "rapl_power_watts",
    &["package", "zone"],
    "Mean power of a RAPL zone in the last tick, in watts. Measured only: absent if energy is modelled.",
)
.compat();
pub(crate) static RAPL_ENERGY: Def = Def::counter(
    "rapl_energy_joules_total",
    &["package", "zone"],
    "Energy of a RAPL zone since wattcast_totals_start_timestamp_seconds, in joules. Measured only: absent if energy is modelled.",
)
.compat();
pub(crate) static RAPL_ZONES: Def =
    Def::gauge("rapl_zones_discovered", &[], "Number of RAPL zones that are read.").compat();
pub(crate) static RAPL_AVAILABLE: Def =
    Def::gauge("rapl_available", &[], "1 if RAPL is read; 0 if energy is modelled or missing.").compat();
pub(crate) static EXPORTER_INFO: Def =
    Def::gauge("cpu_exporter_info", &["version", "language"], "1; version and language of the exporter.").compat();

/// All of the above, in the order of the page.
pub static DEFS: &[&Def] = &[
    &ENERGY,
    &POWER,
    &CONTAINER_ENERGY,
    &CONTAINER_IDLE,
    &CONTAINER_AWAKE,
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
    &MODEL_INTERVAL,
    &IDLE_STATE,
    &CALIBRATION,
    &AWAKE_POWER,
    &AWAKE_INTERVAL,
    &AWAKE_RATIO,
    &WEIGHT_INFO,
    &WEIGHT,
    &WEIGHT_ERROR,
    &UNCERTAINTY,
    &UNCERTAINTY_JOULES,
    &UNCERTAINTY_WATTS,
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
    &STREAM_STAGE_CPU,
    &STREAM_STAGE_ENERGY,
    &REFERENCE_POWER,
    &REFERENCE_ENERGY,
    &REFERENCE_OFFSET,
    &REFERENCE_SLOPE,
    &REFERENCE_RESIDUAL,
    &REFERENCE_INTERVAL,
    &BPF_SECONDS,
    &BPF_RUNS,
    &SELF_ENERGY,
    &SELF_WAKEUPS,
    &TOTALS_START,
    &TOTALS_RESTARTS,
    &TOTALS_GAP,
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
