//! Who used an NVIDIA GPU, from the driver's samples: how long each stands for, which cannot be believed, and whether all who are active have been
//! heard of. Pure but for the clock on the wall, which the driver stamps its samples with.

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    Session, Use,
    engines::{ENGINES, Engine},
};

/// Processes of one device that are looked at; the rest go without a name.
pub(super) const MAX_PROCESSES: usize = 1024;
/// The longest sampling period of the driver's: "may be between 1 second and 1/6 second, depending on the product" (nvml.h,
/// nvmlUtilization_t).
const PERIOD_US: u64 = 1_000_000;
/// How far back samples are asked for.
const ASKED_US: u64 = 3 * PERIOD_US;
/// A process of which nothing was heard for so long is met anew.
const FORGOTTEN_US: u64 = 60 * PERIOD_US;
/// A sample from further ahead than this is of another clock.
const AHEAD_US: u64 = 1_000_000;

/// One process in one sampling period of the driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) pid: u32,
    /// End of the period, microseconds of the wall clock.
    pub(super) at_us: u64,
    /// Of SM, memory, encoder, decoder, JPEG, OFA.
    pub(super) percent: [u32; 6],
}

/// The samples of one device, process by process: each has a clock of its own, a second or more from the others' in one answer of the driver
/// (Syllo/nvtop#110).
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// What is not after this, in microseconds of the wall clock, was before we looked.
    floor_us: u64,
    /// The newest sample of each process that was counted.
    last: HashMap<u32, u64>,
    /// Who has been heard of since all that were active had been.
    fresh: HashSet<u32>,
    /// Since when somebody is waited for.
    waits: Option<Instant>,
    /// Samples that were too old, that could not be true, and of processes that found no room.
    pub(super) dropped: [u64; 3],
}

impl Samples {
    /// Counts from now.
    pub(super) fn start() -> Self {
        Self { floor_us: unix_us(), ..Self::default() }
    }

    /// After a loss: what was used meanwhile is nobody's.
    pub(super) fn restart(&mut self) {
        *self = Self { dropped: self.dropped, ..Self::start() };
    }

    /// From when on to ask the driver: some time before now, for a process's newest sample may be older than another's.
    pub(super) fn since_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(ASKED_US).max(self.floor_us)
    }

    /// Adds up what each process used: percent of an engine times the time that a sample stands for, which begins at the process's sample before
    /// it, and for one that was silent a sampling period earlier. `span` is the time since the look before.
    ///
    /// The driver's buffer may hold old samples and absurd ones (Syllo/nvtop#91, #110): what is older than was asked for, what is not after the process's last, and
    /// what is more than an engine has or later than now, is dropped and counted.
    pub(super) fn fold(&mut self, samples: &[Sample], now_us: u64, span: Duration) -> Vec<Use> {
        let span_us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        // A clock that was set back must not make every sample to come an old one.
        if self.floor_us > now_us.saturating_add(AHEAD_US) {
            self.floor_us = now_us;
        }
        self.last.retain(|_, at| *at <= now_us.saturating_add(AHEAD_US) && at.saturating_add(FORGOTTEN_US) > now_us);
        let asked_us = self.since_us(now_us);
        let mut good = Vec::new();
        for sample in samples {
            let last = self.last.get(&sample.pid).copied();
            let impossible = sample.pid == 0
                || sample.at_us > now_us.saturating_add(AHEAD_US)
                || sample.percent.iter().any(|percent| *percent > 100);
            if impossible {
                self.dropped[1] += 1;
            } else if sample.at_us <= asked_us || last.is_some_and(|last| sample.at_us < last) {
                self.dropped[0] += 1;
            } else if last != Some(sample.at_us) {
                good.push(*sample);
            }
        }
        good.sort_unstable_by_key(|sample| sample.at_us);
        let mut uses: BTreeMap<u32, Use> = BTreeMap::new();
        for sample in good {
            let room = uses.len() < MAX_PROCESSES;
            let used = match uses.entry(sample.pid) {
                Entry::Vacant(_) if !room => {
                    self.dropped[2] += 1;
                    continue;
                }
                entry => entry.or_insert(Use { pid: sample.pid, times: [0; ENGINES], at_us: 0 }),
            };
            let (begun, longest) = match self.last.insert(sample.pid, sample.at_us) {
                Some(last) => (last, span_us.saturating_add(2 * PERIOD_US)),
                None => (self.floor_us, span_us.min(PERIOD_US)),
            };
            let ns = (sample.at_us - begun.min(sample.at_us)).min(longest).saturating_mul(1000);
            used.at_us = sample.at_us;
            for (engine, percent) in used.times.iter_mut().zip(sample.percent) {
                *engine = engine.saturating_add(ns / 100 * u64::from(percent));
            }
            self.fresh.insert(sample.pid);
        }
        uses.into_values().filter(|used| used.times.iter().any(|ns| *ns > 0)).collect()
    }

    /// True when everybody who was active lately has been heard of, so that joules can be shared: else all of a tick's would go to whoever's
    /// sample came first. Nobody is waited for longer than two periods.
    pub(super) fn settled(&mut self, busy: bool, now: Instant, now_us: u64) -> bool {
        let active = |at: &u64| at.saturating_add(2 * PERIOD_US) > now_us;
        let mut awaited = self.last.iter().filter(|(pid, at)| active(at) && !self.fresh.contains(pid));
        let heard = !busy || !self.fresh.is_empty() && awaited.next().is_none();
        let since = *self.waits.get_or_insert(now);
        if !heard && now.duration_since(since) < Duration::from_micros(2 * PERIOD_US) {
            return false;
        }
        (self.waits, self.fresh) = (None, HashSet::new());
        true
    }
}

