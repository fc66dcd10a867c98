//! Dashboards of the probe's metrics: power by host, package, container and stream; the legacy
//! metric names; GPUs.

use super::{
    dashboard::{Dashboard, Folder, VariableSource},
    health,
    panel::{Panel, bars, row, stat, table, time_series},
};

/// Power of whole hosts, each joule counted once: packages, memory and GPUs, or the platform sensor
/// of a host without package zones.
pub(super) const HOST_WATTS: &str = "(sum by (instance) (wattcast_power_watts{$S, zone=~\"package|dram|gpu\"}) \
     unless on (instance) (wattcast_power_watts{$S, zone=\"psys\"} unless on (instance) wattcast_power_watts{$S, zone=\"package\"})) \
     or sum by (instance) (wattcast_power_watts{$S, zone=\"psys\"} unless on (instance) wattcast_power_watts{$S, zone=\"package\"})";

/// Zones by source. This and the next panel are on two dashboards.
pub(super) fn energy_sources() -> Panel {
    stat(
        "Energy sources",
        "none",
        "Zones by source. perf, powercap, msr, hwmon and nvml are measured. model is estimated from CPU time; simulated and fake are test data: none of them is fit for publication.",
    )
    .query("count by (source) (wattcast_energy_joules_total{$S})", "{{source}}")
}

pub(super) fn attributed_share() -> Panel {
    stat(
        "Share attributed to containers",
        "percentunit",
        "Dynamic energy attributed to containers over all dynamic energy (0–1); the rest is system or unattributed energy.",
    )
    .axis_range(Some(0.0), Some(1.0))
    .query(
        "sum(rate(wattcast_container_energy_joules_total{$S}[$__rate_interval])) / (\
         sum(rate(wattcast_container_energy_joules_total{$S}[$__rate_interval])) \
         + sum(rate(wattcast_system_energy_joules_total{$S}[$__rate_interval])) \
         + sum(rate(wattcast_retired_energy_joules_total{$S}[$__rate_interval])) \
         + sum(rate(wattcast_unattributed_energy_joules_total{$S}[$__rate_interval])))",
        "containers",
    )
}

/// Idle power that an idle policy divides among containers, which is in no other share.
pub(super) const CONTAINER_IDLE_WATTS: &str =
    "sum(rate(wattcast_container_idle_energy_joules_total{$S}[$__rate_interval])) or vector(0)";

/// Hosts on which the idle power of a package is known. Before, all idle energy counts as dynamic,
/// and the uncertainty of the energy of containers says nothing about them: it can exceed 100 %.
pub(super) const IDLE_KNOWN: &str =
    "and on (instance) wattcast_idle_state_info{$S, zone!=\"dram\", state=~\"known|base|calibrated\"}";
/// The text where that is not known.
pub(super) const IDLE_UNKNOWN: &str = "idle not learnt yet";

pub(super) const PROBE: VariableSource = VariableSource {
    family: "wattcast_energy_joules_total",
    further: &[
        ("container", "Container", "wattcast_container_energy_joules_total", "container"),
        ("stream", "Stream", "wattcast_stream_energy_joules_total", "stream"),
    ],
};

/// Energy of a host by package, container and stream.
pub(super) fn attribution() -> Dashboard {
    Dashboard {
        uid: "power-attribution",
        title: "Power attribution",
        description: "Energy of a host by package, container and stream, with unattributed and idle energy",
        folder: Folder::Wattcast,
        variables: PROBE,
        moved_to: None,
        panels: [host_panels(), package_panels(), container_panels(), stream_panels(), meter_panels()].concat(),
    }
}

fn host_panels() -> Vec<Panel> {
    vec![
        row("Host"),
        stat("Host power", "watt", "Packages, memory and GPUs, including idle power. The hourly cost follows from it.")
            .query(HOST_WATTS, "{{instance}}"),
        energy_sources(),
        attributed_share(),
        health::conservation_error("$S"),
        time_series("Power breakdown", "watt", "All shares, stacked: the upper edge is the measured power.")
            .width(24)
            .height(11)
            .stacked()
            .query("sum(rate(wattcast_container_energy_joules_total{$S}[$__rate_interval]))", "containers")
            .query("sum(rate(wattcast_system_energy_joules_total{$S}[$__rate_interval]))", "system")
            .query("sum(rate(wattcast_retired_energy_joules_total{$S}[$__rate_interval]))", "retired containers")
            .query("sum(rate(wattcast_unattributed_energy_joules_total{$S}[$__rate_interval]))", "unattributed")
            .query("sum(rate(wattcast_idle_energy_joules_total{$S}[$__rate_interval]))", "idle")
            // Present only with an idle policy that shares idle energy among containers.
            .query(CONTAINER_IDLE_WATTS, "idle power of containers"),
    ]
}

