//! Idle power of the host before each block, and the warm-up before the first block.

use std::{
    fs,
    num::NonZero,
    thread,
    time::{Duration, Instant},
};

use statistics::{mean, standard_deviation};

use super::{
    calibration::roots_without_idle,
    context::{RunContext, Runner, new_repeat, stopped_error},
    error::{Exit, RepeatError, RunError},
    journal::{Baseline, Event, WarmUp},
    plan::{Configuration, Mode},
    process::EncoderError,
    signals::{interruptible_sleep, stop_requested},
    source::Clip,
};

/// Shortest part of a baseline: a counter that is updated once per millisecond is then exact to 0.1
/// %.
const MIN_PART: Duration = Duration::from_secs(1);
/// Relative difference in power of two encodes below which the machine counts as warm.
const STABLE: f64 = 0.03;
/// Relative difference from the first baseline above which drift is reported, unless the noise is
/// larger.
const DRIFT: f64 = 0.05;

/// The measured power of the host without load.
struct IdlePower {
    /// Total length.
    seconds: f64,
    /// Mean power of each part.
    watts: Vec<f64>,
    source: String,
    /// Accounting roots whose idle power the probe does not know.
    unknown: Vec<String>,
}

impl Runner<'_> {
    /// Measures the idle power of the host before a block, in several parts, and compares it with
    /// the first baseline.
    ///
    /// # Errors
    /// When the probe fails, or a stop is requested.
    pub(super) fn measure_baseline(&mut self, block: u32) -> Result<(), RunError> {
        let length = self.record.plan().protocol.baseline;
        if length.is_zero() || self.record.baselines.iter().any(|known| known.block == block) {
            return Ok(());
        }
        self.display.set_step("measuring idle power");
        match self.known_idle_power(length) {
            Ok(IdlePower { seconds, watts, source, unknown }) => {
                let mut notes: Vec<String> = self.drift(&watts).into_iter().collect();
                if !unknown.is_empty() {
                    notes.push(format!(
                        "the probe does not know the idle power of {}: the energy of containers includes a part of it, \
                         and is not comparable with that of runs where it is known",
                        unknown.join(", ")
                    ));
                }
                let note = notes.join("; ");
                if !note.is_empty() {
                    self.display.log(&format!("  warning baseline of block {block}: {note}"));
                }
                self.add_event(Event::Baseline(Baseline { block, seconds, watts, source, note }))
            }
            Err(_) if stop_requested() => Err(stopped_error()),
            Err(why) => Err(RunError::new(
                Exit::Partial,
                format!("cannot measure idle power: {why}. Continue with: wattcast-analysis run --resume"),
            )),
        }
    }

    /// The idle power. Before the first block the probe is made to find its own, if it has not yet.
    fn known_idle_power(&self, length: Duration) -> Result<IdlePower, RepeatError> {
        let idle = self.idle_power(length)?;
        // The probe needs three different loads, which one CPU does not have.
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        if idle.unknown.is_empty() || !self.record.baselines.is_empty() || cpus < 2 {
            return Ok(idle);
        }
        self.display.log(&format!(
            "  note    the probe does not know the idle power of {} yet; loading the machine in steps for up to a minute \
             and a half, so that all repeats are comparable (--baseline 0 leaves this out)",
            idle.unknown.join(", ")
        ));
        self.display.set_step("letting the probe find the idle power");
        let unknown = self.calibrate_idle()?;
        self.display.set_step("measuring idle power");
        Ok(IdlePower { unknown, ..self.idle_power(length)? })
    }

    fn idle_power(&self, length: Duration) -> Result<IdlePower, RepeatError> {
        let parts = u32::try_from((length.as_millis() / MIN_PART.as_millis()).clamp(1, 10)).unwrap_or(1);
        let begin = self.probe.mark()?;
        let (mut from, mut watts, mut source, mut unknown) = (begin, Vec::new(), String::new(), Vec::new());
        for _ in 0..parts {
            if !interruptible_sleep(length / parts) {
                return Err(RepeatError::Encoder(EncoderError::Stopped));
            }
            let to = self.probe.mark()?;
            let response = self.probe.window_response(from, to)?;
            let joules: f64 = response.check_complete()?.accounts.iter().map(|account| account.measured_joules).sum();
            let mut sources: Vec<&str> = response.accounts.iter().map(|account| &*account.source).collect();
            sources.dedup();
            source = sources.join("+");
            unknown = roots_without_idle(&response);
            watts.push(joules / (to - from));
            from = to;
        }
        Ok(IdlePower { seconds: from - begin, watts, source, unknown })
    }

    /// A remark if idle power differs from the first baseline by more than noise.
    fn drift(&self, watts: &[f64]) -> Option<String> {
        let first = self.record.baselines.first()?;
        let (before, now) = (mean(&first.watts)?, mean(watts)?);
        let standard_error = |values: &[f64]| {
            let count = f64::from(u32::try_from(values.len()).unwrap_or(u32::MAX));
            standard_deviation(values).map_or(0.0, |deviation| deviation / count.sqrt())
        };
        let noise = standard_error(&first.watts).hypot(standard_error(watts));
        let difference = now - before;
        (difference.abs() > (DRIFT * before).max(3.0 * noise)).then(|| {
            format!(
                "idle power is {now:.2} W, {difference:+.2} W from the first block: the load of the host has changed"
            )
        })
    }

    /// Longest duration of the warm-up. Live streams settle in each repeat instead.
    pub(super) fn max_warm_up(&self) -> Duration {
        if self.record.plan().mode == Mode::Rtmp { Duration::ZERO } else { self.record.plan().protocol.stabilization }
    }

    /// Encodes the first configuration, unrecorded, until the power of two consecutive encodes is
    /// equal.
    pub(super) fn warm_up(
        &mut self,
        configuration: &Configuration,
        clip: &Clip,
        context: &mut RunContext,
    ) -> Result<(), RunError> {
        let limit = self.max_warm_up();
        if limit.is_zero() {
            return Ok(());
        }
        self.display.set_step("warming up");
        let (began, mut watts, mut flat) = (Instant::now(), Vec::<f64>::new(), false);
        while !flat && (watts.is_empty() || began.elapsed() < limit) {
            match self.encode_power(configuration, clip, context)? {
                Ok(power) => watts.push(power),
                Err(_) if stop_requested() => return Err(stopped_error()),
                // A measured repeat will fail for the same reason and record it.
                Err(why) => {
                    self.display.log(&format!("  warning warm-up: {why}"));
                    break;
                }
            }
            flat = watts.len() > 1 && (watts[watts.len() - 1] / watts[watts.len() - 2] - 1.0).abs() < STABLE;
        }
        if watts.len() == 1 {
            self.display.log(
                "  note    warm-up: one encode took longer than --stabilization; whether power is stable is unknown",
            );
        } else if !flat && watts.len() > 1 {
            let seconds = began.elapsed().as_secs_f64();
            self.display.log(&format!(
                "  warning warm-up: power was not stable within {STABLE} after {seconds:.0} s; check baselines and intervals"
            ));
        }
        self.add_event(Event::WarmUp(WarmUp { watts, flat }))
    }

    /// Mean power of one unrecorded encode in watts.
    fn encode_power(
        &self,
        configuration: &Configuration,
        clip: &Clip,
        context: &RunContext,
    ) -> Result<Result<f64, RepeatError>, RunError> {
        let outputs = self.output_files(configuration, 0)?;
        let mut unrecorded = new_repeat(configuration, 0, 0, "ok", "");
        let realtime = self.record.plan().realtime;
        let encoded = self.measure_files(configuration, clip, context, &outputs, realtime, &mut unrecorded);
        let power = encoded.and_then(|_| {
            let window = unrecorded.window.ok_or_else(|| RepeatError::Other("no window".to_owned()))?;
            let response = self.probe.window_response(window.start, window.end)?;
            let joules: f64 = response.check_complete()?.accounts.iter().map(|account| account.measured_joules).sum();
            Ok(joules / window.seconds())
        });
        for output in &outputs {
            let _ = fs::remove_file(output);
        }
        Ok(power)
    }
}
