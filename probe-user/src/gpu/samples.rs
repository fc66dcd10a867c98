//! Engine time by process on NVIDIA GPUs, from the driver's utilization samples: the time that each
//! sample covers, which samples are invalid, and whether all active processes were reported.
//! Free of side effects except that it reads the wall clock, which the driver's timestamps use.

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    device::{ProcessUsage, Session},
    engines::{ENGINES, Engine, EngineTimes},
};

/// Maximum number of processes per device; the usage of others is unattributed.
pub(super) const MAX_PROCESSES: usize = 1024;
/// Longest sampling period of the driver: "may be between 1 second and 1/6 second, depending on the
/// product" (nvml.h, nvmlUtilization_t).
const PERIOD_US: u64 = 1_000_000;
/// Age up to which samples are requested.
const LOOKBACK_US: u64 = 3 * PERIOD_US;
/// After this time without a sample, a process is treated as new.
const EXPIRY_US: u64 = 60 * PERIOD_US;
/// A sample with a later timestamp than this uses another clock.
const MAX_CLOCK_SKEW_US: u64 = 1_000_000;

/// Utilization of one process in one sampling period of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UtilizationSample {
    pub(super) pid: u32,
    /// End of the period, microseconds of the wall clock.
    pub(super) at_us: u64,
    /// Utilization of SM, memory, encoder, decoder, JPEG and OFA.
    pub(super) percent: [u32; 6],
}

/// The samples of one device, by process: in one answer of the driver, the timestamps of processes
/// may differ by a second or more (Syllo/nvtop#110).
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// Samples up to this time, in microseconds of the wall clock, are from before the start.
    start_us: u64,
    /// Timestamp of the newest counted sample of each process.
    last: HashMap<u32, u64>,
    /// Processes reported since usage was last complete.
    reported: HashSet<u32>,
    /// Time since which usage is incomplete.
    incomplete_since: Option<Instant>,
    /// Dropped samples: stale, impossible, and of processes over the limit.
    pub(super) dropped: [u64; 3],
}

impl Samples {
    /// Starts counting now.
    pub(super) fn start() -> Self {
        Self { start_us: unix_us(), ..Self::default() }
    }

    /// Restarts after a loss: usage during the loss stays unattributed.
    pub(super) fn restart(&mut self) {
        *self = Self { dropped: self.dropped, ..Self::start() };
    }

    /// Time since which to request samples: somewhat in the past, because the newest sample of one
    /// process may be older than that of another.
    pub(super) fn since_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(LOOKBACK_US).max(self.start_us)
    }

    /// Adds up the engine time of each process: utilization times the time that a sample covers.
    /// This time starts at the process's previous sample, or one sampling period earlier for a
    /// process without one. `span` is the time since the last poll.
    ///
    /// The driver's buffer may contain old and absurd samples (Syllo/nvtop#91, #110). Samples that
    /// are older than requested, not newer than the process's last one, above 100 % or in the
    /// future are dropped and counted.
    pub(super) fn fold(&mut self, samples: &[UtilizationSample], now_us: u64, span: Duration) -> Vec<ProcessUsage> {
        let span_us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        // After the clock was set back, new samples must not count as old.
        if self.start_us > now_us.saturating_add(MAX_CLOCK_SKEW_US) {
            self.start_us = now_us;
        }
        self.last
            .retain(|_, at| *at <= now_us.saturating_add(MAX_CLOCK_SKEW_US) && at.saturating_add(EXPIRY_US) > now_us);
        let since_us = self.since_us(now_us);
        let mut valid = Vec::new();
        for sample in samples {
            let last = self.last.get(&sample.pid).copied();
            let impossible = sample.pid == 0
                || sample.at_us > now_us.saturating_add(MAX_CLOCK_SKEW_US)
                || sample.percent.iter().any(|percent| *percent > 100);
            if impossible {
                self.dropped[1] += 1;
            } else if sample.at_us <= since_us || last.is_some_and(|last| sample.at_us < last) {
                self.dropped[0] += 1;
            } else if last != Some(sample.at_us) {
                valid.push(*sample);
            }
        }
        valid.sort_unstable_by_key(|sample| sample.at_us);
        let mut uses: BTreeMap<u32, ProcessUsage> = BTreeMap::new();
        for sample in valid {
            let room = uses.len() < MAX_PROCESSES;
            let used = match uses.entry(sample.pid) {
                Entry::Vacant(_) if !room => {
                    self.dropped[2] += 1;
                    continue;
                }
                entry => entry.or_insert(usage(sample.pid, [0; ENGINES], 0)),
            };
            let (start_us, max_us) = match self.last.insert(sample.pid, sample.at_us) {
                Some(last) => (last, span_us.saturating_add(2 * PERIOD_US)),
                None => (self.start_us, span_us.min(PERIOD_US)),
            };
            let ns = (sample.at_us - start_us.min(sample.at_us)).min(max_us).saturating_mul(1000);
            used.at_us = sample.at_us;
            for (engine, percent) in used.times.iter_mut().zip(sample.percent) {
                *engine = engine.saturating_add(ns / 100 * u64::from(percent));
            }
            self.reported.insert(sample.pid);
        }
        uses.into_values().filter(|used| used.times.iter().any(|ns| *ns > 0)).collect()
    }

    /// Whether all recently active processes were reported, so that energy can be attributed.
    /// Otherwise the energy of a tick would go to the process whose sample arrives first. Missing
    /// processes are awaited for at most two periods.
    pub(super) fn is_complete(&mut self, busy: bool, now: Instant, now_us: u64) -> bool {
        let active = |at: &u64| at.saturating_add(2 * PERIOD_US) > now_us;
        let mut missing = self.last.iter().filter(|(pid, at)| active(at) && !self.reported.contains(pid));
        let complete = !busy || !self.reported.is_empty() && missing.next().is_none();
        let since = *self.incomplete_since.get_or_insert(now);
        if !complete && now.duration_since(since) < Duration::from_micros(2 * PERIOD_US) {
            return false;
        }
        (self.incomplete_since, self.reported) = (None, HashSet::new());
        true
    }
}