fn package_panels() -> Vec<Panel> {
    vec![
        row("Packages"),
        time_series("Power by zone", "watt", "Zones overlap: a package contains its core and uncore zones, psys contains all. High core power is CPU load; high uncore power is memory traffic or graphics.")
            .query(
                "sum by (instance, zone, package, source) (rate(wattcast_energy_joules_total{$S}[$__rate_interval]))",
                "{{instance}} {{zone}} {{package}} ({{source}})",
            ),
        time_series("Idle power", "watt", "Power of a package without load, estimated from power against load, with its 95 % interval. Absent until the load has varied enough.")
            .query("max by (instance, zone, package) (wattcast_idle_power_watts{$S})", "{{instance}} {{zone}} {{package}}")
            .query("max by (instance, zone, package, bound) (wattcast_idle_power_interval_watts{$S})", "{{instance}} {{zone}} {{package}} {{bound}}"),
        time_series("Container power by package", "watt", "Share of each package by container. Placement matters where two sockets differ in power.")
            .stacked()
            .query(
                "sum by (instance, container, zone, package) (rate(wattcast_container_energy_joules_total{$S, container=~\"$container\"}[$__rate_interval]))",
                "{{container}} on {{instance}} {{zone}} {{package}}",
            ),
        time_series("Attribution uncertainty", "percentunit", "Relative uncertainty of each container's energy, last 60 s. It is larger for small containers. Absent until the idle power of a package is known.")
            .no_value(IDLE_UNKNOWN)
            .query(
                format!("max by (container) (wattcast_energy_uncertainty_ratio{{$S, window=\"60s\", container=~\"$container\"}} {IDLE_KNOWN})"),
                "{{container}}",
            ),
        stat("Idle power state", "none", "learning or refused: idle not learnt yet, so idle energy is attributed like dynamic energy, and its uncertainty is not shown. base: the sum of sleep and awake power is known.")
            .width(24)
            .query("max by (instance, zone, package, state) (wattcast_idle_state_info{$S})", "{{instance}} {{zone}} {{package}} {{state}}"),
    ]
}

fn container_panels() -> Vec<Panel> {
    vec![
        row("Containers"),
        time_series("Container power", "watt", "Dynamic power, which excludes the idle power of the host.")
            .stacked()
            .query(
                "sum by (container) (rate(wattcast_container_energy_joules_total{$S, container=~\"$container\"}[$__rate_interval]))",
                "{{container}}",
            ),
        bars("Container energy over the time range", "joule", "The 20 containers with the most energy.").query(
            "topk(20, sum by (container) (increase(wattcast_container_energy_joules_total{$S, container=~\"$container\"}[$__range])))",
            "{{container}}",
        ),
        time_series("CPU usage", "none", "CPU seconds per second.").query(
            "sum by (container) (rate(wattcast_container_cpu_seconds_total{$S, container=~\"$container\"}[$__rate_interval]))",
            "{{container}}",
        ),
        time_series("CPU wait ratio", "percentunit", "Run-queue wait over run-queue wait plus CPU time. An encoder above 25 % is starved.")
            .axis_range(Some(0.0), Some(1.0))
            .thresholds(&[(None, "green"), (Some(0.25), "red")])
            .query(
                "sum by (container) (rate(wattcast_container_runqueue_wait_seconds_sum{$S, container=~\"$container\"}[$__rate_interval])) / (\
                 sum by (container) (rate(wattcast_container_runqueue_wait_seconds_sum{$S, container=~\"$container\"}[$__rate_interval])) \
                 + sum by (container) (rate(wattcast_container_cpu_seconds_total{$S, container=~\"$container\"}[$__rate_interval])))",
                "{{container}}",
            ),
        table("Containers", "Current power; energy and CPU time over the time range; uncertainty in the last 60 s, absent until the idle power of a package is known.")
            .column("sum by (container) (wattcast_container_power_watts{$S, container=~\"$container\"})", "Power", "watt")
            .column(
                "sum by (container) (increase(wattcast_container_energy_joules_total{$S, container=~\"$container\"}[$__range]))",
                "Energy",
                "joule",
            )
            .column(
                "sum by (container) (increase(wattcast_container_cpu_seconds_total{$S, container=~\"$container\"}[$__range]))",
                "CPU time",
                "s",
            )
            .column(
                format!("max by (container) (wattcast_energy_uncertainty_ratio{{$S, window=\"60s\", container=~\"$container\"}} {IDLE_KNOWN})"),
                "Uncertainty",
                "percentunit",
            )
            .sorted_by("Energy", true),
    ]
}

