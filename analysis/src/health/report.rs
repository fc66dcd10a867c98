//! Output of `wattcast-analysis check`: a text table, or JSON.

use cli::{
    colour::Meaning,
    terminal::{Cell, Column, Table, View},
};
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
pub fn table(checker: &HealthChecker, view: View) -> String {
    let mut table = Table::new([
        Column::left("target"),
        Column::left("state"),
        Column::right("response"),
        Column::right("clock"),
        Column::right("families"),
        Column::right("samples"),
        Column::left("URL"),
        Column::prose("note"),
    ]);
    for status in &checker.targets {
        let [name, state, why, response, clock, families, samples, url] = row(status);
        let (state, meaning) = if status.is_healthy() {
            (state, Meaning::Better)
        } else if status.target.optional {
            (format!("({state})"), Meaning::Quiet)
        } else if status.result.is_none() {
            (state, Meaning::Quiet)
        } else {
            (state, Meaning::Worse)
        };
        let rest = [response, clock, families, samples, url, why].map(Cell::from);
        table.push([Cell::from(name), Cell::coloured(&state, meaning)].into_iter().chain(rest));
    }
    let mut out = table.text(view.with_whole_lines());
    let healthy = checker.targets.iter().filter(|status| status.is_healthy()).count();
    let optional = checker.targets.iter().filter(|status| status.target.optional && !status.is_healthy()).count();
    let unhealthy = checker.targets.len() - healthy - optional;
    let mut summary = format!("{healthy} healthy, {unhealthy} unhealthy");
    if optional > 0 {
        summary += &format!(", {optional} optional targets (in brackets) not healthy");
    }
    let meaning = if unhealthy > 0 { Meaning::Worse } else { Meaning::Better };
    out += &view.fit(&format!("{}\n", view.paint(meaning, &summary)));
    out
}
