//! Streams that are measured while they run next to each other, and then stopped: what they use is
//! free of their starts and ends, and whether they keep up with real time is seen in between.

use std::{
    fs,
    num::NonZero,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use statistics::mean;

use super::{
    context::{RunContext, Runner, new_repeat},
    error::{RepeatError, RunError},
    forecast::{host_busy_seconds, host_use},
    journal::{Repeat, Window},
    measure::{Encoded, media, progress_since, total_progress},
    pace::{Lag, Pace},
    plan::Configuration,
    process::{Process, wait_all},
    sampler::PowerSampler,
    source::Clip,
    tool::Input,
};

/// Longest time that a start is waited for until the next one.
const START_LIMIT: Duration = Duration::from_secs(1);
/// Interval in seconds in which streams that catch up are followed.
const SETTLE_STEP: f64 = 1.0;
/// Part of it by which streams that catch up gain on the clock, at least.
const GAIN: f64 = 0.02;

/// Waits for streams that run until a condition holds, or fails.
pub(super) type Wait<'a> =
    dyn FnMut(&mut [Process], &mut dyn FnMut(&[Process]) -> bool) -> Result<(), RepeatError> + 'a;

impl Runner<'_> {
    /// Encodes with all streams and measures for `duration` once all run, in real time or as fast
    /// as they can. Their output is incomplete.
    pub(super) fn measure_steady(
        &self,
        configuration: &Configuration,
        clip: &Clip,
        context: &RunContext,
        outputs: &[PathBuf],
        realtime: bool,
        repeat: &mut Repeat,
    ) -> Result<Encoded, RepeatError> {
        let source = self.dir.join(&clip.file);
        let input = if realtime { Input::RealTime(&source) } else { Input::File(&source) };
        let commands = self.file_commands(configuration, &input, f64::INFINITY, outputs);
        repeat.argv = self.displayed_command(commands.first());
        let mut running = Vec::new();
        let measured = self
            .start_steady(&commands, context, &mut running)
            .and_then(|()| self.measure_running(configuration, &mut running, realtime, repeat))
            .map(|()| Encoded::new(&running, &context.env));
        // All at once: those that are stopped last would take their time.
        running.iter_mut().for_each(Process::kill);
        measured
    }

    /// Starts the streams, as many at a time as there are CPUs, and waits until all have output. A
    /// start takes more CPU time than seconds of a stream in real time, and all starts at once
    /// would leave a backlog that lasts longer than the measurement.
    fn start_steady(
        &self,
        commands: &[Vec<String>],
        context: &RunContext,
        running: &mut Vec<Process>,
    ) -> Result<(), RepeatError> {
        let stall = self.record.plan().protocol.stall;
        let at_a_time = thread::available_parallelism().map_or(1, NonZero::get);
        for args in commands {
            let waiting = Instant::now();
            wait_running(running, stall, &mut |all| {
                let starting = all.iter().filter(|process| !process.has_begun()).count();
                starting < at_a_time || waiting.elapsed() >= START_LIMIT
            })?;
            running.push(Process::spawn(&context.env, &self.ffmpeg.path, args)?);
        }
        wait_running(running, stall, &mut |all| media(all).all(|seconds| seconds > 0.0))
    }

    /// Measures streams that run.
    fn measure_running(
        &self,
        configuration: &Configuration,
        running: &mut [Process],
        realtime: bool,
        repeat: &mut Repeat,
    ) -> Result<(), RepeatError> {
        let plan = self.record.plan();
        let (stall, duration) = (plan.protocol.stall, plan.protocol.duration);
        // Streams without pace gain on the clock as long as they run.
        let mut settling = Settling::new(if realtime { duration.as_secs_f64() } else { SETTLE_STEP });
        let settled = Instant::now();
        wait_running(running, stall, &mut |all| settling.is_over(settled.elapsed().as_secs_f64(), media(all)))?;
        let (_, lag) = self.measure_window(configuration, running, repeat, &mut |running, until| {
            wait_running(running, stall, until)
        })?;
        // A Matroska file grows by clusters of up to 5 s: its growth is not what was encoded here.
        repeat.progress.bytes = 0;
        repeat.lag = lag.filter(|_| realtime);
        Ok(())
    }

    /// Measures a window of streams that run: marks, power, frames and the use of the host. Returns
    /// it with the lag of the streams. `wait` waits until a condition holds, or fails.
    pub(super) fn measure_window(
        &self,
        configuration: &Configuration,
        running: &mut [Process],
        repeat: &mut Repeat,
        wait: &mut Wait<'_>,
    ) -> Result<(Window, Option<Lag>), RepeatError> {
        let duration = self.record.plan().protocol.duration;
        let joules_per_frame = mean(&self.record.joules_per_frame(&configuration.id));
        // Read the frames and the host's use after each mark, so that they cover the same window.
        let start = self.probe.mark()?;
        let (first, busy, began) = (total_progress(running), host_busy_seconds(), Instant::now());
        let power = PowerSampler::start(self.probe);
        let mut pace = Pace::new(running.len(), duration.as_secs_f64());
        let waited = wait(running, &mut |all| {
            let elapsed = began.elapsed();
            pace.observe(elapsed.as_secs_f64(), media(all));
            let frames = progress_since(&first, &total_progress(all)).frames;
            self.display.show_encoders(&configuration.name, frames, began, power.latest(), joules_per_frame);
            elapsed >= duration
        });
        let end = self.probe.mark();
        let last = total_progress(running);
        repeat.host = host_use(busy, began.elapsed().as_secs_f64());
        repeat.watts = power.finish();
        repeat.progress = progress_since(&first, &last);
        waited?;
        let window = Window { start, end: end? };
        repeat.window = Some(window);
        Ok((window, pace.slowest()))
    }

    /// Measures all streams of a configuration as fast as they can, unrecorded: the CPU time of the
    /// encoders and of the host, or why they failed.
    ///
    /// # Errors
    /// When the run cannot continue.
    pub(super) fn measure_unpaced(
        &self,
        configuration: &Configuration,
        clip: &Clip,
        context: &RunContext,
    ) -> Result<Result<Repeat, RepeatError>, RunError> {
        let outputs = self.output_files(configuration, 0)?;
        let mut unrecorded = new_repeat(configuration, 0, 0, "ok", "");
        let encoded = self.measure_steady(configuration, clip, context, &outputs, false, &mut unrecorded);
        let known = encoded.and_then(|encoded| self.query_energy(&mut unrecorded, encoded.names()));
        for output in &outputs {
            let _ = fs::remove_file(output);
        }
        Ok(known.map(|()| unrecorded))
    }
}

