//! Dashboards over what the probe measures: power by host, package, container and stream; the names of the replaced exporters; GPUs.

use super::panel::{Board, Home, bars, curves, row, stat, table};

/// Watts of whole hosts, each joule once: packages, memory and GPUs, or the platform's sensor where there are no packages.
const HOST_WATTS: &str = "(sum by (instance) (wattcast_power_watts{$S, zone=~\"package|dram|gpu\"}) \
     unless on (instance) (wattcast_power_watts{$S, zone=\"psys\"} unless on (instance) wattcast_power_watts{$S, zone=\"package\"})) \
     or sum by (instance) (wattcast_power_watts{$S, zone=\"psys\"} unless on (instance) wattcast_power_watts{$S, zone=\"package\"})";

const PROBE: Home = Home {
    family: "wattcast_energy_joules_total",
    more: &[
        ("container", "Container", "wattcast_container_energy_joules_total", "container"),
        ("stream", "Stream", "wattcast_stream_energy_joules_total", "stream"),
    ],
};

/// Where the joules of a host go: package, container, stream.
pub(super) fn attribution() -> Board {
    Board {
        uid: "power-attribution",
        title: "Power attribution",
        about: "Where the joules of a host go: its packages, containers and streams, and what is nobody's",
        home: PROBE,
        panels: vec![
            row("Host"),
            stat("Power of the host", "watt", "Packages, memory and GPUs, idle power included: what an hour of it costs follows from this.")
                .ask(HOST_WATTS, "{{instance}}"),
            stat(
                "How energy is known",
                "none",
                "Zones by source: perf, powercap and msr are measured; model is calculated from CPU use and not to be published.",
            )
            .ask("count by (source) (wattcast_energy_joules_total{$S})", "{{source}}"),
            stat("Given to containers", "percentunit", "Part of the dynamic energy that containers got; the rest is the system's or nobody's.")
                .between(Some(0.0), Some(1.0))
                .ask(
                    "sum(rate(wattcast_container_energy_joules_total{$S}[$__rate_interval])) / (\
                     sum(rate(wattcast_container_energy_joules_total{$S}[$__rate_interval])) \
                     + sum(rate(wattcast_system_energy_joules_total{$S}[$__rate_interval])) \
                     + sum(rate(wattcast_retired_energy_joules_total{$S}[$__rate_interval])) \
                     + sum(rate(wattcast_unattributed_energy_joules_total{$S}[$__rate_interval])))",
                    "containers",
                ),
            stat("Account closed to", "joule", "All rows added up, less what was measured. Anything but 0 is a fault of ours.")
                .steps(&[(None, "green"), (Some(0.001), "red")])
                .ask("max(abs(wattcast_conservation_error_joules{$S}))", "largest error"),
            curves("Where the power goes", "watt", "The whole account, stacked: its upper edge is what was measured.")
                .wide(24)
                .high(11)
                .stacked()
                .ask("sum(rate(wattcast_container_energy_joules_total{$S}[$__rate_interval]))", "containers")
                .ask("sum(rate(wattcast_system_energy_joules_total{$S}[$__rate_interval]))", "system")
                .ask("sum(rate(wattcast_retired_energy_joules_total{$S}[$__rate_interval]))", "containers that are gone")
                .ask("sum(rate(wattcast_unattributed_energy_joules_total{$S}[$__rate_interval]))", "nobody's")
                .ask("sum(rate(wattcast_idle_energy_joules_total{$S}[$__rate_interval]))", "idle")
                // Only under an idle policy that shares it.
                .ask("sum(rate(wattcast_container_idle_energy_joules_total{$S}[$__rate_interval])) or vector(0)", "idle of containers"),
            row("Packages"),
            curves("Power by zone", "watt", "Zones overlap: a package contains its cores and uncore, psys contains all. High core beside package is load, high uncore is memory traffic or graphics.")
                .ask(
                    "sum by (instance, zone, package, source) (rate(wattcast_energy_joules_total{$S}[$__rate_interval]))",
                    "{{instance}} {{zone}} {{package}} ({{source}})",
                ),
            curves("Idle power", "watt", "What a package draws with nothing to do, learned from power against load, and the ends of its 95 % interval. Absent until load has varied enough.")
                .ask("max by (instance, zone, package) (wattcast_idle_power_watts{$S})", "{{instance}} {{zone}} {{package}}")
                .ask("max by (instance, zone, package, bound) (wattcast_idle_power_interval_watts{$S})", "{{instance}} {{zone}} {{package}} {{bound}}"),
            curves("Containers by package", "watt", "A container's part of each package: on two sockets that do not draw alike, where it runs matters.")
                .stacked()
                .ask(
                    "sum by (instance, container, zone, package) (rate(wattcast_container_energy_joules_total{$S, container=~\"$container\"}[$__rate_interval]))",
                    "{{container}} on {{instance}} {{zone}} {{package}}",
                ),
            curves("How sure the division is", "percentunit", "By what part of themselves a container's joules of a tick may be off. Small containers are less sure.")
                .ask("max by (container) (wattcast_energy_uncertainty_ratio{$S, container=~\"$container\"})", "{{container}}"),
            row("Containers"),
            curves("Power of containers", "watt", "Dynamic power: what the host would not have drawn without them. Idle power is in none of these.")
                .stacked()
                .ask(
                    "sum by (container) (rate(wattcast_container_energy_joules_total{$S, container=~\"$container\"}[$__rate_interval]))",
                    "{{container}}",
                ),
            bars("Energy of containers in the time shown", "joule", "The twenty with the most.").ask(
                "topk(20, sum by (container) (increase(wattcast_container_energy_joules_total{$S, container=~\"$container\"}[$__range])))",
                "{{container}}",
            ),
            curves("CPUs busy", "none", "CPU seconds a second.").ask(
                "sum by (container) (rate(wattcast_container_cpu_seconds_total{$S, container=~\"$container\"}[$__rate_interval]))",
                "{{container}}",
            ),
            curves("Waiting for a CPU", "percentunit", "Of the time in which tasks had something to do, the part without a CPU. An encoder above a quarter is starved.")
                .between(Some(0.0), Some(1.0))
                .steps(&[(None, "green"), (Some(0.25), "red")])
                .ask(
                    "sum by (container) (rate(wattcast_container_runqueue_wait_seconds_sum{$S, container=~\"$container\"}[$__rate_interval])) / (\
                     sum by (container) (rate(wattcast_container_runqueue_wait_seconds_sum{$S, container=~\"$container\"}[$__rate_interval])) \
                     + sum by (container) (rate(wattcast_container_cpu_seconds_total{$S, container=~\"$container\"}[$__rate_interval])))",
                    "{{container}}",
                ),
            table("Containers", "Now, and in the time shown.")
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
                .column("max by (container) (wattcast_energy_uncertainty_ratio{$S, container=~\"$container\"})", "Unsure by", "percentunit"),
            row("Streams"),
            curves("Power of streams", "watt", "Each ffmpeg job's part of its container.").stacked().ask(
                "sum by (stream) (rate(wattcast_stream_energy_joules_total{$S, stream=~\"$stream\"}[$__rate_interval]))",
                "{{stream}}",
            ),
            curves("Joules of a frame", "joule", "Rises with resolution, preset and content, and when the encoder has to wait. Needs ffmpeg's -progress on port 9506.").ask(
                "sum by (stream) (rate(wattcast_stream_energy_joules_total{$S, stream=~\"$stream\"}[$__rate_interval])) \
                 / (sum by (stream) (rate(wattcast_stream_frames_total{stream=~\"$stream\"}[$__rate_interval])) > 0)",
                "{{stream}}",
            ),
            table("Streams", "Now: watts, joules of a frame, and what an hour of media takes.")
                .column("sum by (stream, codec) (rate(wattcast_stream_energy_joules_total{$S, stream=~\"$stream\"}[$__rate_interval]))", "Power", "watt")
                .column(
                    "sum by (stream, codec) (rate(wattcast_stream_energy_joules_total{$S, stream=~\"$stream\"}[$__rate_interval])) \
                     / on (stream) group_left () (sum by (stream) (rate(wattcast_stream_frames_total{stream=~\"$stream\"}[$__rate_interval])) > 0)",
                    "Joules a frame",
                    "joule",
                )
                .column(
                    "sum by (stream, codec) (rate(wattcast_stream_energy_joules_total{$S, stream=~\"$stream\"}[$__rate_interval])) \
                     / on (stream) group_left () (sum by (stream) (rate(wattcast_stream_media_seconds_total{stream=~\"$stream\"}[$__rate_interval])) > 0) * 3600",
                    "Joules an hour of media",
                    "joule",
                ),
        ],
    }
}

