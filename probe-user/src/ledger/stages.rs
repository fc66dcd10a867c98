//! CPU time and energy of streams by stage.
//!
//! The time of a job is that of its process. The times of its threads, by part, are read a little
//! later, so at every tick the job's time is divided among its parts in proportion to what each has
//! run and not been assigned yet; over a few ticks every part gets what it ran. What no thread
//! accounts for is in the part `other`. So the parts always sum to the job.
//!
//! A part of one output belongs to the stream of that output. A part of all outputs, such as the
//! decoder, is divided among the streams by what their encoders ran in the same tick, and by their
//! weights while no encoder is known. The encoders behind one filter graph of `-filter_complex`
//! cannot be distinguished; they too are divided by the weights.

mod continued;

use std::collections::BTreeMap;

pub(crate) use continued::SavedStages;
use units::Microjoules;

use super::split::divide;
use crate::{
    energy::zone::Origin,
    jobs::stage::{Stage, StagePart, StageTimes},
};

/// A part of a stream of a job: the stream's index.
pub(super) type StreamPart = (usize, StagePart);

/// The parts of one job.
#[derive(Clone, Debug, Default)]
struct JobParts {
    /// CPU time of the threads of each part, as read last.
    read: BTreeMap<StagePart, u64>,
    /// CPU time of the job that was assigned to each part.
    assigned: BTreeMap<StagePart, u64>,
    /// CPU time of the encoders of each stream.
    encoded: Vec<u64>,
    /// CPU time since the last split of each root.
    since_split: Vec<BTreeMap<StreamPart, u64>>,
}

impl JobParts {
    /// True when the encoders of all outputs are known.
    fn by_output(&self) -> bool {
        let encodes = |part: &StagePart| matches!(part.stage, Stage::Encode | Stage::Audio);
        let shared = [Stage::Filter, Stage::Encode].map(StagePart::common);
        self.read.keys().any(|part| encodes(part) && part.output.is_some())
            && !shared.iter().any(|part| self.read.contains_key(part))
    }

    /// Divides `grown` nanoseconds of the job among its parts.
    fn assign(&mut self, grown: u64) -> BTreeMap<StagePart, u64> {
        let assigned = |part: &StagePart| self.assigned.get(part).copied().unwrap_or(0);
        let waiting: Vec<(StagePart, u64)> =
            self.read.iter().map(|(part, ns)| (*part, ns.saturating_sub(assigned(part)))).collect();
        let sum = waiting.iter().fold(0, |sum: u64, (_, ns)| sum.saturating_add(*ns));
        let given = if sum > grown { divide(grown, &waiting) } else { waiting };
        let mut parts: BTreeMap<StagePart, u64> = given.into_iter().collect();
        *parts.entry(StagePart::OTHER).or_default() += grown.saturating_sub(sum);
        parts.retain(|_, ns| *ns > 0);
        for (part, ns) in &parts {
            let sum = self.assigned.entry(*part).or_default();
            *sum = sum.saturating_add(*ns);
        }
        parts
    }

    /// Divides `grown` nanoseconds of the job among its streams, which have these weights.
    /// `owners` is the stream of each output.
    fn advance(&mut self, grown: u64, weights: &[u64], owners: &[usize]) -> BTreeMap<StreamPart, u64> {
        let mut all: BTreeMap<StreamPart, u64> = BTreeMap::new();
        let (mut encoded, mut common) = (vec![0u64; weights.len()], Vec::new());
        for (part, ns) in self.assign(grown) {
            let owner = part.output.and_then(|output| owners.get(usize::from(output)).copied());
            let encodes = matches!(part.stage, Stage::Encode | Stage::Audio);
            let owned = match (owner, weights.len()) {
                // Whatever the output, as where the command line has more of them than are known.
                (_, 1) => vec![(0, ns)],
                (Some(owner), _) => vec![(owner, ns)],
                (None, _) if encodes => divide_by(ns, &[weights]),
                (None, _) => {
                    common.push((part.stage, ns));
                    continue;
                }
            };
            let part = if owner.is_some() || weights.len() == 1 { part } else { StagePart::common(part.stage) };
            for (stream, ns) in owned {
                add(&mut all, (stream, part), ns);
                if let Some(sum) = encoded.get_mut(stream).filter(|_| encodes) {
                    *sum = sum.saturating_add(ns);
                }
            }
        }
        self.encoded.resize(weights.len(), 0);
        for (sum, ns) in self.encoded.iter_mut().zip(&encoded) {
            *sum = sum.saturating_add(*ns);
        }
        for (stage, ns) in common {
            for (stream, ns) in divide_by(ns, &[&encoded, &self.encoded, weights]) {
                add(&mut all, (stream, StagePart::common(stage)), ns);
            }
        }
        for since in &mut self.since_split {
            all.iter().for_each(|(key, ns)| add(since, *key, *ns));
        }
        all
    }
}

