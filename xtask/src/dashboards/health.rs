//! The dashboard of the health of every exporter of the stack.

use super::{
    dashboard::{Dashboard, Folder, VariableSource},
    panel::{Panel, bars, row, stat, table, time_series},
};

/// Required targets that are missing or unhealthy. This and the next three panels are on several
/// dashboards, whose matchers of targets differ.
pub(super) fn unhealthy_targets(matchers: &str) -> Panel {
    stat("Unhealthy targets", "none", "Required targets that are missing or unhealthy.")
        .thresholds(&[(None, "green"), (Some(1.0), "red")])
        .query(
            format!(
                "count(max by (target) (wattcast_target_wanted{{{matchers}}}) == 1 \
                 and on (target) max by (target) (wattcast_target_healthy{{{matchers}}}) == 0) or vector(0)"
            ),
            "unhealthy",
        )
}

pub(super) fn firing_alerts(matchers: &str) -> Panel {
    stat("Firing alerts", "none", "Alerts that Alertmanager reported to the analysis service.")
        .thresholds(&[(None, "green"), (Some(1.0), "red")])
        .query(format!("sum(wattcast_alerts_firing{{{matchers}}})"), "firing")
}

pub(super) fn conservation_error(matchers: &str) -> Panel {
    stat(
        "Conservation error",
        "joule",
        "Largest difference between a measured energy and the sum of its attributed, idle and unattributed parts. Any value other than 0 is a bug in Wattcast.",
    )
    .thresholds(&[(None, "green"), (Some(0.001), "red")])
    .query(format!("max by (instance) (abs(wattcast_conservation_error_joules{{{matchers}}}))"), "{{instance}}")
}

pub(super) fn missed_ticks(matchers: &str) -> Panel {
    stat(
        "Missed ticks",
        "none",
        "Ticks that the probe skipped over the time range, because the previous one took too long; their energy is in the next tick.",
    )
    .decimals(0)
    .thresholds(&[(None, "green"), (Some(1.0), "red")])
    .query(format!("sum by (instance) (increase(wattcast_ticks_missed_total{{{matchers}}}[$__range]))"), "{{instance}}")
}

/// Availability, completeness and data age of every exporter.
pub(super) fn health() -> Dashboard {
    let named: &[(f64, &str, &str)] = &[(1.0, "healthy", "green"), (0.0, "not healthy", "red")];
    Dashboard {
        uid: "exporter-health",
        title: "Exporter health",
        description: "Availability, completeness and data age of every exporter of the stack",
        folder: Folder::Wattcast,
        variables: VariableSource { family: "exporter_total", further: &[] },
        moved_to: None,
        panels: vec![
            stat("Exporter Health Status", "none", "Healthy: reachable, with a complete page of metrics, a synchronous clock and current data.")
                .width(24)
                .height(6)
                .value_texts(named)
                .query("max by (exporter) (exporter_healthy{$S})", "{{exporter}}"),
            stat("Healthy Exporters Count", "none", "Exporters that are monitored and healthy.").query("sum(exporter_healthy_total{$S})", "healthy"),
            stat("Total Exporters Count", "none", "Includes exporters that are optional on a host.").query("sum(exporter_total{$S})", "all"),
            unhealthy_targets("$S"),
            firing_alerts("$S"),
            row("Invariants of the measurement"),
            conservation_error(""),
            missed_ticks(""),
            stat("Missed CPU time intervals", "none", "CPU time intervals that the probe lost over the time range, in whole or in part.")
                .decimals(0)
                .thresholds(&[(None, "green"), (Some(1.0), "orange")])
                .query("sum by (instance) (increase(wattcast_cpu_intervals_missed_total[$__range]))", "{{instance}}"),
            stat("Failing collectors", "none", "Collectors of the probe that failed in the last tick.")
                .thresholds(&[(None, "green"), (Some(1.0), "red")])
                .query("sum by (instance) (1 - wattcast_collector_success)", "{{instance}}"),
            row("Targets"),
            time_series("Exporter Response Times", "ms", "Time from request to end of response. Slow responses precede lost scrapes.")
                .query("max by (exporter) (exporter_response_time_ms{$S})", "{{exporter}}"),
            time_series("Exporter Health Over Time", "none", "1 while healthy.")
                .axis_range(Some(0.0), Some(1.0))
                .query("max by (exporter) (exporter_healthy{$S})", "{{exporter}}"),
            table("Target states", "Reason why a target is unhealthy: down, hanging, status, denied, tls, wrong_type, too_large, empty, clock, stale, unproven, unready, settings.")
                .width(12)
                .column("max by (target, state) (wattcast_target_state{$S}) == 1", "Current", "none"),
            time_series("Data age", "s", "By the exporter's clock. Seconds are normal; minutes mean stale data.")
                .query("max by (target) (wattcast_target_data_age_seconds{$S})", "{{target}}"),
            time_series("Clock skew", "s", "The exporter's clock minus this service's clock. Runs that span two hosts need synchronous clocks.")
                .axis_range(None, None)
                .query("max by (target) (wattcast_target_clock_skew_seconds{$S})", "{{target}}"),
            bars("Samples per page", "none", "Number of samples on each page of metrics.").query("max by (exporter) (exporter_sample_count{$S})", "{{exporter}}"),
            row("Wattcast programs"),
            time_series("CPU usage", "percentunit", "Share of one CPU.").query(
                "sum by (job, instance) (rate(process_cpu_seconds_total{job=~\"rapl-power|cpu-power-go|results-exporter\"}[$__rate_interval]))",
                "{{job}} {{instance}}",
            ),
            time_series("Resident memory", "bytes", "Resident set size.").query(
                "max by (job, instance) (process_resident_memory_bytes{job=~\"rapl-power|cpu-power-go|results-exporter\"})",
                "{{job}} {{instance}}",
            ),
            time_series("Tick jitter", "s", "99th percentile of the delay of the probe's ticks.").query(
                "histogram_quantile(0.99, sum by (le, instance) (rate(wattcast_tick_jitter_seconds_bucket[$__rate_interval])))",
                "{{instance}}",
            ),
            time_series("Rejected requests", "reqps", "Rejected connections and requests by reason.").query(
                "sum by (job, reason) (rate(wattcast_web_refused_total[$__rate_interval]))",
                "{{job}} {{reason}}",
            ),
        ],
    }
}
