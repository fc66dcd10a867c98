//! Searches for the smallest bit rate that reaches a VMAF score, or for the most streams in real
//! time. Each step is a normal measurement and part of the results.

use std::time::Duration;

use cli::number::short;
use results::headroom::Forecast;

use super::{
    context::{RunContext, Runner, skip_all, stopped_error},
    error::{Exit, RunError},
    flags::Goal,
    forecast::{self, FORECAST_FROM, Step, UNPACED},
    journal::Event,
    pace::{self, Lag},
    plan::{Axes, Configuration, Rate},
    signals::stop_requested,
    source::Clip,
};

/// Most steps of a bit rate search. Each halves the remaining range: 20 Mbit/s are narrowed to 20
/// bit/s.
const MAX_STEPS: u32 = 20;

/// Runs a search.
///
/// # Errors
/// When the run cannot continue.
pub(super) fn run(runner: &mut Runner<'_>, goal: Goal) -> Result<Exit, RunError> {
    let Some(first) = runner.record.configurations.first().cloned() else { return Ok(Exit::Refused) };
    let mut context = runner.create_context()?;
    // The plan's configuration is the starting point; the record gets those that are measured.
    runner.record.configurations.clear();
    runner.measure_baseline(1)?;
    match goal {
        Goal::Quality { target_vmaf, min_bitrate, max_bitrate, tolerance } => {
            quality(runner, &mut context, &first, target_vmaf, [min_bitrate, max_bitrate], tolerance)
        }
        Goal::Streams { max_streams } => streams(runner, &mut context, &first, max_streams),
        // The runner starts it from the plan, which a resumed run has too.
        Goal::Energy(_) => Ok(Exit::Refused),
    }
}

/// A copy of a configuration with other settings.
fn variant(prefix: &str, axes: &Axes, change: impl FnOnce(&mut Axes)) -> Configuration {
    let mut axes = axes.clone();
    change(&mut axes);
    Configuration::new(prefix, axes)
}

/// Adds a configuration and measures one repeat. Returns whether it succeeded.
fn measure_step(
    runner: &mut Runner<'_>,
    context: &mut RunContext,
    configuration: &Configuration,
) -> Result<bool, RunError> {
    if !runner.record.configurations.iter().any(|known| known.id == configuration.id) {
        runner.add_event(Event::Configuration(configuration.clone()))?;
    }
    let clip = clip(runner, configuration)?;
    runner.measure_once(configuration, 1, &clip, context)
}

/// The clip of a configuration. If it cannot be made, a skipped repeat records the reason.
pub(super) fn clip(runner: &mut Runner<'_>, configuration: &Configuration) -> Result<Clip, RunError> {
    match runner.clip(&configuration.axes) {
        Ok(clip) => Ok(clip),
        Err(_) if stop_requested() => Err(stopped_error()),
        Err(why) => {
            skip_all(runner.journal, runner.record, &why)?;
            Err(RunError::new(Exit::Refused, why))
        }
    }
}

/// The mean VMAF score of a configuration at a bit rate; `None` if the encode failed.
fn vmaf_at(
    runner: &mut Runner<'_>,
    context: &mut RunContext,
    first: &Configuration,
    kilobits: u32,
) -> Result<Option<f64>, RunError> {
    let name = runner.record.plan().name.clone();
    let configuration = variant(&name, &first.axes, |axes| axes.rate = Rate::Bitrate(format!("{kilobits}k")));
    if !measure_step(runner, context, &configuration)? {
        return Ok(None);
    }
    let clip = clip(runner, &configuration)?;
    runner.score(&configuration, &clip)?;
    let scores = runner.record.scores.iter().filter(|score| score.configuration == configuration.id);
    let vmaf: Vec<_> = scores.flat_map(|score| &score.scores).filter(|score| score.metric == "vmaf").collect();
    if let Some(why) = vmaf.iter().find_map(|score| score.unavailable.clone()) {
        return Err(RunError::new(Exit::Refused, format!("cannot search, VMAF is unavailable: {why}")));
    }
    Ok(vmaf.iter().find(|score| score.pooling == "mean").and_then(|score| score.value))
}

fn quality(
    runner: &mut Runner<'_>,
    context: &mut RunContext,
    first: &Configuration,
    target: f64,
    [low, high]: [u32; 2],
    tolerance: f64,
) -> Result<Exit, RunError> {
    let mut vmaf = |runner: &mut Runner<'_>, kilobits: u32| vmaf_at(runner, context, first, kilobits);
    let Some(best) = vmaf(runner, high)? else { return Ok(Exit::Partial) };
    if best < target {
        runner.display.log(&format!("  search  {high}k reaches only VMAF {best:.3}; {target} is above --max-bitrate"));
        return Ok(Exit::Partial);
    }
    let Some(worst) = vmaf(runner, low)? else { return Ok(Exit::Partial) };
    if worst >= target {
        runner
            .display
            .log(&format!("  search  {low}k already reaches VMAF {worst:.3}: the result is at or below --min-bitrate"));
        return Ok(Exit::Success);
    }
    let (mut below, mut above) = ((low, worst), (high, best));
    for _ in 0..MAX_STEPS {
        if above.1 - target <= tolerance || above.0 - below.0 <= 1 {
            break;
        }
        let next = interpolate(below, above, target);
        let Some(score) = vmaf(runner, next)? else { return Ok(Exit::Partial) };
        if score >= target { above = (next, score) } else { below = (next, score) }
    }
    runner.display.log(&format!(
        "  search  {}k: VMAF {:.3}, the smallest found that reaches {target}; {}k has {:.3}",
        above.0, above.1, below.0, below.1
    ));
    Ok(Exit::Success)
}