/// The replaced exporters' names: processors, the container engine, the host beside them.
pub(super) fn monitoring() -> Board {
    Board {
        uid: "power-monitoring",
        title: "Power monitoring",
        about: "Power of processors, containers and host, under the names of the replaced exporters",
        home: Home { family: "cpu_exporter_info", more: &[] },
        panels: vec![
            row("Processors"),
            stat("Power of all packages", "watt", "Thresholds are those of the alerts: 80 and 120 W. Absent where energy is only modelled.")
                .steps(&[(None, "green"), (Some(80.0), "orange"), (Some(120.0), "red")])
                .ask("sum by (instance) (rapl_power_watts{$S, zone=~\"package.*\"})", "{{instance}}"),
            stat("Highest in the time shown", "watt", "Of all packages together.")
                .ask("max_over_time(sum(rapl_power_watts{$S, zone=~\"package.*\"})[$__range:])", "highest"),
            stat("RAPL", "none", "Whether energy is measured by the processor; without it the other dashboards show a model, and say so.")
                .called(&[(1.0, "measured", "green"), (0.0, "only modelled", "orange")])
                .ask("min by (instance) (rapl_available{$S})", "{{instance}}"),
            stat("Zones", "none", "What the processors tell apart.").ask("sum by (instance) (rapl_zones_discovered{$S})", "{{instance}}"),
            curves("Power of packages", "watt", "Cores, caches and integrated graphics of each socket.")
                .steps(&[(None, "green"), (Some(80.0), "orange"), (Some(120.0), "red")])
                .ask("rapl_power_watts{$S, zone=~\"package.*\"}", "{{instance}} {{package}}"),
            curves("Cores, uncore, memory, platform", "watt", "core and uncore are parts of a package; dram stands beside it; psys is the whole platform.")
                .ask("rapl_power_watts{$S, zone!~\"package.*\"}", "{{instance}} {{package}} {{zone}}"),
            curves("Power from the counters", "watt", "The same by joules over time: no peak between two scrapes is lost in it.").ask(
                "sum by (instance, package, zone) (rate(rapl_energy_joules_total{$S}[$__rate_interval]))",
                "{{instance}} {{package}} {{zone}}",
            ),
            bars("Energy in the time shown", "joule", "Zones overlap: a package contains its cores.").ask(
                "sum by (instance, package, zone) (increase(rapl_energy_joules_total{$S}[$__range]))",
                "{{instance}} {{package}} {{zone}}",
            ),
            curves("Power within a second", "watt", "Where sub-second reading is on (--power.distribution): median and 99th percentile of a package. A wide gap is load in bursts.")
                .ask(
                    "histogram_quantile(0.5, sum by (instance, le, package) (rate(wattcast_power_distribution_watts_bucket{$S}[$__rate_interval])))",
                    "{{instance}} {{package}} median",
                )
                .ask(
                    "histogram_quantile(0.99, sum by (instance, le, package) (rate(wattcast_power_distribution_watts_bucket{$S}[$__rate_interval])))",
                    "{{instance}} {{package}} 99 %",
                ),
            curves("What the probe itself takes", "watt", "Its process's part of the dynamic energy.")
                .ask("sum by (instance) (rate(wattcast_self_energy_joules_total{$S}[$__rate_interval]))", "{{instance}}"),
            row("Containers"),
            curves("CPU of containers", "percent", "In percent of one CPU.").ask("docker_container_cpu_percent", "{{name}}"),
            curves("Memory of containers", "bytes", "What counts against their limit.").ask("docker_container_memory_usage", "{{name}}"),
            curves("The container engine itself", "percent", "CPU of dockerd, containerd and their helpers, in percent of one CPU.")
                .ask("docker_engine_cpu_percent", "{{instance}}"),
            curves("Network of containers", "Bps", "Bytes a second, both directions.")
                .ask("sum by (name, direction) (rate(docker_container_network_io[$__rate_interval]))", "{{name}} {{direction}}"),
            row("Streams and host"),
            curves("RTMP streams", "none", "Streams and clients of nginx's RTMP module.")
                .ask("nginx_rtmp_streams", "streams")
                .ask("nginx_rtmp_connections", "clients"),
            curves("CPUs of the host (node_exporter)", "percentunit", "Part of the time in which CPUs were busy.")
                .between(Some(0.0), Some(1.0))
                .ask("1 - avg by (instance) (rate(node_cpu_seconds_total{mode=\"idle\"}[$__rate_interval]))", "{{instance}}"),
            curves("Memory of the host (node_exporter)", "bytes", "What could still be had.")
                .ask("node_memory_MemAvailable_bytes", "{{instance}}"),
            curves("Memory of containers (cAdvisor)", "bytes", "As cAdvisor has it, for those who compare.")
                .ask("sum by (name) (container_memory_usage_bytes{name!=\"\"})", "{{name}}"),
        ],
    }
}