/// Fallback without utilization samples by process: divides the encoder's busy time among encoder
/// sessions in proportion to their pixel rate.
pub(super) fn usage_by_sessions(
    uses: &mut Vec<ProcessUsage>,
    sessions: &[Session],
    encoding: f64,
    span: Duration,
    at_us: u64,
) {
    let encoder = Engine::Encoder.index();
    let pixels: u64 = sessions.iter().map(Session::pixels).sum();
    if encoding <= 0.0 || pixels == 0 {
        return;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a percentage")]
    let percent = (encoding * 100.0).round() as u64;
    let busy_ns = u64::try_from(span.as_nanos() / 100).unwrap_or(u64::MAX).saturating_mul(percent);
    for session in sessions {
        let part = u128::from(busy_ns) * u128::from(session.pixels()) / u128::from(pixels);
        let ns = u64::try_from(part).unwrap_or(u64::MAX);
        match uses.iter_mut().find(|used| used.pid == session.pid) {
            Some(used) => used.times[encoder] = used.times[encoder].saturating_add(ns),
            None if ns > 0 => {
                let mut times = [0; ENGINES];
                times[encoder] = ns;
                uses.push(usage(session.pid, times, at_us));
            }
            None => {}
        }
    }
}

/// Engine time of one process.
fn usage(pid: u32, times: EngineTimes, at_us: u64) -> ProcessUsage {
    ProcessUsage { pid, shared_with: Vec::new(), times, at_us }
}

/// Microseconds of the wall clock, which the driver's timestamps use.
pub(super) fn unix_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000_000_000;

    fn sample(pid: u32, at_us: u64, encoder: u32) -> UtilizationSample {
        UtilizationSample { pid, at_us, percent: [0, 0, encoder, 0, 0, 0] }
    }

    fn encoder_ns(uses: &[ProcessUsage], pid: u32) -> u64 {
        uses.iter().find(|used| used.pid == pid).map_or(0, |used| used.times[Engine::Encoder.index()])
    }

    fn samples(start_us: u64) -> Samples {
        Samples { start_us, ..Samples::default() }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn sample_covers_time_since_previous_sample() {
        let mut state = samples(NOW - 1_000_000);
        let both = [sample(7, NOW - 400_000, 50), sample(7, NOW, 100), sample(8, NOW, 10)];
        let uses = state.fold(&both, NOW, SECOND);
        // 0.6 s at half, 0.4 s at full; 1 s at a tenth.
        assert_eq!((encoder_ns(&uses, 7), encoder_ns(&uses, 8)), (700_000_000, 100_000_000));
        // Samples that the driver returns again count only once.
        assert_eq!((state.fold(&both[1..], NOW, SECOND), state.dropped), (vec![], [0, 0, 0]));
    }

    #[test]
    fn samples_older_than_requested_are_dropped() {
        let mut state = samples(NOW - 20_000_000);
        // The driver keeps returning samples of unknown and expired processes.
        let uses = state.fold(&[sample(1, NOW - 8_000_000, 50), sample(7, NOW - 100_000, 50)], NOW, SECOND);
        assert_eq!((encoder_ns(&uses, 1), encoder_ns(&uses, 7), state.dropped), (0, 500_000_000, [1, 0, 0]));
    }

    #[test]
    fn each_process_has_its_own_sample_times() {
        // Two processes with the same usage, whose samples come half a second apart; one of them is
        // only in every other answer.
        let mut state = samples(NOW);
        let (mut sums, mut now) = ([0, 0], NOW);
        for second in 1..=20 {
            now = NOW + second * 1_000_000;
            let mut answer = vec![sample(1, now - 100_000, 40)];
            if second % 2 == 0 {
                answer.push(sample(2, now - 600_000, 40));
            }
            let uses = state.fold(&answer, now, SECOND);
            sums = [sums[0] + encoder_ns(&uses, 1), sums[1] + encoder_ns(&uses, 2)];
        }
        let expected = |at: u64| (at - NOW) * 1000 / 100 * 40;
        assert_eq!(sums[0], expected(now - 100_000));
        // The usage of the slower process before its first sample counts for one period.
        assert_eq!(sums[1], expected(now - 600_000) - 160_000_000);
        assert_eq!(state.dropped, [0, 0, 0]);
    }

    #[test]
    fn complete_when_all_active_processes_reported_or_timeout() {
        let mut state = samples(NOW);
        let start = Instant::now();
        let tick = |number: u64| (NOW + number * 200_000, start + Duration::from_millis(200 * number));
        let mut complete = Vec::new();
        for number in 1..=20 {
            let (now_us, now) = tick(number);
            // Samples with a period of one second, in ticks of 200 ms.
            let answer: Vec<UtilizationSample> = match number % 5 {
                0 => vec![sample(1, now_us, 30)],
                2 => vec![sample(2, now_us, 30)],
                _ => vec![],
            };
            state.fold(&answer, now_us, Duration::from_millis(200));
            if state.is_complete(true, now, now_us) {
                complete.push(number);
            }
        }
        assert_eq!(complete, [2, 7, 12, 17], "when the slower process is reported");
        // A missing process is awaited for at most two periods, and not at all if the GPU is idle.
        let (now_us, now) = tick(21);
        assert!(!state.is_complete(true, now, now_us) && state.is_complete(true, now + 2 * SECOND, now_us + 2_000_000));
        assert!(state.is_complete(false, now + 2 * SECOND, now_us + 2_000_000));
    }

    #[test]
    fn loss_or_clock_change_does_not_extend_a_sample() {
        let mut state = samples(NOW);
        state.fold(&[sample(7, NOW + 1, 50)], NOW + 1, SECOND);
        // An hour ahead.
        let later = NOW + 3_600_000_000;
        assert_eq!(encoder_ns(&state.fold(&[sample(7, later, 50)], later, SECOND), 7), 500_000_000);
        // And back again.
        let uses = state.fold(&[sample(7, NOW + 2_000_000, 50)], NOW + 2_000_000, SECOND);
        assert_eq!(encoder_ns(&uses, 7), 500_000_000);
        state.restart();
        assert_eq!(state.fold(&[sample(7, NOW, 50)], unix_us(), SECOND), [], "before the loss");
    }

    #[test]
    fn stale_and_impossible_samples_are_dropped() {
        let mut state = samples(NOW - 500_000);
        let bad = [
            sample(7, NOW - 500_000, 50),
            sample(7, NOW - 600_000, 50),
            sample(8, NOW, 101),
            sample(0, NOW, 5),
            sample(9, NOW + 2_000_000, 5),
        ];
        assert_eq!((state.fold(&bad, NOW, SECOND), state.dropped), (vec![], [2, 3, 0]));
    }

    #[test]
    fn processes_over_limit_are_counted() {
        let mut state = samples(NOW - 1_000_000);
        let max = u32::try_from(MAX_PROCESSES).unwrap();
        let all: Vec<UtilizationSample> = (1..=max + 1).map(|pid| sample(pid, NOW, 1)).collect();
        assert_eq!(state.fold(&all, NOW, SECOND).len(), MAX_PROCESSES);
        assert_eq!(state.dropped, [0, 0, 1]);
    }

    #[test]
    fn encoder_time_is_divided_by_pixel_rate_of_sessions() {
        let session = |pid, width, fps| Session { pid, codec: "h264", width, height: 1000, fps, latency_us: 0 };
        let sessions = [session(1, 3000, 30), session(2, 1000, 30), session(1, 0, 30)];
        let mut uses = Vec::new();
        usage_by_sessions(&mut uses, &sessions, 0.4, SECOND, NOW);
        assert_eq!((encoder_ns(&uses, 1), encoder_ns(&uses, 2)), (300_000_000, 100_000_000));
    }

    proptest! {
        /// For any samples, no process uses an engine for longer than the time that passed.
        #[test]
        fn engine_time_never_exceeds_elapsed_time(
            samples in prop::collection::vec((0u32..5, 0u64..3_000_000, prop::array::uniform6(0u32..120)), 0..60),
        ) {
            let samples: Vec<UtilizationSample> =
                samples.into_iter().map(|(pid, back, percent)| UtilizationSample { pid, at_us: NOW + 500_000 - back, percent }).collect();
            let start = NOW - 1_000_000;
            let mut state = self::samples(start);
            let count = samples.len();
            let uses = state.fold(&samples, NOW, SECOND);
            for used in &uses {
                prop_assert!(used.times.iter().all(|ns| *ns <= (used.at_us - start) * 1000), "{used:?}");
            }
            prop_assert!(usize::try_from(state.dropped.iter().sum::<u64>()).unwrap() <= count);
        }
    }
}