/// Waits for streams that run until they are stopped, until `until` returns true or one has ended.
fn wait_running(
    running: &mut [Process],
    stall: Duration,
    until: &mut dyn FnMut(&[Process]) -> bool,
) -> Result<(), RepeatError> {
    wait_all(running, stall, &mut |all| !until(all) && !all.iter().any(Process::is_reaped))?;
    if running.iter_mut().any(|process| matches!(process.try_wait(), Ok(Some(_)))) {
        return Err(RepeatError::Other("an encoder ended before it was stopped".to_owned()));
    }
    Ok(())
}

/// Follows streams in real time until they have made up for their start, or no longer do.
#[derive(Debug)]
struct Settling {
    most: f64,
    /// Time and media of all streams at the last step.
    last: Option<(f64, f64)>,
}

impl Settling {
    /// `most` is the longest time in seconds.
    fn new(most: f64) -> Self {
        Self { most, last: None }
    }

    /// True from the first step in which the streams together did not gain on the clock.
    fn is_over(&mut self, at: f64, media: impl Iterator<Item = f64>) -> bool {
        let Some((time, before)) = self.last else {
            self.last = Some((at, media.sum()));
            return false;
        };
        if at - time < SETTLE_STEP {
            return at >= self.most;
        }
        let (count, now) = media.fold((0.0, 0.0), |(count, sum), seconds| (count + 1.0, sum + seconds));
        self.last = Some((at, now));
        now - before <= (at - time) * count * (1.0 + GAIN) || at >= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When streams are settled that run at a speed and have `late` seconds to make up for.
    fn settled(speed: f64, late: f64, most: f64) -> f64 {
        let mut settling = Settling::new(most);
        let mut at = 0.0;
        let media = |at: f64| (speed * at).min(at + late);
        while !settling.is_over(at, [media(at); 3].into_iter()) {
            at += 0.02;
            assert!(at < 100.0);
        }
        at
    }

    #[test]
    fn streams_are_settled_when_they_gain_no_more_on_the_clock() {
        assert!((1.0..1.1).contains(&settled(1.0, 0.0, 10.0)));
        assert!((1.0..1.1).contains(&settled(0.7, 0.0, 10.0)), "they lose real time");
        // Two seconds are made up for in four.
        assert!((4.9..6.1).contains(&settled(1.5, 2.0, 10.0)));
        assert!((3.0..3.1).contains(&settled(1.5, 20.0, 3.0)), "not longer than allowed");
    }
}
