//! Looks for one value: the smallest bitrate that reaches a VMAF, or the most streams that are encoded as fast as they are shown. Every step is a measurement like any other,
//! and stands in the results.

use super::{
    Early, End,
    encode::stopped,
    flags::{Goal, at},
    journal::Event,
    plan::{Axes, Cell, Rate},
    protocol::{Runner, Stage, skip_all},
    source::Clip,
};

/// Most steps: each halves what is left, so that twenty megabits come down to twenty bits.
const STEPS: u32 = 20;
/// Streams keep up that take no longer than this for a second of media, and half a second to start.
const KEEPS_UP: (f64, f64) = (1.02, 0.5);

/// Looks.
///
/// # Errors
/// Why it ended early.
pub fn run(runner: &mut Runner<'_>, goal: Goal) -> Result<End, Early> {
    let Some(first) = runner.record.cells.first().cloned() else { return Ok(End::Refused) };
    let mut stage = runner.stage()?;
    // The cell that the plan names is where it begins; those that are tried are added.
    runner.record.cells.clear();
    runner.baseline(1)?;
    match goal {
        Goal::Quality { target_vmaf, min_bitrate, max_bitrate, tolerance } => {
            quality(runner, &mut stage, &first, target_vmaf, [min_bitrate, max_bitrate], tolerance)
        }
        Goal::Streams { max_streams } => streams(runner, &mut stage, &first, max_streams),
    }
}

/// Adds a cell and measures it once; nothing where that failed.
fn try_once(runner: &mut Runner<'_>, stage: &mut Stage, cell: &Cell) -> Result<bool, Early> {
    let known = runner.record.cells.iter().any(|known| known.id == cell.id);
    if !known {
        let event = Event::Cell(cell.clone());
        runner.journal.write(&event)?;
        runner.record.apply(event);
    }
    let clip = clip(runner, cell)?;
    runner.measure_once(cell, 1, &clip, stage)
}

/// What a cell encodes. Where it cannot be made the cell has a row that says so.
fn clip(runner: &mut Runner<'_>, cell: &Cell) -> Result<Clip, Early> {
    match runner.clip(&cell.axes) {
        Ok(clip) => Ok(clip),
        Err(_) if stopped() => Err(Early::new(End::Stopped, "stopped; what was measured until now is kept")),
        Err(why) => {
            skip_all(runner.journal, runner.record, &why)?;
            Err(Early::new(End::Refused, why))
        }
    }
}

fn quality(
    runner: &mut Runner<'_>,
    stage: &mut Stage,
    first: &Cell,
    target: f64,
    [low, high]: [u32; 2],
    tolerance: f64,
) -> Result<End, Early> {
    let name = runner.record.plan().name.clone();
    let at_rate =
        |kilobits: u32| at(&name, &first.axes, |axes: &mut Axes| axes.rate = Rate::Bitrate(format!("{kilobits}k")));
    let mut vmaf = |runner: &mut Runner<'_>, kilobits: u32| -> Result<Option<f64>, Early> {
        let cell = at_rate(kilobits);
        if !try_once(runner, stage, &cell)? {
            return Ok(None);
        }
        let clip = clip(runner, &cell)?;
        runner.score(&cell, &clip)?;
        let scores = runner.record.scores.iter().filter(|score| score.cell == cell.id).flat_map(|score| &score.scores);
        let vmaf: Vec<_> = scores.filter(|score| score.metric == "vmaf").collect();
        if let Some(why) = vmaf.iter().find_map(|score| score.unavailable.clone()) {
            return Err(Early::new(End::Refused, format!("no VMAF to look for: {why}")));
        }
        Ok(vmaf.iter().find(|score| score.pooling == "mean").and_then(|score| score.value))
    };
    let Some(best) = vmaf(runner, high)? else { return Ok(End::Partly) };
    if best < target {
        runner.live.done(&format!("  search  {high}k reaches VMAF {best:.3}; {target} is beyond --max-bitrate"));
        return Ok(End::Partly);
    }
    let Some(worst) = vmaf(runner, low)? else { return Ok(End::Partly) };
    if worst >= target {
        runner.live.done(&format!(
            "  search  {low}k reaches VMAF {worst:.3} already: the answer is at or below --min-bitrate"
        ));
        return Ok(End::Well);
    }
    let (mut under, mut over) = ((low, worst), (high, best));
    for _ in 0..STEPS {
        if over.1 - target <= tolerance || over.0 - under.0 <= 1 {
            break;
        }
        let next = between(under, over, target);
        let Some(found) = vmaf(runner, next)? else { return Ok(End::Partly) };
        if found >= target { over = (next, found) } else { under = (next, found) }
    }
    runner.live.done(&format!(
        "  search  {}k: VMAF {:.3}, the smallest found that reaches {target}; {}k has {:.3}",
        over.0, over.1, under.0, under.1
    ));
    Ok(End::Well)
}