fn stream_panels() -> Vec<Panel> {
    vec![
        row("Streams"),
        time_series("Stream power", "watt", "Share of the container's power by ffmpeg job.").stacked().query(
            "sum by (stream) (rate(wattcast_stream_energy_joules_total{$S, stream=~\"$stream\"}[$__rate_interval]))",
            "{{stream}}",
        ),
        time_series("Energy per frame", "joule", "Rises with resolution, slower presets, complex content and CPU wait. Needs ffmpeg -progress reports on port 9506.").query(
            "sum by (stream) (rate(wattcast_stream_energy_joules_total{$S, stream=~\"$stream\"}[$__rate_interval])) \
             / (sum by (stream) (rate(wattcast_stream_frames_total{stream=~\"$stream\"}[$__rate_interval])) > 0)",
            "{{stream}}",
        ),
        table("Streams", "Current power, energy per frame and energy per hour of media.")
            .column("sum by (stream, codec) (rate(wattcast_stream_energy_joules_total{$S, stream=~\"$stream\"}[$__rate_interval]))", "Power", "watt")
            .column(
                "sum by (stream, codec) (rate(wattcast_stream_energy_joules_total{$S, stream=~\"$stream\"}[$__rate_interval])) \
                 / on (stream) group_left () (sum by (stream) (rate(wattcast_stream_frames_total{stream=~\"$stream\"}[$__rate_interval])) > 0)",
                "Energy per frame",
                "joule",
            )
            .column(
                "sum by (stream, codec) (rate(wattcast_stream_energy_joules_total{$S, stream=~\"$stream\"}[$__rate_interval])) \
                 / on (stream) group_left () (sum by (stream) (rate(wattcast_stream_media_seconds_total{stream=~\"$stream\"}[$__rate_interval])) > 0) * 3600",
                "Energy per hour of media",
                "joule",
            )
            .sorted_by("Power", true),
    ]
}

/// The meter at the wall against the counters, as the alert WattcastReferenceDrift compares them.
fn meter_panels() -> Vec<Panel> {
    const NO_METER: &str = "No meter (--reference.url, --reference.file, or power_meter of hwmon)";
    vec![
        row("Wall meter"),
        time_series("Wall power", "watt", "Power of the whole machine by its meter, and what the counters of packages, memory and boards let expect: offset and slope of the last hours, with power supplies and fans.")
            .no_value(NO_METER)
            .query("max by (instance, meter) (wattcast_reference_power_watts{$S})", "{{instance}} {{meter}}")
            .query(
                "max by (instance, meter) (wattcast_reference_offset_watts{$S}) \
                 + max by (instance, meter) (wattcast_reference_slope_ratio{$S}) \
                 * on (instance) group_left () sum by (instance) (wattcast_power_watts{$S, zone=~\"package|dram|gpu\", source!=\"model\"})",
                "{{instance}} {{meter}} from counters",
            ),
        time_series("Residual of the wall meter", "percentunit", "Power of the meter in the last minutes less that from counters, relative to the meter, with its 95 % interval. The alert WattcastReferenceDrift fires when the whole interval is beyond 5 %.")
            .axis_range(None, None)
            .thresholds(&[(None, "red"), (Some(-0.05), "green"), (Some(0.05), "red")])
            .no_value(NO_METER)
            .query("max by (instance, meter) (wattcast_reference_residual_ratio{$S})", "{{instance}} {{meter}}")
            .query(
                "max by (instance, meter, bound) (wattcast_reference_residual_interval_ratio{$S})",
                "{{instance}} {{meter}} {{bound}}",
            ),
    ]
}

