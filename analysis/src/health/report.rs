//! Output of `wattcast-analysis check`: a text table, or JSON.

use serde::Serialize;

use super::{
    check::TargetState,
    checker::{HealthChecker, TargetStatus},
    page::{row, url_without_query},
};

#[derive(Debug, Serialize)]
struct TargetReport<'a> {
    target: &'a str,
    url: String,
    state: &'static str,
    why: &'a str,
    warning: &'a str,
    wanted: bool,
    healthy: bool,
    response_seconds: Option<f64>,
    clock_skew_seconds: Option<f64>,
    data_age_seconds: Option<f64>,
    families: Option<usize>,
    samples: Option<usize>,
    complete: Option<bool>,
    fresh: Option<bool>,
}

#[derive(Debug, Serialize)]
struct TerminalReport<'a> {
    healthy: bool,
    targets: Vec<TargetReport<'a>>,
}

/// True if all required targets are healthy.
#[must_use]
pub fn is_healthy(checker: &HealthChecker) -> bool {
    checker.targets.iter().all(|status| status.target.optional || status.is_healthy())
}

/// One line of JSON.
///
/// # Errors
/// Serialisation failed, which these types cannot cause.
pub fn json(checker: &HealthChecker) -> serde_json::Result<String> {
    fn target_report(status: &TargetStatus) -> Option<TargetReport<'_>> {
        let TargetStatus { target, result, .. } = status;
        let result = result.as_ref()?;
        Some(TargetReport {
            target: &target.name,
            url: url_without_query(&target.url),
            state: result.state.as_str(),
            why: &result.why,
            warning: &result.warning,
            wanted: !target.optional,
            healthy: result.state == TargetState::Healthy,
            response_seconds: result.latency.map(|latency| latency.as_secs_f64()),
            clock_skew_seconds: result.skew,
            data_age_seconds: result.age,
            families: result.counts.map(|(families, _)| families),
            samples: result.counts.map(|(_, samples)| samples),
            complete: result.complete,
            fresh: result.fresh,
        })
    }
    let targets = checker.targets.iter().filter_map(target_report).collect();
    serde_json::to_string(&TerminalReport { healthy: is_healthy(checker), targets })
}

/// A table and a summary line.
#[must_use]
pub fn table(checker: &HealthChecker) -> String {
    const HEADS: [&str; 7] = ["target", "state", "response", "clock", "families", "samples", "URL"];
    let rows: Vec<([String; 7], String)> = checker
        .targets
        .iter()
        .map(|status| {
            let [name, state, why, response, clock, families, samples, url] = row(status);
            let state = if status.target.optional && !status.is_healthy() { format!("({state})") } else { state };
            ([name, state, response, clock, families, samples, url], why)
        })
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|(cells, _)| cells[column].chars().count());
        cells.chain([HEADS[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
    let line = |cells: &[String; 7]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut out = line(&HEADS.map(str::to_owned));
    for (cells, why) in &rows {
        out.push_str(&line(cells));
        if !why.is_empty() {
            out.push_str(&format!("    {why}\n"));
        }
    }
    let healthy = checker.targets.iter().filter(|status| status.is_healthy()).count();
    let optional = checker.targets.iter().filter(|status| status.target.optional && !status.is_healthy()).count();
    let unhealthy = checker.targets.len() - healthy - optional;
    out.push_str(&format!("{healthy} healthy, {unhealthy} unhealthy"));
    if optional > 0 {
        out.push_str(&format!(", {optional} optional targets (in brackets) not healthy"));
    }
    out.push('\n');
    out
}