/// Where the driver tells no use by process, the owners of encoder sessions share the time of the encoder, by the pixels that each delivers.
pub(super) fn by_sessions(uses: &mut Vec<Use>, sessions: &[Session], encoding: f64, span: Duration, at_us: u64) {
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
                uses.push(Use { pid: session.pid, times, at_us });
            }
            None => {}
        }
    }
}

/// Microseconds of the wall clock, which the driver stamps its samples with.
pub(super) fn unix_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000_000_000;

    fn sample(pid: u32, at_us: u64, encoder: u32) -> Sample {
        Sample { pid, at_us, percent: [0, 0, encoder, 0, 0, 0] }
    }

    fn encoder_ns(uses: &[Use], pid: u32) -> u64 {
        uses.iter().find(|used| used.pid == pid).map_or(0, |used| used.times[Engine::Encoder.index()])
    }

    fn samples(floor_us: u64) -> Samples {
        Samples { floor_us, ..Samples::default() }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_sample_stands_for_the_time_since_the_one_before_it() {
        let mut known = samples(NOW - 1_000_000);
        let both = [sample(7, NOW - 400_000, 50), sample(7, NOW, 100), sample(8, NOW, 10)];
        let uses = known.fold(&both, NOW, SECOND);
        // 0.6 s at half, 0.4 s at full; 1 s at a tenth.
        assert_eq!((encoder_ns(&uses, 7), encoder_ns(&uses, 8)), (700_000_000, 100_000_000));
        // The driver gives them again, and they count once.
        assert_eq!((known.fold(&both[1..], NOW, SECOND), known.dropped), (vec![], [0, 0, 0]));
    }

    #[test]
    fn what_is_older_than_was_asked_for_is_nobodys_however_long_we_run() {
        let mut known = samples(NOW - 20_000_000);
        // Of one who is not known, and of one who was forgotten: the driver's buffer goes on giving it.
        let uses = known.fold(&[sample(1, NOW - 8_000_000, 50), sample(7, NOW - 100_000, 50)], NOW, SECOND);
        assert_eq!((encoder_ns(&uses, 1), encoder_ns(&uses, 7), known.dropped), (0, 500_000_000, [1, 0, 0]));
    }

    #[test]
    fn each_process_has_a_clock_of_its_own() {
        // Two that use the same, whose samples come half a second apart, and one of them only in every other answer.
        let mut known = samples(NOW);
        let (mut sums, mut now) = ([0, 0], NOW);
        for second in 1..=20 {
            now = NOW + second * 1_000_000;
            let mut answer = vec![sample(1, now - 100_000, 40)];
            if second % 2 == 0 {
                answer.push(sample(2, now - 600_000, 40));
            }
            let uses = known.fold(&answer, now, SECOND);
            sums = [sums[0] + encoder_ns(&uses, 1), sums[1] + encoder_ns(&uses, 2)];
        }
        let expected = |at: u64| (at - NOW) * 1000 / 100 * 40;
        assert_eq!(sums[0], expected(now - 100_000));
        // What the slower one did before its first sample counts for one period.
        assert_eq!(sums[1], expected(now - 600_000) - 160_000_000);
        assert_eq!(known.dropped, [0, 0, 0]);
    }

    #[test]
    fn joules_wait_until_all_who_are_active_were_heard_of_and_not_for_ever() {
        let mut known = samples(NOW);
        let start = Instant::now();
        let tick = |number: u64| (NOW + number * 200_000, start + Duration::from_millis(200 * number));
        let mut settled = Vec::new();
        for number in 1..=20 {
            let (now_us, now) = tick(number);
            // Samples of a second's period, in ticks of a fifth.
            let answer: Vec<Sample> = match number % 5 {
                0 => vec![sample(1, now_us, 30)],
                2 => vec![sample(2, now_us, 30)],
                _ => vec![],
            };
            known.fold(&answer, now_us, Duration::from_millis(200));
            if known.settled(true, now, now_us) {
                settled.push(number);
            }
        }
        assert_eq!(settled, [2, 7, 12, 17], "when the slower of both was heard of");
        // One that is silent is not waited for longer than two periods; and at rest nobody is.
        let (now_us, now) = tick(21);
        assert!(!known.settled(true, now, now_us) && known.settled(true, now + 2 * SECOND, now_us + 2_000_000));
        assert!(known.settled(false, now + 2 * SECOND, now_us + 2_000_000));
    }

    #[test]
    fn neither_a_loss_nor_a_clock_that_is_set_makes_a_sample_stand_for_longer_than_there_was() {
        let mut known = samples(NOW);
        known.fold(&[sample(7, NOW + 1, 50)], NOW + 1, SECOND);
        // An hour ahead.
        let later = NOW + 3_600_000_000;
        assert_eq!(encoder_ns(&known.fold(&[sample(7, later, 50)], later, SECOND), 7), 500_000_000);
        // And back again.
        let uses = known.fold(&[sample(7, NOW + 2_000_000, 50)], NOW + 2_000_000, SECOND);
        assert_eq!(encoder_ns(&uses, 7), 500_000_000);
        known.restart();
        assert_eq!(known.fold(&[sample(7, NOW, 50)], unix_us(), SECOND), [], "before the loss");
    }

    #[test]
    fn what_is_old_is_dropped_and_so_is_what_cannot_be() {
        let mut known = samples(NOW - 500_000);
        let bad = [
            sample(7, NOW - 500_000, 50),
            sample(7, NOW - 600_000, 50),
            sample(8, NOW, 101),
            sample(0, NOW, 5),
            sample(9, NOW + 2_000_000, 5),
        ];
        assert_eq!((known.fold(&bad, NOW, SECOND), known.dropped), (vec![], [2, 3, 0]));
    }

    #[test]
    fn who_finds_no_room_is_counted() {
        let mut known = samples(NOW - 1_000_000);
        let most = u32::try_from(MAX_PROCESSES).unwrap();
        let all: Vec<Sample> = (1..=most + 1).map(|pid| sample(pid, NOW, 1)).collect();
        assert_eq!(known.fold(&all, NOW, SECOND).len(), MAX_PROCESSES);
        assert_eq!(known.dropped, [0, 0, 1]);
    }

    #[test]
    fn where_no_samples_are_told_the_encoder_is_shared_by_the_pixels_of_its_sessions() {
        let session = |pid, width, fps| Session { pid, codec: "h264", width, height: 1000, fps, latency_us: 0 };
        let sessions = [session(1, 3000, 30), session(2, 1000, 30), session(1, 0, 30)];
        let mut uses = Vec::new();
        by_sessions(&mut uses, &sessions, 0.4, SECOND, NOW);
        assert_eq!((encoder_ns(&uses, 1), encoder_ns(&uses, 2)), (300_000_000, 100_000_000));
    }

    proptest! {
        /// Whatever the driver's buffer holds, nobody used an engine for longer than there was time.
        #[test]
        fn nobody_uses_an_engine_longer_than_there_was_time(
            samples in prop::collection::vec((0u32..5, 0u64..3_000_000, prop::array::uniform6(0u32..120)), 0..60),
        ) {
            let samples: Vec<Sample> =
                samples.into_iter().map(|(pid, back, percent)| Sample { pid, at_us: NOW + 500_000 - back, percent }).collect();
            let floor = NOW - 1_000_000;
            let mut known = self::samples(floor);
            let count = samples.len();
            let uses = known.fold(&samples, NOW, SECOND);
            for used in &uses {
                prop_assert!(used.times.iter().all(|ns| *ns <= (used.at_us - floor) * 1000), "{used:?}");
            }
            prop_assert!(usize::try_from(known.dropped.iter().sum::<u64>()).unwrap() <= count);
        }
    }
}