fn add(sums: &mut BTreeMap<StreamPart, u64>, key: StreamPart, ns: u64) {
    let sum = sums.entry(key).or_default();
    *sum = sum.saturating_add(ns);
}

/// Divides a time by the first of these weights that are not all zero; evenly if all are.
fn divide_by(ns: u64, weights: &[&[u64]]) -> Vec<(usize, u64)> {
    let known = weights.iter().find(|weights| weights.iter().any(|weight| *weight > 0));
    let count = weights.first().map_or(0, |weights| weights.len());
    let claims: Vec<(usize, u64)> = match known {
        Some(weights) => weights.iter().copied().enumerate().collect(),
        None => (0..count).map(|stream| (stream, 1)).collect(),
    };
    divide(ns, &claims)
}

/// CPU time and energy of one stream by part.
#[derive(Clone, Debug, Default)]
struct StreamTotals {
    ns: BTreeMap<StagePart, u64>,
    energy: BTreeMap<(Origin, StagePart), Microjoules>,
}

impl StreamTotals {
    /// True when a part other than `other` is known.
    fn is_known(&self) -> bool {
        self.ns.keys().any(|part| *part != StagePart::OTHER)
    }
}

/// The parts of all jobs since their start, and of all streams. `Id` is the identity of
/// a stream.
#[derive(Clone, Debug)]
pub(super) struct Stages<Id> {
    jobs: BTreeMap<u32, JobParts>,
    streams: BTreeMap<Id, StreamTotals>,
}

impl<Id> Default for Stages<Id> {
    fn default() -> Self {
        Self { jobs: BTreeMap::new(), streams: BTreeMap::new() }
    }
}

impl<Id: Ord + Clone> Stages<Id> {
    pub(super) fn begin(&mut self, number: u32, roots: usize) {
        let since_split = vec![BTreeMap::new(); roots];
        self.jobs.insert(number, JobParts { since_split, ..JobParts::default() });
    }

    pub(super) fn remove_job(&mut self, number: u32) {
        self.jobs.remove(&number);
    }

    /// Forgets a stream whose series ended.
    pub(super) fn remove_stream(&mut self, id: &Id) {
        self.streams.remove(id);
    }

    /// Forgets what a job ran since the last splits, which is charged to no root any more.
    pub(super) fn restart(&mut self, number: u32) {
        if let Some(job) = self.jobs.get_mut(&number) {
            job.since_split.iter_mut().for_each(BTreeMap::clear);
        }
    }

    /// Extends every job to `roots` accounting roots.
    pub(super) fn add_roots(&mut self, roots: usize) {
        for job in self.jobs.values_mut().filter(|job| job.since_split.len() < roots) {
            job.since_split.resize(roots, BTreeMap::new());
        }
    }

    /// Puts `new` accounting roots in the place of the first `old`.
    pub(super) fn replace_roots(&mut self, old: usize, new: usize) {
        for job in self.jobs.values_mut() {
            let old = old.min(job.since_split.len());
            job.since_split.splice(..old, std::iter::repeat_n(BTreeMap::new(), new));
        }
    }

    /// Notes the CPU time of the threads of a job, by part. Returns true when the encoders of all
    /// its outputs are known.
    pub(super) fn note(&mut self, number: u32, parts: &[(StagePart, u64)]) -> bool {
        let Some(job) = self.jobs.get_mut(&number) else { return false };
        for (part, ns) in parts {
            let read = job.read.entry(*part).or_default();
            *read = (*read).max(*ns);
        }
        job.by_output()
    }

