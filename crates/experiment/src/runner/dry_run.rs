//! `run --dry-run`: prints the plan without measuring.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use super::{
    error::{Exit, RunError},
    flags::{Run, RunKind},
    plan::Plan,
};
use crate::search::energy::EnergySearch;

/// Prints the plan that the flags describe.
///
/// # Errors
/// When a flag or a file is invalid.
pub(super) fn dry_run(flags: &Run) -> Result<Exit, RunError> {
    let (plan, notes) = flags.plan().map_err(|why| RunError::new(Exit::Usage, why))?;
    let goal = match &flags.kind {
        Some(RunKind::Search { goal }) => Some(goal.describe()),
        _ => None,
    };
    let order = plan.order(0, (0..plan.configurations.len()).collect());
    let names: Vec<&str> = order.iter().map(|at| &*plan.configurations[*at].name).collect();
    let text = if flags.protocol.json {
        let seconds = plan.estimated_seconds();
        serde_json::to_string_pretty(&serde_json::json!({
            "plan": plan,
            "first_block": names,
            "about_seconds": plan.energy_search.as_ref().map_or(seconds, |search| search_seconds(&plan, search)),
            "search": goal,
            "encodes": plan.energy_search.as_ref().map(EnergySearch::estimate),
        }))
        .unwrap_or_default()
    } else {
        describe(&plan, &notes, goal.as_deref(), &names)
    };
    // A closed stdout is no error.
    let _ = io::stdout().lock().write_all(format!("{}\n", text.trim_end()).as_bytes());
    Ok(Exit::Success)
}

fn describe(plan: &Plan, notes: &[String], goal: Option<&str>, names: &[&str]) -> String {
    let notes: String = notes.iter().map(|note| format!("note: {note}\n")).collect();
    let names = names.join("\n  ");
    if let (Some(goal), Some(search)) = (goal, &plan.energy_search) {
        return format!("{notes}{}", describe_search(plan, goal, search));
    }
    if let Some(goal) = goal {
        return format!("{notes}A search for {goal}: each step is measured once, starting with\n  {names}");
    }
    let count = plan.configurations.len();
    let target = plan.protocol.ci_target.map_or_else(String::new, |target| {
        format!(" and up to {}, until the interval is below {} %", plan.protocol.max_repeats, target * 100.0)
    });
    format!(
        "{notes}{count} {}, {} times each{target}, about {} if encoders work in real time, without scoring. Seed {}. The first block:\n  {names}",
        if count == 1 { "configuration" } else { "configurations" },
        plan.protocol.repeats,
        humantime::format_duration(Duration::from_secs_f64(plan.estimated_seconds().round())),
        plan.protocol.seed,
    )
}

/// The candidates of a search for energy, and how much there is to measure.
fn describe_search(plan: &Plan, goal: &str, search: &EnergySearch) -> String {
    let mut text = format!("A search for {goal}, among\n");
    for candidate in &search.candidates {
        let last = candidate.ladder.len().saturating_sub(1);
        let rates = format!("{} rates, {} to {}", last + 1, candidate.ladder.text(0), candidate.ladder.text(last));
        text += &format!("  {}: {rates}\n", candidate.label());
    }
    let encodes = search.estimate();
    let seconds = Duration::from_secs_f64(search_seconds(plan, search).round());
    text + &format!(
        "About {} encodes if two candidates are close to the best, {} at most; every rate three times would be {}. About {} \
         if encoders work in real time, without scoring. A rate is found by bisection; repeats are made where candidates \
         do not differ significantly, up to {} looks. Seed {}.",
        encodes.expected,
        encodes.most,
        encodes.grid,
        humantime::format_duration(seconds),
        search.looks,
        plan.protocol.seed
    )
}

/// Estimated duration of a search in seconds, for encoders that work in real time, without scoring.
fn search_seconds(plan: &Plan, search: &EnergySearch) -> f64 {
    let protocol = &plan.protocol;
    let each = (protocol.duration + protocol.cooldown).as_secs_f64();
    let encodes = f64::from(u32::try_from(search.estimate().expected).unwrap_or(u32::MAX));
    // A baseline before the first block, and before each of about three rounds.
    protocol.stabilization.as_secs_f64() + encodes * each + 4.0 * protocol.baseline.as_secs_f64()
}
