//! The dashboard over the health of every exporter of the stack.

use super::panel::{Board, Home, bars, curves, row, stat, table};

/// Is every exporter there, complete and of now?
pub(super) fn health() -> Board {
    let named: &[(f64, &str, &str)] = &[(1.0, "healthy", "green"), (0.0, "not healthy", "red")];
    Board {
        uid: "exporter-health",
        title: "Exporter health",
        about: "Whether every exporter of the stack is there, complete, and shows data of now",
        home: Home { family: "exporter_total", more: &[] },
        panels: vec![
            stat("Exporter Health Status", "none", "Healthy is reachable, a page of metrics, complete, by a clock like ours, with data of now.")
                .wide(24)
                .high(6)
                .called(named)
                .ask("max by (exporter) (exporter_healthy{$S})", "{{exporter}}"),
            stat("Healthy Exporters Count", "none", "Of those that are looked at.").ask("sum(exporter_healthy_total{$S})", "healthy"),
            stat("Total Exporters Count", "none", "Those that not every host has count too.").ask("sum(exporter_total{$S})", "all"),
            stat("Wanted and not healthy", "none", "What should be there and is not, or is not well.")
                .steps(&[(None, "green"), (Some(1.0), "red")])
                .ask(
                    "count(max by (target) (wattcast_target_wanted{$S}) == 1 and on (target) max by (target) (wattcast_target_healthy{$S}) == 0) or vector(0)",
                    "wanted",
                ),
            stat("Alerts firing", "none", "Those that Alertmanager told this service of; none where it is told of none.")
                .steps(&[(None, "green"), (Some(1.0), "red")])
                .ask("sum(wattcast_alerts_firing{$S})", "firing"),
            curves("Exporter Response Times", "ms", "From asking to the end of the answer. Slow answers come before lost scrapes.")
                .ask("max by (exporter) (exporter_response_time_ms{$S})", "{{exporter}}"),
            curves("Exporter Health Over Time", "none", "1 while healthy.")
                .between(Some(0.0), Some(1.0))
                .ask("max by (exporter) (exporter_healthy{$S})", "{{exporter}}"),
            table("States", "Why something is not healthy: down, hanging, status, denied, tls, wrong_type, too_large, empty, clock, stale, unproven, unready, settings.")
                .wide(12)
                .column("max by (target, state) (wattcast_target_state{$S}) == 1", "Now", "none"),
            curves("How old data is", "s", "By the exporter's own clock; seconds are well, minutes mean that it shows what was.")
                .ask("max by (target) (wattcast_target_data_age_seconds{$S})", "{{target}}"),
            curves("Clocks", "s", "An exporter's clock less ours. Runs that are measured on two hosts need the same time.")
                .between(None, None)
                .ask("max by (target) (wattcast_target_clock_skew_seconds{$S})", "{{target}}"),
            bars("Samples", "none", "On each page.").ask("max by (exporter) (exporter_sample_count{$S})", "{{exporter}}"),
            row("Wattcast itself"),
            curves("CPU of the programs", "percentunit", "Of one CPU.").ask(
                "sum by (job, instance) (rate(process_cpu_seconds_total{job=~\"rapl-power|cpu-power-go|results-exporter\"}[$__rate_interval]))",
                "{{job}} {{instance}}",
            ),
            curves("Memory of the programs", "bytes", "Resident.").ask(
                "max by (job, instance) (process_resident_memory_bytes{job=~\"rapl-power|cpu-power-go|results-exporter\"})",
                "{{job}} {{instance}}",
            ),
            curves("A tick's lateness", "s", "99th percentile: how far the probe's ticks are from where they should be.").ask(
                "histogram_quantile(0.99, sum by (le, instance) (rate(wattcast_tick_jitter_seconds_bucket[$__rate_interval])))",
                "{{instance}}",
            ),
            curves("Refused", "reqps", "Connections and requests that were not answered, by reason.").ask(
                "sum by (job, reason) (rate(wattcast_web_refused_total[$__rate_interval]))",
                "{{job}} {{reason}}",
            ),
        ],
    }
}