/// The bit rate that reaches the target if VMAF is linear in the logarithm of the rate between two
/// measured rates. At least a tenth of the range away from both, so that each step narrows it.
fn interpolate(below: (u32, f64), above: (u32, f64), target: f64) -> u32 {
    let (low, high) = (f64::from(below.0).ln(), f64::from(above.0).ln());
    let part = ((target - below.1) / (above.1 - below.1)).clamp(0.1, 0.9);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two bit rates")]
    let next = (low + part * (high - low)).exp().round() as u32;
    next.clamp(below.0 + 1, above.0 - 1)
}

fn streams(
    runner: &mut Runner<'_>,
    context: &mut RunContext,
    first: &Configuration,
    most: u32,
) -> Result<Exit, RunError> {
    let name = runner.record.plan().name.clone();
    let in_real_time = |runner: &mut Runner<'_>, context: &mut RunContext, steps: &mut Vec<Step>, count: u32| {
        let configuration = variant(&name, &first.axes, |axes| axes.streams = count);
        // Other load can delay one attempt, so there is a second one.
        for _ in 0..2 {
            if !measure_step(runner, context, &configuration)? {
                break;
            }
            let Some(measured) = runner.record.successes(&configuration.id).last() else { break };
            if measured.lag.is_some_and(Lag::keeps_up) {
                // In real time the media are as long as the window.
                steps.extend(measured.window.and_then(|window| Step::of(measured, count, window.seconds())));
                return Ok::<bool, RunError>(true);
            }
            runner.display.log(&fell_behind(count, measured.lag));
        }
        Ok(false)
    };
    let (mut good, mut bad, mut steps) = (0, most + 1, Vec::new());
    for count in 1..=FORECAST_FROM.min(most) {
        if !in_real_time(runner, context, &mut steps, count)? {
            bad = count;
            break;
        }
        good = count;
    }
    let last = variant(&name, &first.axes, |axes| axes.streams = good);
    let forecast = forecast_all(runner, context, &last, &steps)?;
    if let Some(forecast) = &forecast {
        runner.display.log(&forecast::describe(forecast, &steps, runner.record));
    }
    // Begin at the forecast, and take ever longer steps until the count is too high; then bisect.
    let (mut next, mut stride) = match &forecast {
        Some(forecast) => (whole(forecast.streams, most), 1),
        None => (good * 2, good),
    };
    while good > 0 && good < most && bad > most {
        let count = next.clamp(good + 1, most);
        if in_real_time(runner, context, &mut steps, count)? {
            (good, next, stride) = (count, count + stride, stride * 2);
        } else {
            bad = count;
        }
    }
    while bad - good > 1 && good > 0 {
        let middle = good.midpoint(bad);
        if in_real_time(runner, context, &mut steps, middle)? { good = middle } else { bad = middle }
    }
    let end = if bad > most { format!("{most} and more: --max-streams") } else { format!("{bad} do not") };
    runner.display.log(&format!("  search  {good} streams keep up with real time; {end}"));
    if let Some(forecast) = &forecast {
        runner.display.log(&forecast::describe_error(forecast, good, bad <= most));
    }
    Ok(if good > 0 { Exit::Success } else { Exit::Partial })
}

/// Says by how much streams fell behind. They may keep up in a second attempt.
fn fell_behind(count: u32, lag: Option<Lag>) -> String {
    let what = lag.map_or_else(
        || "one of them encoded nothing in most of the time".to_owned(),
        |lag| format!("the slowest fell behind by {} s in {} s", short(lag.grew_seconds), short(lag.in_seconds)),
    );
    format!("  search  {count} streams: {what}")
}

/// Forecasts from the steps so far, and from the streams of the last one without pace.
fn forecast_all(
    runner: &mut Runner<'_>,
    context: &mut RunContext,
    last: &Configuration,
    steps: &[Step],
) -> Result<Option<Forecast>, RunError> {
    let behind = pace::tolerance(runner.record.plan().protocol.duration.as_secs_f64());
    if forecast::forecast(steps, &[], behind).is_none() {
        return Ok(None);
    }
    let (clip, mut unpaced) = (clip(runner, last)?, Vec::new());
    runner.display.set_step("encoding without pace, for the forecast");
    for _ in 0..UNPACED {
        match runner.measure_unpaced(last, &clip, context)? {
            _ if stop_requested() => return Err(stopped_error()),
            Ok(repeat) => {
                let all = Duration::from_micros(repeat.progress.media_us).as_secs_f64();
                unpaced.extend(Step::of(&repeat, last.axes.streams, all / f64::from(last.axes.streams)));
            }
            Err(why) => {
                runner.display.log(&format!("  warning the forecast is from paced streams only: {why}"));
                break;
            }
        }
    }
    Ok(forecast::forecast(steps, &unpaced, behind))
}

/// A number of streams, up to `most`.
fn whole(streams: f64, most: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and a count")]
    let whole = streams.clamp(0.0, f64::from(most)) as u32;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolation_converges_to_the_smallest_rate() {
        // VMAF as a function of the bit rate, with the usual shape.
        let vmaf = |kilobits: u32| 100.0 - 4000.0 / f64::from(kilobits);
        let (mut below, mut above) = ((100, vmaf(100)), (20_000, vmaf(20_000)));
        let mut steps = 0;
        while above.0 - below.0 > 1 && steps < MAX_STEPS {
            let next = interpolate(below, above, 93.0);
            assert!(below.0 < next && next < above.0);
            if vmaf(next) >= 93.0 {
                above = (next, vmaf(next));
            } else {
                below = (next, vmaf(next));
            }
            steps += 1;
        }
        assert!(above.1 >= 93.0 && above.1 < 93.5, "{above:?} after {steps}");
    }
}
