//! Tables of the newest run for the index pages of ports 9502, 9503 and 9504.

use jiff::Timestamp;
use units::provenance::Unmeasured;

use crate::{pages::cost as cost_page, qoe::qoe_score, rendered_page::Table};
use results::{cost::Prices, model::Entry};

/// Title of the table of unreadable files.
pub const PROBLEMS: &str = "Problems";

/// One sentence for each kind of energy of the newest run that was not measured.
pub fn banners(newest: &[&Entry]) -> Vec<String> {
    Unmeasured::sentences(newest.iter().map(|entry| (&*entry.derived.source, entry.derived.model_interval)))
}

/// Scenarios of the newest run, and unreadable files.
pub fn results(run: &str, newest: &[&Entry], problems: &[String]) -> Vec<Table> {
    let mut tables = Vec::new();
    if !newest.is_empty() {
        let rows = newest.iter().map(|entry| energy_row(entry)).collect();
        tables.push((format!("Scenarios of run {run}"), heads(&["scenario", "seconds", "frames", "energy", ""]), rows));
    }
    if !problems.is_empty() {
        let rows = problems.iter().map(|problem| vec![problem.clone()]).collect();
        tables.push((PROBLEMS.to_owned(), heads(&[""]), rows));
    }
    tables
}

/// Quality of the newest run.
pub fn quality(run: &str, newest: &[&Entry]) -> Vec<Table> {
    if newest.is_empty() {
        return Vec::new();
    }
    let heads = heads(&["scenario", "VMAF", "PSNR", "SSIM", "QoE, 1 to 5", "QoE inputs"]);
    vec![(format!("Quality of run {run}"), heads, newest.iter().map(|entry| quality_row(entry)).collect())]
}

/// Current prices, and the cost of the newest run.
pub fn cost(run: &str, newest: &[&Entry], prices: &Prices, now: Timestamp) -> Vec<Table> {
    let mut tables = vec![("Current prices".to_owned(), heads(&["", "price", ""]), cost_page::table(prices, now))];
    if !newest.is_empty() {
        let heads = heads(&["scenario", "energy", "compute", "total", "CO₂-eq."]);
        let rows = newest.iter().map(|entry| cost_row(entry, prices)).collect();
        tables.push((format!("Cost of run {run}"), heads, rows));
    }
    tables
}

fn heads(heads: &[&str]) -> Vec<String> {
    heads.iter().map(|head| (*head).to_owned()).collect()
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

fn energy_row(entry: &Entry) -> Vec<String> {
    let scenario = entry.scenario();
    let (energy, note) = match &entry.lookup.energy {
        Some(energy) => {
            let rows = energy.rows.iter().map(|row| format!("{} {:.1} J", row.scope.as_str(), row.joules.joules()));
            let mut note = format!("{}, source: {}", energy.method.as_str(), entry.derived.source);
            if let Some(part) = energy.coverage.filter(|_| !energy.is_whole()) {
                note.push_str(&format!("; samples cover {:.0} % of the window", part * 100.0));
            }
            if energy.gap_seconds > 0.0 || energy.resets > 0 {
                note.push_str(&format!("; {:.1} s without samples, {} resets", energy.gap_seconds, energy.resets));
            }
            (rows.collect::<Vec<_>>().join(", "), note)
        }
        None => {
            let why = entry.lookup.failures.iter().map(|(method, error)| format!("{}: {error}", method.as_str()));
            let why = why.collect::<Vec<_>>().join("; ");
            ("–".to_owned(), if why.is_empty() { "the file has neither energy nor times".to_owned() } else { why })
        }
    };
    vec![
        scenario.name.clone(),
        number(entry.derived.seconds, 1),
        scenario.total_frames.map_or_else(|| "–".to_owned(), |frames| frames.to_string()),
        energy,
        note,
    ]
}

fn quality_row(entry: &Entry) -> Vec<String> {
    let quality = &entry.scenario().quality;
    let value = |score: &Option<results::run::Score>, digits| number(score.as_ref().map(|score| score.value), digits);
    let qoe = qoe_score(entry);
    vec![
        entry.scenario().name.clone(),
        value(&quality.vmaf, 2),
        value(&quality.psnr, 2),
        value(&quality.ssim, 4),
        number(qoe.as_ref().map(|qoe| qoe.score), 2),
        qoe.map_or_else(String::new, |qoe| qoe.made_of.to_owned()),
    ]
}

fn cost_row(entry: &Entry, prices: &Prices) -> Vec<String> {
    let money = |amount: Option<rust_decimal::Decimal>| {
        amount.map_or_else(
            || "–".to_owned(),
            |amount| format!("{} {}", amount.round_sf(6).unwrap_or(amount).normalize(), prices.currency),
        )
    };
    let cost = &entry.cost;
    vec![
        entry.scenario().name.clone(),
        money(cost.energy),
        money(cost.compute),
        money(cost.total),
        cost.carbon
            .map_or_else(|| "–".to_owned(), |grams| format!("{} g", grams.round_sf(6).unwrap_or(grams).normalize())),
    ]
}