/// Processors, containers and the host under the legacy metric names.
pub(super) fn monitoring() -> Dashboard {
    Dashboard {
        uid: "power-monitoring",
        title: "Power monitoring",
        description: "Power of processors, containers and host under the legacy metric names",
        folder: Folder::Legacy,
        variables: VariableSource { family: "cpu_exporter_info", further: &[] },
        moved_to: None,
        panels: vec![
            row("Processors"),
            stat("Total package power", "watt", "Thresholds of the alerts: 80 and 120 W. Absent where energy is not measured.")
                .thresholds(&[(None, "green"), (Some(80.0), "orange"), (Some(120.0), "red")])
                .query("sum by (instance) (rapl_power_watts{$S, zone=~\"package.*\"})", "{{instance}}"),
            stat("Peak package power", "watt", "Highest total of all packages over the time range.")
                .query("max_over_time(sum(rapl_power_watts{$S, zone=~\"package.*\"})[$__range:])", "highest"),
            stat("RAPL", "none", "Whether the processor measures energy. Without RAPL the other dashboards show modelled or simulated energy, labelled as such.")
                .value_texts(&[(1.0, "measured", "green"), (0.0, "not measured", "orange")])
                .query("min by (instance) (rapl_available{$S})", "{{instance}}"),
            stat("RAPL zones", "none", "Number of zones that the processors measure.").query("sum by (instance) (rapl_zones_discovered{$S})", "{{instance}}"),
            time_series("Package power", "watt", "Cores, caches and integrated graphics of each socket.")
                .thresholds(&[(None, "green"), (Some(80.0), "orange"), (Some(120.0), "red")])
                .query("rapl_power_watts{$S, zone=~\"package.*\"}", "{{instance}} {{package}}"),
            time_series("Core, uncore, DRAM and platform power", "watt", "core and uncore are parts of a package; dram is separate from it; psys is the whole platform.")
                .query("rapl_power_watts{$S, zone!~\"package.*\"}", "{{instance}} {{package}} {{zone}}"),
            time_series("Power from energy counters", "watt", "Energy over time, which includes peaks between two scrapes.").query(
                "sum by (instance, package, zone) (rate(rapl_energy_joules_total{$S}[$__rate_interval]))",
                "{{instance}} {{package}} {{zone}}",
            ),
            bars("Energy over the time range", "joule", "Zones overlap: a package contains its cores.").query(
                "sum by (instance, package, zone) (increase(rapl_energy_joules_total{$S}[$__range]))",
                "{{instance}} {{package}} {{zone}}",
            ),
            time_series("Sub-second power distribution", "watt", "Median and 99th percentile of a package, with --power.distribution. A wide gap indicates bursts of load.")
                .query(
                    "histogram_quantile(0.5, sum by (instance, le, package) (rate(wattcast_power_distribution_watts_bucket{$S}[$__rate_interval])))",
                    "{{instance}} {{package}} median",
                )
                .query(
                    "histogram_quantile(0.99, sum by (instance, le, package) (rate(wattcast_power_distribution_watts_bucket{$S}[$__rate_interval])))",
                    "{{instance}} {{package}} 99 %",
                ),
            time_series("Probe power", "watt", "Dynamic power attributed to the probe's own process.")
                .query("sum by (instance) (rate(wattcast_self_energy_joules_total{$S}[$__rate_interval]))", "{{instance}}"),
            row("Containers"),
            time_series("Container CPU usage", "percent", "Percent of one CPU.").query("docker_container_cpu_percent", "{{name}}"),
            time_series("Container memory usage", "bytes", "Memory that counts against the container's limit.").query("docker_container_memory_usage", "{{name}}"),
            time_series("Container engine CPU usage", "percent", "dockerd, containerd and their helpers, in percent of one CPU.")
                .query("docker_engine_cpu_percent", "{{instance}}"),
            time_series("Container network I/O", "Bps", "Bytes per second by direction.")
                .query("sum by (name, direction) (rate(docker_container_network_io[$__rate_interval]))", "{{name}} {{direction}}"),
            row("Streams and host"),
            time_series("RTMP streams", "none", "Streams and clients of nginx's RTMP module.")
                .query("nginx_rtmp_streams", "streams")
                .query("nginx_rtmp_connections", "clients"),
            time_series("Host CPU usage (node_exporter)", "percentunit", "Share of time in which CPUs were not idle.")
                .axis_range(Some(0.0), Some(1.0))
                .query("1 - avg by (instance) (rate(node_cpu_seconds_total{mode=\"idle\"}[$__rate_interval]))", "{{instance}}"),
            time_series("Available host memory (node_exporter)", "bytes", "Memory available to new processes.")
                .query("node_memory_MemAvailable_bytes", "{{instance}}"),
            time_series("Container memory usage (cAdvisor)", "bytes", "Memory by cAdvisor, for comparison.")
                .query("sum by (name) (container_memory_usage_bytes{name!=\"\"})", "{{name}}"),
        ],
    }
}