/// Where the target is, if VMAF goes straight with the logarithm of the rate between the two; never so near to one of them that nothing is learnt.
fn between(under: (u32, f64), over: (u32, f64), target: f64) -> u32 {
    let (low, high) = (f64::from(under.0).ln(), f64::from(over.0).ln());
    let part = ((target - under.1) / (over.1 - under.1)).clamp(0.1, 0.9);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two numbers of that size")]
    let next = (low + part * (high - low)).exp().round() as u32;
    next.clamp(under.0 + 1, over.0 - 1)
}

fn streams(runner: &mut Runner<'_>, stage: &mut Stage, first: &Cell, most: u32) -> Result<End, Early> {
    let name = runner.record.plan().name.clone();
    let duration = runner.record.plan().protocol.duration.as_secs_f64();
    let mut keeps_up = |runner: &mut Runner<'_>, count: u32| -> Result<bool, Early> {
        let cell = at(&name, &first.axes, |axes: &mut Axes| axes.streams = count);
        // Something else on the machine can make it late once; what it can do is its better of two.
        for _ in 0..2 {
            if !try_once(runner, stage, &cell)? {
                break;
            }
            let mut took = runner.record.well(&cell.id).filter_map(|repeat| Some(repeat.window?.seconds()));
            if took.any(|took| took <= duration * KEEPS_UP.0 + KEEPS_UP.1) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    // Doubled until it does not keep up, then halved between.
    let (mut good, mut bad) = (0, most + 1);
    let mut next = 1;
    while next <= most {
        if !keeps_up(runner, next)? {
            bad = next;
            break;
        }
        good = next;
        next = if next == most { most + 1 } else { (next * 2).min(most) };
    }
    while bad - good > 1 && good > 0 {
        let middle = good.midpoint(bad);
        if keeps_up(runner, middle)? { good = middle } else { bad = middle }
    }
    let end = if bad > most { format!("{most} and more: --max-streams") } else { format!("{bad} do not") };
    runner.live.done(&format!("  search  {good} streams keep up with real time; {end}"));
    Ok(if good > 0 { End::Well } else { End::Partly })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_step_is_always_between_and_ends_soon() {
        // A curve of the usual shape; the search must end at the smallest rate whose score reaches the target.
        let vmaf = |kilobits: u32| 100.0 - 4000.0 / f64::from(kilobits);
        let (mut under, mut over) = ((100, vmaf(100)), (20_000, vmaf(20_000)));
        let mut steps = 0;
        while over.0 - under.0 > 1 && steps < STEPS {
            let next = between(under, over, 93.0);
            assert!(under.0 < next && next < over.0);
            if vmaf(next) >= 93.0 {
                over = (next, vmaf(next));
            } else {
                under = (next, vmaf(next));
            }
            steps += 1;
        }
        assert!(over.1 >= 93.0 && over.1 < 93.5, "{over:?} after {steps}");
    }
}