    /// Adds `grown` nanoseconds of a job. `streams` are its streams and their weights, `owners` the
    /// index of the stream of each output.
    pub(super) fn advance(&mut self, number: u32, grown: u64, streams: &[(Id, u64, usize)], owners: &[usize]) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        if grown == 0 || streams.is_empty() {
            return;
        }
        let weights: Vec<u64> = streams.iter().map(|(_, weight, _)| *weight).collect();
        for ((stream, part), ns) in job.advance(grown, &weights, owners) {
            let Some((id, ..)) = streams.get(stream) else { continue };
            let sum = self.streams.entry(id.clone()).or_default().ns.entry(part).or_default();
            *sum = sum.saturating_add(ns);
        }
    }

    /// What a job ran since the last split of a root, by part; empty while no part is known.
    pub(super) fn take(&mut self, number: u32, root: usize) -> Vec<(StreamPart, u64)> {
        let Some(job) = self.jobs.get_mut(&number) else { return Vec::new() };
        let parts = job.since_split.get_mut(root).map(std::mem::take).unwrap_or_default();
        if job.read.is_empty() { Vec::new() } else { parts.into_iter().collect() }
    }

    pub(super) fn add_energy(&mut self, id: &Id, origin: Origin, part: StagePart, energy: Microjoules) {
        let totals = self.streams.entry(id.clone()).or_default();
        *totals.energy.entry((origin, part)).or_default() += energy;
    }

    /// Energy of one stream from one source by part; empty while no part is known.
    pub(super) fn energy(&self, id: &Id, origin: Origin) -> Vec<(StagePart, Microjoules)> {
        let Some(totals) = self.streams.get(id).filter(|totals| totals.is_known()) else { return Vec::new() };
        let of_origin = totals.energy.iter().filter(|((of, _), _)| *of == origin);
        of_origin.map(|((_, part), energy)| (*part, *energy)).collect()
    }

    /// CPU nanoseconds of every stream by part, without streams of which no part is known.
    pub(super) fn times(&self) -> impl Iterator<Item = (&Id, StageTimes)> {
        let known = self.streams.iter().filter(|(_, totals)| totals.is_known());
        known.map(|(id, totals)| (id, totals.ns.iter().map(|(part, ns)| (*part, *ns)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENCODE: [StagePart; 2] =
        [StagePart { stage: Stage::Encode, output: Some(0) }, StagePart { stage: Stage::Encode, output: Some(1) }];
    const DECODE: StagePart = StagePart { stage: Stage::Decode, output: None };

    /// A ladder of two streams, with weights 4 and 1 and one root.
    struct Ladder(Stages<&'static str>);

    impl Ladder {
        fn new() -> Self {
            let mut stages = Stages::default();
            stages.begin(1, 1);
            Self(stages)
        }

        /// The job grew by `grown` in a tick.
        fn grow(&mut self, grown: u64, read: &[(StagePart, u64)]) {
            self.0.note(1, read);
            self.0.advance(1, grown, &[("hi", 4, 0), ("lo", 1, 1)], &[0, 1]);
        }

        fn times(&self) -> Vec<(&'static str, StagePart, u64)> {
            let parts = |(id, times): (&&'static str, StageTimes)| {
                let id = *id;
                times.into_iter().map(move |(part, ns)| (id, part, ns))
            };
            self.0.times().flat_map(parts).collect()
        }
    }

    #[test]
    fn a_decoder_is_divided_by_what_the_encoders_ran() {
        let mut ladder = Ladder::new();
        ladder.grow(1100, &[(ENCODE[0], 700), (ENCODE[1], 300), (DECODE, 100)]);
        let first = [("hi", DECODE, 70), ("hi", ENCODE[0], 700), ("lo", DECODE, 30), ("lo", ENCODE[1], 300)];
        assert_eq!(ladder.times(), first);
        assert_eq!(ladder.0.take(1, 0).len(), 4);
        assert!(ladder.0.take(1, 0).is_empty(), "taken once");
        // One output has ended: the decoder works for the other from now on.
        ladder.grow(200, &[(ENCODE[0], 800), (ENCODE[1], 300), (DECODE, 200)]);
        let then = [("hi", DECODE, 170), ("hi", ENCODE[0], 800), ("lo", DECODE, 30), ("lo", ENCODE[1], 300)];
        assert_eq!(ladder.times(), then);
        // A tick in which no encoder ran: by what they ran so far, 800 to 300.
        ladder.grow(110, &[(DECODE, 310)]);
        assert_eq!([ladder.times()[0].2, ladder.times()[2].2], [250, 60]);
    }

    #[test]
    fn time_that_no_thread_accounts_for_is_other() {
        let mut ladder = Ladder::new();
        ladder.grow(1000, &[(ENCODE[0], 300), (ENCODE[1], 100)]);
        let other = |ladder: &Ladder| -> u64 {
            ladder.times().iter().filter(|(_, part, _)| *part == StagePart::OTHER).map(|(.., ns)| *ns).sum()
        };
        assert_eq!(other(&ladder), 600);
        // The threads were read later than the job: what is too much is assigned in the next tick.
        ladder.grow(10, &[(ENCODE[0], 320)]);
        ladder.grow(10, &[]);
        assert_eq!(other(&ladder), 600);
        assert_eq!(ladder.times()[0], ("hi", ENCODE[0], 320));
    }

    #[test]
    fn encoders_behind_one_filter_graph_are_divided_by_weight() {
        let mut ladder = Ladder::new();
        let (filter, workers) = (StagePart::common(Stage::Filter), StagePart::common(Stage::Encode));
        assert!(!ladder.0.note(1, &[(ENCODE[0], 1), (filter, 1)]), "which encoder a worker is of is unknown");
        ladder.grow(1000, &[(ENCODE[0], 0), (workers, 999)]);
        let encoded = |id: &str| -> u64 {
            let times = ladder.times();
            times.iter().filter(|(of, part, _)| *of == id && *part == workers).map(|(.., ns)| *ns).sum()
        };
        assert_eq!((encoded("hi") + encoded("lo"), encoded("lo")), (998, 200));
        let mut known = Ladder::new();
        assert!(known.0.note(1, &[(ENCODE[0], 1), (DECODE, 1)]));
        assert!(!Ladder::new().0.note(1, &[(StagePart::of_output(Stage::Mux, 0), 1)]), "no encoder has a name");
    }

    #[test]
    fn a_job_of_one_stream_keeps_the_numbers_of_its_outputs() {
        let mut stages = Stages::default();
        stages.begin(1, 0);
        stages.note(1, &[(ENCODE[0], 5), (ENCODE[1], 6), (DECODE, 7)]);
        stages.advance(1, 20, &[("cam", 1, 0)], &[0]);
        let (_, times) = stages.times().next().unwrap();
        assert_eq!(times, [(DECODE, 7), (ENCODE[0], 5), (ENCODE[1], 6), (StagePart::OTHER, 2)]);
    }

    #[test]
    fn a_job_without_known_stages_has_none() {
        let mut ladder = Ladder::new();
        ladder.grow(100, &[]);
        assert!(ladder.times().is_empty() && ladder.0.take(1, 0).is_empty());
        // The first part of it is other, when the stages are known later.
        ladder.grow(50, &[(ENCODE[0], 50)]);
        assert_eq!(ladder.times().iter().map(|(.., ns)| ns).sum::<u64>(), 130, "the stream without stages has 20");
    }

    proptest! {
        /// For any times of threads, the parts sum to the time of the job, and never fall.
        #[test]
        fn parts_of_streams_sum_to_their_job(
            ticks in prop::collection::vec((0u64..5000, prop::collection::vec(0u64..3000, 4)), 1..20),
        ) {
            let parts = [ENCODE[0], ENCODE[1], DECODE, StagePart::common(Stage::Encode)];
            let (mut ladder, mut read, mut grown, mut taken) = (Ladder::new(), [0u64; 4], 0, 0);
            let mut before: BTreeMap<(&str, StagePart), u64> = BTreeMap::new();
            ladder.grow(2, &parts.map(|part| (part, 0)));
            for (ns, ran) in ticks {
                read.iter_mut().zip(&ran).for_each(|(sum, ran)| *sum += ran);
                let now: Vec<_> = parts.into_iter().zip(read).collect();
                ladder.grow(ns, &now);
                grown += ns;
                taken += ladder.0.take(1, 0).iter().map(|(_, ns)| *ns).sum::<u64>();
                let all = ladder.0.streams.iter();
                let times: BTreeMap<_, _> =
                    all.flat_map(|(id, totals)| totals.ns.iter().map(move |(part, ns)| ((*id, *part), *ns))).collect();
                prop_assert_eq!(times.values().sum::<u64>(), grown + 2);
                prop_assert!(before.iter().all(|(key, ns)| times.get(key) >= Some(ns)));
                before = times;
            }
            prop_assert_eq!(taken, grown + 2);
        }
    }
}
