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
        serde_json::to_string_pretty(
            &serde_json::json!({ "plan": plan, "first_block": names, "about_seconds": seconds, "search": goal }),
        )
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