/// GPUs: power, engines, encoder sessions, and usage by container.
pub(super) fn gpu() -> Dashboard {
    Dashboard {
        uid: "gpu-energy",
        title: "GPU",
        description: "Power, engines and encoder sessions of GPUs, and their usage by container",
        folder: Folder::Wattcast,
        variables: VariableSource { family: "wattcast_gpu_power_watts", further: &[] },
        moved_to: None,
        panels: vec![
            stat("GPU count", "none", "GPUs reported by the driver.").query("sum(gpu_count{$S})", "GPUs"),
            stat("Total GPU power", "watt", "All GPUs. Thresholds of the alerts: 200 and 300 W.")
                .thresholds(&[(None, "green"), (Some(200.0), "orange"), (Some(300.0), "red")])
                .query("sum by (instance) (wattcast_gpu_power_watts{$S})", "{{instance}}"),
            stat("Encoder utilization", "percentunit", "GPU with the highest utilization. NVIDIA reports one value for all encoders of a GPU: one full encoder of two shows as 50 %.")
                .axis_range(Some(0.0), Some(1.0))
                .thresholds(&[(None, "green"), (Some(0.8), "orange"), (Some(0.95), "red")])
                .query("max(wattcast_gpu_engine_utilization_ratio{$S, engine=~\"encoder|video\"})", "highest"),
            stat("Encoder sessions", "none", "Sessions that are encoding now.")
                .query("sum by (instance) (wattcast_gpu_encoder_sessions{$S, codec=\"all\"})", "{{instance}}"),
            time_series("Power by GPU", "watt", "From the GPU's energy counter where it has one.")
                .query("wattcast_gpu_power_watts{$S}", "{{name}} {{gpu}}")
                .query("gpu_power_limit_watts{$S}", "limit {{gpu_name}}"),
            time_series("Container GPU power", "watt", "Attributed by engine utilization: shaders, memory, encoder, decoder.").stacked().query(
                "sum by (container) (rate(wattcast_container_energy_joules_total{zone=\"gpu\"}[$__rate_interval]))",
                "{{container}}",
            ),
            time_series("Engine utilization", "percentunit", "Utilization by kind of engine.").axis_range(Some(0.0), Some(1.0)).query(
                "max by (gpu, name, engine) (wattcast_gpu_engine_utilization_ratio{$S})",
                "{{name}} {{gpu}} {{engine}}",
            ),
            time_series("Engine usage by container", "none", "Engine seconds per second.").query(
                "sum by (container, engine) (rate(wattcast_container_gpu_engine_seconds_total[$__rate_interval]))",
                "{{container}} {{engine}}",
            ),
            time_series("Encoder session frame rate", "none", "Frames per second reported by the driver.")
                .query("sum by (gpu, codec) (wattcast_gpu_encoder_session_fps{$S})", "{{gpu}} {{codec}}"),
            time_series("GPU memory", "bytes", "Memory by state.").stacked().query(
                "sum by (gpu, name, state) (wattcast_gpu_memory_bytes{$S})",
                "{{name}} {{gpu}} {{state}}",
            ),
            time_series("Temperature", "celsius", "A GPU above its temperature limit lowers its clocks.")
                .query("max by (gpu, name) (wattcast_gpu_temperature_celsius{$S})", "{{name}} {{gpu}}"),
            time_series("Clock frequencies", "hertz", "Falling clocks under load indicate a thermal or power limit; see the next panel.")
                .query("max by (gpu, name, clock) (wattcast_gpu_clock_hertz{$S})", "{{name}} {{gpu}} {{clock}}"),
            time_series("Throttle reasons", "none", "1 while the reason lowers the clocks. Idle is one of the reasons.")
                .draw_bars()
                .query("max by (gpu, name, reason) (wattcast_gpu_throttle{$S})", "{{name}} {{gpu}} {{reason}}"),
            time_series("Utilization (legacy metric names)", "percent", "GPU, encoder, decoder and memory utilization.")
                .axis_range(Some(0.0), Some(100.0))
                .query("gpu_utilization_percent{$S}", "{{gpu_name}} GPU")
                .query("gpu_encoder_utilization_percent{$S}", "{{gpu_name}} encoder")
                .query("gpu_decoder_utilization_percent{$S}", "{{gpu_name}} decoder")
                .query("gpu_memory_utilization_percent{$S}", "{{gpu_name}} memory"),
            bars("GPU energy over the time range", "joule", "Energy by GPU.")
                .query("sum by (gpu, name, source) (increase(wattcast_gpu_energy_joules_total{$S}[$__range]))", "{{name}} {{gpu}} ({{source}})"),
            time_series("Power (DCGM)", "watt", "Power reported by NVIDIA's DCGM exporter, if it runs.").query("DCGM_FI_DEV_POWER_USAGE", "GPU {{gpu}}"),
        ],
    }
}