/// GPUs: power, engines, encoder sessions, and who uses them.
pub(super) fn gpu() -> Board {
    Board {
        uid: "gpu-energy",
        title: "GPU",
        about: "Power and engines of GPUs, encoder sessions, and the containers that use them",
        home: Home { family: "wattcast_gpu_power_watts", more: &[] },
        panels: vec![
            stat("GPUs", "none", "How many the driver shows.").ask("sum(gpu_count{$S})", "GPUs"),
            stat("Power", "watt", "All boards. Thresholds are those of the alerts: 200 and 300 W.")
                .steps(&[(None, "green"), (Some(200.0), "orange"), (Some(300.0), "red")])
                .ask("sum by (instance) (wattcast_gpu_power_watts{$S})", "{{instance}}"),
            stat("Encoders in use", "percentunit", "Of the fullest board. NVIDIA gives one figure for all encoders of a board: two of which one is full show a half.")
                .between(Some(0.0), Some(1.0))
                .steps(&[(None, "green"), (Some(0.8), "orange"), (Some(0.95), "red")])
                .ask("max(wattcast_gpu_engine_utilization_ratio{$S, engine=~\"encoder|video\"})", "fullest"),
            stat("Encoder sessions", "none", "Streams that the boards encode now.")
                .ask("sum by (instance) (wattcast_gpu_encoder_sessions{$S, codec=\"all\"})", "{{instance}}"),
            curves("Power of boards", "watt", "From the boards' energy counters where they have one.")
                .ask("wattcast_gpu_power_watts{$S}", "{{name}} {{gpu}}")
                .ask("gpu_power_limit_watts{$S}", "limit {{gpu_name}}"),
            curves("Energy of containers on GPUs", "watt", "Divided by the use of engines: shaders, memory, encoder, decoder.").stacked().ask(
                "sum by (container) (rate(wattcast_container_energy_joules_total{zone=\"gpu\"}[$__rate_interval]))",
                "{{container}}",
            ),
            curves("Engines", "percentunit", "Use of each kind of engine.").between(Some(0.0), Some(1.0)).ask(
                "max by (gpu, name, engine) (wattcast_gpu_engine_utilization_ratio{$S})",
                "{{name}} {{gpu}} {{engine}}",
            ),
            curves("Engines by container", "none", "Engine seconds a second.").ask(
                "sum by (container, engine) (rate(wattcast_container_gpu_engine_seconds_total[$__rate_interval]))",
                "{{container}} {{engine}}",
            ),
            curves("Frames a second of encoder sessions", "none", "As the driver counts them.")
                .ask("sum by (gpu, codec) (wattcast_gpu_encoder_session_fps{$S})", "{{gpu}} {{codec}}"),
            curves("Memory", "bytes", "Of the boards.").stacked().ask(
                "sum by (gpu, name, state) (wattcast_gpu_memory_bytes{$S})",
                "{{name}} {{gpu}} {{state}}",
            ),
            curves("Temperature", "celsius", "Above its limit a board lowers its clocks.")
                .ask("max by (gpu, name) (wattcast_gpu_temperature_celsius{$S})", "{{name}} {{gpu}}"),
            curves("Clocks", "hertz", "Falling clocks under load are heat or a limit of power; see the next panel.")
                .ask("max by (gpu, name, clock) (wattcast_gpu_clock_hertz{$S})", "{{name}} {{gpu}} {{clock}}"),
            curves("Held back by", "none", "1 while a reason keeps the clocks below what they could be; idle is one.")
                .in_bars()
                .ask("max by (gpu, name, reason) (wattcast_gpu_throttle{$S})", "{{name}} {{gpu}} {{reason}}"),
            curves("Under the replaced exporter's names", "percent", "GPU, encoder, decoder and memory, in percent.")
                .between(Some(0.0), Some(100.0))
                .ask("gpu_utilization_percent{$S}", "{{gpu_name}} GPU")
                .ask("gpu_encoder_utilization_percent{$S}", "{{gpu_name}} encoder")
                .ask("gpu_decoder_utilization_percent{$S}", "{{gpu_name}} decoder")
                .ask("gpu_memory_utilization_percent{$S}", "{{gpu_name}} memory"),
            bars("Energy in the time shown", "joule", "Of each board.")
                .ask("sum by (gpu, name, source) (increase(wattcast_gpu_energy_joules_total{$S}[$__range]))", "{{name}} {{gpu}} ({{source}})"),
            curves("Power by DCGM", "watt", "NVIDIA's own exporter, where it runs beside the probe.").ask("DCGM_FI_DEV_POWER_USAGE", "GPU {{gpu}}"),
        ],
    }
}
