//! What `wattcast-analysis check` says: a table for people, JSON for programs.

use serde::Serialize;

use super::{
    check::State,
    page::{row, shown},
    round::{Round, Watched},
};

/// How a target stands, for programs.
#[derive(Debug, Serialize)]
struct One<'a> {
    target: &'a str,
    url: String,
    state: &'static str,
    why: &'a str,
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
struct Report<'a> {
    healthy: bool,
    targets: Vec<One<'a>>,
}

/// True when all that is wanted is healthy.
#[must_use]
pub fn is_well(round: &Round) -> bool {
    round.all.iter().all(|one| one.target.optional || one.is_healthy())
}

/// One line of JSON.
///
/// # Errors
/// Never, as far as is known: there is nothing in it that JSON cannot say.
pub fn json(round: &Round) -> serde_json::Result<String> {
    fn said(one: &Watched) -> Option<One<'_>> {
        let Watched { target, finding, .. } = one;
        let finding = finding.as_ref()?;
        Some(One {
            target: &target.name,
            url: shown(&target.url),
            state: finding.state.as_str(),
            why: &finding.why,
            wanted: !target.optional,
            healthy: finding.state == State::Healthy,
            response_seconds: finding.latency.map(|latency| latency.as_secs_f64()),
            clock_skew_seconds: finding.skew,
            data_age_seconds: finding.age,
            families: finding.counts.map(|(families, _)| families),
            samples: finding.counts.map(|(_, samples)| samples),
            complete: finding.complete,
            fresh: finding.fresh,
        })
    }
    serde_json::to_string(&Report { healthy: is_well(round), targets: round.all.iter().filter_map(said).collect() })
}

/// A table, and a line that sums it up.
#[must_use]
pub fn table(round: &Round) -> String {
    const HEADS: [&str; 7] = ["target", "state", "answer", "clock", "families", "samples", "where"];
    let rows: Vec<([String; 7], String)> = round
        .all
        .iter()
        .map(|one| {
            let [name, state, why, answer, clock, families, samples, url] = row(one);
            let state = if one.target.optional && !one.is_healthy() { format!("({state})") } else { state };
            ([name, state, answer, clock, families, samples, url], why)
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
    let healthy = round.all.iter().filter(|one| one.is_healthy()).count();
    let missing = round.all.iter().filter(|one| one.target.optional && !one.is_healthy()).count();
    let wrong = round.all.len() - healthy - missing;
    out.push_str(&format!("{healthy} healthy, {wrong} not"));
    if missing > 0 {
        out.push_str(&format!(", {missing} in brackets that not every host has"));
    }
    out.push('\n');
    out
}
